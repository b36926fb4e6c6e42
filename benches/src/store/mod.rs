//! Storing and fetching blocks: kvist, the machine's limits, and other stores, under the same
//! conditions.
//!
//! A [`Subject`] is a store; [`measure`] times one [`Case`] of it. Peers that are written in Rust
//! are subjects as well; those in programs of their own answer over [`serve`]'s protocol.

mod case;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod frame;
#[cfg(target_os = "linux")]
mod limits;
mod measure;
#[cfg(target_os = "linux")]
mod own;
#[cfg(target_os = "linux")]
mod peers;
#[cfg(target_os = "linux")]
mod place;
#[cfg(target_os = "linux")]
mod recovery;
#[cfg(target_os = "linux")]
mod redis;
mod subject;
mod wire;

pub use case::{Case, Durable, GROUP, Op, Plan, Tier, size_name};
#[cfg(target_os = "linux")]
pub(crate) use frame::run;
pub use measure::{Data, Floor, measure};
#[cfg(target_os = "linux")]
pub(crate) use place::Place;
pub use subject::Subject;
pub use wire::{Request, serve};

#[cfg(not(target_os = "linux"))]
pub(crate) fn run(_: &crate::Options, sink: &mut crate::Sink) -> Result<(), crate::Error> {
    sink.note("store needs Linux; left out");
    Ok(())
}
