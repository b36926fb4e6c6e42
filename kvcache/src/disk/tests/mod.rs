//! The Disk tier: over a real directory (`os`), and over a simulated disk that crashes at every call
//! (`crash`), fails in every way (`faults`), is damaged bit by bit (`damage`, `corpus`), and lives
//! through long random lives (`model`).
//!
//! A failure prints a line `KVIST_SEED=… KVIST_CASE=…` that replays it; `KVIST_SOAK=n` makes every scope
//! n times as large.

mod corpus;
mod crash;
mod crash_check;
mod damage;
mod faults;
mod faults_table;
#[path = "../../../tests/common/history.rs"]
mod history;
mod large;
mod lies;
mod model;
mod oracle;
mod os;
mod rig;
mod seal;
mod threads;
mod workloads;
