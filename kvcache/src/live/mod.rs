//! Live sequences over two tiers: pages leave host memory and come back, summaries stay.
//!
//! Pages that every KV head of a layer has finished are *sealed*: the pages of one run of tokens form
//! a [`Stripe`], immutable from then on. One [`Table`](table::Table) under one short lock says where
//! each page of a stripe is. What lies below is behind the [`Below`] trait.

mod behind;
mod below;
mod bring;
mod clustered;
mod copies;
mod demote;
mod extent;
mod fetch;
mod flight;
mod pace;
mod shelf;
mod stripe;
mod table;
mod tier;

#[cfg(test)]
mod tests;

pub(crate) use below::{Below, Stored};
pub(crate) use bring::Whole;
pub(crate) use clustered::{Clustered, geometry as clustered_geometry};
pub(crate) use copies::{Copied, Copies};
pub(crate) use extent::{Extent, Ordered, TokenRows};
pub(crate) use fetch::Lease;
pub(crate) use shelf::{Kept, OnShelf, Shelf};
pub use stripe::Pin;
pub(crate) use stripe::Stripe;
pub(crate) use table::PageKey;
pub(crate) use tier::{Options, Tier};
