//! One transfer, and the memory that belongs to it.

use std::io;
use std::sync::Arc;

use super::{Buf, File};

/// Direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the file into memory.
    Read,
    /// From memory into the file.
    Write,
}

/// Most inserts of an operation: more stretches of memory than a kernel takes in one call are refused.
pub const INSERTS_MAX: usize = 500;

/// One transfer of a batch, between `file[offset..]` and memory: `buf`, with inserts between its
/// bytes.
#[derive(Debug)]
pub struct Op {
    /// The file.
    pub file: Arc<dyn File>,
    /// The direction.
    pub transfer: Transfer,
    /// Where in the file; aligned as [`File::read_at`] says.
    pub offset: u64,
    /// The memory, owned until the operation is done.
    pub buf: Buf,
    /// Memory of others, at ascending places; for files that [`File::gathers`].
    pub inserts: Vec<Insert>,
    /// Leading bytes of all memory to leave alone: how a short transfer is continued.
    pub skip: usize,
}

/// Memory that stands in front of a byte of the operation's buffer, or behind its last.
#[derive(Debug)]
pub struct Insert {
    /// The byte's place in the buffer.
    pub at: usize,
    /// The memory; what is read into must be writable ([`Buf::shared`] is not).
    pub buf: Buf,
}

/// A finished operation.
#[derive(Debug)]
pub struct Done {
    /// Its place in the list given to [`Vfs::start`](super::Vfs::start).
    pub index: usize,
    /// Bytes moved, which may be fewer than asked for, or what went wrong.
    pub result: io::Result<usize>,
    /// Its memory.
    pub buf: Buf,
    /// The rest of its memory.
    pub inserts: Vec<Insert>,
}

/// A stretch of an operation's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Stretch {
    // As the kernel's `iovec` has them.
    pub(super) start: *mut u8,
    pub(super) len: usize,
}

// SAFETY: a place and a length; who follows it must own the operation.
unsafe impl Send for Stretch {}

impl Op {
    /// A read of all of `buf`.
    #[must_use]
    pub fn read(file: Arc<dyn File>, offset: u64, buf: Buf) -> Op {
        Op { file, transfer: Transfer::Read, offset, buf, inserts: Vec::new(), skip: 0 }
    }

    /// A write of all of `buf`.
    #[must_use]
    pub fn write(file: Arc<dyn File>, offset: u64, buf: Buf) -> Op {
        Op { transfer: Transfer::Write, ..Op::read(file, offset, buf) }
    }

    /// Bytes of memory, those to skip included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len() + self.inserts.iter().map(|i| i.buf.len()).sum::<usize>()
    }

    /// Whether there is nothing to move.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is to be moved, in the file's order: stretches that are not empty.
    pub(super) fn stretches(&self) -> Vec<Stretch> {
        let (mut found, mut skip, mut from) = (Vec::new(), self.skip, 0);
        let mut add = |start: *mut u8, len: usize| {
            let skipped = skip.min(len);
            skip -= skipped;
            if skipped < len {
                found.push(Stretch { start: start.wrapping_add(skipped), len: len - skipped });
            }
        };
        let (start, len) = (self.buf.ptr(), self.buf.len());
        for Insert { at, buf } in &self.inserts {
            add(start.wrapping_add(from), *at - from);
            add(buf.ptr(), buf.len());
            from = *at;
        }
        add(start.wrapping_add(from), len - from);
        found
    }

    /// Why it cannot be tried at all.
    pub(super) fn refusal(&self) -> Option<io::Error> {
        let bad = |text| Some(io::Error::new(io::ErrorKind::InvalidInput, text));
        let len = self.len().checked_sub(self.skip);
        let end = len.and_then(|len| self.offset.checked_add(len as u64));
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return bad("a transfer out of bounds");
        }
        let ascending = self.inserts.is_sorted_by_key(|i| i.at)
            && self.inserts.last().is_none_or(|i| i.at <= self.buf.len());
        if !ascending || self.inserts.len() > INSERTS_MAX {
            return bad("inserts out of order, or too many");
        }
        if !self.inserts.is_empty() && !self.file.gathers() {
            return bad("inserts for a file that takes none");
        }
        let all = self.inserts.iter().map(|i| &i.buf).chain([&self.buf]);
        if self.transfer == Transfer::Read && !all.into_iter().all(Buf::is_writable) {
            return bad("a read into memory that is only lent");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimVfs;
    use super::super::{Access, Vfs};
    use super::*;

    #[test]
    fn stretches_are_what_is_left_in_order() {
        let vfs: Arc<dyn Vfs> = Arc::new(SimVfs::new(1));
        let dir = vfs.open_dir("/op".as_ref(), true).unwrap();
        let file = dir.create("f", Access::Buffered).unwrap();
        let buf = |len| Buf::alloc(len).unwrap();
        let mut op = Op::write(file, 0, buf(10));
        op.inserts =
            [(0, 3), (4, 5), (4, 0), (10, 2)].map(|(at, len)| Insert { at, buf: buf(len) }).into();
        let base = op.buf.ptr() as usize;
        let expected: Vec<(usize, usize)> = vec![
            (op.inserts[0].buf.ptr() as usize, 3),
            (base, 4),
            (op.inserts[1].buf.ptr() as usize, 5),
            (base + 4, 6),
            (op.inserts[3].buf.ptr() as usize, 2),
        ];
        assert_eq!(op.len(), 20);
        for skip in 0..=20 {
            op.skip = skip;
            let mut left = skip;
            let mut want = Vec::new();
            for &(at, len) in &expected {
                let cut = left.min(len);
                left -= cut;
                want.extend((cut < len).then_some((at + cut, len - cut)));
            }
            let found = op.stretches();
            let found: Vec<_> = found.iter().map(|s| (s.start as usize, s.len)).collect();
            assert_eq!(found, want, "skip {skip}");
            assert!(op.refusal().is_none());
        }
        op.skip = 21;
        assert!(op.refusal().is_some());
        op.skip = 0;
        op.inserts.swap(0, 3);
        assert!(op.refusal().unwrap().to_string().contains("order"));
    }

    #[test]
    fn nothing_is_read_into_what_is_lent() {
        let vfs: Arc<dyn Vfs> = Arc::new(SimVfs::new(1));
        let dir = vfs.open_dir("/op".as_ref(), true).unwrap();
        let file = dir.create("f", Access::Buffered).unwrap();
        let lent = Arc::new([7u8; 8]);
        let buf = Buf::shared(lent.clone(), |bytes| &bytes[..]);
        let mut op = Op::read(file, 0, Buf::alloc(8).unwrap());
        op.inserts.push(Insert { at: 8, buf });
        assert!(op.refusal().unwrap().to_string().contains("lent"));
        op.transfer = Transfer::Write;
        assert!(op.refusal().is_none());
        assert_eq!(Arc::strong_count(&lent), 2);
        drop(op);
        assert_eq!(Arc::strong_count(&lent), 1);
    }
}
