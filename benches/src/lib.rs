//! kvist's benchmarks as a library. Every result is one [`Line`]: what was measured, the limit of
//! the machine measured in the same run (the *floor*), and what a *peer* does with the same shapes.
//!
//! One idea: a speed means nothing without the limit beside it. Floors are therefore measured
//! between the repeats of the thing itself, over the same memory, and never taken from a table.
//!
//! ```no_run
//! let mut sink = kvist_bench::Sink::json();
//! kvist_bench::run("select", &kvist_bench::Options::default(), &mut sink).unwrap();
//! ```

mod arena;
mod attend;
pub mod calibrate;
mod cluster;
mod codec;
mod data;
pub mod doctor;
mod error;
pub mod floor;
mod gpu;
mod hf;
mod live;
mod long;
mod machine;
mod options;
mod page_layout;
mod prefill;
mod python;
mod quality;
mod registry;
pub mod replay;
mod report;
mod rng;
mod score;
mod select;
mod sparse;
pub mod store;
pub mod text;
mod timing;

pub use arena::Arena;
pub use data::{KvData, Shape};
pub use error::Error;
pub use machine::Machine;
pub use options::{Frames, Options};
pub use quality::dump::values as dump_values;
pub use registry::{Bench, all, find, list, main_for, run};
pub use report::{Line, Params, Sink};
pub use rng::Rng;
pub use timing::{Repeats, Sample, interleave, repeat};
