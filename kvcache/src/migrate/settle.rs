//! What a source does that does not know whether its sequence has moved.

use super::wire::{Kind, Wire};
use super::{Ended, Link, MigrationId};
use crate::{Error, Sequence};

/// A sequence whose destination did not answer to the commit. Two generals: no protocol can rule that out.
/// It belongs to the destination if that has committed, and to the source if not. Until that is known
/// nobody may use it here.
#[derive(Debug)]
#[must_use]
pub struct Unsure {
    sequence: Sequence,
    id: MigrationId,
}

/// What the destination said.
#[derive(Debug)]
#[must_use]
pub enum Settled {
    /// It owns the sequence; the source has let go of it.
    Moved,
    /// It does not, and never will under this epoch: the sequence is the source's.
    Kept(Sequence),
    /// It could not be asked, or did not answer.
    Unsure(Unsure, Error),
}

impl Unsure {
    pub(super) fn new(sequence: Sequence, id: MigrationId) -> Unsure {
        Unsure { sequence, id }
    }

    /// The attempt to ask for.
    #[must_use]
    pub fn id(&self) -> MigrationId {
        self.id
    }

    /// Asks the destination, over another link, who owns the sequence. Can be repeated.
    pub fn settle<L: Link>(self, link: L) -> Settled {
        let mut wire = Wire::new(link);
        match ask(&mut wire, self.id) {
            Ok(true) => Settled::Moved,
            Ok(false) => Settled::Kept(self.sequence),
            Err(ended) => Settled::Unsure(self, ended.into()),
        }
    }

    /// The sequence, without asking: only where the destination's process has ended, and what it owned
    /// with it. Anything else leaves two owners.
    #[must_use]
    pub fn destination_is_gone(self) -> Sequence {
        self.sequence
    }
}

/// Whether the destination owns it.
fn ask<L: Link>(wire: &mut Wire<L>, id: MigrationId) -> Result<bool, Ended> {
    wire.tell(Kind::Settle, id)?;
    let head = wire.next()?;
    wire.body(&head)?;
    match head.kind {
        _ if head.id != id => Err(Ended::Protocol("an answer to another migration")),
        Kind::Committed => {
            // That it owns it is settled, whether or not it hears of that.
            let _ = wire.tell(Kind::Release, id);
            Ok(true)
        }
        Kind::Void => Ok(false),
        _ => Err(Ended::Protocol("not an answer to who owns it")),
    }
}
