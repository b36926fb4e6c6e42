//! What each fault may be answered with: table 6 of the reliability rules, as code.

use super::super::{MissReason, Refused};
use crate::Error;
use crate::vfs::sim::Fault;

/// Answers that a put may get; `once` if the fault strikes a single call.
pub(super) fn refusals(fault: Fault, once: bool) -> &'static [Refused] {
    use Refused::{Full, Io, Throttled, Timeout};
    match fault {
        _ if once && is_passing(fault) => &[],
        Fault::WriteNoSpace | Fault::CreateQuota | Fault::WriteTooBig | Fault::WriteZero => &[Full],
        Fault::WriteIo => &[Io],
        // After three in a minute the tier rests.
        Fault::SyncIo => &[Io, Throttled],
        Fault::DirSyncIo => &[Io],
        // Nothing can be removed, either.
        Fault::ReadOnly | Fault::Denied => &[Io, Throttled, Full],
        Fault::TooManyFiles | Fault::NoMemory => &[Throttled],
        // A disk that only interrupts, or never takes a whole page, gets nowhere.
        Fault::Interrupted | Fault::WouldBlock => &[Io, Timeout, Throttled],
        Fault::ShortWrite => &[Full],
        Fault::Stuck => &[Io, Timeout, Throttled, Full],
        Fault::Slow => &[],
        _ => &[],
    }
}

/// Reasons that a get may give.
pub(super) fn reasons(fault: Fault, once: bool) -> &'static [MissReason] {
    use MissReason::{
        Absent, Busy, Checksum, Degraded, Gone, Io, KeyMismatch, Timeout, Torn, Version,
    };
    match fault {
        _ if once && is_passing(fault) => &[],
        Fault::ReadIo => &[Io, Absent],
        Fault::Gone => &[Gone, Absent],
        Fault::Truncated => &[Torn, Checksum, Absent],
        Fault::BitFlip | Fault::StaleRead | Fault::LostWrite | Fault::Misdirected => {
            &[Checksum, Torn, Version, KeyMismatch, Absent]
        }
        Fault::NoMemory => &[Busy],
        Fault::Interrupted | Fault::WouldBlock => &[Busy, Timeout, Degraded],
        Fault::ShortRead => &[Torn, Absent],
        Fault::Stuck => &[Timeout, Degraded, Io, Absent],
        _ => &[],
    }
}

/// Nobody notices one of these.
fn is_passing(fault: Fault) -> bool {
    use Fault::{Interrupted, ShortRead, ShortWrite, WouldBlock};
    matches!(fault, Interrupted | ShortRead | ShortWrite | WouldBlock)
}

/// Whether opening may end so.
pub(super) fn may_open(fault: Fault, once: bool, error: &Error) -> bool {
    if once && is_passing(fault) {
        return false;
    }
    let damage = matches!(
        fault,
        Fault::BitFlip
            | Fault::StaleRead
            | Fault::Truncated
            | Fault::LostWrite
            | Fault::Misdirected
    );
    match error {
        Error::Permission { .. } => matches!(fault, Fault::ReadOnly | Fault::Denied),
        Error::BadMeta { .. } => damage,
        Error::Disk { .. } => {
            !matches!(fault, Fault::Slow | Fault::BitFlip | Fault::LostWrite | Fault::Misdirected)
        }
        _ => false,
    }
}

/// Whether the fault changes what is on the disk, so that what was acknowledged may be damaged.
pub(super) fn damages(fault: Fault) -> bool {
    matches!(fault, Fault::Truncated | Fault::LostWrite | Fault::Misdirected)
}
