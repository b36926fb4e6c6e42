//! Bytes of a file, shared between copies: cloning is one reference count, a write copies at most
//! the 4 KiB chunks at its two ends.

use std::ops::Range;
use std::sync::Arc;

use super::rng::Rng;

/// What a disk writes as a whole.
pub(super) const SECTOR: u64 = 512;
pub(super) const CHUNK: usize = 4096;
/// Chunks under one leaf; two levels, so that a write into a large file copies few pointers.
const FAN: usize = 64;

type Chunk = [u8; CHUNK];
type Leaf = [Option<Arc<Chunk>>; FAN];

/// A sparse run of bytes; missing chunks are zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    root: Arc<Vec<Option<Arc<Leaf>>>>,
}

/// The part of a write that fell into one chunk. It shares the chunk with the file it was written
/// to; only `range` of it belongs to the write.
#[derive(Clone, Debug)]
struct Piece {
    index: usize,
    range: Range<usize>,
    chunk: Arc<Chunk>,
}

/// A change that is not durable yet: a write, or without pieces a change of length.
#[derive(Debug)]
pub(super) struct Write {
    /// Place in the order of all writes of the disk.
    pub(super) seq: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Whether the file ends at `offset` before the rest happens.
    cut: bool,
    pieces: Vec<Piece>,
}

impl Write {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }

    pub(super) fn has_data(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// A change of length alone.
    pub(super) fn extend(seq: u64, offset: u64, len: u64) -> Write {
        Write { seq, offset, len, cut: false, pieces: Vec::new() }
    }

    /// A file that becomes shorter.
    pub(super) fn cut(seq: u64, offset: u64) -> Write {
        Write { seq, offset, len: 0, cut: true, pieces: Vec::new() }
    }
}

impl Content {
    pub(super) fn from_bytes(bytes: &[u8]) -> Content {
        let mut content = Content::default();
        content.overwrite(0, bytes);
        content
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether both are one copy: no false positives, and no byte is looked at.
    pub(super) fn same(&self, other: &Content) -> bool {
        self.len == other.len && Arc::ptr_eq(&self.root, &other.root)
    }

    /// Bytes of the chunks that exist.
    pub(super) fn allocated(&self) -> u64 {
        let chunks = self.root.iter().flatten().flat_map(|leaf| leaf.iter().flatten()).count();
        (chunks * CHUNK) as u64
    }

    /// Bytes that writing `range` would add to [`Content::allocated`].
    pub(super) fn growth(&self, range: Range<u64>) -> u64 {
        let new = pieces(range).filter(|(index, _)| self.chunk(*index).is_none()).count();
        (new * CHUNK) as u64
    }

    fn chunk(&self, index: usize) -> Option<&Arc<Chunk>> {
        self.root.get(index / FAN)?.as_ref()?[index % FAN].as_ref()
    }

    fn slot(&mut self, index: usize) -> &mut Option<Arc<Chunk>> {
        let root = Arc::make_mut(&mut self.root);
        if root.len() <= index / FAN {
            root.resize(index / FAN + 1, None);
        }
        let leaf = root[index / FAN].get_or_insert_with(|| Arc::new([const { None }; FAN]));
        &mut Arc::make_mut(leaf)[index % FAN]
    }

    /// The chunk for writing, made of zeros if it is missing.
    fn chunk_mut(&mut self, index: usize) -> &mut Chunk {
        Arc::make_mut(self.slot(index).get_or_insert_with(|| Arc::new([0; CHUNK])))
    }

    /// Fills `out` from `offset` on; what lies past the end stays as it is.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let len = self.len.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        for (index, range) in pieces(offset..offset + len as u64) {
            let out = &mut out[done..done + range.len()];
            done += range.len();
            match self.chunk(index) {
                Some(chunk) => out.copy_from_slice(&chunk[range]),
                None => out.fill(0),
            }
        }
        len
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// Writes and remembers what was written.
    pub(super) fn write(&mut self, seq: u64, offset: u64, data: &[u8]) -> Write {
        let end = offset + data.len() as u64;
        let mut done = 0;
        let mut kept = Vec::with_capacity(data.len() / CHUNK + 2);
        for (index, range) in pieces(offset..end) {
            let part = &data[done..done + range.len()];
            done += range.len();
            let slot = self.slot(index);
            match part.first_chunk::<CHUNK>() {
                Some(whole) => *slot = Some(Arc::new(*whole)),
                None => {
                    let chunk = slot.get_or_insert_with(|| Arc::new([0; CHUNK]));
                    Arc::make_mut(chunk)[range.clone()].copy_from_slice(part);
                }
            }
            kept.extend(slot.clone().map(|chunk| Piece { index, range, chunk }));
        }
        self.len = self.len.max(end);
        Write { seq, offset, len: data.len() as u64, cut: false, pieces: kept }
    }

    /// Writes bytes that nothing has to remember.
    pub(super) fn overwrite(&mut self, offset: u64, data: &[u8]) {
        self.write(0, offset, data);
    }

    /// Repeats the part of a write that lies in `part`, counted from the write's start.
    pub(super) fn apply(&mut self, write: &Write, part: Range<u64>) {
        let (from, to) = (write.offset + part.start, write.offset + part.end);
        if write.cut {
            self.cut(write.offset);
        }
        for piece in &write.pieces {
            let base = (piece.index * CHUNK) as u64;
            let start = piece.range.start.max(from.saturating_sub(base) as usize);
            let end = piece.range.end.min(to.saturating_sub(base) as usize);
            if start >= end {
                continue;
            }
            if end - start == CHUNK {
                *self.slot(piece.index) = Some(piece.chunk.clone());
            } else {
                self.chunk_mut(piece.index)[start..end].copy_from_slice(&piece.chunk[start..end]);
            }
        }
        self.extend(to);
    }

    /// Grows to `len` bytes if it is shorter.
    pub(super) fn extend(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Cuts to `len` bytes if it is longer.
    pub(super) fn cut(&mut self, len: u64) {
        if len < self.len {
            // What comes back when the file grows again is zeros.
            self.zero(len..self.len);
            self.len = len;
        }
    }

    /// Makes a range zeros without changing the length.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        for (index, range) in pieces(range) {
            if self.chunk(index).is_none() {
                continue;
            }
            if range.len() == CHUNK {
                *self.slot(index) = None;
            } else {
                self.chunk_mut(index)[range].fill(0);
            }
        }
    }

    /// Puts noise into a range, growing to hold it.
    pub(super) fn scramble(&mut self, range: Range<u64>, rng: &mut Rng) {
        for (index, part) in pieces(range.clone()) {
            rng.fill(&mut self.chunk_mut(index)[part]);
        }
        self.extend(range.end);
    }

    /// Takes on other bytes, keeping the chunks that are equal.
    pub(super) fn replace(&mut self, bytes: &[u8]) {
        self.cut(bytes.len() as u64);
        for (index, part) in bytes.chunks(CHUNK).enumerate() {
            let equal = match self.chunk(index) {
                Some(chunk) => chunk[..part.len()] == *part,
                None => part.iter().all(|&b| b == 0),
            };
            if !equal {
                self.chunk_mut(index)[..part.len()].copy_from_slice(part);
            }
        }
        self.len = bytes.len() as u64;
    }
}

/// The chunks a range of bytes touches, and where in each.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let index = (at / CHUNK as u64) as usize;
        let start = (at % CHUNK as u64) as usize;
        let end = CHUNK.min(start + (range.end - at) as usize);
        at += (end - start) as u64;
        Some((index, start..end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random writes, cuts and zeros, against a plain vector.
    #[test]
    fn content_behaves_like_a_vector() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let (mut content, mut plain) = (Content::default(), Vec::new());
            for _ in 0..30 {
                let offset = rng.below(600_000);
                let most = if rng.coin() { 20_000 } else { 600 };
                let len = 1 + rng.below(most);
                match rng.below(6) {
                    0 => {
                        content.cut(offset);
                        plain.truncate(offset as usize);
                    }
                    1 => {
                        let end = (offset + len).min(plain.len() as u64);
                        content.zero(offset..end);
                        plain
                            .iter_mut()
                            .take(end as usize)
                            .skip(offset as usize)
                            .for_each(|b| *b = 0);
                    }
                    _ => {
                        let mut data = vec![0; len as usize];
                        rng.fill(&mut data);
                        content.overwrite(offset, &data);
                        plain.resize(plain.len().max((offset + len) as usize), 0);
                        plain[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                    }
                }
                assert_eq!(content.len(), plain.len() as u64);
            }
            assert_eq!(content.to_vec(), plain, "seed {seed}");
            let before = content.clone();
            content.replace(&plain);
            assert!(content.same(&before), "nothing to replace, nothing copied");
        }
    }

    #[test]
    fn a_part_of_a_write_is_repeated_on_another_copy() {
        let mut data = vec![0; 10_000];
        Rng::new(1).fill(&mut data);
        let mut first = Content::default();
        let write = first.write(0, 300, &data);
        first.overwrite(0, &[9; 5000]); // a later write must not change what the first one wrote
        for part in [0..10_000u64, 0..212, 212..5000, 3796..7892, 9999..10_000] {
            let mut copy = Content::default();
            copy.apply(&write, part.clone());
            let mut expected = vec![0; 300 + part.end as usize];
            expected[300 + part.start as usize..]
                .copy_from_slice(&data[part.start as usize..part.end as usize]);
            assert_eq!(copy.to_vec(), expected);
        }
    }

    #[test]
    fn copies_are_independent() {
        let mut first = Content::from_bytes(&[1; 9000]);
        let second = first.clone();
        first.overwrite(4096, &[2; 4096]);
        assert_eq!(second.to_vec(), vec![1; 9000]);
        assert_eq!(first.growth(8192..20_000), 8192);
    }
}
