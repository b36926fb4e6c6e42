//! The GPU's part without a GPU: its cache on disk, how the compiler is found, and driver and compiler
//! themselves, played by small libraries that a C compiler makes here.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod absent;
mod cache;
mod device;
mod fakes;
mod find;
mod shared;
