//! All benchmarks by name.

use std::process::ExitCode;

use kvist_kernels::cuda::driver;

use crate::error::nearest;
use crate::{
    Error, Machine, Options, Sink, attend, cluster, codec, gpu, hf, live, page_layout, prefill,
    quality, score, select, sparse, store,
};

/// A benchmark.
#[derive(Clone, Copy)]
pub struct Bench {
    /// Name on the command line.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    run: fn(&Options, &mut Sink) -> Result<(), Error>,
}

/// Every benchmark, in the order `all` runs them.
#[must_use]
pub fn all() -> &'static [Bench] {
    &[
        Bench { name: "attend", about: "dense decode attention against torch", run: attend::run },
        Bench {
            name: "sparse-step",
            about: "score, select and attend in one step, against dense torch",
            run: sparse::run,
        },
        Bench {
            name: "prefill",
            about: "dense and block-sparse attention of a prompt, against dense torch",
            run: prefill::run,
        },
        Bench { name: "score", about: "scoring page summaries", run: score::run },
        Bench { name: "select", about: "top-k, top-p and the group fold", run: select::run },
        Bench {
            name: "selection-quality",
            about: "softmax mass and certificates on real q, k, v",
            run: quality::run,
        },
        Bench {
            name: "head-profile",
            about: "a profile of heads against equal budgets on real q, k, v",
            run: quality::heads::run,
        },
        Bench {
            name: "cluster",
            about: "clustering keys against faiss and scikit-learn",
            run: cluster::run,
        },
        Bench { name: "codec", about: "lossless codec against memcpy, lz4, zstd", run: codec::run },
        Bench { name: "hf-decode", about: "tokens/s of a real model", run: hf::run },
        Bench {
            name: "page-layout",
            about: "bare reads of two page layouts",
            run: page_layout::run,
        },
        Bench { name: "store", about: "storing and fetching blocks", run: store::run },
        Bench {
            name: "store-live",
            about: "sequences larger than host memory, sessions opened again",
            run: live::run,
        },
        Bench {
            name: "preempt",
            about: "sequences that give way to others and come back",
            run: live::preempt::run,
        },
        Bench {
            name: "migrate",
            about: "sequences that move while they go on decoding",
            run: live::migrate::run,
        },
        Bench { name: "gpu-check", about: "kernels on a GPU against f64", run: gpu::check::run },
        Bench {
            name: "gpu-attend",
            about: "decode attention on a GPU against its copies",
            run: gpu::decode::run,
        },
        Bench {
            name: "gpu-select",
            about: "steps that choose on the GPU, against dense ones, as graphs",
            run: gpu::select::run,
        },
        Bench {
            name: "gpu-copy",
            about: "scattered pages to a GPU against one large copy",
            run: gpu::link::run,
        },
        Bench {
            name: "gpu-step",
            about: "a decode step in a cache with a GPU, against one without",
            run: gpu::tier::run,
        },
    ]
}

impl Bench {
    /// Whether it runs on a GPU.
    fn wants_gpu(&self) -> bool {
        self.name.starts_with("gpu-")
    }
}

/// One line per benchmark.
#[must_use]
pub fn list() -> String {
    all().iter().map(|b| format!("{:<18} {}\n", b.name, b.about)).collect()
}

/// The benchmark of that name.
///
/// # Errors
/// [`Error::UnknownBench`] with the nearest name.
pub fn find(name: &str) -> Result<Bench, Error> {
    let names = || all().iter().map(|b| b.name);
    all().iter().find(|b| b.name == name).copied().ok_or_else(|| Error::UnknownBench {
        name: name.to_owned(),
        near: nearest(name, names()),
        known: names().collect::<Vec<_>>().join(" "),
    })
}

/// Runs one benchmark, or all of them for the name `all`. The header goes first.
///
/// # Errors
/// What the benchmark says.
pub fn run(name: &str, options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let chosen = if name == "all" { all().to_vec() } else { vec![find(name)?] };
    sink.machine(Machine::detect(options.date.as_deref()));
    let no_gpu = driver().err();
    for bench in chosen {
        match &no_gpu {
            Some(why) if name == "all" && bench.wants_gpu() => {
                sink.note(&format!("{}: left out: {why}", bench.name));
            }
            _ => (bench.run)(options, sink)?,
        }
    }
    sink.finish()
}

/// The main function of a microbenchmark binary: flags as for `kvist bench`, e.g.
/// `--context 8k --threads 1`; `--json` prints JSON lines.
#[must_use]
pub fn main_for(name: &str) -> ExitCode {
    let mut options = Options::default();
    let mut sink = Sink::table();
    let mut args = std::env::args().skip(1);
    let mut go = || -> Result<(), Error> {
        while let Some(arg) = args.next() {
            match arg.strip_prefix("--") {
                Some("json") => sink = Sink::json(),
                Some(flag) => options.set(flag, &args.next().unwrap_or_default())?,
                None => options.set(&arg, "")?,
            }
        }
        run(name, &options, &mut sink)
    };
    match go() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_slips_are_suggested() {
        let mut names: Vec<&str> = all().iter().map(|b| b.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
        let text = find("atend").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("did you mean \"attend\""), "{text}");
    }
}
