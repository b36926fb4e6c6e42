//! The `kvist` command line: one file per subcommand, each a thin call into a library.

mod bench;
mod calibrate;
mod doctor;
mod inspect;
mod prebuild;
mod presets;
mod replay;
mod show;
mod trace;
mod verify;
mod why;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

/// The KV cache of long-context language models: benchmarks and tools.
#[derive(Parser)]
#[command(name = "kvist", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(Box<bench::Args>),
    Calibrate(calibrate::Args),
    Doctor(Box<doctor::Args>),
    Inspect(inspect::Args),
    Prebuild(prebuild::Args),
    Presets(presets::Args),
    Replay(Box<replay::Args>),
    Trace(trace::Args),
    Verify(verify::Args),
    Why(why::Args),
}

/// What was asked for makes no sense, or what it was asked of cannot be used.
const UNUSABLE: u8 = 2;

/// An exit status and the reason for it.
type Failure = (u8, Box<dyn std::error::Error>);

/// The exit status of a command.
type Done = Result<u8, Failure>;

/// Runs the command line `args`, the program's name first, and returns its exit status: 0 for
/// success, 1 for a failure (or what a command calls one), 2 for arguments that make no sense. Prints to the standard streams.
pub fn run<I, T>(args: I) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version go to standard output and are no failure.
            let status = u8::from(e.use_stderr()) * 2;
            // Nobody is left to tell if even this cannot be printed.
            let _ = e.print();
            return status;
        }
    };
    let failed = |e: kvist_bench::Error| (1, e.into());
    let done: Done = match cli.command {
        Command::Bench(args) => bench::run(*args).map(|()| 0).map_err(failed),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Doctor(args) => doctor::run(*args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Prebuild(args) => prebuild::run(&args),
        Command::Presets(args) => presets::run(&args).map(|()| 0).map_err(failed),
        Command::Replay(args) => replay::run(*args).map(|()| 0).map_err(failed),
        Command::Trace(args) => trace::run(&args).map(|()| 0).map_err(failed),
        Command::Verify(args) => verify::run(&args),
        Command::Why(args) => why::run(&args),
    };
    done.unwrap_or_else(|(status, e)| {
        eprintln!("error: {e}");
        status
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_tell_help_from_mistakes() {
        assert_eq!(run(["kvist", "--help"]), 0);
        assert_eq!(run(["kvist", "nothing"]), 2);
        assert_eq!(run(["kvist", "bench", "atend"]), 1);
        assert_eq!(run(["kvist", "bench", "--list"]), 0);
        assert_eq!(run(["kvist", "presets"]), 0);
        assert_eq!(run(["kvist", "replay"]), 2);
        assert_eq!(run(["kvist", "replay", "/nonexistent"]), 1);
        assert_eq!(run(["kvist", "trace", "--requests", "0"]), 1);
        assert_eq!(run(["kvist", "calibrate"]), 2);
        assert_eq!(run(["kvist", "calibrate", "--dump", "/nonexistent"]), 2);
    }

    #[test]
    fn a_small_benchmark_runs() {
        let flags = ["--context", "256", "--threads", "1", "--repeats", "1", "--peers", "none"];
        let args = ["kvist", "bench", "score", "--json"].into_iter().chain(flags);
        assert_eq!(run(args), 0);
    }
}
