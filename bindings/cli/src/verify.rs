//! `kvist verify DIR`: is a store's directory right, byte for byte?

use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use kvist::inspect::{Report, StoreView, VerifyOptions};

use crate::show::{bytes, json};
use crate::{Done, UNUSABLE};

/// Checks every byte of a store's directory, without changing or locking anything.
///
/// Exit status: 0 nothing is damaged, 1 something is, 2 the directory cannot be used.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The store's directory; it may be in use.
    dir: PathBuf,
    /// One JSON object.
    #[arg(long)]
    json: bool,
    /// Counts what a crash may leave, a record cut at the end of a segment, as damage too.
    #[arg(long)]
    strict: bool,
    /// Accepts a directory that other users may write.
    #[arg(long)]
    allow_shared_dir: bool,
    /// Segments checked at once [default: as many as there are processors].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

pub(crate) fn run(args: &Args) -> Done {
    let started = Instant::now();
    // Hidden unless standard error is a terminal.
    let bar = ProgressBar::new(0);
    let style = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()));
    let heard = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let options = VerifyOptions {
        threads: args.threads,
        strict: args.strict,
        allow_shared_dir: args.allow_shared_dir,
        progress: Some(&heard),
    };
    let checked =
        StoreView::open(&args.dir).and_then(|view| Ok((view.verify(&options)?, view.holder())));
    bar.finish_and_clear();
    let (report, holder) = checked.map_err(|e| (UNUSABLE, e.into()))?;
    if args.json {
        json(&report)?;
    } else {
        print(&report, holder, started.elapsed().as_secs_f64());
    }
    Ok(u8::from(!report.clean))
}

fn print(report: &Report, holder: Option<u32>, seconds: f64) {
    println!("{}: {}", report.path, if report.clean { "clean" } else { "damaged" });
    println!(
        "  {} segments ({} with an index), {} records ({} sealed, checked by their headers alone; \
         {} tombstones)",
        report.segments, report.finished, report.records, report.sealed, report.tombstones
    );
    println!(
        "  {} checked in {seconds:.1} s ({}/s)",
        bytes(report.bytes),
        bytes((report.bytes as f64 / seconds.max(1e-9)) as u64)
    );
    if report.sessions > 0 {
        println!("  {} saved sessions", report.sessions);
    }
    match (report.in_use, holder) {
        (Some(true), Some(pid)) => println!("  in use by process {pid}"),
        (Some(true), None) => println!("  in use"),
        _ => {}
    }
    for damage in &report.damage {
        let end = damage.offset + damage.bytes;
        println!("  damaged {} in {}, bytes {}..{end}", damage.what, damage.file, damage.offset);
        println!("    {}", damage.check);
        if let Some(key) = &damage.key {
            println!("    block {key}");
        }
        println!("    {}", damage.means);
    }
    for note in &report.notes {
        println!("  note: {}: {}", note.file, note.text);
    }
}
