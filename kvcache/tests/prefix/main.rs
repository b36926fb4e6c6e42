//! The prefix store from outside: random lives over a simulated disk (`lives`), what it says of them
//! (`changes`), threads (`order`), which blocks leave and which are written (`leaving`), killed processes
//! (`kill`), what a kernel really refuses (`kernel`), tenants and secrets (`tenants`, `secrets`).

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod changes;
mod kernel;
mod kill;
mod leaving;
mod lives;
mod order;
mod secrets;
mod tenants;

#[path = "../common/prefix.rs"]
mod common;
#[path = "../common/history.rs"]
mod history;
#[path = "../common/scratch.rs"]
mod scratch;
