//! The attention kernels against the f64 oracle over shapes, dtypes, layouts and masks, at every
//! instruction-set level this CPU has.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use half::{bf16, f16};
use kvist_kernels::attend::{self, Out, Params, Queries};
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{
    DType, Element, Executor, Isa, KvLayout, KvPool, PageLists, SlotLists, Tensor3, Tensor3Mut,
};
use proptest::prelude::*;

/// Deterministic numbers, roughly normal.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum();
        (sum - 2.0) * 1.7
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    dim_k: usize,
    dim_v: usize,
    page: usize,
    kv_heads: usize,
    group: usize,
    /// Tokens of each sequence.
    lens: Vec<usize>,
    /// Query tokens of each sequence.
    queries: Vec<usize>,
    hnd: bool,
    per_head: bool,
    slots: bool,
    causal: bool,
    window: u32,
    soft_cap: f32,
    sinks: bool,
}

struct Built<T> {
    k: Vec<T>,
    v: Vec<T>,
    q: Vec<T>,
    layout: KvLayout,
    frames: usize,
    indptr: Vec<u32>,
    list: Vec<u32>,
    lens: Vec<u32>,
    positions: Vec<u32>,
    slot_positions: Vec<u32>,
    q_indptr: Vec<u32>,
    sinks: Vec<f32>,
}

/// Random frames in random order, with NaN in every token no list reads.
fn build<T: Element>(case: &Case) -> Built<T> {
    let mut random = Random(case.seed);
    let heads_in_frame = if case.per_head { 1 } else { case.kv_heads };
    let lists = case.lens.len() * if case.per_head { case.kv_heads } else { 1 };
    let heads_per_sequence = lists / case.lens.len().max(1);
    let list_lens: Vec<usize> =
        (0..lists).map(|i| case.lens[i / heads_per_sequence.max(1)]).collect();
    let pages: usize = list_lens.iter().map(|n| n.div_ceil(case.page)).sum();
    let frames = pages + 3;
    let mut order: Vec<usize> = (0..frames).collect();
    for i in (1..frames).rev() {
        order.swap(i, random.below(i + 1));
    }
    let make = if case.hnd { KvLayout::hnd } else { KvLayout::nhd };
    let layout = make(case.page, heads_in_frame, case.dim_k, case.dim_v);
    let nan = T::from_f32(f32::NAN);
    let mut k = vec![nan; frames * case.page * heads_in_frame * case.dim_k];
    let mut v = vec![nan; frames * case.page * heads_in_frame * case.dim_v];
    let mut built = (vec![0u32], Vec::new(), Vec::new());
    let mut used = 0;
    for &len in &list_lens {
        let own = &order[used..used + len.div_ceil(case.page)];
        used += own.len();
        for t in 0..len {
            let (frame, offset) = (own[t / case.page], t % case.page);
            for h in 0..heads_in_frame {
                let at = |s: [i64; 3]| {
                    frame * s[0] as usize + h * s[1] as usize + offset * s[2] as usize
                };
                let (ka, va) = (at(layout.k_strides), at(layout.v_strides));
                k[ka..ka + case.dim_k].fill_with(|| T::from_f32(random.normal()));
                v[va..va + case.dim_v].fill_with(|| T::from_f32(random.normal()));
            }
            let keep = !case.slots || random.below(3) > 0;
            if case.slots && keep {
                built.1.push((frame * case.page + offset) as u32);
                built.2.push(t as u32);
            }
        }
        if !case.slots {
            built.1.extend(own.iter().map(|&f| f as u32));
        }
        built.0.push(built.1.len() as u32);
    }
    let rows: usize = case.queries.iter().sum();
    let q_heads = case.kv_heads * case.group;
    let q = (0..rows * q_heads * case.dim_k).map(|_| T::from_f32(2.0 * random.normal())).collect();
    let mut q_indptr = vec![0u32];
    let mut positions = Vec::new();
    for (&n, &len) in case.queries.iter().zip(&case.lens) {
        q_indptr.push(q_indptr[q_indptr.len() - 1] + n as u32);
        positions.extend((0..n).map(|i| (len + i).saturating_sub(n) as u32));
    }
    let sinks = (0..q_heads).map(|_| random.normal()).collect();
    Built {
        k,
        v,
        q,
        layout,
        frames,
        indptr: built.0,
        list: built.1,
        slot_positions: built.2,
        lens: list_lens.iter().map(|&n| n as u32).collect(),
        positions,
        q_indptr,
        sinks,
    }
}

fn params<'a, T>(case: &Case, built: &'a Built<T>) -> Params<'a> {
    Params {
        scale: 1.0 / (case.dim_k as f32).sqrt(),
        soft_cap: case.soft_cap,
        window: case.window,
        causal: case.causal,
        sinks: case.sinks.then_some(&built.sinks[..]),
        precise: false,
    }
}

fn oracle<T: Element>(case: &Case, b: &Built<T>) -> Attended {
    run_with(case, b, |queries, pool, pages, slots, params| {
        let tokens = match slots {
            Some(s) => reference::slot_tokens(pool, s),
            None => reference::page_tokens(pool, pages),
        };
        reference::attend(queries, pool, &tokens, case.per_head, params)
    })
}

fn run_with<T: Element, R>(
    case: &Case,
    b: &Built<T>,
    f: impl FnOnce(&Queries, &KvPool, &PageLists, Option<&SlotLists>, &Params) -> R,
) -> R {
    let rows = case.queries.iter().sum();
    let shape = [rows, case.kv_heads * case.group, case.dim_k];
    let q = Tensor3::contiguous(&b.q, shape).unwrap();
    let queries = Queries { q, indptr: &b.q_indptr, positions: Some(&b.positions) };
    let pool = KvPool::new(&b.k, &b.v, b.layout, b.frames).unwrap();
    let pages = PageLists {
        indptr: &b.indptr,
        frames: &b.list,
        lens: &b.lens,
        first_pos: None,
        per_head: case.per_head,
    };
    let slots = SlotLists {
        indptr: &b.indptr,
        slots: &b.list,
        positions: Some(&b.slot_positions),
        per_head: case.per_head,
    };
    f(&queries, &pool, &pages, case.slots.then_some(&slots), &params(case, b))
}

fn kernel<T: Element>(
    case: &Case,
    b: &Built<T>,
    isa: Isa,
    exec: &Executor,
) -> (Vec<f32>, Vec<f32>) {
    let rows: usize = case.queries.iter().sum();
    let q_heads = case.kv_heads * case.group;
    let mut o = vec![f32::NAN; rows * q_heads * case.dim_v];
    let mut lse = vec![f32::NAN; rows * q_heads];
    run_with(case, b, |queries, pool, pages, slots, params| {
        let view = Tensor3Mut::contiguous(&mut o, [rows, q_heads, case.dim_v]).unwrap();
        let mut out = Out { o: view, lse2: Some(&mut lse) };
        match slots {
            Some(s) => attend::slots_at(isa, queries, pool, s, params, exec, &mut out),
            None => attend::pages_at(isa, queries, pool, pages, params, exec, &mut out),
        }
        .unwrap();
    });
    (o, lse)
}

fn check<T: Element>(case: &Case) {
    let built = build::<T>(case);
    let want = oracle(case, &built);
    // kernels.md section 7: 1e-5 for f32, 5e-3 for 16-bit operands, of the row's norm.
    let (tol_o, tol_lse) = if T::DTYPE == DType::F32 { (2e-5, 1e-4) } else { (6e-3, 2e-2) };
    for isa in Isa::available() {
        let (o, lse) = kernel(case, &built, isa, &Executor::inline());
        for (row, (got, want)) in o.chunks(case.dim_v).zip(want.o.chunks(case.dim_v)).enumerate() {
            let norm: f64 = want.iter().map(|x| x * x).sum::<f64>().sqrt();
            let error: f64 =
                got.iter().zip(want).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
            assert!(
                error <= tol_o * norm.max(0.3),
                "{isa:?} {} row {row}: {error} of {norm}, {case:?}",
                T::DTYPE
            );
        }
        for (row, (&got, &want)) in lse.iter().zip(&want.lse2).enumerate() {
            let same = f64::from(got) == want || (f64::from(got) - want).abs() < tol_lse;
            assert!(same, "{isa:?} {} lse {row}: {got} != {want}, {case:?}", T::DTYPE);
        }
    }
}

fn base() -> Case {
    Case {
        seed: 1,
        dim_k: 64,
        dim_v: 64,
        page: 64,
        kv_heads: 2,
        group: 3,
        lens: vec![130],
        queries: vec![1],
        hnd: true,
        per_head: true,
        slots: false,
        causal: false,
        window: 0,
        soft_cap: 0.0,
        sinks: false,
    }
}

#[test]
fn every_dim_page_and_group_of_the_grid() {
    for dim in [16, 64, 80, 96, 128, 192, 256] {
        for page in [1, 16, 17, 64] {
            for group in [1, 2, 3, 4, 7, 8, 16] {
                let lens = vec![0, 1, page.max(2) - 1, page, page + 1, 150];
                let case = Case {
                    dim_k: dim,
                    dim_v: dim,
                    page,
                    group,
                    queries: vec![1; lens.len()],
                    lens,
                    ..base()
                };
                check::<bf16>(&case);
                if group % 2 == 1 {
                    check::<f32>(&case);
                    check::<f16>(&case);
                }
            }
        }
    }
}

#[test]
fn latent_attention_reads_values_inside_keys() {
    let case = Case {
        dim_k: 576,
        dim_v: 512,
        kv_heads: 1,
        group: 16,
        lens: vec![77, 3],
        queries: vec![1, 2],
        ..base()
    };
    check::<bf16>(&case);
    check::<f32>(&case);
    // The value pointer may be the key pointer.
    let data: Vec<f32> = (0..576 * 64).map(|i| (i % 97) as f32 / 97.0).collect();
    let layout =
        KvLayout { dim_v: 512, v_strides: [576 * 64, 0, 576], ..KvLayout::page(64, 576, 512) };
    let layout = KvLayout { k_strides: [576 * 64, 0, 576], ..layout };
    assert!(KvPool::new(&data, &data, layout, 1).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn kernels_equal_the_oracle(
        seed in 0u64..1_000_000,
        dims in prop_oneof![Just((64, 64)), Just((128, 128)), (1usize..140, 1usize..140)],
        page in prop_oneof![Just(64usize), 1usize..70],
        kv_heads in 1usize..4,
        group in 1usize..9,
        shape in prop::collection::vec((0usize..200, 0usize..40), 1..4),
        flags in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        window in prop_oneof![Just(0u32), 1u32..150],
        soft_cap in prop_oneof![Just(0.0f32), 1.0f32..50.0],
    ) {
        let (hnd, per_head, slots, causal, sinks) = flags;
        let lens: Vec<usize> = shape.iter().map(|s| s.0).collect();
        let queries: Vec<usize> = shape.iter().map(|s| s.1.min(s.0.max(1))).collect();
        let case = Case {
            seed, dim_k: dims.0, dim_v: dims.1, page, kv_heads, group, lens, queries,
            hnd, per_head, slots, causal, window, soft_cap, sinks,
        };
        match seed % 3 {
            0 => check::<f32>(&case),
            1 => check::<f16>(&case),
            _ => check::<bf16>(&case),
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let case =
        Case { lens: vec![5000, 70, 0, 3000], queries: vec![1, 3, 1, 70], causal: true, ..base() };
    let built = build::<bf16>(&case);
    let want = kernel(&case, &built, Isa::level(), &Executor::inline());
    for threads in [2, 3, 8] {
        let exec = Executor::with_threads(threads).unwrap();
        let got = kernel(&case, &built, Isa::level(), &exec);
        assert_eq!(bits(&got.0), bits(&want.0), "{threads} threads");
        assert_eq!(bits(&got.1), bits(&want.1), "{threads} threads");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn frame_order_does_not_change_bits() {
    let a = Case { per_head: false, lens: vec![700], ..base() };
    let built = build::<bf16>(&a);
    let mut moved = build::<bf16>(&a);
    // Rotate every frame by one, and the list with it.
    let frame = moved.k.len() / moved.frames;
    moved.k.rotate_right(frame);
    moved.v.rotate_right(frame);
    moved.list.iter_mut().for_each(|f| *f = (*f + 1) % built.frames as u32);
    let exec = Executor::inline();
    assert_eq!(
        bits(&kernel(&a, &built, Isa::level(), &exec).0),
        bits(&kernel(&a, &moved, Isa::level(), &exec).0)
    );
}

#[test]
fn a_nan_key_or_value_reaches_only_rows_that_see_it() {
    for poison_value in [false, true] {
        for isa in Isa::available() {
            let case = Case {
                kv_heads: 1,
                group: 4,
                lens: vec![100],
                queries: vec![40],
                causal: true,
                ..base()
            };
            let mut built = build::<bf16>(&case);
            // Token 80 sits in the second page of the list, at offset 16.
            let row = built.list[1] as usize * 64 + 16;
            let side = if poison_value { &mut built.v } else { &mut built.k };
            side[row * 64..row * 64 + 64].fill(bf16::NAN);
            let (o, lse) = kernel(&case, &built, isa, &Executor::inline());
            for query in 0..40 {
                let position = 60 + query;
                let nan = o[query * 4 * 64..(query + 1) * 4 * 64].iter().any(|x| x.is_nan());
                assert_eq!(
                    nan,
                    position >= 80,
                    "{isa:?} query at {position}, value {poison_value}"
                );
                assert_eq!(lse[query * 4].is_nan(), position >= 80 && !poison_value);
            }
        }
    }
}

#[test]
fn parts_merge_to_the_whole() {
    let whole = Case { lens: vec![333], per_head: false, kv_heads: 1, group: 4, ..base() };
    let built = build::<f32>(&whole);
    let want = kernel(&whole, &built, Isa::level(), &Executor::inline());
    let mut parts = Vec::new();
    for (from, to, len) in [(0, 2, 128), (2, 2, 0), (2, 6, 205)] {
        let mut part = build::<f32>(&whole);
        part.list = part.list[from..to].to_vec();
        (part.indptr, part.lens) = (vec![0, (to - from) as u32], vec![len]);
        parts.push(kernel(&whole, &part, Isa::level(), &Executor::inline()));
    }
    let views: Vec<_> = parts
        .iter()
        .map(|(o, lse)| (Tensor3::contiguous(o, [1, 4, 64]).unwrap(), &lse[..]))
        .collect();
    let (mut o, mut lse) = (vec![0f32; 256], vec![0f32; 4]);
    let view = Tensor3Mut::contiguous(&mut o, [1, 4, 64]).unwrap();
    attend::merge(&views, &mut Out { o: view, lse2: Some(&mut lse) }).unwrap();
    for (a, b) in o.iter().zip(&want.0).chain(lse.iter().zip(&want.1)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn bad_lists_and_shapes_are_errors() {
    let case = base();
    let fails = |change: &dyn Fn(&mut Built<f32>)| {
        let mut built = build::<f32>(&case);
        change(&mut built);
        let mut o = vec![0f32; 6 * 64];
        run_with(&case, &built, |queries, pool, pages, _, params| {
            let view = Tensor3Mut::contiguous(&mut o, [1, 6, 64]).unwrap();
            let mut out = Out { o: view, lse2: None };
            attend::pages(queries, pool, pages, params, &Executor::inline(), &mut out)
                .unwrap_err()
                .to_string()
        })
    };
    let far = fails(&|b| b.list[0] = 1000);
    assert!(far.contains("frame: expected 0..9, found 1000"), "{far}");
    let long = fails(&|b| b.lens[0] = 1000);
    assert!(long.contains("expected 16 pages for 1000 tokens, found 3"), "{long}");
    let fall = fails(&|b| b.indptr[1] = 70);
    assert!(fall.contains("indptr"), "{fall}");
    let rows = fails(&|b| b.q_indptr[1] = 2);
    assert!(rows.contains("query indptr"), "{rows}");
}
