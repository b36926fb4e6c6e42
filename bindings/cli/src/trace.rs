//! `kvist trace`: a trace of requests that nobody made.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::PathBuf;

use kvist_bench::Error;
use kvist_bench::replay::Generator;

/// Makes a trace of requests up, for `kvist replay`: sessions with turns that begin with one of some system prompts. The
/// same settings give the same trace.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where it goes, in kvist's own format. Default: standard output.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Requests.
    #[arg(long, default_value_t = Generator::default().requests)]
    requests: usize,
    /// Requests a second, on average.
    #[arg(long, default_value_t = Generator::default().rate)]
    rate: f64,
    /// System prompts; how often each is used goes as Zipf's law.
    #[arg(long, default_value_t = Generator::default().systems)]
    systems: usize,
    /// Blocks of a system prompt, on average.
    #[arg(long, default_value_t = Generator::default().system_blocks)]
    system_blocks: f64,
    /// Blocks that a session begins with, in the middle.
    #[arg(long, default_value_t = Generator::default().first_blocks)]
    first_blocks: f64,
    /// Blocks that a later turn adds, in the middle.
    #[arg(long, default_value_t = Generator::default().turn_blocks)]
    turn_blocks: f64,
    /// Share of turns after which another one comes.
    #[arg(long, default_value_t = Generator::default().goes_on)]
    goes_on: f64,
    /// Seconds between the turns of a session, in the middle.
    #[arg(long, default_value_t = Generator::default().gap)]
    gap: f64,
    /// Tokens of a block.
    #[arg(long, default_value_t = Generator::default().block_tokens)]
    block_tokens: usize,
    /// Another number gives another trace.
    #[arg(long, default_value_t = Generator::default().seed)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let generator = Generator {
        requests: args.requests,
        rate: args.rate,
        systems: args.systems,
        system_blocks: args.system_blocks,
        first_blocks: args.first_blocks,
        turn_blocks: args.turn_blocks,
        goes_on: args.goes_on,
        gap: args.gap,
        block_tokens: args.block_tokens,
        seed: args.seed,
    };
    let trace = generator.trace()?;
    let name = args.out.as_ref().map_or("standard output".into(), |path| path.to_string_lossy());
    let written = match &args.out {
        None => trace.write(io::stdout().lock()),
        Some(path) => File::create(path).and_then(|file| trace.write(BufWriter::new(file))),
    };
    match written {
        // Whoever reads the first lines only has what it wants.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::io(format!("writing {name}"))),
    }
}
