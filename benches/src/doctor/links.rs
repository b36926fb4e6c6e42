//! How fast bytes get from one place to the next: memory, checksum, codec.

use std::hint::black_box;

use kvist_kernels::entropy::Expw;
use kvist_kernels::{DType, Isa, copy};
use serde::Serialize;
use twox_hash::XxHash3_64;

use crate::arena::encode;
use crate::floor::{ReadLoop, best_copy, best_read, copy_seconds, read_seconds};
use crate::{Arena, Error, Repeats, Rng, Sample, interleave};

/// One link, measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Link {
    /// `copy`, `checksum`, `decode`, `disk_write`, `disk_latency`, `disk_read`, `disk_read_batched`.
    pub name: &'static str,
    /// What was done, for people.
    pub what: String,
    /// Bytes in a second: of the blocks' raw bytes for `decode`, else of those moved.
    pub bytes_per_s: f64,
    /// Median seconds of one call.
    pub seconds: f64,
    /// Bytes that a call moves.
    pub call_bytes: u64,
    /// Calls measured.
    pub repeats: usize,
    /// Distance between the quartiles of the calls' times over the median.
    pub spread: f64,
    /// What the machine gives at most, measured in the same run, in bytes in a second.
    pub limit: Option<f64>,
    /// What that limit is.
    pub limit_is: &'static str,
}

impl Link {
    pub(super) fn new(
        name: &'static str,
        what: String,
        call_bytes: usize,
        sample: Sample,
        limit: Option<f64>,
        limit_is: &'static str,
    ) -> Link {
        let (bytes_per_s, call_bytes) = (call_bytes as f64 / sample.median, call_bytes as u64);
        let Sample { median: seconds, repeats, spread, .. } = sample;
        Link { name, what, bytes_per_s, seconds, call_bytes, repeats, spread, limit, limit_is }
    }
}

/// Bytes that memory is measured over: more than most caches hold.
const SPAN: usize = 64 << 20;
/// Tokens and channels of a tile where no model is known.
pub(super) const TILE: (usize, usize) = (64, 128);

/// Copy and checksum of blocks of so many bytes, on one core, in about so many seconds.
pub(super) fn memory(block: usize, seconds: f64) -> Result<Vec<Link>, Error> {
    let (from, mut to) = (Arena::random(SPAN, DType::Bf16, 1)?, Arena::new(SPAN)?);
    to.bytes_mut().fill(1);
    let block = block.clamp(1, SPAN);
    let how = Repeats { exact: None, least: 3, seconds: seconds / 3.0 };
    let best = best_copy(from.bytes(), to.bytes_mut(), block);
    let mut into = Arena::new(SPAN)?;
    into.bytes_mut().fill(1);
    let blocks = || from.bytes().chunks(block);
    let floor = || copy_seconds(best, from.bytes(), to.bytes_mut(), block);
    let (limit, copied) = interleave(how, floor, || {
        blocks().zip(into.bytes_mut().chunks_mut(block)).for_each(|(a, b)| copy::streaming(a, b));
        black_box(into.bytes());
    });
    let per = |sample: Sample| SPAN as f64 / sample.median;
    let what = "copy in memory, one core".to_owned();
    let copied = Link::new("copy", what, SPAN, copied, Some(per(limit)), "the fastest copy loop");
    let read: ReadLoop = best_read(&from.bytes()[..SPAN / 4], 1);
    let floor = || read_seconds(read, from.bytes(), 1);
    let (limit, summed) = interleave(how, floor, || {
        black_box(blocks().fold(0, |all, block| all ^ XxHash3_64::oneshot(block)));
    });
    let what = "checksum, one core".to_owned();
    let summed = Link::new("checksum", what, SPAN, summed, Some(per(limit)), "reading the same");
    Ok(vec![copied, summed])
}

/// The lossless codec on made-up tiles of a shape.
pub(super) struct Coded {
    pub(super) link: Link,
    /// Bytes before over bytes after.
    pub(super) ratio: f64,
}

/// Decoding of tiles of `tokens` rows of `dim` numbers, on one core, in about so many seconds.
pub(super) fn decoding(
    dtype: DType,
    tokens: usize,
    dim: usize,
    seconds: f64,
) -> Result<Coded, Error> {
    let plan = Expw::new(dtype, tokens, dim)?;
    let tile = plan.decoded_len();
    let tiles = made_up(&plan);
    let mut room = vec![0; plan.max_encoded()];
    let encoded: Vec<Vec<u8>> = tiles
        .iter()
        .map(|t| plan.encode(Isa::level(), t, &mut room).map_or(Vec::new(), |n| room[..n].to_vec()))
        .filter(|t| !t.is_empty())
        .collect();
    if encoded.is_empty() {
        return Err(Error::subject("the lossless codec", "it made no tile smaller"));
    }
    // From memory and to memory: the same few tiles, but each from a place of its own.
    let count = (SPAN / 2 / tile).max(encoded.len());
    let coded: Vec<Vec<u8>> = (0..count).map(|i| encoded[i % encoded.len()].clone()).collect();
    let mut out = Arena::new(count * tile)?;
    let raw = Arena::random(count * tile, dtype, 2)?;
    let mut plain = Arena::new(count * tile)?;
    let mut fine = true;
    let how = Repeats { exact: None, least: 3, seconds };
    let floor =
        || copy_seconds(crate::floor::CopyLoop::Plain, raw.bytes(), plain.bytes_mut(), tile);
    let (limit, sample) = interleave(how, floor, || {
        for (coded, out) in coded.iter().zip(out.bytes_mut().chunks_exact_mut(tile)) {
            fine &= plan.decode(Isa::level(), coded, out).is_ok();
        }
    });
    if !fine {
        return Err(Error::subject("the lossless codec", "a tile does not decode"));
    }
    let limit = raw.bytes().len() as f64 / limit.median;
    let what = format!("lossless decode of {dtype}, one core");
    let stored: usize = encoded.iter().map(Vec::len).sum();
    Ok(Coded {
        link: Link::new("decode", what, count * tile, sample, Some(limit), "memcpy"),
        ratio: (encoded.len() * tile) as f64 / stored as f64,
    })
}

/// Normal numbers, larger in some channels than in others.
fn made_up(plan: &Expw) -> Vec<Vec<u8>> {
    let mut rng = Rng::new(7);
    let size: Vec<f32> = (0..plan.dim()).map(|_| (2.0 * rng.normal()).exp2()).collect();
    let mut tile = || {
        let row = |_| size.iter().map(|s| s * rng.normal()).collect::<Vec<f32>>();
        encode(plan.dtype(), &(0..plan.tokens()).flat_map(row).collect::<Vec<f32>>())
    };
    (0..16).map(|_| tile()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_memory_have_a_speed_and_a_limit() {
        let links = memory(1 << 20, 0.0).unwrap();
        let names: Vec<&str> = links.iter().map(|l| l.name).collect();
        assert_eq!(names, ["copy", "checksum"]);
        for link in links {
            assert!(link.bytes_per_s > 1e6 && link.limit.unwrap() > 1e6 && link.repeats >= 3);
            assert!((link.bytes_per_s * link.seconds - SPAN as f64).abs() < 1.0);
        }
    }

    #[test]
    fn made_up_tiles_shrink_as_the_codec_says() {
        for dtype in [DType::Bf16, DType::F32] {
            let coded = decoding(dtype, 16, 64, 0.0).unwrap();
            assert!((1.02..2.0).contains(&coded.ratio), "{}", coded.ratio);
            assert!(coded.link.bytes_per_s > 1e6);
        }
        assert!(decoding(DType::Bf16, 16, 10_000, 0.0).is_err());
    }
}
