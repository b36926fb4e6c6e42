//! The emulated machine, as `kvemu.h` describes it.

use bytemuck::Pod;
use libloading::{Library, Symbol};

use crate::toolchain;

/// Orders in which threads go on.
pub(crate) const SCHEDULES: [Schedule; 4] =
    [Schedule(0, 0), Schedule(1, 0), Schedule(2, 1), Schedule(2, 2)];

/// Forward (0), reverse (1), or random (2) by a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule(pub(crate) u32, pub(crate) u64);

/// Memory that a kernel may touch.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    begin: u64,
    bytes: u64,
    writable: u64,
}

impl Memory {
    pub(crate) fn read<T: Pod>(data: &[T]) -> Memory {
        let bytes = std::mem::size_of_val(data) as u64;
        Memory { begin: data.as_ptr() as u64, bytes, writable: 0 }
    }

    pub(crate) fn write<T: Pod>(data: &mut [T]) -> Memory {
        Memory { writable: 1, ..Memory::read(data) }
    }
}

#[repr(C)]
struct Launch {
    blocks: u32,
    shared_bytes: u32,
    schedule: u32,
    left_out: u32,
    seed: u64,
    memory: *const Memory,
    memories: u64,
}

/// What a rule broken is called, in the order of `kvemu.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    ReadAfterWrite,
    WriteAfterRead,
    WriteAfterWrite,
    InFlight,
    Unwritten,
    SharedBounds,
    GlobalBounds,
    WrittenTwice,
    Deadlock,
    Diverged,
}

const FAULTS: usize = Fault::Diverged as usize + 1;

/// What the emulator saw.
#[repr(C)]
#[derive(Clone)]
pub(crate) struct Report {
    faults: [u64; FAULTS],
    switches: u64,
    first: [u8; 200],
}

impl Report {
    pub(crate) fn count(&self, fault: Fault) -> u64 {
        self.faults[fault as usize]
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.faults == [0; FAULTS]
    }

    /// The first fault, in words.
    pub(crate) fn first(&self) -> String {
        String::from_utf8_lossy(&self.first).trim_end_matches('\0').to_owned()
    }

    pub(crate) fn expect_clean(&self, what: &dyn std::fmt::Debug) {
        assert!(self.is_clean(), "{}: faults {:?}, {what:?}", self.first(), self.faults);
    }

    /// Both launches' faults.
    pub(crate) fn and(mut self, other: &Report) -> Report {
        if self.is_clean() {
            self.first = other.first;
        }
        self.faults.iter_mut().zip(other.faults).for_each(|(a, b)| *a += b);
        self.switches += other.switches;
        self
    }
}

/// How to run a grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: usize,
    pub(crate) shared_bytes: usize,
    pub(crate) schedule: Schedule,
    /// The `KV_GUARD` to leave out; 0 for none.
    pub(crate) left_out: u32,
}

/// A compiled source.
pub(crate) struct Kernels(Library);

impl Kernels {
    pub(crate) fn compile(source: &str, macros: &[(&str, u32)]) -> Kernels {
        let path = toolchain::library(source, macros);
        // SAFETY: the library was compiled from our source and has no initialisers of its own.
        Kernels(unsafe { Library::new(path) }.unwrap())
    }

    /// The same, of a kernel that says how much shared memory it needs: as much as its specialisation does.
    pub(crate) fn sized(source: &str, macros: &[(&str, u32)], shared_bytes: usize) -> Kernels {
        let kernels = Kernels::compile(source, macros);
        // SAFETY: the type is that of every source that has it; the function only computes.
        let says =
            unsafe { kernels.function::<unsafe extern "C" fn() -> u32>("kv_shared_bytes")() };
        assert_eq!(says as usize, shared_bytes, "{source} {macros:?}");
        kernels
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` must be its type.
    pub(crate) unsafe fn function<F>(&self, name: &str) -> Symbol<'_, F> {
        // SAFETY: by the caller.
        unsafe { self.0.get(name) }.unwrap()
    }

    /// Runs a grid of the kernel `name`. `params` is its parameter struct, whose addresses lie in `memory`;
    /// what is writable there must not be looked at meanwhile, which the borrows of the caller see to.
    pub(crate) fn run<P: Pod>(
        &self,
        name: &str,
        params: &P,
        grid: Grid,
        memory: &[Memory],
    ) -> Report {
        type Run<P> = unsafe extern "C" fn(*const P, *const Launch, *mut Report);
        let launch = Launch {
            blocks: grid.blocks as u32,
            shared_bytes: grid.shared_bytes as u32,
            schedule: grid.schedule.0,
            left_out: grid.left_out,
            seed: grid.schedule.1,
            memory: memory.as_ptr(),
            memories: memory.len() as u64,
        };
        let mut report = Report { faults: [0; FAULTS], switches: 0, first: [0; 200] };
        // SAFETY: the macro KV_KERNEL gives the function this type; the emulator refuses every access
        // outside `memory`.
        unsafe {
            let run = self.function::<Run<P>>(&format!("kv_run_{name}"));
            run(params, &launch, &mut report);
        }
        report
    }
}
