//! Faults and when they strike.

use std::sync::Arc;

use super::errno::Errno;

/// A kind of call that the simulated disk counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "named after the methods of the traits")]
pub enum Call {
    OpenDir,
    Subdir,
    List,
    Open,
    Create,
    Rename,
    Remove,
    Lock,
    SyncDir,
    Stat,
    Len,
    Read,
    Write,
    SyncData,
    Allocate,
    SetLen,
    /// A request for memory; no call of the file system.
    Alloc,
}

impl Call {
    /// How many kinds there are.
    pub(super) const COUNT: usize = Call::Alloc as usize + 1;
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A write or reservation fails with `ENOSPC`.
    WriteNoSpace,
    /// A file cannot be created: `EDQUOT`.
    CreateQuota,
    /// A write or reservation fails with `EFBIG`.
    WriteTooBig,
    /// A write fails with `EIO`; part of it may have happened.
    WriteIo,
    /// A read fails with `EIO`.
    ReadIo,
    /// `fdatasync` fails with `EIO`. None or half of what it should have written is durable, the
    /// rest is marked clean: a later `fdatasync` succeeds without writing it. Reads go on seeing the
    /// lost bytes or no longer do, as the seed has it.
    SyncIo,
    /// `fsync` of a directory fails with `EIO`. The changes stay pending or are lost for good, as the
    /// seed has it; a later call succeeds either way.
    DirSyncIo,
    /// `EINTR`.
    Interrupted,
    /// `EAGAIN`.
    WouldBlock,
    /// A read returns fewer bytes than there are.
    ShortRead,
    /// A write takes fewer bytes than it was given.
    ShortWrite,
    /// A write takes nothing: `Ok(0)`.
    WriteZero,
    /// `EROFS` from whatever changes something.
    ReadOnly,
    /// `EACCES`.
    Denied,
    /// `EMFILE` from whatever needs a file descriptor.
    TooManyFiles,
    /// The file was deleted by somebody else: `ENOENT` when opened, `ESTALE` when read.
    Gone,
    /// Somebody cuts the file inside or before the range of a read, for good, and the read goes on.
    Truncated,
    /// A read returns one wrong bit.
    BitFlip,
    /// A write succeeds; its length is there, its data never arrives.
    LostWrite,
    /// A write succeeds; its data lands at another place of the file.
    Misdirected,
    /// A read returns what one sector, or all, held before the last `fdatasync`; zeros if that is
    /// the same.
    StaleRead,
    /// The call takes two seconds.
    Slow,
    /// The call does not end. An operation of a batch waits for
    /// [`SimVfs::release`](super::SimVfs::release); any other call fails with `EIO` after an hour, or
    /// blocks if [`SimVfs::block_when_stuck`](super::SimVfs::block_when_stuck) says so.
    Stuck,
    /// Memory cannot be had: [`Buf::alloc`](crate::vfs::Buf::alloc) returns `None` on threads with a
    /// [`MemoryWatch`](super::MemoryWatch). Another call, if the trigger names one, fails with
    /// `ENOMEM`.
    NoMemory,
}

use Call::{
    Alloc, Allocate, Create, Len, List, Lock, Open, OpenDir, Read, Remove, Rename, SetLen, Stat,
    Subdir, SyncData, SyncDir, Write,
};

impl Fault {
    /// Every kind, for sweeps.
    pub const ALL: [Fault; 24] = [
        Fault::WriteNoSpace,
        Fault::CreateQuota,
        Fault::WriteTooBig,
        Fault::WriteIo,
        Fault::ReadIo,
        Fault::SyncIo,
        Fault::DirSyncIo,
        Fault::Interrupted,
        Fault::WouldBlock,
        Fault::ShortRead,
        Fault::ShortWrite,
        Fault::WriteZero,
        Fault::ReadOnly,
        Fault::Denied,
        Fault::TooManyFiles,
        Fault::Gone,
        Fault::Truncated,
        Fault::BitFlip,
        Fault::LostWrite,
        Fault::Misdirected,
        Fault::StaleRead,
        Fault::Slow,
        Fault::Stuck,
        Fault::NoMemory,
    ];

    /// The calls it strikes if the trigger names none.
    #[must_use]
    pub fn calls(self) -> &'static [Call] {
        match self {
            Fault::WriteNoSpace | Fault::WriteTooBig => &[Write, Allocate],
            Fault::CreateQuota => &[Create],
            Fault::WriteIo => &[Write, SetLen],
            Fault::ShortWrite | Fault::WriteZero | Fault::LostWrite | Fault::Misdirected => {
                &[Write]
            }
            Fault::ReadIo
            | Fault::ShortRead
            | Fault::Truncated
            | Fault::BitFlip
            | Fault::StaleRead => &[Read],
            Fault::SyncIo => &[SyncData],
            Fault::DirSyncIo => &[SyncDir],
            Fault::Interrupted => &[Read, Write, Allocate],
            Fault::WouldBlock => &[Read, Write],
            Fault::ReadOnly => &[Create, Rename, Remove, Lock, Write, Allocate, SetLen],
            Fault::Denied => &[OpenDir, Subdir, List, Open, Create, Rename, Remove, Lock],
            Fault::TooManyFiles => &[OpenDir, Subdir, List, Open, Create, Lock],
            Fault::Gone => &[Open, Read],
            Fault::Slow | Fault::Stuck => &[
                OpenDir, Subdir, List, Open, Create, Rename, Remove, Lock, SyncDir, Stat, Len,
                Read, Write, SyncData, Allocate, SetLen,
            ],
            Fault::NoMemory => &[Alloc],
        }
    }

    /// The error it is, if it is nothing more than an error.
    pub(super) fn errno(self, call: Call) -> Option<Errno> {
        Some(match self {
            Fault::WriteNoSpace => Errno::NoSpace,
            Fault::CreateQuota => Errno::Quota,
            Fault::WriteTooBig => Errno::FileTooBig,
            Fault::ReadIo => Errno::Io,
            Fault::WriteIo if call == SetLen => Errno::Io,
            Fault::Interrupted => Errno::Interrupted,
            Fault::WouldBlock => Errno::Again,
            Fault::ReadOnly => Errno::ReadOnly,
            Fault::Denied => Errno::Access,
            Fault::TooManyFiles => Errno::ManyFiles,
            Fault::Gone if call == Read => Errno::Stale,
            Fault::Gone => Errno::NoEntry,
            Fault::NoMemory => Errno::NoMemory,
            _ => return None,
        })
    }

    /// Whether it means something for a call that is not in [`Fault::calls`].
    fn strikes_anything(self) -> bool {
        self.errno(Open).is_some() || matches!(self, Fault::Slow | Fault::Stuck)
    }

    fn needs_length(self) -> bool {
        matches!(self, Fault::ShortRead | Fault::ShortWrite)
    }
}

/// When a fault strikes, counted in calls that match.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// Only at the n-th, counted from 1.
    Nth(u64),
    /// At the n-th and all later ones.
    From(u64),
    /// Each time with this probability, from the seed.
    Chance(f64),
    /// Never: to count the calls that match.
    Never,
}

/// Which calls a fault strikes, and when.
#[derive(Clone, Debug)]
pub struct Trigger {
    when: When,
    call: Option<Call>,
    name: Arc<str>,
}

impl Trigger {
    /// A trigger for all calls that the fault can strike.
    #[must_use]
    pub fn new(when: When) -> Trigger {
        Trigger { when, call: None, name: "".into() }
    }

    /// Once, at the n-th matching call; the first is 1.
    #[must_use]
    pub fn nth(n: u64) -> Trigger {
        Trigger::new(When::Nth(n))
    }

    /// At the n-th matching call and all later ones.
    #[must_use]
    pub fn from(n: u64) -> Trigger {
        Trigger::new(When::From(n))
    }

    /// At each matching call with probability `p`.
    #[must_use]
    pub fn chance(p: f64) -> Trigger {
        Trigger::new(When::Chance(p))
    }

    /// Only calls of this kind. Faults that are mere errors, [`Fault::Slow`] and [`Fault::Stuck`] can
    /// be put on any.
    #[must_use]
    pub fn on(self, call: Call) -> Trigger {
        Trigger { call: Some(call), ..self }
    }

    /// Only calls on files and directories whose name (the last component) starts like this.
    #[must_use]
    pub fn named(self, prefix: &str) -> Trigger {
        Trigger { name: prefix.into(), ..self }
    }
}

/// A fault in place.
#[derive(Clone, Debug)]
pub(super) struct Injected {
    pub(super) id: u64,
    pub(super) fault: Fault,
    pub(super) trigger: Trigger,
    pub(super) matched: u64,
    pub(super) fired: u64,
}

/// A call that a fault may match.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) call: Call,
    pub(super) name: &'a str,
    /// Whether a transfer is long enough to be cut short.
    pub(super) divisible: bool,
}

impl Injected {
    /// # Panics
    /// If the trigger asks for a call that the fault says nothing about.
    pub(super) fn new(id: u64, fault: Fault, trigger: Trigger) -> Injected {
        let fits = |call| fault.calls().contains(&call) || fault.strikes_anything();
        assert!(trigger.call.is_none_or(fits), "{fault:?} means nothing for {trigger:?}");
        Injected { id, fault, trigger, matched: 0, fired: 0 }
    }

    /// Counts a call if it matches, and says whether the fault is due; `chance` decides by
    /// probability.
    pub(super) fn due(&mut self, attempt: Attempt, chance: impl FnOnce(f64) -> bool) -> bool {
        let call = match self.trigger.call {
            Some(call) => call == attempt.call,
            None => self.fault.calls().contains(&attempt.call),
        };
        let possible = attempt.divisible || !self.fault.needs_length();
        if !call || !possible || !attempt.name.starts_with(&*self.trigger.name) {
            return false;
        }
        self.matched += 1;
        match self.trigger.when {
            When::Nth(n) => self.matched == n,
            When::From(n) => self.matched >= n,
            When::Chance(p) => chance(p),
            When::Never => false,
        }
    }
}
