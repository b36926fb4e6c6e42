//! Huge-page memory full of random numbers, as a store would hold it.

use half::{bf16, f16};
use kvist_kernels::DType;
use memmap2::MmapMut;

use crate::{Error, Rng};

const HUGE: usize = 2 << 20;

/// Anonymous memory whose usable part begins at a multiple of 2 MiB.
pub struct Arena {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl Arena {
    /// At least `bytes` of memory, rounded up to 2 MiB, backed by huge pages where the system
    /// grants them.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has not that much.
    pub fn new(bytes: usize) -> Result<Arena, Error> {
        let len = bytes.max(1).next_multiple_of(HUGE);
        let map =
            MmapMut::map_anon(len + HUGE).map_err(Error::io(format!("mapping {len} bytes")))?;
        let start = map.as_ptr().align_offset(HUGE);
        #[cfg(target_os = "linux")]
        // A refusal costs speed only, and the header of the report says it.
        let _ = map.advise_range(memmap2::Advice::HugePage, start, len);
        Ok(Arena { map, start, len })
    }

    /// Memory full of close-to-normal numbers of `dtype`: never zeros, nowhere the same page.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn random(bytes: usize, dtype: DType, seed: u64) -> Result<Arena, Error> {
        let mut arena = Arena::new(bytes)?;
        let mut rng = Rng::new(seed);
        let pattern = encode(dtype, &rng.normals((1 << 20) / dtype.size()));
        for chunk in arena.bytes_mut().chunks_mut(1 << 14) {
            // A new place of the pattern for each 16 KiB.
            let at = rng.below((pattern.len() - chunk.len()) / 64) * 64;
            chunk.copy_from_slice(&pattern[at..at + chunk.len()]);
        }
        Ok(arena)
    }

    /// The usable bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }

    /// The usable bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.len]
    }
}

/// Numbers as the bytes of a dtype, native-endian.
pub(crate) fn encode(dtype: DType, numbers: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(numbers.len() * dtype.size());
    for &x in numbers {
        match dtype {
            DType::F32 => bytes.extend(x.to_ne_bytes()),
            DType::F16 => bytes.extend(f16::from_f32(x).to_ne_bytes()),
            DType::Bf16 => bytes.extend(bf16::from_f32(x).to_ne_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_are_aligned_and_random() {
        let arena = Arena::random(3 << 20, DType::Bf16, 1).unwrap();
        assert_eq!(arena.bytes().as_ptr() as usize % HUGE, 0);
        assert_eq!(arena.bytes().len(), 4 << 20);
        let (a, b) = arena.bytes().split_at(2 << 20);
        assert_ne!(a, b);
    }
}
