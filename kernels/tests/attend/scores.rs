//! The scores that prefill chooses by, against the probabilities of the oracle.

use half::{bf16, f16};
use kvist_kernels::attend::{Listed, Params, Queries};
use kvist_kernels::reference;
use kvist_kernels::score::prefill::{self, Blocks, Pool};
use kvist_kernels::{DType, Element, Error, Executor, Isa, KvPool, PageLists, Tensor3, Tensor3Mut};
use proptest::prelude::*;

use crate::common::{Built, Case, base, bits, build, run_with};

/// Calls with the keys of the case's only sequence, and what the oracle makes of them.
fn with<T: Element, R>(
    case: &Case,
    built: &Built<T>,
    f: impl FnOnce(&Queries, &Listed, &Params) -> R,
) -> R {
    run_with(case, built, |queries, pool, pages, slots, params| match slots {
        Some(slots) => f(queries, &Listed::Slots(pool, slots), params),
        None => f(queries, &Listed::Pages(pool, pages), params),
    })
}

/// Probabilities, and the positions of the keys.
fn probabilities<T: Element>(case: &Case, built: &Built<T>) -> (Vec<Vec<Vec<f64>>>, Vec<u32>) {
    run_with(case, built, |queries, pool, pages, slots, params| {
        let tokens = match slots {
            Some(slots) => reference::slot_tokens(pool, slots),
            None => reference::page_tokens(pool, pages),
        };
        let positions = tokens[0].iter().map(|t| t.2).collect();
        (reference::probabilities(queries, pool, &tokens, case.kv_heads, params), positions)
    })
}

fn close(got: &[f32], want: impl IntoIterator<Item = f64>, dtype: DType, what: &str) {
    let (relative, absolute) = if dtype == DType::F32 { (1e-3, 1e-4) } else { (4e-2, 4e-3) };
    let mut want = want.into_iter();
    for (i, &got) in got.iter().enumerate() {
        let want = want.next().unwrap();
        let near = (f64::from(got) - want).abs() <= relative * want.abs() + absolute;
        assert!(near || (got.is_nan() && want.is_nan()), "{what} {i}: {got} {want}");
    }
    assert!(want.next().is_none());
}

fn check<T: Element>(case: &Case, grid: &Blocks, nan: Option<(usize, usize)>) {
    let mut built = build::<T>(case);
    if let Some((token, channel)) = nan {
        let row = match case.slots {
            true => built.list[token % built.list.len()] as usize,
            false => built.list[token / case.page % built.list.len()] as usize * case.page,
        };
        let (frame, s) = (row / case.page, built.layout.k_strides);
        let at = frame * s[0] as usize + row % case.page * s[2] as usize;
        built.k[at + channel % case.dim_k] = T::from_f32(f32::NAN);
    }
    let (p, positions) = probabilities(case, &built);
    let heads = case.kv_heads * case.group;
    let (len, rows) = (positions.len(), case.queries[0]);
    let (width, height) = (len.div_ceil(grid.key_block), rows.div_ceil(grid.query_block));
    let distances = if case.causal { len.min(100) } else { 0 };
    for isa in Isa::available() {
        let exec = Executor::inline();
        let (mut columns, mut diagonals) = (vec![9f32; heads * len], vec![9f32; heads * distances]);
        let mut pooled = vec![9f32; heads * width * height];
        with(case, &built, |queries, keys, params| {
            prefill::lines_at(isa, queries, keys, params, &exec, &mut columns, &mut diagonals)?;
            prefill::blocks_at(isa, queries, keys, params, grid, &exec, &mut pooled)
        })
        .unwrap();
        let say = |what: &str| format!("{isa:?} {} {what} {case:?} {grid:?}", T::DTYPE);
        close(&columns, reference::sum_columns(&p).into_iter().flatten(), T::DTYPE, &say("column"));
        let want = reference::sum_diagonals(&p, &built.positions, &positions, distances);
        close(&diagonals, want.into_iter().flatten(), T::DTYPE, &say("diagonal"));
        let want = reference::pool_blocks(&p, grid).into_iter().flatten().flatten();
        close(&pooled, want, T::DTYPE, &say("block"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn scores_equal_the_oracle(
        seed in 0u64..1_000_000,
        dim in prop_oneof![Just(64usize), Just(128usize), 8usize..100],
        page in prop_oneof![Just(64usize), 1usize..70],
        kv_heads in 1usize..4,
        group in 1usize..4,
        (len, rows) in prop_oneof![(1usize..100, 1usize..80), (200usize..600, 1usize..150)],
        padding in prop_oneof![3 => Just(0usize), 1 => 1usize..40],
        first_pos in prop_oneof![2 => Just(0usize), 1 => 1usize..1000],
        flags in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        window in prop_oneof![3 => Just(0u32), 1 => 1u32..150],
        soft_cap in prop_oneof![3 => Just(0.0f32), 1 => 1.0f32..50.0],
        query_block in prop_oneof![Just(64usize), Just(1usize), 1usize..150],
        key_block in prop_oneof![Just(64usize), Just(16usize), Just(1usize), 1usize..300],
        mass in any::<bool>(),
        nan in prop_oneof![3 => Just(None), 1 => (0usize..600, 0usize..100).prop_map(Some)],
    ) {
        let (hnd, slots, causal, sinks) = flags;
        let case = Case {
            seed, dim_k: dim, dim_v: 8, page, padding, first_pos, kv_heads, group, lens: vec![len],
            queries: vec![rows], hnd, per_head: false, slots, causal, window, soft_cap, sinks,
        };
        let pool = if mass { Pool::Mass } else { Pool::Max };
        let grid = Blocks { query_block, key_block, pool };
        // Slot lists leave tokens out at random: there may be none.
        let nan = nan.filter(|_| !slots || len > 30);
        match seed % 3 {
            0 => check::<f32>(&case, &grid, nan),
            1 => check::<f16>(&case, &grid, nan),
            _ => check::<bf16>(&case, &grid, nan),
        }
    }

    #[test]
    fn means_equal_plain_ones(
        seed in 0u64..1000,
        dim in 1usize..40,
        page in prop_oneof![Just(64usize), 1usize..40],
        (kv_heads, groups) in prop_oneof![Just((1usize, 1usize)), Just((4, 2)), Just((3, 3)), Just((6, 1))],
        len in 1usize..200,
        window in 1usize..70,
        stride in 1usize..40,
        per_head in any::<bool>(),
        fewer in 0usize..3,
    ) {
        let case = Case {
            seed, dim_k: dim, dim_v: 3, page, kv_heads, lens: vec![len], per_head, padding: 2, ..base()
        };
        let built = build::<f32>(&case);
        let windows = len.div_ceil(stride).saturating_sub(fewer);
        let mut out = vec![f32::NAN; windows * groups * dim];
        let heads = kv_heads / groups;
        run_with(&case, &built, |_, pool, pages, _, _| {
            let mut view = Tensor3Mut::contiguous(&mut out, [windows, groups, dim]).unwrap();
            let exec = Executor::with_threads(2).unwrap();
            prefill::means(&Listed::Pages(pool, pages), window, stride, &exec, &mut view).unwrap();
            let tokens = reference::page_tokens(pool, pages);
            let s = built.layout.k_strides;
            for (i, &got) in out.iter().enumerate() {
                let (w, group, c) = (i / dim / groups, i / dim % groups, i % dim);
                let span = w * stride..(w * stride + window).min(len);
                let cells = span.flat_map(|t| (group * heads..(group + 1) * heads).map(move |h| (t, h)));
                let cells: Vec<f64> = cells.map(|(t, h)| {
                    let (list, head) = if per_head { (h, 0) } else { (0, h) };
                    let (frame, offset, _) = tokens[list][t];
                    let at = frame * s[0] as usize + head * s[1] as usize + offset * s[2] as usize;
                    f64::from(built.k[at + c])
                }).collect();
                let want = cells.iter().sum::<f64>() / cells.len() as f64;
                assert!((f64::from(got) - want).abs() < 1e-5, "{i}: {got} {want}");
            }
        });
    }
}

#[test]
fn masses_of_a_block_row_sum_to_one() {
    let case =
        Case { per_head: false, lens: vec![700], queries: vec![130], causal: true, ..base() };
    let built = build::<bf16>(&case);
    let grid = Blocks { query_block: 64, key_block: 64, pool: Pool::Mass };
    let mut out = vec![0f32; 6 * 3 * 11];
    with(&case, &built, |queries, keys, params| {
        prefill::blocks(queries, keys, params, &grid, &Executor::inline(), &mut out)
    })
    .unwrap();
    for row in out.chunks(11) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{row:?}");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let case =
        Case { per_head: false, lens: vec![900], queries: vec![300], causal: true, ..base() };
    let built = build::<bf16>(&case);
    let run = |exec: &Executor, pool: Pool| {
        let grid = Blocks { query_block: 20, key_block: 48, pool };
        let (mut columns, mut diagonals) = (vec![0f32; 6 * 900], vec![0f32; 6 * 400]);
        let mut pooled = vec![0f32; 6 * 15 * 19];
        with(&case, &built, |queries, keys, params| {
            prefill::lines(queries, keys, params, exec, &mut columns, &mut diagonals)?;
            prefill::blocks(queries, keys, params, &grid, exec, &mut pooled)
        })
        .unwrap();
        (bits(&columns), bits(&diagonals), bits(&pooled))
    };
    for pool in [Pool::Max, Pool::Mass] {
        let want = run(&Executor::inline(), pool);
        for threads in [2, 3] {
            assert_eq!(run(&Executor::with_threads(threads).unwrap(), pool), want);
        }
    }
}

#[test]
fn misuse_is_named() {
    let case = Case { per_head: false, lens: vec![90], queries: vec![9], causal: true, ..base() };
    let built = build::<f32>(&case);
    let exec = Executor::inline();
    let lines = |case: &Case, columns: usize, diagonals: usize| -> Result<(), Error> {
        let (mut columns, mut diagonals) = (vec![0f32; columns], vec![0f32; diagonals]);
        with(case, &built, |queries, keys, params| {
            prefill::lines(queries, keys, params, &exec, &mut columns, &mut diagonals)
        })
    };
    lines(&case, 540, 0).unwrap();
    let text = |done: Result<(), Error>| done.unwrap_err().to_string();
    assert_eq!(text(lines(&case, 541, 0)), "columns: expected 540, found 541");
    assert_eq!(text(lines(&case, 540, 7)), "diagonals: expected rows of 6 heads, found 7");
    let said = Case { causal: false, ..case.clone() };
    assert_eq!(
        text(lines(&said, 540, 6)),
        "diagonals: expected none without a causal mask, found 6"
    );

    let blocks = |grid: Blocks, len: usize| {
        let mut out = vec![0f32; len];
        text(with(&case, &built, |queries, keys, params| {
            prefill::blocks(queries, keys, params, &grid, &exec, &mut out)
        }))
    };
    let grid = Blocks { query_block: 4, key_block: 64, pool: Pool::Max };
    assert_eq!(blocks(grid, 35), "pooled scores: expected 36, found 35");
    assert_eq!(
        blocks(Blocks { key_block: 0, ..grid }, 36),
        "key_block: expected at least 1, found 0"
    );

    // Lists of two sequences are none of one.
    let two = Case { lens: vec![90, 3], queries: vec![9, 1], ..case.clone() };
    let both = build::<f32>(&two);
    let done = with(&two, &both, |queries, keys, params| {
        prefill::lines(queries, keys, params, &exec, &mut [], &mut [])
    });
    assert_eq!(text(done), "query indptr: expected one sequence, found 2");

    let means = |windows: usize, groups: usize, window: usize| {
        let mut out = vec![0f32; windows * groups * 64];
        with(&case, &built, |_, keys, _| {
            let mut out = Tensor3Mut::contiguous(&mut out, [windows, groups, 64]).unwrap();
            text(prefill::means(keys, window, 16, &exec, &mut out))
        })
    };
    assert_eq!(means(7, 2, 16), "windows: expected at most 6 of 90 tokens, found 7");
    assert_eq!(means(6, 3, 16), "groups of heads: expected a divisor of 2, found 3");
    assert_eq!(means(6, 2, 0), "window: expected at least 1, found 0");
}

#[test]
fn rows_of_tensors_are_a_pool() {
    let numbers: Vec<f32> = (0..2 * 5 * 3 * 4).map(|x| x as f32).collect();
    let k = Tensor3::strided(&numbers, [5, 3, 4], [24, 4]).unwrap();
    let v = Tensor3::strided(&numbers, [5, 3, 2], [24, 8]).unwrap();
    let pool = KvPool::from_rows(&k, &v).unwrap();
    let lists =
        PageLists { indptr: &[0, 1], frames: &[0], lens: &[5], first_pos: None, per_head: false };
    let mut out = vec![0f32; 5 * 3 * 4];
    let mut view = Tensor3Mut::contiguous(&mut out, [5, 3, 4]).unwrap();
    prefill::means(&Listed::Pages(&pool, &lists), 1, 1, &Executor::inline(), &mut view).unwrap();
    let want: Vec<f32> = (0..5).flat_map(|r| (0..12).map(move |c| (24 * r + c) as f32)).collect();
    assert_eq!(out, want);
    let text = |k: &Tensor3, v: &Tensor3| KvPool::from_rows(k, v).unwrap_err().to_string();
    assert_eq!(text(&k, &v.rows(0, 4)), "v: expected 5 rows of 3 heads, found 4 of 3");
    let halves = vec![f16::ZERO; 60];
    let other = Tensor3::contiguous(&halves, [5, 3, 4]).unwrap();
    assert_eq!(text(&k, &other), "v: expected dtype f32, found f16");
}
