//! Open files and directories of the simulated disk.

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;

use super::disk::{Body, DirBody, FileBody, Ino};
use super::errno::{Errno, error};
use super::fault::{Attempt, Call};
use super::world::{Handle, State, Turn, World};
use crate::vfs::op::Stretch;
use crate::vfs::{Access, Dir, Entry, File, Kind, Lock, MEMORY_ALIGN, Op, Stat, Transfer};

const READ: u32 = 4;
const WRITE: u32 = 2;

/// A directory held open.
pub(super) struct SimDir {
    world: Arc<World>,
    handle: Arc<Handle>,
}

/// A file held open.
pub(super) struct SimFile {
    pub(super) world: Arc<World>,
    pub(super) handle: Arc<Handle>,
}

/// A lock held.
struct SimLock {
    handle: Arc<Handle>,
}

impl Lock for SimLock {}

macro_rules! debug_as_path {
    ($($type:ty),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), self.handle.path)
            }
        }
    )*};
}
debug_as_path!(SimDir, SimFile, SimLock);

impl State {
    fn permits(&self, pid: u32, ino: Ino, bits: u32) -> io::Result<()> {
        let uid = self.processes.get(&pid).copied().unwrap_or_default();
        let Some(inode) = self.disk.inode(ino) else { return Err(error(Errno::Stale)) };
        let granted = if inode.uid == uid { inode.mode >> 6 } else { inode.mode };
        if uid == 0 || granted & bits == bits { Ok(()) } else { Err(error(Errno::Access)) }
    }

    /// The directory `name` in `dir`, made if that is wanted.
    pub(super) fn enter_dir(
        &mut self,
        pid: u32,
        dir: Ino,
        name: &str,
        create: bool,
    ) -> io::Result<Ino> {
        let ino = match self.disk.lookup(dir, name) {
            Some(ino) => ino,
            None if create => self.make(pid, dir, name, Body::Dir(DirBody::default()), 0o700)?,
            None => return Err(error(Errno::NoEntry)),
        };
        if self.disk.dir(ino).is_none() {
            return Err(error(Errno::NotDir));
        }
        self.permits(pid, ino, READ)?;
        Ok(ino)
    }

    fn make(&mut self, pid: u32, dir: Ino, name: &str, body: Body, mode: u32) -> io::Result<Ino> {
        self.permits(pid, dir, WRITE)?;
        let uid = self.processes.get(&pid).copied().unwrap_or_default();
        let disk = self.disk();
        let ino = disk.add(body, uid, mode);
        disk.link(dir, name, ino);
        Ok(ino)
    }

    fn stat(&self, handle: &Handle) -> io::Result<Stat> {
        let Some(inode) = self.disk.inode(handle.ino) else { return Err(error(Errno::Stale)) };
        let mine = self.processes.get(&handle.pid) == Some(&inode.uid);
        Ok(Stat { uid: inode.uid, mode: inode.mode, mine })
    }
}

/// Refuses what is not a single component.
pub(super) fn check(name: &str) -> io::Result<()> {
    if name.len() > 255 {
        return Err(error(Errno::NameTooLong));
    }
    let odd = name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']);
    if odd { Err(error(Errno::Inval)) } else { Ok(()) }
}

impl SimDir {
    pub(super) fn new(world: Arc<World>, handle: Arc<Handle>) -> SimDir {
        SimDir { world, handle }
    }

    /// Begins a call about the directory itself.
    fn turn(&self, call: Call) -> io::Result<Turn<'_>> {
        let attempt = Attempt { call, name: self.handle.name(), divisible: false };
        self.world.enter(self.handle.pid, attempt)
    }

    /// Begins a call about an entry.
    fn turn_at<'a>(&'a self, call: Call, name: &'a str) -> io::Result<Turn<'a>> {
        check(name)?;
        self.world.enter(self.handle.pid, Attempt { call, name, divisible: false })
    }

    /// A handle of something in this directory.
    fn handle(
        &self,
        turn: &mut Turn,
        ino: Ino,
        name: &str,
        access: Access,
        writable: bool,
    ) -> Arc<Handle> {
        let alignment = match access {
            Access::Direct => turn.state.limits.alignment,
            Access::Buffered => 1,
        };
        let path = format!("{}/{name}", self.handle.path.trim_end_matches('/')).into();
        turn.state.add_handle(Handle { ino, pid: self.handle.pid, path, alignment, writable })
    }

    fn file(
        &self,
        turn: &mut Turn,
        ino: Ino,
        name: &str,
        access: Access,
        writable: bool,
    ) -> Arc<dyn File> {
        let handle = self.handle(turn, ino, name, access, writable);
        Arc::new(SimFile { world: self.world.clone(), handle })
    }

    /// Moves `from` to the name `to` in `to_dir`.
    fn move_to(&self, from: &str, to_dir: Ino, to: &str) -> io::Result<()> {
        check(to)?;
        let mut turn = self.turn_at(Call::Rename, from)?;
        let state = &mut *turn.state;
        state.permits(self.handle.pid, self.handle.ino, WRITE)?;
        state.permits(self.handle.pid, to_dir, WRITE)?;
        if state.disk.lookup(self.handle.ino, from).is_none() {
            return Err(error(Errno::NoEntry));
        }
        if state.disk.lookup(to_dir, to).is_some_and(|ino| state.disk.dir(ino).is_some()) {
            return Err(error(Errno::IsDir));
        }
        state.disk().rename(self.handle.ino, from, to_dir, to);
        Ok(())
    }
}

impl Dir for SimDir {
    fn list(&self) -> io::Result<Vec<Entry>> {
        let mut turn = self.turn(Call::List)?;
        let state = &mut *turn.state;
        state.permits(self.handle.pid, self.handle.ino, READ)?;
        let Some(dir) = state.disk.dir(self.handle.ino) else { return Err(error(Errno::Stale)) };
        let entry = |(name, ino): (&Arc<str>, &Ino)| {
            let (kind, len) = match &state.disk.inode(*ino)?.body {
                Body::File(file) => (Kind::File, file.current.len()),
                Body::Dir(_) => (Kind::Dir, 0),
                Body::Other => (Kind::Other, 0),
            };
            Some(Entry { name: name.to_string(), kind, len })
        };
        let mut entries: Vec<Entry> = dir.current.iter().filter_map(entry).collect();
        // No order is promised, so none may be relied on.
        for i in (1..entries.len()).rev() {
            entries.swap(i, state.rng.below(i as u64 + 1) as usize);
        }
        Ok(entries)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let mut turn = self.turn_at(Call::Open, name)?;
        let found = turn.state.disk.lookup(self.handle.ino, name);
        let ino = found.ok_or_else(|| error(Errno::NoEntry))?;
        if turn.state.disk.file(ino).is_none() {
            return Err(error(Errno::Inval));
        }
        turn.state.permits(self.handle.pid, ino, READ)?;
        Ok(self.file(&mut turn, ino, name, access, false))
    }

    fn create(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let mut turn = self.turn_at(Call::Create, name)?;
        if turn.state.disk.lookup(self.handle.ino, name).is_some() {
            return Err(error(Errno::Exists));
        }
        let body = Body::File(FileBody::default());
        let ino = turn.state.make(self.handle.pid, self.handle.ino, name, body, 0o600)?;
        Ok(self.file(&mut turn, ino, name, access, true))
    }

    fn subdir(&self, name: &str, create: bool) -> io::Result<Arc<dyn Dir>> {
        let mut turn = self.turn_at(Call::Subdir, name)?;
        let ino = turn.state.enter_dir(self.handle.pid, self.handle.ino, name, create)?;
        let handle = self.handle(&mut turn, ino, name, Access::Buffered, false);
        Ok(Arc::new(SimDir::new(self.world.clone(), handle)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.move_to(from, self.handle.ino, to)
    }

    fn rename_into(&self, from: &str, to: &dyn Dir, name: &str) -> io::Result<()> {
        let to = to.as_any().downcast_ref::<SimDir>();
        match to.filter(|to| Arc::ptr_eq(&to.world, &self.world)) {
            Some(to) => self.move_to(from, to.handle.ino, name),
            None => Err(io::ErrorKind::CrossesDevices.into()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut turn = self.turn_at(Call::Remove, name)?;
        let state = &mut *turn.state;
        state.permits(self.handle.pid, self.handle.ino, WRITE)?;
        let Some(ino) = state.disk.lookup(self.handle.ino, name) else {
            return Err(error(Errno::NoEntry));
        };
        if state.disk.dir(ino).is_some() {
            return Err(error(Errno::IsDir));
        }
        state.disk().unlink(self.handle.ino, name);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut turn = self.turn(Call::SyncDir)?;
        let fault = turn.fault;
        turn.state.sync_dir(&self.handle, fault)
    }

    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        let mut turn = self.turn_at(Call::Lock, name)?;
        let (pid, dir) = (self.handle.pid, self.handle.ino);
        let ino = match turn.state.disk.lookup(dir, name) {
            Some(ino) => ino,
            None => turn.state.make(pid, dir, name, Body::File(FileBody::default()), 0o600)?,
        };
        if turn.state.disk.file(ino).is_none() {
            return Err(error(Errno::Inval));
        }
        turn.state.permits(pid, ino, READ | WRITE)?;
        if turn.state.locked(ino) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        turn.state.disk().settle_bytes(ino, pid.to_string().as_bytes());
        let handle = self.handle(&mut turn, ino, name, Access::Buffered, true);
        turn.state.locks.retain(|(_, holder)| holder.strong_count() > 0);
        turn.state.locks.push((ino, Arc::downgrade(&handle)));
        Ok(Box::new(SimLock { handle }))
    }

    fn is_locked(&self, name: &str) -> Option<bool> {
        let turn = self.turn_at(Call::Lock, name).ok()?;
        let ino = turn.state.disk.lookup(self.handle.ino, name);
        Some(ino.is_some_and(|ino| turn.state.locked(ino)))
    }

    fn stat(&self) -> io::Result<Stat> {
        self.turn(Call::Stat)?.state.stat(&self.handle)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl SimFile {
    fn turn(&self, call: Call, len: usize) -> io::Result<Turn<'_>> {
        let divisible = len > self.handle.alignment;
        let attempt = Attempt { call, name: self.handle.name(), divisible };
        self.world.enter(self.handle.pid, attempt)
    }

    /// Refuses what a direct file cannot transfer.
    pub(super) fn check(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let unit = self.handle.alignment;
        let aligned = offset.is_multiple_of(unit as u64)
            && bytes.len().is_multiple_of(unit)
            && (unit == 1 || bytes.as_ptr().addr().is_multiple_of(MEMORY_ALIGN));
        let end = offset.checked_add(bytes.len() as u64);
        let inside = end.is_some_and(|end| end <= i64::MAX as u64);
        if aligned && inside { Ok(()) } else { Err(error(Errno::Inval)) }
    }
}

impl SimFile {
    /// [`SimFile::check`] of an operation. Its first stretch is aligned as all memory; the others as
    /// offsets are.
    pub(super) fn check_op(&self, op: &Op) -> io::Result<()> {
        let unit = self.handle.alignment;
        let strict = if op.inserts.is_empty() { MEMORY_ALIGN } else { unit };
        let aligned = |s: &Stretch| {
            unit == 1 || (s.start.addr().is_multiple_of(strict) && s.len.is_multiple_of(unit))
        };
        let right = op.offset.is_multiple_of(unit as u64) && op.stretches().iter().all(aligned);
        if right { Ok(()) } else { Err(error(Errno::Inval)) }
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let turn = self.turn(Call::Len, 0)?;
        let file = turn.state.disk.file(self.handle.ino);
        file.map(|file| file.current.len()).ok_or_else(|| error(Errno::Stale))
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check(out, offset)?;
        let mut turn = self.turn(Call::Read, out.len())?;
        let fault = turn.fault;
        turn.state.read(&self.handle, offset, out, fault)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.check(data, offset)?;
        let mut turn = self.turn(Call::Write, data.len())?;
        let fault = turn.fault;
        turn.state.write(&self.handle, offset, data, fault)
    }

    fn gathers(&self) -> bool {
        true
    }

    fn transfer(&self, op: &mut Op) -> io::Result<usize> {
        self.check_op(op)?;
        let call = match op.transfer {
            Transfer::Read => Call::Read,
            Transfer::Write => Call::Write,
        };
        let mut turn = self.turn(call, op.len() - op.skip)?;
        let fault = turn.fault;
        turn.state.transfer(&self.handle, op, fault)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut turn = self.turn(Call::SyncData, 0)?;
        let fault = turn.fault;
        turn.state.sync_data(&self.handle, fault)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.turn(Call::Allocate, 0)?.state.allocate(&self.handle, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.turn(Call::SetLen, 0)?.state.set_len(&self.handle, len)
    }

    fn alignment(&self) -> usize {
        self.handle.alignment
    }

    fn stat(&self) -> io::Result<Stat> {
        self.turn(Call::Stat, 0)?.state.stat(&self.handle)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
