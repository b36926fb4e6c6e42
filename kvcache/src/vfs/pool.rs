//! Buffers that are used again: fresh memory costs a page fault every 4 KiB.

use super::Buf;
use super::buf::HUGE;
use crate::sync::Mutex;

/// Bytes of buffers that are kept for the next user.
const KEPT_MAX: usize = 64 << 20;
/// Buffers are made in multiples of this.
const STEP: usize = 64 << 10;

/// Spare buffers, in no order.
#[derive(Debug, Default)]
pub struct BufPool {
    spare: Mutex<Vec<Buf>>,
}

impl BufPool {
    /// A buffer of `len` bytes of whatever is there, aligned as [`Buf::alloc`]; `None` if the system
    /// has no memory left.
    #[must_use]
    pub fn take(&self, len: usize) -> Option<Buf> {
        let mut spare = self.spare.lock();
        // Not one that is much too large: it would be missed by whoever needs it.
        let fits = |buf: &Buf| (len..=len.saturating_mul(4).max(STEP)).contains(&buf.capacity());
        let found = spare.iter().rposition(fits).map(|at| spare.swap_remove(at));
        drop(spare);
        let mut buf = match found {
            Some(buf) => buf,
            None => self.fresh(len.max(1).checked_next_multiple_of(STEP)?)?,
        };
        buf.set_len(len);
        Some(buf)
    }

    /// A new buffer. Small ones are cut from a huge page, and the others of it kept.
    fn fresh(&self, len: usize) -> Option<Buf> {
        if len > HUGE / 2 {
            return Buf::alloc(len);
        }
        let mut parts = Buf::alloc(HUGE)?.cut(len);
        let first = parts.pop();
        parts.into_iter().for_each(|buf| self.give(buf));
        first
    }

    /// Keeps a buffer for the next user, if there is room. Only for buffers that were taken here.
    pub fn give(&self, buf: Buf) {
        let mut spare = self.spare.lock();
        let kept: usize = spare.iter().map(Buf::capacity).sum();
        if kept + buf.capacity() <= KEPT_MAX {
            spare.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_in_the_right_size() {
        let pool = BufPool::default();
        // All of a read may go elsewhere.
        assert_eq!(BufPool::default().take(0).unwrap().len(), 0);
        let mut buf = pool.take(100_000).unwrap();
        assert_eq!((buf.len(), buf.capacity()), (100_000, 131_072));
        let at = buf.as_mut_ptr();
        pool.give(buf);
        let mut again = pool.take(131_072).unwrap();
        assert_eq!((again.as_mut_ptr(), again.len()), (at, 131_072));
        pool.give(again);
        assert_eq!(pool.take(1000).unwrap().capacity(), STEP);
        assert!(pool.take(usize::MAX).is_none());
    }
}
