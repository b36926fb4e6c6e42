//! Looking at a store's directory: a golden one, damaged copies of it, and one in use.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod common;
mod damage;
mod golden;
mod place;
mod sessions;
mod used;
mod why;
