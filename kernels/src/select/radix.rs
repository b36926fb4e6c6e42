//! Order statistics by radix descent on monotone integer keys.

/// Bits of the three digits, most significant first.
const DIGITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];
const BINS: usize = 1 << 11;
/// Shorter lists are not worth the counters.
const FEW: usize = 1024;
/// Interleaved counters of the first digit: equal neighbours would wait for each other's store.
const BANKS: usize = 4;

/// Maps a number to an integer of the same order; NaN counts as +inf, -0 as +0.
#[inline(always)]
pub(super) fn key(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    let key = bits ^ ((bits as i32 >> 31) as u32 | 0x8000_0000);
    if x.is_nan() { key_of_infinity() } else { key }
}

const fn key_of_infinity() -> u32 {
    f32::INFINITY.to_bits() ^ 0x8000_0000
}

/// The number of a key.
pub(super) fn value(key: u32) -> f32 {
    f32::from_bits(if key & 0x8000_0000 != 0 { key ^ 0x8000_0000 } else { !key })
}

/// Counts the first digit of every key.
fn count_first(keys: impl Iterator<Item = u32>) -> [u32; BINS] {
    let mut banks = [[0u32; BINS]; BANKS];
    for (i, key) in keys.enumerate() {
        banks[i % BANKS][(key >> DIGITS[0].0) as usize] += 1;
    }
    let [mut sum, rest @ ..] = banks;
    for bank in rest {
        sum.iter_mut().zip(bank).for_each(|(s, b)| *s += b);
    }
    sum
}

/// The highest bin at which the count from above reaches `k`, and the count above that bin.
fn find(bins: &[u32], k: usize) -> (usize, usize) {
    let mut above = 0;
    for (bin, &n) in bins.iter().enumerate().rev() {
        if above + n as usize >= k {
            return (bin, above);
        }
        above += n as usize;
    }
    (0, above)
}

/// The k-th largest key, `1 <= k <= weights.len()`. `buffer` is scratch.
pub(super) fn kth(weights: &[f32], k: usize, buffer: &mut Vec<u32>) -> u32 {
    debug_assert!((1..=weights.len()).contains(&k));
    if weights.len() <= FEW {
        buffer.clear();
        buffer.extend(weights.iter().map(|&x| key(x)));
        return *buffer.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1;
    }
    let bins = count_first(weights.iter().map(|&x| key(x)));
    let (bin, above) = find(&bins, k);
    collect(weights, bin as u32, bins[bin] as usize, buffer);
    let (mut k, mut high) = (k - above, bin as u32);
    for (shift, bits) in &DIGITS[1..] {
        let mask = (1u32 << bits) - 1;
        let mut bins = [0u32; BINS];
        for key in &*buffer {
            bins[(key >> shift & mask) as usize] += 1;
        }
        let (bin, above) = find(&bins[..1 << bits], k);
        k -= above;
        high = high << bits | bin as u32;
        buffer.retain(|key| key >> shift == high);
    }
    high
}

/// Gathers the `count` keys whose first digit is `bin`.
fn collect(weights: &[f32], bin: u32, count: usize, buffer: &mut Vec<u32>) {
    buffer.clear();
    buffer.resize(count + 1, 0);
    let mut found = 0;
    for &x in weights {
        let key = key(x);
        // Without a branch: the slot behind the last one takes what does not belong.
        buffer[found] = key;
        found += usize::from(key >> DIGITS[0].0 == bin);
    }
    buffer.truncate(count);
}

/// How many of the largest weights reach `target`, and down to which key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Units chosen.
    pub(super) count: usize,
    /// Key of the last one.
    pub(super) key: u32,
    /// Sum of the chosen weights.
    pub(super) mass: f64,
}

/// Running count and mass of what is chosen so far.
#[derive(Clone, Copy)]
struct Taken {
    count: usize,
    mass: f64,
    target: f64,
    min: usize,
}

impl Taken {
    fn enough(&self) -> bool {
        self.mass >= self.target && self.count >= self.min
    }

    fn with(self, count: u32, mass: f64) -> Taken {
        Taken { count: self.count + count as usize, mass: self.mass + mass, ..self }
    }
}

/// A weight's part of the mass: NaN and infinities have none.
fn mass(x: f32) -> f64 {
    if x.is_finite() { f64::from(x) } else { 0.0 }
}

/// Fewest of the largest weights, at least `min`, that sum to `target`; all if they do not.
/// Weights are not negative. `buffer` is scratch.
pub(super) fn reach(weights: &[f32], target: f64, min: usize, buffer: &mut Vec<u32>) -> Cut {
    let mut taken = Taken { count: 0, mass: 0.0, target, min };
    buffer.clear();
    buffer.extend(weights.iter().map(|&x| key(x)));
    let mut high = 0;
    if taken.enough() {
        return Cut { count: 0, key: u32::MAX, mass: 0.0 };
    }
    for (shift, bits) in DIGITS {
        let mask = (1u32 << bits) - 1;
        let mut bins = [(0u32, 0f64); BINS];
        for &key in &*buffer {
            let bin = &mut bins[(key >> shift & mask) as usize];
            *bin = (bin.0 + 1, bin.1 + mass(value(key)));
        }
        let bin = descend(&bins[..1 << bits], buffer.len(), &mut taken);
        high = high << bits | bin as u32;
        buffer.retain(|key| key >> shift == high);
    }
    let one = mass(value(high));
    for _ in 0..buffer.len() {
        taken = taken.with(1, one);
        if taken.enough() {
            break;
        }
    }
    Cut { count: taken.count, key: high, mass: taken.mass }
}

/// Takes whole bins from above as long as that is not enough; returns the bin that must be cut. That
/// is the last one at the latest: sums in another order may round to less than they did before.
fn descend(bins: &[(u32, f64)], mut left: usize, taken: &mut Taken) -> usize {
    for (bin, &(n, m)) in bins.iter().enumerate().rev() {
        if n == 0 {
            continue;
        }
        let more = taken.with(n, m);
        if more.enough() || left == n as usize {
            return bin;
        }
        left -= n as usize;
        *taken = more;
    }
    0
}
