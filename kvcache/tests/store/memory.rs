//! Bytes: pages, summaries and a stated overhead, never above the budget.

use half::bf16;
use kvist::kernels::summary::{BoxedSpec, UnitKind, UnitSpec};
use kvist::kernels::{DType, Element};
use kvist::{Boxed, Cache, Error, Geometry, Quest, Select, Sequence, Stats, Tensor3};

const LAYERS: usize = 2;
const HEADS: usize = 2;
/// The overhead that is allowed, as a share of pages and summaries.
const OVERHEAD: f64 = 0.05;

fn cache<T: Element>(dim: usize, select: &Select, bytes: u64) -> Cache {
    let geometry = Geometry::new(LAYERS, 4 * HEADS, HEADS, dim, T::DTYPE);
    Cache::builder(geometry).host_bytes(bytes).select(select.clone()).threads(1).build().unwrap()
}

fn append<T: Element>(s: &mut Sequence, dim: usize, tokens: usize) -> Result<(), Error> {
    let data = vec![T::from_f32(0.5); tokens * HEADS * dim];
    let rows = Tensor3::contiguous(&data, [tokens, HEADS, dim]).unwrap();
    (0..LAYERS).try_for_each(|layer| s.append(layer, &rows, &rows))
}

fn selects() -> Vec<Select> {
    let boxed = |planes| Select::Boxed(Boxed { planes, ..Boxed::with_budget(512) });
    vec![Select::Full, Select::Quest(Quest::default()), boxed(2), boxed(3), boxed(4)]
}

/// Summary bytes of 64 tokens of one layer and KV head.
fn cell_bytes(select: &Select, dim: usize, dtype: DType) -> usize {
    match select {
        Select::Full => 0,
        Select::Quest(q) => {
            UnitSpec::new(UnitKind::Box, dim, dtype, q.unit_tokens).unwrap().cell_bytes()
        }
        Select::Boxed(b) => BoxedSpec::new(dim, b.planes).unwrap().cell_bytes(),
        other => unreachable!("not among those counted here: {other:?}"),
    }
}

fn adds_up(stats: &Stats) {
    assert_eq!(stats.used_bytes, stats.page_bytes + stats.summary_bytes + stats.overhead_bytes);
    assert!(stats.used_bytes <= stats.budget_bytes);
}

/// Fills a sequence, the first half as a prompt and the rest in small steps.
fn filled<T: Element>(dim: usize, select: &Select, tokens: usize) {
    let cache = cache::<T>(dim, select, 256 << 20);
    let mut s = cache.sequence();
    append::<T>(&mut s, dim, tokens / 2).unwrap();
    for _ in 0..tokens / 2 / 16 {
        append::<T>(&mut s, dim, 16).unwrap();
        adds_up(&cache.stats());
    }
    let stats = cache.stats();
    let tiles = LAYERS * HEADS * tokens / 64;
    assert_eq!(stats.page_bytes as usize, tiles * 64 * 2 * dim * T::DTYPE.size());
    assert_eq!(stats.summary_bytes as usize, tiles * cell_bytes(select, dim, T::DTYPE));
    let payload = (stats.page_bytes + stats.summary_bytes) as f64;
    let share = stats.overhead_bytes as f64 / payload;
    assert!(share > 0.0 && share <= OVERHEAD, "{share} of {payload}, dim {dim}, {select:?}");
    let own = s.stats();
    assert_eq!((own.page_bytes, own.summary_bytes), (stats.page_bytes, stats.summary_bytes));
}

#[test]
fn a_full_sequence_costs_its_pages_summaries_and_little_else() {
    for select in selects() {
        for dim in [64, 128] {
            filled::<f32>(dim, &select, 1024);
            filled::<bf16>(dim, &select, 1024);
        }
    }
}

/// Appends until the budget refuses.
fn refused<T: Element>(dim: usize, select: &Select) {
    let budget = 3_000_000;
    let cache = cache::<T>(dim, select, budget);
    let mut sequences = Vec::new();
    let (error, left) = 'full: loop {
        let mut s = cache.sequence();
        for tokens in [300, 1, 63, 64, 65] {
            let done = append::<T>(&mut s, dim, tokens);
            adds_up(&cache.stats());
            if let Err(e) = done {
                break 'full (e, budget - cache.stats().used_bytes);
            }
        }
        sequences.push(s);
    };
    assert!(matches!(error, Error::OverBudget { .. }), "{error}");
    // What is left is less than the append needed, in one of its layers.
    let layer = HEADS * 6 * (64 * 2 * dim * T::DTYPE.size() + cell_bytes(select, dim, T::DTYPE));
    assert!((left as f64) < layer as f64 * (1.0 + OVERHEAD), "{left} of {budget} left");
    sequences.clear();
    assert_eq!(cache.stats().used_bytes, 0);
}

#[test]
fn a_budget_is_used_up_and_never_exceeded() {
    for select in selects() {
        for dim in [64, 128] {
            refused::<f32>(dim, &select);
            refused::<bf16>(dim, &select);
        }
    }
}
