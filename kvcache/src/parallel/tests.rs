//! A sequence in several caches against its twin in one.

use proptest::prelude::*;

use super::ParallelSequence;
use crate::{
    AttendInfo, AttendOptions, Boxed, Cache, DType, Error, Geometry, Select, Sequence, Tensor3,
    Tensor3Mut,
};

const LAYERS: usize = 2;
const Q_HEADS: usize = 4;
const HEADS: usize = 2;
const DIM: usize = 16;
const PAGE: usize = 16;

fn geometry() -> Geometry {
    Geometry { page_tokens: PAGE, ..Geometry::new(LAYERS, Q_HEADS, HEADS, DIM, DType::F32) }
}

fn cache(select: Select, bytes: u64) -> Cache {
    let builder = Cache::builder(geometry()).host_bytes(bytes).select(select).threads(1);
    builder.build().unwrap()
}

fn caches(n: usize, select: &Select) -> Vec<Cache> {
    (0..n).map(|_| cache(select.clone(), 8 << 20)).collect()
}

fn parallel(caches: &[Cache], stripe: usize) -> ParallelSequence {
    ParallelSequence::new(&caches.iter().collect::<Vec<_>>(), stripe).unwrap()
}

/// Numbers between -2 and 2 that follow from a seed.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

/// Appends the same rows to a layer of both.
fn append(twin: &mut Sequence, all: &mut ParallelSequence, layer: usize, seed: u64, n: usize) {
    let (k, v) = (numbers(seed, n * HEADS * DIM), numbers(!seed, n * HEADS * DIM));
    let view = |x| Tensor3::contiguous(x, [n, HEADS, DIM]).unwrap();
    twin.append(layer, &view(&k[..]), &view(&v[..])).unwrap();
    all.append(layer, &view(&k[..]), &view(&v[..])).unwrap();
}

/// What queries get.
fn look(
    n: usize,
    seed: u64,
    attend: impl FnOnce(&Tensor3, &mut Tensor3Mut) -> Result<AttendInfo, Error>,
) -> (Vec<f32>, AttendInfo) {
    let q = numbers(seed ^ 77, n * Q_HEADS * DIM);
    let q = Tensor3::contiguous(&q, [n, Q_HEADS, DIM]).unwrap();
    let mut out = vec![f32::NAN; n * Q_HEADS * DIM];
    let info = attend(&q, &mut Tensor3Mut::contiguous(&mut out, [n, Q_HEADS, DIM]).unwrap());
    (out, info.unwrap())
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (a - b).abs() <= 2e-5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn as_one_sequence(
        n in 1usize..5,
        pages in 1usize..4,
        appends in prop::collection::vec(1usize..90, 1..6),
        queries in 1usize..70,
        window in prop_oneof![Just(0usize), 1usize..120],
        (soft_cap, sinks) in (prop_oneof![Just(0f32), Just(3.0)], any::<bool>()),
        cut in prop::option::of(0usize..1000),
        seed in any::<u64>(),
    ) {
        let (one, many) = (cache(Select::Full, 8 << 20), caches(n, &Select::Full));
        let (mut twin, mut all) = (one.sequence(), parallel(&many, pages * PAGE));
        for (i, &tokens) in appends.iter().enumerate() {
            (0..LAYERS).for_each(|l| append(&mut twin, &mut all, l, seed ^ (i * 2 + l) as u64, tokens));
        }
        if let Some(share) = cut {
            let len = twin.len() * share / 1000;
            twin.truncate(len).unwrap();
            all.truncate(len).unwrap();
            append(&mut twin, &mut all, 0, seed ^ 5, 3);
            append(&mut twin, &mut all, 1, seed ^ 6, 3);
        }
        prop_assert_eq!(all.len(), twin.len());
        let lens: usize = all.parts().iter().map(Sequence::len).sum();
        prop_assert_eq!(lens, twin.len());
        let logits = numbers(seed ^ 9, Q_HEADS);
        let sinks = sinks.then_some(&logits[..]);
        let options = AttendOptions { window, soft_cap, sinks, selected: true, bound: true, ..Default::default() };
        for layer in 0..LAYERS {
            for n in [1, queries.min(twin.len())] {
                let (want, said) = look(n, seed, |q, out| twin.attend(layer, q, &options, out));
                let (got, info) = look(n, seed, |q, out| all.attend(layer, q, &options, out));
                prop_assert!(close(&got, &want), "{n} queries");
                prop_assert!(close(&info.lse2, &said.lse2), "{n} queries");
                let (again, _) = look(n, seed, |q, out| all.attend(layer, q, &options, out));
                prop_assert_eq!(&again, &got);
                if n == 1 {
                    prop_assert_eq!(info.tokens_read, said.tokens_read);
                    prop_assert_eq!(info.selected, said.selected);
                    prop_assert!(info.missed_mass_bound.is_some_and(|b| b.iter().all(|&b| b <= 1e-6)));
                }
            }
        }
    }

    /// What is proven of the parts holds for the whole.
    #[test]
    fn a_bound_of_the_parts_bounds_the_whole(n in 1usize..4, len in 100usize..900, seed in any::<u64>()) {
        let select = Select::Boxed(Boxed { sinks: 2, recent: 63, ..Boxed::with_budget(96) });
        let (one, many) = (cache(Select::Full, 8 << 20), caches(n, &select));
        let (mut twin, mut all) = (one.sequence(), parallel(&many, 2 * PAGE));
        append(&mut twin, &mut all, 0, seed, len);
        let options = AttendOptions { bound: true, selected: true, ..Default::default() };
        let (_, dense) = look(1, seed, |q, out| twin.attend(0, q, &options, out));
        let (_, info) = look(1, seed, |q, out| all.attend(0, q, &options, out));
        let bounds = info.missed_mass_bound.expect("boxed proves one");
        for ((&bound, &read), &all) in bounds.iter().zip(&info.lse2).zip(&dense.lse2) {
            let missed = 1.0 - (read - all).exp2();
            prop_assert!(missed <= bound + 1e-5, "missed {missed}, at most {bound} was said");
        }
        let selected = info.selected.expect("asked for");
        for (head, positions) in selected.iter().enumerate() {
            prop_assert!(positions.is_sorted() && positions.iter().all(|&p| (p as usize) < len));
            prop_assert_eq!(positions.len(), info.tokens_read[head] as usize);
        }
    }
}

#[test]
fn several_queries_are_dense_whatever_the_selector() {
    let select = Select::Boxed(Boxed { sinks: 2, recent: 63, ..Boxed::with_budget(96) });
    let (one, many) = (cache(Select::Full, 8 << 20), caches(2, &select));
    let (mut twin, mut all) = (one.sequence(), parallel(&many, PAGE));
    append(&mut twin, &mut all, 0, 7, 50 * PAGE + 1);
    let options = AttendOptions::default();
    // The last piece is one query, and so is the first.
    for n in [2, PAGE + 2] {
        let (want, _) = look(n, 8, |q, out| twin.attend(0, q, &options, out));
        let (got, info) = look(n, 8, |q, out| all.attend(0, q, &options, out));
        assert!(close(&got, &want), "{n} queries");
        assert_eq!(info.tokens_read, [twin.layer_len(0).unwrap() as u32; HEADS]);
    }
    let (_, info) = look(1, 8, |q, out| all.attend(0, q, &options, out));
    assert!(info.tokens_read.iter().all(|&n| n <= 2 * 96));
}

#[test]
fn forks_go_their_own_ways() {
    let (one, many) = (cache(Select::Full, 8 << 20), caches(3, &Select::Full));
    let (mut twin, mut all) = (one.sequence(), parallel(&many, PAGE));
    append(&mut twin, &mut all, 0, 1, 100);
    let (mut other_twin, mut other) = (twin.fork(), all.fork());
    append(&mut twin, &mut all, 0, 2, 40);
    append(&mut other_twin, &mut other, 0, 3, 30);
    for (twin, all) in [(&twin, &all), (&other_twin, &other)] {
        let options = AttendOptions::default();
        let (want, _) = look(5, 4, |q, out| twin.attend(0, q, &options, out));
        let (got, _) = look(5, 4, |q, out| all.attend(0, q, &options, out));
        assert!(close(&got, &want));
    }
    drop((all, other));
    assert!(many.iter().all(|cache| cache.stats().used_bytes == 0));
}

#[test]
fn an_append_that_does_not_fit_in_one_part_changes_none() {
    let page = (PAGE * HEADS * DIM * 2 * 4) as u64;
    let many = [cache(Select::Full, 8 << 20), cache(Select::Full, 4 * page)];
    let mut all = parallel(&many, PAGE);
    let rows = numbers(1, 400 * HEADS * DIM);
    let view = |n: usize| Tensor3::contiguous(&rows[..n * HEADS * DIM], [n, HEADS, DIM]).unwrap();
    all.append(0, &view(40), &view(40)).unwrap();
    let options = AttendOptions::default();
    let before = look(3, 1, |q, out| all.attend(0, q, &options, out));
    assert!(matches!(all.append(0, &view(400), &view(400)), Err(Error::OverBudget { .. })));
    assert_eq!(all.layer_len(0), Ok(40));
    assert_eq!(look(3, 1, |q, out| all.attend(0, q, &options, out)), before);
    all.append(0, &view(10), &view(10)).unwrap();
    assert_eq!(all.layer_len(0), Ok(50));
}

#[test]
fn what_cannot_be_is_named() {
    let many = caches(2, &Select::Full);
    let text = |made: Result<ParallelSequence, Error>| made.unwrap_err().to_string();
    assert!(text(ParallelSequence::new(&[], PAGE)).contains("at least one"));
    assert!(text(ParallelSequence::new(&[&many[0]], PAGE + 1)).contains("multiple of the page"));
    assert!(text(ParallelSequence::new(&[&many[0]], 0)).contains("multiple of the page"));
    let other = Cache::builder(Geometry { layers: 3, ..geometry() }).host_bytes(1 << 20);
    let other = other.build().unwrap();
    assert!(text(ParallelSequence::new(&[&many[0], &other], PAGE)).contains("layers: 3"));
    let mut all = parallel(&many, PAGE);
    let rows = numbers(1, 20 * HEADS * DIM);
    let rows = Tensor3::contiguous(&rows, [20, HEADS, DIM]).unwrap();
    all.append(0, &rows, &rows).unwrap();
    assert!(matches!(all.append(9, &rows, &rows), Err(Error::Layer { .. })));
    assert!(matches!(all.truncate(21), Err(Error::Length { .. })));
    let (q, mut out) = (numbers(2, 21 * Q_HEADS * DIM), vec![0f32; 21 * Q_HEADS * DIM]);
    let mut ask = |n: usize, options: &AttendOptions| {
        let shape = [n, Q_HEADS, DIM];
        let q = Tensor3::contiguous(&q[..n * Q_HEADS * DIM], shape).unwrap();
        let mut out = Tensor3Mut::contiguous(&mut out[..n * Q_HEADS * DIM], shape).unwrap();
        all.attend(0, &q, options, &mut out)
    };
    assert!(matches!(ask(21, &AttendOptions::default()), Err(Error::Length { .. })));
    let prefill = crate::prefill::Prefill::default();
    let sparse = AttendOptions { prefill: Some(&prefill), ..AttendOptions::default() };
    assert!(ask(1, &sparse).unwrap_err().to_string().contains("several caches"));
    assert_eq!(ask(0, &AttendOptions::default()).unwrap().lse2, Vec::<f32>::new());
}
