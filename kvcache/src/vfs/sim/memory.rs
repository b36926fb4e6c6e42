//! Refused memory: buffers come from the allocator, not through a disk, so the simulation is asked on
//! the side.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use super::SimVfs;
use super::fault::{Attempt, Call, Fault};
use super::world::World;

thread_local! {
    /// Whom this thread asks for memory.
    static ASKED: RefCell<Weak<World>> = const { RefCell::new(Weak::new()) };
}

/// Whether this thread may have the memory it asks for.
pub(in crate::vfs) fn granted() -> bool {
    let world = ASKED.try_with(|asked| asked.borrow().upgrade()).ok().flatten();
    let attempt = Attempt { call: Call::Alloc, name: "", divisible: false };
    world.is_none_or(|world| world.state.lock().strike(attempt) != Some(Fault::NoMemory))
}

/// While it lives, [`Buf::alloc`](crate::vfs::Buf::alloc) on the thread that made it is a call of the
/// simulation.
#[derive(Debug)]
#[must_use]
pub struct MemoryWatch {
    before: Weak<World>,
    // Bound to its thread.
    _here: std::marker::PhantomData<*const ()>,
}

impl SimVfs {
    /// Counts this thread's requests for buffers, and lets [`Fault::NoMemory`] refuse them.
    pub fn watch_memory(&self) -> MemoryWatch {
        let before = ASKED.replace(Arc::downgrade(self.world()));
        MemoryWatch { before, _here: std::marker::PhantomData }
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        ASKED.set(std::mem::take(&mut self.before));
    }
}
