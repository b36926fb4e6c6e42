//! Which blocks leave a tier when it is full, and which are let in.
//!
//! An [`Order`] knows blocks by small numbers that the caller gives them, and says which leaves next. Time comes
//! from the caller, in ticks of its own. Blocks of a chain of prefixes leave last first: a block is worth
//! nothing without those before it.

mod adaptive;
mod admit;
mod arc;
mod ghosts;
mod lru;
mod nodes;
mod order;
#[cfg(test)]
mod plain;
mod policy;
mod queue;
mod s3;
mod share;
mod sieve;
#[cfg(test)]
mod tests;
mod trust;
mod watermarks;

pub use admit::{Admission, Admit};
pub use order::{Arrival, Order, Uses};
pub use policy::Replace;
pub use share::Share;
pub use trust::SOURCES;
pub use watermarks::Watermarks;
