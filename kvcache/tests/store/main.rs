//! The store against a plain model: a vector of keys and values per sequence, attended in f64.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod calls;
mod closing;
mod common;
mod derived;
mod drafts;
mod hshare;
mod invariants;
mod keys;
mod leoam;
mod memory;
mod model;
mod prefill;
mod presets;
mod profile;
mod reuse;
mod tree;
mod view;
