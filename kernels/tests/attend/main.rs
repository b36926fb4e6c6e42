//! The attention kernels, and the scores of prefill, against the f64 oracle over shapes, dtypes, layouts
//! and masks, at every instruction-set level this CPU has.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod blocks;
mod common;
mod edges;
mod grid;
mod laws;
mod misuse;
mod scores;
mod special;
mod tree;
