//! `kvist replay TRACE`: which blocks a tier would have held.

use std::path::PathBuf;

use kvist_bench::replay::{self, Cost};
use kvist_bench::{Error, Machine, Sink};

/// Replays request traces: the share of blocks that are found, by order of replacement, room and tiers.
///
/// Traces are Mooncake's or Bailian's JSON lines with hash_ids, Azure's tables, or kvist's own (docs/replay.md).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files.
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    /// Orders of replacement: lru, slru, arc, sieve, s3fifo, adaptive; or all.
    #[arg(long, default_value = "all")]
    policy: String,
    /// Room in blocks, e.g. 1000,3000. Default: 0.5, 2, 5 and 15 % of the different blocks.
    #[arg(long, value_delimiter = ',')]
    capacity: Vec<usize>,
    /// Tiers, nearest first, in place of one tier of each order and room: NAME=BLOCKS[:ORDER][+SIGHTINGS][@GBPS],...
    /// May be given several times.
    #[arg(long)]
    tiers: Vec<String>,
    /// Shares of right hints that sessions are closed, e.g. none,1,0.9; told from how the trace goes on.
    #[arg(long, value_delimiter = ',', default_value = "none")]
    hints: Vec<String>,
    /// Parameters of the model, in thousands of millions.
    #[arg(long, default_value_t = Cost::default().params)]
    params: f64,
    /// Layers of the model.
    #[arg(long, default_value_t = Cost::default().layers)]
    layers: f64,
    /// Query heads times their dimension.
    #[arg(long, default_value_t = Cost::default().width)]
    width: f64,
    /// Bytes of keys and values of a token, over all layers.
    #[arg(long, default_value_t = Cost::default().token_bytes)]
    token_bytes: f64,
    /// Arithmetic of prefill, in 10^12 operations a second.
    #[arg(long, default_value_t = Cost::default().tflops)]
    tflops: f64,
    /// A report with plots, one file.
    #[arg(long)]
    html: Option<PathBuf>,
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write everything to this file.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<(), Error> {
    let hint = |text: &String| match text.as_str() {
        "none" => Ok(None),
        text => match text.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Some(share)),
            _ => Err(bad("hints", "none, or shares from 0 to 1", text)),
        },
    };
    let Args { params, layers, width, token_bytes, tflops, .. } = args;
    let cost = Cost { params, layers, width, token_bytes, tflops };
    if [params, layers, width, token_bytes, tflops].iter().any(|x| !(*x > 0.0 && x.is_finite())) {
        return Err(bad(
            "params, --layers, --width, --token-bytes, --tflops",
            "above 0",
            &format!("{cost:?}"),
        ));
    }
    if args.capacity.contains(&0) {
        return Err(bad("capacity", "blocks, at least 1", "0"));
    }
    let options = replay::Options {
        traces: args.traces,
        policies: replay::policies(&args.policy)?,
        capacities: args.capacity,
        tiers: args.tiers.iter().map(|t| replay::tiers(t)).collect::<Result<_, _>>()?,
        hints: args.hints.iter().map(hint).collect::<Result<_, _>>()?,
        cost,
        html: args.html,
    };
    let sink = if args.json { Sink::json() } else { Sink::table() };
    let mut sink = sink.to_file(args.out);
    sink.machine(Machine::detect(None));
    replay::run(&options, &mut sink)?;
    sink.finish()
}

fn bad(flag: &str, expected: &str, found: &str) -> Error {
    Error::BadValue {
        flag: flag.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}
