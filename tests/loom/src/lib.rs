//! The small concurrent pieces of kvist, as they are, with loom's locks, counters and references in
//! place of the real ones: every order in which threads may take them is tried (up to three
//! preemptions).
//!
//! The modules are the production files. What they need of others is here in the least form that
//! does: an arena of cells, the name of an error. There is no time: a wait with patience ends only
//! when it is woken, so that a lost wake-up is a deadlock, which loom reports.

// The production files bring tests of their own, which are for real locks.
#![cfg(not(test))]
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "production files, of which a part is used"
)]

#[macro_use]
#[path = "../../../kvcache/src/bugs.rs"]
mod bugs;

#[path = "../../../kvcache/src/prefix/blocks.rs"]
mod blocks;
#[path = "../../../kvcache/src/budget.rs"]
mod budget;
#[path = "../../../kvcache/src/disk/budget.rs"]
mod disk_budget;
#[path = "../../../kvcache/src/prefix/host.rs"]
mod host;
#[path = "../../../kvcache/src/journal.rs"]
mod journal;
#[path = "../../../kvcache/src/table.rs"]
mod table;
#[path = "../../../kvcache/src/ticket.rs"]
mod ticket;
#[path = "../../../kvcache/src/disk/turn.rs"]
mod turn;

mod arena;
pub mod models;
mod sync;

mod cache {
    /// A cache that lends pages.
    #[derive(Debug)]
    pub(crate) struct Shared;
}

mod lent {
    use crate::cache::Shared;
    use crate::sync::Arc;

    /// A block in a cache's pages; none is lent here.
    #[derive(Debug)]
    pub(crate) struct Lent(Arc<Shared>);

    impl Lent {
        pub(crate) const BYTES: u64 = 1;

        pub(crate) fn cache(&self) -> &Arc<Shared> {
            &self.0
        }

        pub(crate) fn is_of(&self, cache: &Arc<Shared>) -> bool {
            Arc::ptr_eq(&self.0, cache)
        }

        pub(crate) fn is_alone(&self) -> bool {
            true
        }
    }

    /// Which pages donors hold.
    pub(crate) struct Holders;

    impl Holders {
        pub(crate) fn of(_: impl Iterator<Item = Arc<Lent>>) -> Holders {
            Holders
        }

        pub(crate) fn are_all(&self, _: &Lent) -> bool {
            true
        }
    }
}

mod disk {
    /// Why a block was not taken.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Refused {
        AlreadyPresent,
        Throttled,
    }
}

mod format {
    /// A block's identity.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(crate) struct BlockKey(pub(crate) [u8; 32]);

    impl BlockKey {
        pub(crate) fn seed(&self) -> u64 {
            u64::from(self.0[0])
        }
    }
}

/// What is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    OverBudget { needed: u64, free: u64, budget: u64 },
    Setting(String),
}

impl Error {
    fn setting(what: &str, expected: impl ToString, found: impl ToString) -> Error {
        Error::Setting(format!("{what}: {}, {}", expected.to_string(), found.to_string()))
    }
}
