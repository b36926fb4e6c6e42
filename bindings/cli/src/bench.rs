//! `kvist bench NAME`: measures kvist, the machine's limit and its peers in one run.

use std::path::PathBuf;

use kvist_bench::{Error, Options, Sink};

/// Measures kvist beside the machine's limit and its peers.
///
/// A given flag restricts the rows of the table; without flags the whole table runs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Benchmark to run, or `all`.
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// List the benchmarks.
    #[arg(long)]
    list: bool,
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write everything to this file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Query heads.
    #[arg(long)]
    q_heads: Option<String>,
    /// KV heads.
    #[arg(long)]
    kv_heads: Option<String>,
    /// Dimension of a head.
    #[arg(long)]
    head_dim: Option<String>,
    /// Context lengths, e.g. 8k,32k.
    #[arg(long)]
    context: Option<String>,
    /// f32, f16, bf16.
    #[arg(long)]
    dtype: Option<String>,
    /// Thread counts, e.g. 1,2.
    #[arg(long)]
    threads: Option<String>,
    /// Order of pages in memory: contiguous, shuffled or both.
    #[arg(long)]
    frames: Option<String>,
    /// Tokens read per KV head and query, keeps included.
    #[arg(long)]
    budget: Option<String>,
    /// Exact number of repeats.
    #[arg(long)]
    repeats: Option<String>,
    /// Seconds to repeat each measurement for.
    #[arg(long)]
    seconds: Option<String>,
    /// Date for the header instead of the clock's.
    #[arg(long)]
    date: Option<String>,
    /// A file of real q, k, v made by `python -m kvist dump`.
    #[arg(long)]
    dump: Option<String>,
    /// Sizes of stored blocks, e.g. 64k,2048k.
    #[arg(long)]
    size: Option<String>,
    /// Rows of `store`: raw-read, host-put, host-get, disk-put, disk-get, open.
    #[arg(long)]
    op: Option<String>,
    /// Rows of `sparse-step` and `selection-quality` by parts of their names, e.g. quest,tiles.
    #[arg(long)]
    select: Option<String>,
    /// Directory on the disk to measure.
    #[arg(long)]
    dir: Option<String>,
    /// Peers to run: all or none.
    #[arg(long)]
    peers: Option<String>,
}

pub(crate) fn run(args: Args) -> Result<(), Error> {
    if args.list {
        print!("{}", kvist_bench::list());
        return Ok(());
    }
    let given = [
        ("q-heads", &args.q_heads),
        ("kv-heads", &args.kv_heads),
        ("head-dim", &args.head_dim),
        ("context", &args.context),
        ("dtype", &args.dtype),
        ("threads", &args.threads),
        ("frames", &args.frames),
        ("budget", &args.budget),
        ("repeats", &args.repeats),
        ("seconds", &args.seconds),
        ("date", &args.date),
        ("dump", &args.dump),
        ("size", &args.size),
        ("op", &args.op),
        ("dir", &args.dir),
        ("select", &args.select),
        ("peers", &args.peers),
    ];
    let mut options = Options::default();
    for (flag, value) in given {
        if let Some(value) = value {
            options.set(flag, value)?;
        }
    }
    let sink = if args.json { Sink::json() } else { Sink::table() };
    kvist_bench::run(&args.name.unwrap_or_default(), &options, &mut sink.to_file(args.out))
}
