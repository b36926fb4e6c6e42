//! Which codec chunks travel with, so that they arrive before they are needed and lose as little as may be.
//!
//! Source: dynamic compression of LeoAM (arXiv 2506.20187); the rule is kvist's.

/// A codec that chunks could be sent with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Raw bytes for each byte sent, above 0; 1 sends them as they are.
    pub ratio: f64,
    /// Raw bytes decoded in a second, above 0; infinite where nothing is decoded.
    pub decode: f64,
    /// How much it loses, in any unit; 0 is lossless.
    pub loss: f64,
}

/// A chunk to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chunk {
    /// Raw bytes.
    pub bytes: u64,
    /// How much attention it is expected to get; NaN is the most.
    pub weight: f32,
}

/// A running mean of a rate: bytes by what they took, be it seconds or other bytes. What lies 64 MiB back counts
/// half.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    bytes: f64,
    took: f64,
}

/// Bytes after which what was seen before counts half.
const HALF: f64 = (64 << 20) as f64;

impl Mean {
    /// So many bytes took so much; what is not a number of at least 0 is left out.
    pub fn saw(&mut self, bytes: u64, took: f64) {
        if !(took >= 0.0 && took.is_finite()) || bytes == 0 {
            return;
        }
        let left = (-(bytes as f64) / HALF).exp2();
        self.bytes = self.bytes * left + bytes as f64;
        self.took = self.took * left + took;
    }

    /// Bytes by what they take; `None` before any were seen, infinite where they take nothing.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        (self.bytes > 0.0).then(|| self.bytes / self.took)
    }
}

/// The heaviest of so many chunks stay lossless.
const LOSSLESS_OF: usize = 10;

impl Offer {
    /// Seconds to send and then decode so many bytes.
    #[must_use]
    pub fn seconds(&self, bytes: u64, link: f64) -> f64 {
        let bytes = bytes as f64;
        bytes / self.ratio / link + bytes / self.decode
    }
}

/// By chunk, which of the `offers` to take: the heaviest tenth, rounded up, the quickest that is lossless;
/// all others the one that loses least of those with which the time of all chunks, one after the other over
/// a link of `link` bytes a second and decoded, is at most `compute` seconds, the quickest if there is none.
/// Ties go to the earlier offer, and to the earlier chunk.
///
/// `None` if no offer is lossless, or if one says something that is not a number above 0.
#[must_use]
pub fn choose(offers: &[Offer], chunks: &[Chunk], link: f64, compute: f64) -> Option<Vec<usize>> {
    let fits = |o: &Offer| o.ratio > 0.0 && o.ratio.is_finite() && o.decode > 0.0 && o.loss >= 0.0;
    if !offers.iter().all(fits) || link.is_nan() || link <= 0.0 {
        return None;
    }
    let pace = |i: &usize| offers[*i].seconds(1 << 20, link);
    let quickest = |of: &mut dyn Iterator<Item = usize>| {
        of.min_by(|a, b| pace(a).total_cmp(&pace(b)).then(a.cmp(b)))
    };
    let lossless = quickest(&mut (0..offers.len()).filter(|&i| offers[i].loss == 0.0))?;
    let mut by_weight: Vec<usize> = (0..chunks.len()).collect();
    let heavy = |i: &usize| match chunks[*i].weight {
        w if w.is_nan() => f32::INFINITY,
        w => w,
    };
    by_weight.sort_by(|a, b| heavy(b).total_cmp(&heavy(a)));
    let (kept, rest) = by_weight.split_at(chunks.len().div_ceil(LOSSLESS_OF));
    let bytes = |of: &[usize]| of.iter().map(|&i| chunks[i].bytes).sum::<u64>();
    let left = compute - offers[lossless].seconds(bytes(kept), link);
    let rest_bytes = bytes(rest);
    let in_time = |i: &usize| offers[*i].seconds(rest_bytes, link) <= left;
    let least = |a: &usize, b: &usize| offers[*a].loss.total_cmp(&offers[*b].loss);
    // Of those that lose the same, the quickest.
    let in_time = (0..offers.len()).filter(in_time);
    let chosen = in_time.min_by(|a, b| least(a, b).then(pace(a).total_cmp(&pace(b))));
    let chosen = chosen.or_else(|| quickest(&mut (0..offers.len()))).unwrap_or(lossless);
    let mut taken = vec![chosen; chunks.len()];
    kept.iter().for_each(|&i| taken[i] = lossless);
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Offer = Offer { ratio: 1.0, decode: f64::INFINITY, loss: 0.0 };
    const INT8: Offer = Offer { ratio: 2.0, decode: 20e9, loss: 0.01 };
    const INT4: Offer = Offer { ratio: 4.0, decode: 15e9, loss: 0.1 };

    fn chunks(n: usize) -> Vec<Chunk> {
        (0..n).map(|i| Chunk { bytes: 1_000_000, weight: i as f32 }).collect()
    }

    #[test]
    fn the_least_lossy_that_is_in_time() {
        let offers = [INT4, NONE, INT8];
        let all = |compute: f64| choose(&offers, &chunks(10), 1e9, compute).unwrap();
        // As they are: 10 ms. One of ten stays so: 1 ms; the others in int8 take 4.95 ms, in int4 2.85.
        assert_eq!(all(0.011), [1; 10]);
        assert_eq!(all(0.006), [2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
        assert_eq!(all(0.004), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(all(0.0), all(0.004), "the quickest where nothing is in time");
        assert_eq!(all(f64::INFINITY), [1; 10]);
    }

    #[test]
    fn a_codec_that_decodes_slowly_is_not_quick() {
        let slow = Offer { ratio: 4.0, decode: 1e8, loss: 0.0 };
        assert_eq!(choose(&[slow, NONE], &chunks(3), 1e9, 0.0).unwrap(), [1; 3]);
        assert_eq!(choose(&[slow, NONE], &chunks(3), 1e7, 0.0).unwrap(), [0; 3]);
    }

    #[test]
    fn a_mean_forgets() {
        let mut mean = Mean::default();
        assert_eq!(mean.rate(), None);
        mean.saw(0, 1.0);
        mean.saw(100, f64::NAN);
        mean.saw(100, -1.0);
        assert_eq!(mean.rate(), None);
        mean.saw(100, 0.0);
        assert_eq!(mean.rate(), Some(f64::INFINITY));
        mean.saw(64 << 20, 1.0);
        let near = |mean: &Mean, rate: f64| (mean.rate().unwrap() / rate - 1.0).abs() < 1e-3;
        assert!(near(&mean, f64::from(64 << 20)));
        // Half of what was before, and twice as fast.
        mean.saw(64 << 20, 0.5);
        assert!(near(&mean, f64::from(96 << 20)));
        (0..40).for_each(|_| mean.saw(64 << 20, 0.25));
        assert!(near(&mean, f64::from(256 << 20)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(choose(&[INT8], &chunks(2), 1e9, 1.0), None);
        assert_eq!(choose(&[], &chunks(2), 1e9, 1.0), None);
        assert_eq!(choose(&[NONE], &chunks(2), 0.0, 1.0), None);
        assert_eq!(choose(&[NONE, Offer { ratio: f64::NAN, ..INT8 }], &chunks(2), 1e9, 1.0), None);
        assert_eq!(choose(&[NONE], &[], 1e9, 1.0), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn as_an_exhaustive_look_says(
            sizes in prop::collection::vec((1u64..1000, 0u8..5), 0..40),
            codecs in prop::collection::vec((1u32..8, 1u32..9, 0u32..4), 1..6),
            link in 1u32..50, compute in 0u32..4000, nan in any::<bool>(),
        ) {
            let weight = |w: u8| if w == 4 && nan { f32::NAN } else { f32::from(w) };
            let chunks: Vec<Chunk> =
                sizes.iter().map(|&(bytes, w)| Chunk { bytes, weight: weight(w) }).collect();
            let offer = |&(ratio, decode, loss): &(u32, u32, u32)| {
                Offer { ratio: ratio.into(), decode: decode.into(), loss: loss.into() }
            };
            let mut offers: Vec<Offer> = codecs.iter().map(offer).collect();
            offers.push(NONE);
            let (link, compute) = (f64::from(link), f64::from(compute));
            let found = choose(&offers, &chunks, link, compute).unwrap();
            // The heaviest tenth is lossless, and nothing heavier is outside of it.
            let heavy = |i: usize| if chunks[i].weight.is_nan() { 9.0 } else { chunks[i].weight };
            let tenth = chunks.len().div_ceil(10);
            let lighter = |i: usize| (0..chunks.len()).filter(|&j| heavy(j) > heavy(i) || (heavy(j) == heavy(i) && j < i)).count();
            let mut rest = None;
            let mut bytes = [0u64; 2];
            for (i, chunk) in chunks.iter().enumerate() {
                if lighter(i) < tenth {
                    prop_assert_eq!(offers[found[i]].loss, 0.0);
                    bytes[0] += chunk.bytes;
                } else {
                    prop_assert_eq!(*rest.get_or_insert(found[i]), found[i], "one for all others");
                    bytes[1] += chunk.bytes;
                }
            }
            let (Some(first), Some(rest)) = (found.iter().zip(&chunks).enumerate().find(|(i, _)| lighter(*i) < tenth), rest) else { return Ok(()) };
            let time = |i: usize| offers[*first.1.0].seconds(bytes[0], link) + offers[i].seconds(bytes[1], link);
            // Near the limit rounding may say either.
            let clear = |i: usize| (time(i) - compute).abs() > 1e-6 * time(i);
            prop_assume!((0..offers.len()).all(clear));
            let in_time: Vec<usize> = (0..offers.len()).filter(|&i| time(i) <= compute).collect();
            match in_time.iter().map(|&i| offers[i].loss).reduce(f64::min) {
                Some(least) => {
                    prop_assert!(in_time.contains(&rest));
                    prop_assert_eq!(offers[rest].loss, least);
                }
                None => prop_assert!((0..offers.len()).all(|i| time(rest) <= time(i) * (1.0 + 1e-12))),
            }
        }
    }
}
