//! Memory that belongs to an operation until the kernel lets go of it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions};

use super::MEMORY_ALIGN;

/// Huge pages are this large. A transfer from or to them is one piece to the device, where each
/// small page would be a piece of its own.
pub(super) const HUGE: usize = 2 << 20;

/// A run of bytes and whatever keeps it alive: its own allocation, or a holder of somebody else's.
/// Borrowing one mutably that is not writable panics.
pub struct Buf {
    ptr: *mut u8,
    len: usize,
    capacity: usize,
    writable: bool,
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: a `Buf` is the only user of its bytes (`from_raw`'s contract) or never writes them
// (`shared`), and its owner is `Send`.
unsafe impl Send for Buf {}
// SAFETY: `&Buf` gives read access only.
unsafe impl Sync for Buf {}

/// An aligned heap allocation.
struct Heap {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: it is only memory.
unsafe impl Send for Heap {}
// SAFETY: as above; nothing is reached through it.
unsafe impl Sync for Heap {}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.ptr, self.layout) }
    }
}

impl Buf {
    /// `len` zeros, starting at a multiple of [`MEMORY_ALIGN`]; `None` if the
    /// system has no memory left.
    #[must_use]
    pub fn alloc(len: usize) -> Option<Buf> {
        #[cfg(any(test, feature = "testing"))]
        if !super::sim::memory_granted() {
            return None;
        }
        if len >= HUGE / 2 {
            return Buf::alloc_huge(len);
        }
        let layout = Layout::from_size_align(len.max(1), MEMORY_ALIGN).ok()?;
        // SAFETY: the layout is not empty.
        let ptr = unsafe { alloc_zeroed(layout) };
        if ptr.is_null() {
            return None;
        }
        Some(Buf {
            ptr,
            len,
            capacity: len,
            writable: true,
            _owner: Box::new(Heap { ptr, layout }),
        })
    }

    /// [`Buf::alloc`] in huge pages, where the system has them.
    fn alloc_huge(len: usize) -> Option<Buf> {
        let room = len.checked_next_multiple_of(HUGE)?.checked_add(HUGE)?;
        let mut map = MmapOptions::new().len(room).map_anon().ok()?;
        // Without huge pages everything works, only slower.
        if let Err(e) = map.advise(Advice::HugePage) {
            tracing::debug!("no huge pages for a buffer: {e}");
        }
        let start = map.as_mut_ptr();
        let ptr = start.wrapping_add(start.align_offset(HUGE));
        Some(Buf { ptr, len, capacity: len, writable: true, _owner: Box::new(map) })
    }

    /// Cuts it into buffers of `len` bytes each; what is left over is lost until all of them are gone.
    pub(super) fn cut(self, len: usize) -> Vec<Buf> {
        let (count, ptr) = (self.len / len, self.ptr);
        let whole = Arc::new(self);
        let part = |i: usize| {
            let (ptr, whole) = (ptr.wrapping_add(i * len), Arc::clone(&whole));
            Buf { ptr, len, capacity: len, writable: true, _owner: Box::new(whole) }
        };
        (0..count).map(part).collect()
    }

    /// Memory that `owner` keeps alive.
    ///
    /// # Safety
    /// `ptr..ptr + len` must stay readable and writable while `owner` lives, hold defined bytes, and
    /// be used by nobody else until this value is dropped.
    #[must_use]
    pub unsafe fn from_raw(ptr: *mut u8, len: usize, owner: Box<dyn Any + Send + Sync>) -> Buf {
        Buf { ptr, len, capacity: len, writable: true, _owner: owner }
    }

    /// Bytes of a shared value, to be written to a file: others may read them meanwhile.
    #[must_use]
    pub fn shared<T: Send + Sync + 'static>(owner: Arc<T>, bytes: impl FnOnce(&T) -> &[u8]) -> Buf {
        let bytes = bytes(&owner);
        let (ptr, len) = (bytes.as_ptr().cast_mut(), bytes.len());
        Buf { ptr, len, capacity: len, writable: false, _owner: Box::new(owner) }
    }

    /// Whether it may be written to.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Where its bytes start, for whoever owns them or only reads.
    pub(super) fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes it was made with.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Uses only the first `len` bytes from now on, or more of them again.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "{len} bytes of a buffer of {}", self.capacity);
        self.len = len;
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they start.
    ///
    /// # Panics
    /// If it is not writable.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        assert!(self.writable, "memory that is only lent");
        self.ptr
    }
}

impl std::ops::Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: readable and defined for its length, by construction.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl std::ops::DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        assert!(self.writable, "memory that is only lent");
        // SAFETY: used by nobody else, by construction.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the bytes: they are somebody's data.
        f.debug_struct("Buf").field("len", &self.len).finish()
    }
}
