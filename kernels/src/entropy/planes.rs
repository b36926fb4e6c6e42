//! Bit planes: bit `i` of each of `n` planes belongs to entry `i`. Blocks of 64 entries have one 64-bit
//! word per plane; a short last block has as many whole bytes per plane as it needs, zero-padded.

/// Entries of a block.
pub(crate) const CHUNK: usize = 64;

/// Bytes of `n` planes of `len` entries.
pub(crate) const fn planes_len(len: usize, n: usize) -> usize {
    n * (len / CHUNK * 8 + (len % CHUNK).div_ceil(8))
}

/// Bytes of one plane in the block that begins at entry `first`.
#[inline(always)]
fn stride(len: usize, first: usize) -> usize {
    (len - first).min(CHUNK).div_ceil(8)
}

/// Byte of entry `i` in plane `j`; the bit is `i % 8`.
fn place(len: usize, n: usize, i: usize, j: usize) -> usize {
    let first = i / CHUNK * CHUNK;
    first / 8 * n + j * stride(len, first) + (i - first) / 8
}

/// The `n` bits of entry `i`, plane 0 lowest.
pub(crate) fn entry(planes: &[u8], len: usize, n: usize, i: usize) -> u8 {
    (0..n).fold(0, |bits, j| bits | (planes[place(len, n, i, j)] >> (i % 8) & 1) << j)
}

/// Sets the bits of entry `i`, which must be zero before.
pub(crate) fn set_entry(planes: &mut [u8], len: usize, n: usize, i: usize, bits: u8) {
    for j in 0..n {
        planes[place(len, n, i, j)] |= (bits >> j & 1) << (i % 8);
    }
}

/// Word `j` of the short last block of `n` planes. What lies behind the planes may be in the slice, and
/// is better there: then a whole word can be read.
#[inline(always)]
pub(crate) fn last_word(planes: &[u8], len: usize, n: usize, j: usize) -> u64 {
    let first = len / CHUNK * CHUNK;
    let stride = stride(len, first);
    let plane = &planes[first / 8 * n + j * stride..];
    match plane.first_chunk() {
        Some(word) => u64::from_le_bytes(*word) & (!0 >> (64 - 8 * stride)),
        None => plane[..stride].iter().rfold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

/// Writes the words of the short last block.
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) fn put_last_words<const N: usize>(planes: &mut [u8], len: usize, words: [u64; N]) {
    let first = len / CHUNK * CHUNK;
    let block = &mut planes[first / 8 * N..];
    for (bytes, word) in block.chunks_exact_mut(stride(len, first)).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

/// Whether the bits behind the last entry of `n` planes are zero.
#[inline(always)]
pub(crate) fn padded(planes: &[u8], len: usize, n: usize) -> bool {
    len.is_multiple_of(CHUNK) || (0..n).all(|j| last_word(planes, len, n, j) >> (len % CHUNK) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_blocks_are_the_same_bits() {
        for len in [1, 7, 8, 9, 63, 64, 65, 130, 192] {
            let mut planes = vec![0u8; planes_len(len, 3)];
            (0..len).for_each(|i| set_entry(&mut planes, len, 3, i, (i * 5 % 8) as u8));
            assert!((0..len).all(|i| entry(&planes, len, 3, i) == (i * 5 % 8) as u8));
            assert!(padded(&planes, len, 3));
            if !len.is_multiple_of(CHUNK) {
                let words = [0, 1, 2].map(|j| last_word(&planes, len, 3, j));
                let first = len / CHUNK * CHUNK;
                let bit = |j: usize, i: usize| (words[j] >> (i - first) & 1) as u8;
                assert!(
                    (first..len)
                        .all(|i| (0..3).all(|j| bit(j, i) == entry(&planes, len, 3, i) >> j & 1))
                );
                let mut again = planes.clone();
                again[first / 8 * 3..].fill(0);
                put_last_words(&mut again, len, words);
                assert_eq!(again, planes);
                let mut beyond = words;
                beyond[2] |= 1 << (len % CHUNK);
                put_last_words(&mut again, len, beyond);
                assert_eq!(padded(&again, len, 3), len.is_multiple_of(8));
            }
        }
    }
}
