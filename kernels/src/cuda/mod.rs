//! Kernels on NVIDIA GPUs: found, compiled, kept and launched at run time.
//!
//! Nothing of CUDA is needed to build or to start: driver (`libcuda`) and compiler (NVRTC) are shared
//! libraries that are opened when they are first asked for, and a machine without them gets an
//! [`Error`] that says what to install. From a source to a launch:
//!
//! 1. [`probe()`](probe()) says what there is.
//! 2. [`Compiler`] turns a [`Kernel`] and its macros into an [`Image`]: from memory, from prebuilt files,
//!    from the [`Cache`] on disk, or by compiling it.
//! 3. [`Device`] loads images into the primary context, the one that PyTorch and the engines use.
//! 4. [`Function`] launches an entry point on a caller's [`Stream`] with one struct of [`params`].
//!
//! [`work`] cuts what is to be done into pieces for the blocks of a launch. Sources are in `kernels/cuda`.
//!
//! A stream that is being captured into a graph gets [`Error::NotWarm`] in place of a compilation:
//! [`Device::warm_up`] belongs before the capture.

mod arch;
mod attention;
mod cache;
mod compiler;
mod device;
mod driver;
mod error;
mod event;
mod graph;
mod image;
mod kernel;
mod launch;
mod library;
mod memory;
mod nvrtc;
pub mod params;
mod pinned;
mod probe;
mod program;
mod reader;
mod step;
mod table;
mod trial;
mod usage;
mod visit;
pub mod work;

pub use arch::{Arch, Target, Version};
pub use attention::{Attention, Capacity, DevicePart, Replay};
pub use cache::{CAP_BYTES, Cache};
pub use compiler::{Compiler, Counts, PrebuildError};
pub use device::{Device, Warmed};
pub use driver::{DeviceInfo, DriverInfo, driver, runs};
pub use error::Error;
pub use event::Event;
pub use graph::Graph;
pub use image::{Damage, Image};
pub use kernel::{Header, Kernel, Key, Macros, Specialisation, Variant};
pub use launch::{Function, Grid, Stream};
pub use library::{Found, prebuilt_in, search_in};
pub use memory::Buffer;
pub use nvrtc::{Compiled, Nvrtc};
pub use pinned::{Pinned, Registered};
pub use probe::{CompilerInfo, Probe, probe};
pub use reader::{Reader, Strided};
pub use step::{SelectedStep, StepChoice, StepLists, StepMemory, StepRow, StepShape};
pub use table::{
    ATTEND_CODES, ATTEND_PAGES, ATTEND_PREFILL, ATTEND_PREFILL_HOPPER, ATTEND_TREE, BOXED, COLUMNS,
    EXPW, KMEANS, MERGE, PLAN, QUANT, ROPE, SCORE, SELECT, SHIPPED, TOKENS, TRANSFER, VOTE, WRITE,
};
pub use trial::{Memory, Trial, TrialError};
pub use usage::Usage;
pub use visit::Visit;
