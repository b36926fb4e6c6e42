//! Opening a directory: how long a start takes, after an orderly end and after a crash.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::{Duration, Instant};

use kvist::format::{BlockDType, BlockLayout};
use kvist::{BlockRows, Codec, DiskOptions, PrefixStore, SpaceOptions, Strides};

use crate::{Error, Line, Options, Params, Sample, Sink};

/// Records of the directory.
const RECORDS: usize = 10_000;
const REPEATS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);
/// Tokens of a block.
const TOKENS: usize = 16;
/// Bytes that are cut off a segment at each repeat to take its footer away, as if it had never been
/// finished: less than the footer has in all repeats together.
const TRAILER: u64 = 4096;

fn failed(e: impl std::fmt::Display) -> Error {
    Error::subject("kvist", e.to_string())
}

/// One row with footers, one without.
pub(super) fn run(dir: &Path, options: &Options, sink: &mut Sink) -> Result<(), Error> {
    // 64 KiB: 4 layers of 8 heads of 64.
    let layout = BlockLayout::new(BlockDType::U8, TOKENS as u32, 4, 8, 64);
    let dir = dir.join("recovery");
    let disk = || DiskOptions::new(&dir, (3 * RECORDS * layout.bytes()) as u64);
    fill(&layout, disk())?;
    for how in ["footers", "scan"] {
        let mut times = Vec::new();
        for _ in 0..options.repeats.unwrap_or(REPEATS) {
            if how == "scan" {
                cut_footers(&dir)?;
            }
            let start = Instant::now();
            let store = PrefixStore::builder().disk(disk()).build().map_err(failed)?;
            times.push(start.elapsed().as_secs_f64());
            let found = store.stats().disk.map_or(0, |disk| disk.records);
            if found != RECORDS as u64 {
                return Err(failed(format!("{found} records after opening, not {RECORDS}")));
            }
        }
        let sample = Sample::of(times);
        let params =
            Params::new().with("op", "open").with("size", super::size_name(layout.bytes()));
        let params = params.with("records", RECORDS).with("by", how);
        sink.push(
            Line::new("store", params, sample.median * 1e3, "ms")
                .repeated(sample.repeats, sample.spread)
                .best(sample.best * 1e3),
        );
    }
    std::fs::remove_dir_all(&dir).map_err(Error::io(format!("removing {}", dir.display())))
}

fn fill(layout: &BlockLayout, disk: DiskOptions) -> Result<(), Error> {
    let store = PrefixStore::builder().disk(disk).backpressure(PATIENCE).build().map_err(failed)?;
    let options = SpaceOptions::new([7; 32], layout.clone()).codec(Codec::raw());
    let space = store.space(options).map_err(failed)?;
    let tokens: Vec<u32> = (0..(RECORDS * TOKENS) as u32).collect();
    let prefix = space.prefix(&tokens).map_err(failed)?;
    let block: Vec<u8> = (0..layout.bytes()).map(|i| (i * 31) as u8).collect();
    let rows = BlockRows::new(layout, &block, Strides::canonical(layout)).map_err(failed)?;
    for i in 0..RECORDS {
        let refused = space.put(&prefix, i, &[rows]).map_err(failed)?;
        if refused != [Ok(())] {
            return Err(failed(format!("put: {refused:?}")));
        }
    }
    if store.flush(PATIENCE) { Ok(()) } else { Err(failed("not everything was written in time")) }
}

/// Cuts every segment before its trailer. Opening does not write it anew.
fn cut_footers(dir: &Path) -> Result<(), Error> {
    let cut = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "kv") {
                let file = OpenOptions::new().write(true).open(&path)?;
                file.set_len(file.metadata()?.len() - TRAILER)?;
                file.sync_all()?;
            }
        }
        Ok(())
    };
    cut().map_err(Error::io(format!("cutting the segments of {}", dir.display())))
}
