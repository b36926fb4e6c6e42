//! A simulated disk: what the real one may do, deterministic from one seed.
//!
//! [`SimVfs`] is a [`Vfs`] in memory that tells what reads see from what a crash leaves:
//!
//! * bytes are **durable** once [`File::sync_data`](super::File::sync_data) returned, names once
//!   [`Dir::sync`] did; the one does not bring the other;
//! * until then they are **pending**: a crash keeps any of the writes, perhaps one of them torn, and of
//!   each directory's changes the first few. [`Images`] numbers the possibilities and builds each as a
//!   fresh `SimVfs`;
//! * a [`Fault`] strikes the calls that a [`Trigger`] names;
//! * waiting moves a **virtual clock** and takes no time.
//!
//! Bytes are shared between copies, so that an image costs microseconds and a log little more than what
//! was written.
//!
//! Crashes, at every call of a run:
//!
//! ```
//! use kvist::vfs::sim::SimVfs;
//! use kvist::vfs::{Access, Vfs};
//!
//! # fn main() -> std::io::Result<()> {
//! let sim = SimVfs::new(1);
//! let dir = sim.open_dir("/".as_ref(), false)?;
//! sim.record();
//! let file = dir.create("f", Access::Buffered)?;
//! file.write_at(&[7; 2000], 0)?;
//! file.sync_data()?;
//! dir.sync()?;
//! let acknowledged = sim.points();
//! let log = sim.take_log();
//! for point in log.changes() {
//!     for (index, image) in log.images(point).sample(500, 1) {
//!         let left = image.bytes("f"); // here: recover, and check
//!         let whole = left == Some(vec![7; 2000]);
//!         assert!(whole || point < acknowledged, "point {point}, image {index}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Faults, at every N-th call:
//!
//! ```
//! # use kvist::vfs::sim::{Fault, SimVfs, Trigger};
//! # use kvist::vfs::{Access, Vfs};
//! # fn main() -> std::io::Result<()> {
//! for n in 1.. {
//!     let sim = SimVfs::new(n);
//!     let fault = sim.inject(Fault::WriteNoSpace, Trigger::nth(n).named("seg-"));
//!     let file = sim.open_dir("/".as_ref(), false)?.create("seg-1", Access::Buffered)?;
//!     for i in 0..3 {
//!         let written = file.write_at(b"data", i * 4); // here: the workload
//!         assert_eq!(written.is_err(), i + 1 == n);
//!     }
//!     if sim.fired(fault) == 0 {
//!         break; // the workload makes fewer than n such calls
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod batch;
mod content;
mod disk;
mod errno;
mod fault;
mod handle;
mod image;
mod inspect;
mod log;
mod memory;
mod rng;
#[cfg(test)]
pub(crate) mod sweep;
mod tear;
mod transfer;
mod world;

use std::fmt;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use self::batch::SimBatch;
use self::disk::{Disk, ROOT};
use self::errno::{Errno, error};
use self::fault::{Attempt, Injected};
use self::handle::SimDir;
use self::world::{Handle, World};
use super::{Batch, Dir, Op, Vfs};

pub use self::fault::{Call, Fault, Trigger, When};
pub use self::image::Images;
pub use self::inspect::{Alien, FileInfo};
pub use self::log::{Log, Step};
pub use self::memory::MemoryWatch;
pub(super) use self::memory::granted as memory_granted;
pub use self::world::Totals;

/// The user that processes run as unless told otherwise.
pub const USER: u32 = 1000;

/// A process on a machine with a simulated disk. Clones are the same process; when the last is
/// dropped the process is killed: its handles fail, its locks are free, its parked buffers are gone.
#[derive(Clone)]
pub struct SimVfs(Arc<Process>);

struct Process {
    world: Arc<World>,
    pid: u32,
}

/// A fault in place, to ask about it or take it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultId(u64);

impl SimVfs {
    /// The first process of a machine with an empty disk.
    #[must_use]
    pub fn new(seed: u64) -> SimVfs {
        SimVfs::from_disk(Arc::new(Disk::new()), seed)
    }

    fn from_disk(disk: Arc<Disk>, seed: u64) -> SimVfs {
        SimVfs::spawn(Arc::new(World::new(disk, seed)), USER)
    }

    fn spawn(world: Arc<World>, uid: u32) -> SimVfs {
        let mut state = world.state.lock();
        let pid = state.next_pid;
        state.next_pid += 1;
        state.processes.insert(pid, uid);
        drop(state);
        SimVfs(Arc::new(Process { world, pid }))
    }

    /// Another process of the same machine and user.
    #[must_use]
    pub fn process(&self) -> SimVfs {
        let uid = self.world().state.lock().processes.get(&self.pid()).copied();
        self.process_of(uid.unwrap_or(USER))
    }

    /// Another process of the same machine, of the user `uid`; 0 may do everything.
    #[must_use]
    pub fn process_of(&self, uid: u32) -> SimVfs {
        SimVfs::spawn(self.world().clone(), uid)
    }

    /// Another machine with a copy of the disk as it is now, pending changes included; no faults, no
    /// limits.
    #[must_use]
    pub fn fork(&self, seed: u64) -> SimVfs {
        let disk = self.world().state.lock().disk.clone();
        SimVfs::from_disk(disk, seed)
    }

    /// Ends the process as if it were killed; the disk keeps what it saw.
    pub fn kill(&self) {
        self.0.kill();
    }

    fn world(&self) -> &Arc<World> {
        &self.0.world
    }

    /// The process's id: what its locks say.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Puts a fault in place.
    ///
    /// # Panics
    /// If the trigger names a call that the fault says nothing about.
    pub fn inject(&self, fault: Fault, trigger: Trigger) -> FaultId {
        let mut state = self.world().state.lock();
        let id = state.next_fault;
        state.next_fault += 1;
        state.faults.push(Injected::new(id, fault, trigger));
        FaultId(id)
    }

    /// Calls that matched a fault's trigger; 0 for a fault that was taken away.
    #[must_use]
    pub fn matched(&self, fault: FaultId) -> u64 {
        let state = self.world().state.lock();
        state.faults.iter().find(|f| f.id == fault.0).map_or(0, |f| f.matched)
    }

    /// Times a fault struck; 0 for a fault that was taken away.
    #[must_use]
    pub fn fired(&self, fault: FaultId) -> u64 {
        let state = self.world().state.lock();
        state.faults.iter().find(|f| f.id == fault.0).map_or(0, |f| f.fired)
    }

    /// Takes one fault away.
    pub fn remove(&self, fault: FaultId) {
        self.world().state.lock().faults.retain(|f| f.id != fault.0);
    }

    /// Takes all faults away. Stuck operations stay stuck until [`SimVfs::release`].
    pub fn heal(&self) {
        self.world().state.lock().faults.clear();
    }

    /// Lets all operations that are stuck now go on.
    pub fn release(&self) {
        let mut state = self.world().state.lock();
        state.releases += 1;
        let ended = state.unpark();
        drop(state);
        self.world().released.notify_all();
        drop(ended);
    }

    /// Whether a stuck call outside a batch, or a wait without a deadline for a stuck operation,
    /// blocks its thread until [`SimVfs::release`]. Else, the default, the one fails after an hour of
    /// virtual time and the other panics.
    pub fn block_when_stuck(&self, block: bool) {
        self.world().state.lock().limits.block = block;
    }

    /// Moves the clock.
    pub fn advance(&self, time: Duration) {
        self.world().state.lock().clock += time;
    }

    /// Bytes the disk holds: a write takes what fits, then fails with `ENOSPC`.
    pub fn disk_limit(&self, bytes: Option<u64>) {
        self.world().state.lock().limits.disk = bytes;
    }

    /// Bytes a file may have: a write takes what fits, then fails with `EFBIG`. 1 TiB by default.
    pub fn file_limit(&self, bytes: u64) {
        self.world().state.lock().limits.file = bytes;
    }

    /// Bytes that named and open files take, reservations included.
    #[must_use]
    pub fn disk_used(&self) -> u64 {
        let state = self.world().state.lock();
        state.disk.used(&state.open_inos())
    }

    /// The alignment of files opened [`Direct`](super::Access::Direct) from now on: 512 by default; 1
    /// is a file system without direct transfers.
    ///
    /// # Panics
    /// If it is not a power of two up to 4096.
    pub fn alignment(&self, bytes: usize) {
        assert!(bytes.is_power_of_two() && bytes <= 4096, "alignment {bytes}");
        self.world().state.lock().limits.alignment = bytes;
    }

    /// Whether there is `fallocate`; there is by default.
    pub fn allocate_supported(&self, supported: bool) {
        self.world().state.lock().limits.allocate = supported;
    }

    /// Starts a log of all calls, of all processes, from here; a running one is thrown away.
    pub fn record(&self) {
        let mut state = self.world().state.lock();
        state.log = Some(Log::new(&state.disk));
    }

    /// Calls in the log so far: what was acknowledged by now must be in every image of this point and
    /// later ones. 0 if there is no log.
    #[must_use]
    pub fn points(&self) -> usize {
        self.world().state.lock().log.as_ref().map_or(0, Log::points)
    }

    /// Ends the log and hands it out; without one, a log of no calls.
    #[must_use]
    pub fn take_log(&self) -> Log {
        let mut state = self.world().state.lock();
        state.log.take().unwrap_or_else(|| Log::new(&state.disk))
    }

    /// What a crash now may leave.
    #[must_use]
    pub fn images(&self) -> Images {
        let disk = self.world().state.lock().disk.clone();
        Images::of(&disk)
    }

    /// Files, directories and locks that living processes hold open.
    #[must_use]
    pub fn open_handles(&self) -> usize {
        self.world().state.lock().open().count()
    }

    /// Sums over all processes.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.world().state.lock().totals.clone()
    }
}

impl Vfs for SimVfs {
    fn open_dir(&self, path: &Path, create: bool) -> io::Result<Arc<dyn Dir>> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => names.push(name.to_str().ok_or_else(invalid)?),
                Component::ParentDir | Component::Prefix(_) => return Err(invalid()),
            }
        }
        let name = names.last().copied().unwrap_or_default();
        let attempt = Attempt { call: Call::OpenDir, name, divisible: false };
        let mut turn = self.world().enter(self.pid(), attempt)?;
        let mut ino = ROOT;
        for (i, name) in names.iter().enumerate() {
            let last = i + 1 == names.len();
            handle::check(name)?;
            let parent = ino;
            ino = turn.state.enter_dir(self.pid(), parent, name, create && last)?;
            if create && last {
                turn.state.sync_entries(parent);
            }
        }
        let path = format!("/{}", names.join("/")).into();
        let handle = Handle { ino, pid: self.pid(), path, alignment: 1, writable: false };
        let handle = turn.state.add_handle(handle);
        Ok(Arc::new(SimDir::new(self.world().clone(), handle)))
    }

    fn start(&self, ops: Vec<Op>) -> Box<dyn Batch> {
        Box::new(SimBatch::start(self.world(), self.pid(), ops))
    }

    fn now(&self) -> Duration {
        self.world().state.lock().clock
    }

    fn parked_bytes(&self) -> u64 {
        let mut state = self.world().state.lock();
        let ended = state.unpark();
        let mine = state.parked.iter().filter(|parked| parked.pid == self.pid());
        let bytes = mine.map(batch::Parked::bytes).sum();
        drop(state);
        drop(ended);
        bytes
    }

    fn name(&self) -> &'static str {
        "sim"
    }
}

fn invalid() -> io::Error {
    error(Errno::Inval)
}

impl Process {
    fn kill(&self) {
        let mut state = self.world.state.lock();
        state.processes.remove(&self.pid);
        let parked = state.take_parked(self.pid);
        drop(state);
        drop(parked);
    }
}

// A panic between two calls leaves the machine as whole as any other moment does, and tests catch many.
impl std::panic::UnwindSafe for SimVfs {}
impl std::panic::RefUnwindSafe for SimVfs {}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for SimVfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimVfs").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
