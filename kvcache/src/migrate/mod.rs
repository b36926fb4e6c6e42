//! Live migration: a sequence moves to another cache, of this process or of another one, while it goes on
//! decoding (pre-copy, after Llumnix, OSDI 2024, §4.2).
//!
//! The source [offers](Outgoing::offer) a sequence; the destination, who waits in
//! [`Destination::serve`], reserves memory or refuses. The source then sends finished pages in
//! [rounds](Outgoing::round), each from a fork, so that the sequence itself goes on. When few pages are
//! left the caller stops it and [finishes](Outgoing::finish): the rest is sent, the destination commits and
//! answers, the source lets go. How long that takes does not depend on the sequence's length.
//!
//! At every moment one side owns the sequence: the source until the destination has committed, which
//! happens in one step in its ledger; the destination from then on. If the link breaks before the source
//! has read the answer to its commit, only the destination knows: the source's sequence is out of use,
//! inside an [`Unsure`], until [`Unsure::settle`] has asked over another link. An answer of *not mine* makes
//! the epoch void in the same step: a commit that is still on its way does nothing then.
//!
//! Rounds compare forks, page by page and without reading any: pages are never written while a fork holds
//! them. So truncating, and going on with other tokens, during a migration costs sending those pages again,
//! and forks cost nothing.
//!
//! ```
//! use kvist::migrate::{Destination, Finished, MigrateOptions, MigrationId, Outgoing, Served, local};
//! use kvist::{Cache, DType, Geometry, Tensor3};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cache = || Cache::builder(Geometry::new(1, 2, 2, 64, DType::F32)).model("weights").build();
//! let (from, to) = (cache()?, cache()?);
//! let mut sequence = from.sequence();
//! let rows = vec![0.5f32; 1000 * 2 * 64];
//! let rows = Tensor3::contiguous(&rows, [1000, 2, 64])?;
//! sequence.append(0, &rows, &rows)?;
//!
//! let (source, mut destination) = local();
//! let receiving = std::thread::spawn(move || Destination::new(&to).serve(&mut destination));
//! let id = MigrationId { sequence: *b"request 00000042", epoch: 1 };
//! let mut moving = Outgoing::offer(&sequence, id, source, MigrateOptions::default())?;
//! while !moving.is_close(&sequence) {
//!     moving.round(sequence.fork())?; // on a thread of its own, while `sequence` decodes
//! }
//! assert!(matches!(moving.finish(sequence), Finished::Moved(_)));
//! let Served::Arrived(arrived) = receiving.join().unwrap()? else { panic!("it did not come") };
//! assert_eq!((arrived.id, arrived.sequence.len()), (id, 1000));
//! # Ok(())
//! # }
//! ```

mod ledger;
mod link;
mod offer;
mod receive;
mod send;
mod settle;
#[cfg(test)]
mod tests;
mod wire;

pub use link::{Link, Local, Stream, local};
pub use receive::{Arrived, Destination, Served};
pub use send::{Finished, MigrateOptions, Moved, Outgoing, Round};
pub use settle::{Settled, Unsure};

/// What tells an attempt to move a sequence from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MigrationId {
    /// The sequence, by a name that no other sequence of the processes involved has: a request's id.
    pub sequence: [u8; 16],
    /// The attempt: higher than those of all earlier attempts to move this sequence, wherever to.
    pub epoch: u64,
}

/// Why a destination does not take a sequence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It holds another model.
    #[error("it holds another model")]
    Model,
    /// Its model has another shape.
    #[error("it is for {expected}, the sequence has {found}")]
    Geometry {
        /// The destination's.
        expected: String,
        /// The sequence's.
        found: String,
    },
    /// Its sequences are read in another way: selector, profile or dense layers.
    #[error("its selector, profile or dense layers are other ones")]
    Selector,
    /// It has no room.
    #[error("it has no room: {needed} bytes needed, {free} free")]
    NoRoom {
        /// Bytes that were needed at once.
        needed: u64,
        /// Bytes that were free.
        free: u64,
    },
    /// It knows of this or a later attempt.
    #[error("it knows of attempt {known} already")]
    Stale {
        /// The attempt's epoch.
        known: u64,
    },
    /// Too many migrations were never settled.
    #[error("too many migrations were never settled")]
    Crowded,
    /// Something failed on its side.
    #[error("something failed on its side")]
    Failed,
}

/// Why a migration ended without the sequence having moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// The destination refused.
    #[error("the destination refused: {0}")]
    Refused(Refusal),
    /// The other side has closed the link.
    #[error("the other side has closed the link")]
    Closed,
    /// The link failed.
    #[error("the link failed: {0}")]
    Link(String),
    /// The other side sent what the protocol does not allow.
    #[error("the other side broke the protocol: {0}")]
    Protocol(&'static str),
    /// The other side speaks another version.
    #[error("the other side speaks version {found}, this one {supported}")]
    Version {
        /// Its version.
        found: u16,
        /// The one that is spoken here.
        supported: u16,
    },
    /// An earlier call on this migration failed.
    #[error("it had ended before")]
    Over,
}
