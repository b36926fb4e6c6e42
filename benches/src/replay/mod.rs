//! Replays of request traces: which blocks would have been found, by orders of replacement, capacities and tiers.

mod cost;
mod generate;
mod hints;
mod html;
mod parse;
mod sim;
mod tier;
mod trace;

use std::path::PathBuf;

use kvist::policies::replace::Replace;

pub use cost::Cost;
pub use generate::Generator;
pub use parse::{policies, tiers};
pub use sim::{Outcome, TierResult, TierSpec, simulate};
pub use trace::{Request, Trace};

use crate::{Error, Line, Params, Sink};

/// Capacities where none are given: shares of the trace's different blocks.
const SHARES: [f64; 4] = [0.005, 0.02, 0.05, 0.15];

/// What to replay.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files.
    pub traces: Vec<PathBuf>,
    /// Orders of the tier whose capacity varies.
    pub policies: Vec<Replace>,
    /// Its capacities in blocks; shares of the different blocks if there are none.
    pub capacities: Vec<usize>,
    /// Sets of tiers in place of one tier of those orders and capacities.
    pub tiers: Vec<Vec<TierSpec>>,
    /// Shares of right hints that sessions are closed; `None` for the hints of the trace itself.
    pub hints: Vec<Option<f64>>,
    /// What blocks are worth.
    pub cost: Cost,
    /// A report with plots.
    pub html: Option<PathBuf>,
}

/// One replay: its row, and what it is told apart by.
pub(crate) struct Row {
    pub(crate) trace: String,
    pub(crate) hints: String,
    pub(crate) name: String,
    pub(crate) blocks: usize,
    pub(crate) outcome: Outcome,
}

/// Replays all traces.
///
/// # Errors
/// [`Error::Trace`], [`Error::Policy`], [`Error::Io`] if the report cannot be written.
pub fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let mut rows = Vec::new();
    for path in &options.traces {
        let mut trace = Trace::open(path)?;
        let (used, different, seconds) = trace.size();
        sink.note(&format!(
            "{}: {} requests of {}, {used} blocks of {} tokens, {different} different ones, {seconds:.0} s",
            trace.name,
            trace.requests.len(),
            trace.format,
            trace.block_tokens
        ));
        let sets = sets(options, different);
        for &accuracy in &options.hints {
            if let Some(accuracy) = accuracy {
                hints::close_sessions(&mut trace, accuracy);
            }
            let hints = accuracy.map_or_else(|| "none".to_owned(), |a| format!("{a}"));
            for specs in &sets {
                let outcome = simulate(&trace, specs, &options.cost)?;
                let name = match &specs[..] {
                    [only] => only.replace.name().to_owned(),
                    all => all.iter().map(TierSpec::text).collect::<Vec<_>>().join(","),
                };
                let (trace, hints) = (trace.name.clone(), hints.clone());
                rows.push(Row { trace, hints, name, blocks: specs[0].blocks, outcome });
                if let Some(row) = rows.last() {
                    sink.push(line(row));
                }
            }
        }
    }
    match &options.html {
        Some(path) => html::write(path, &rows),
        None => Ok(()),
    }
}

/// The sets of tiers that a trace with so many different blocks goes through.
fn sets(options: &Options, different: usize) -> Vec<Vec<TierSpec>> {
    if !options.tiers.is_empty() {
        return options.tiers.clone();
    }
    let shares = SHARES.map(|share| ((share * different as f64) as usize).max(1));
    let all = if options.capacities.is_empty() { &shares[..] } else { &options.capacities };
    let one = |replace: Replace| {
        all.iter().map(move |&blocks| vec![TierSpec::new("host", blocks, replace)])
    };
    options.policies.iter().flat_map(|&replace| one(replace)).collect()
}

fn line(row: &Row) -> Line {
    let out = &row.outcome;
    let params = Params::new()
        .with("trace", row.trace.as_str())
        .with("hints", row.hints.as_str())
        .with("order", row.name.as_str())
        .with("blocks", row.blocks);
    let mut columns = Params::new()
        .with("saved_compute", out.saved_ratio())
        .with("saved_s", out.saved_s)
        .with("read_s", out.read_s)
        .with("requests_hit", out.requests_hit as f64 / out.requests.max(1) as f64);
    for tier in &out.tiers {
        let share = tier.hits as f64 / out.blocks.max(1) as f64;
        let text = format!(
            "{:.4} of blocks, {:.1} GB read, {:.1} GB written",
            share,
            tier.read_bytes * 1e-9,
            tier.written_bytes * 1e-9
        );
        columns = columns.with(tier.name, text);
    }
    Line::new("replay", params, 100.0 * out.hit_ratio(), "% hit").columns(columns)
}

#[cfg(test)]
mod tests {
    use kvist::format::{BlockDType, BlockKey, BlockLayout};
    use kvist::{BlockRows, BlockRowsMut, PrefixStore, SpaceOptions, Strides};

    use super::*;

    /// Blocks found on `data/sessions.jsonl`, which `kvist trace` made, with room for 70 and 175 of its 3,500 different
    /// ones. They move when an order does: look at the large traces again then (`docs/replay.md`).
    #[test]
    fn the_orders_find_what_they_found() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/sessions.jsonl");
        let trace = Trace::open(std::path::Path::new(path)).unwrap();
        let hits = |replace| {
            [70, 175].map(|blocks| {
                let spec = [TierSpec::new("host", blocks, replace)];
                simulate(&trace, &spec, &Cost::default()).unwrap().tiers[0].hits
            })
        };
        let expected = [
            ("lru", [966, 1472]),
            ("slru", [1214, 1463]),
            ("arc", [1210, 1450]),
            ("sieve", [1231, 1371]),
            ("s3fifo", [1242, 1444]),
            ("adaptive", [1241, 1436]),
        ];
        assert_eq!(Replace::ALL.map(|replace| (replace.name(), hits(replace))), expected);
    }

    /// A prefix store with as much room finds what the replay says: it tells its order the same things.
    #[test]
    fn a_store_finds_what_the_replay_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/sessions.jsonl");
        let mut trace = Trace::open(std::path::Path::new(path)).unwrap();
        // A closed session makes room for itself in a replay, and for the next one in a store.
        trace.requests.iter_mut().for_each(|request| request.closed = false);
        let layout = BlockLayout::new(BlockDType::U8, 64, 1, 1, 16);
        let bytes = vec![7; layout.bytes()];
        for replace in [Replace::Lru, Replace::S3Fifo, Replace::Adaptive] {
            let room = 175;
            let spec = [TierSpec::new("host", room, replace)];
            let expected = simulate(&trace, &spec, &Cost::default()).unwrap().tiers[0].hits as f64;
            let each = layout.bytes() as u64 + 125 + replace.block_bytes();
            let builder = PrefixStore::builder().host_bytes(room as u64 * each).replace(replace);
            let store = builder.threads(false).build().unwrap();
            let space = store.space(SpaceOptions::new([1; 32], layout.clone())).unwrap();
            let mut found = 0;
            for request in &trace.requests {
                let mut key = [0; 32];
                let keys = request.blocks.iter().map(|name| {
                    // As good as a hash: the first bytes are taken for one.
                    key[..8]
                        .copy_from_slice(&name.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
                    BlockKey(key)
                });
                let prefix = space.prefix_of_keys(keys.collect());
                let rows = BlockRows::new(&layout, &bytes, Strides::nhd(&layout)).unwrap();
                let there = space.contains(&prefix);
                let mut out = vec![bytes.clone(); there];
                let mut to: Vec<BlockRowsMut> = out
                    .iter_mut()
                    .map(|out| BlockRowsMut::new(&layout, out, Strides::nhd(&layout)).unwrap())
                    .collect();
                found += space.get(&prefix, 0..there, &mut to).unwrap().blocks;
                let new = vec![rows; prefix.len() - there];
                let _ = space.put(&prefix, there, &new).unwrap();
            }
            assert_eq!(store.stats().host_blocks, room as u64);
            // Room is made block by block there, and after each request here.
            let ratio = found as f64 / expected;
            assert!((0.97..1.03).contains(&ratio), "{replace:?}: {found} against {expected}");
        }
    }
}
