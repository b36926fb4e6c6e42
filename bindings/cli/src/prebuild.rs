//! `kvist prebuild DIR`: kernels for GPUs, compiled in advance.

use std::path::PathBuf;

use kvist::kernels::cuda::{Compiler, SHIPPED};

use crate::{Done, UNUSABLE};

/// Compiles every kernel for NVIDIA GPUs of these kinds, so that no compiler is needed where they run.
///
/// Needs NVRTC (pip install nvidia-cuda-nvrtc), but no GPU. `KVIST_PREBUILT=DIR` names the folder where kvist is used;
/// the Python package finds those that lie in `kvist/cubin` (`make wheel GPUS=80,90`).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the files go; made if it is not there.
    dir: PathBuf,
    /// Ten times the compute capabilities, such as 80,86,89,90.
    #[arg(long = "gpu", required = true, value_delimiter = ',')]
    gpus: Vec<u32>,
}

pub(crate) fn run(args: &Args) -> Done {
    let unusable = |e: Box<dyn std::error::Error>| (UNUSABLE, e);
    std::fs::create_dir_all(&args.dir)
        .map_err(|e| unusable(format!("{}: {e}", args.dir.display()).into()))?;
    let files = Compiler::from_env().prebuild(&SHIPPED, &args.gpus, &args.dir);
    let files = files.map_err(|e| unusable(e.into()))?;
    println!("{files} kernels in {}", args.dir.display());
    Ok(0)
}
