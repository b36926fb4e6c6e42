//! Selectors over clusters whose sequence is on disk: bytes read for a step from where the rows of a cluster lie
//! together, beside the pages that hold the same tokens. Real keys and queries: clusters are made of these.

use std::collections::HashMap;

use kvist::{Cache, DiskOptions, Executor, Geometry, Select};
use kvist_kernels::DType;

use super::NAME;
use crate::quality::dump::Dump;
use crate::quality::{append, attend};
use crate::store::Place;
use crate::{Error, Line, Options, Params, Sink};

/// Layers of the dump that are measured, at even distances.
const LAYERS: usize = 4;
/// Shares of the bytes of keys and values that host memory has.
const SHARES: [usize; 2] = [4, 16];

/// What some steps read, summed over steps and KV heads.
#[derive(Default)]
struct Moved {
    /// Steps times heads.
    count: f64,
    tokens: u64,
    /// Pages of consecutive tokens that hold these, and those of them that would not be in memory if as many of
    /// the last used as it holds were.
    pages: u64,
    pages_missed: u64,
    /// Pages of clusters that held them, and those of them that were not in memory.
    hits: u64,
    misses: u64,
    /// Bytes of all pages that were brought back.
    brought: u64,
}

pub(super) fn run(options: &Options, place: &Place, sink: &mut Sink) -> Result<(), Error> {
    let Some(path) = &options.dump else {
        sink.note("clusters: left out, as they need real keys (give --dump)");
        return Ok(());
    };
    let dump = Dump::open(path)?;
    for name in ["clusterkv", "retroinfer"] {
        for &budget in options.budget.as_deref().unwrap_or(&[512, 1024]) {
            let select = Select::parse(name).map_err(kvist::Error::from)?.with_budget(budget);
            for share in SHARES {
                let mut moved = Moved::default();
                for i in 0..LAYERS.min(dump.layers.len()) {
                    let layer = i * dump.layers.len() / LAYERS.min(dump.layers.len());
                    measure(&dump, layer, &select, share, place, &mut moved)?;
                }
                sink.push(line(&dump, name, budget, share, &moved));
            }
        }
    }
    Ok(())
}

fn geometry(dump: &Dump) -> Geometry {
    let geometry = Geometry::new(1, dump.q_heads, dump.kv_heads, dump.dim_k, DType::Bf16);
    Geometry { dim_v: dump.dim_v, ..geometry }
}

/// Pages by head and number, with when each was used last.
struct Resident {
    pages: HashMap<(usize, u32), usize>,
    most: usize,
    now: usize,
}

impl Resident {
    /// Whether a page is there; it is from now on, in place of the one not used for longest.
    fn take(&mut self, page: (usize, u32)) -> bool {
        self.now += 1;
        let was = self.pages.insert(page, self.now).is_some();
        if self.pages.len() > self.most {
            let oldest = self.pages.iter().min_by_key(|(_, used)| **used).map(|(page, _)| *page);
            oldest.map(|page| self.pages.remove(&page));
        }
        was
    }
}

/// One layer; what the first step brings back to make the clusters is not counted.
fn measure(
    dump: &Dump,
    layer: usize,
    select: &Select,
    share: usize,
    place: &Place,
    moved: &mut Moved,
) -> Result<(), Error> {
    let geometry = geometry(dump);
    let page = geometry.page_tokens;
    let bytes = (dump.tokens * dump.kv_heads * geometry.token_bytes()) as u64;
    let disk = DiskOptions::new(place.path().join("clusters"), 4 * bytes + (1 << 30));
    let cache = Cache::builder(geometry)
        .host_bytes(bytes / share as u64 + bytes / 6)
        .select(select.clone())
        .executor(Executor::with_threads(1)?)
        .disk(disk)
        .build()?;
    let mut s = cache.sequence();
    let first = dump.tokens - dump.queries;
    append(dump, layer, 0..first, &mut s, 0)?;
    s.offload()?;
    let mut before = cache.stats();
    let most = bytes as usize / share / cache.geometry().page_bytes();
    let mut resident = Resident { pages: HashMap::new(), most, now: 0 };
    for step in 0..dump.queries {
        append(dump, layer, first + step..first + step + 1, &mut s, 0)?;
        let (_, info) = attend(dump, layer, step, &s, 0)?;
        let mut of_step = Moved::default();
        for (head, selected) in info.selected.iter().flatten().enumerate() {
            of_step.count += 1.0;
            of_step.tokens += selected.len() as u64;
            for tokens in selected.chunk_by(|a, b| *a as usize / page == *b as usize / page) {
                of_step.pages += 1;
                let there = resident.take((head, tokens[0] / page as u32));
                of_step.pages_missed += u64::from(!there);
            }
        }
        if step == 0 {
            before = cache.stats();
            continue;
        }
        moved.count += of_step.count;
        moved.tokens += of_step.tokens;
        moved.pages += of_step.pages;
        moved.pages_missed += of_step.pages_missed;
    }
    let after = cache.stats();
    moved.hits += after.cluster_hits - before.cluster_hits;
    moved.misses += after.cluster_misses - before.cluster_misses;
    moved.brought += after.below_read_bytes - before.below_read_bytes;
    Ok(())
}

fn line(dump: &Dump, name: &'static str, budget: usize, share: usize, moved: &Moved) -> Line {
    let geometry = geometry(dump);
    let kb = |bytes: u64| bytes as f64 / moved.count * 1e-3;
    let params = Params::new()
        .with("op", "clusters")
        .with("model", dump.model.clone())
        .with("context", dump.tokens)
        .with("select", name)
        .with("budget", budget)
        .with("memory", format!("1/{share}"));
    let columns = Params::new()
        .with("chosen_kb", kb(moved.tokens * geometry.token_bytes() as u64))
        .with("pages_kb", kb(moved.pages * geometry.page_bytes() as u64))
        .with("pages_missed_kb", kb(moved.pages_missed * geometry.page_bytes() as u64))
        .with("hits", moved.hits as f64 / (moved.hits + moved.misses).max(1) as f64);
    Line::new(NAME, params, kb(moved.brought), "kB read")
        .repeated(moved.count as usize, 0.0)
        .columns(columns)
}
