//! Block-sparse attention against the oracle: random lists, columns, shapes and masks.

use half::{bf16, f16};
use kvist_kernels::attend::{self, BlockLists, Columns, Out, Queries};
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{Element, Error, Executor, Isa, Tensor3Mut};
use proptest::prelude::*;

use crate::common::{Built, Case, Random, base, bits, build, check_rows, kernel, run_with};

/// Lists that own their numbers.
#[derive(Clone, Debug)]
struct Lists {
    query_block: usize,
    key_block: usize,
    indptr: Vec<u32>,
    blocks: Vec<u32>,
    per_query_head: bool,
    columns: Option<(Vec<u32>, Vec<u32>)>,
}

/// How lists are made up.
#[derive(Clone, Copy, Debug)]
struct Style {
    query_block: usize,
    key_block: usize,
    per_query_head: bool,
    /// Of a hundred blocks, and of a hundred single tokens.
    density: usize,
    columns: usize,
}

impl Lists {
    fn heads(case: &Case, per_query_head: bool) -> usize {
        case.kv_heads * if per_query_head { case.group } else { 1 }
    }

    fn random(case: &Case, style: Style) -> Lists {
        let mut random = Random(case.seed ^ 0x5eed);
        let heads = Lists::heads(case, style.per_query_head);
        let (mut indptr, mut blocks) = (vec![0], Vec::new());
        let (mut column_ptr, mut tokens) = (vec![0], Vec::new());
        for (&len, &queries) in case.lens.iter().zip(&case.queries) {
            for _ in 0..heads * queries.div_ceil(style.query_block) {
                let all = 0..len.div_ceil(style.key_block) as u32;
                blocks.extend(all.filter(|_| random.below(100) < style.density));
                indptr.push(blocks.len() as u32);
            }
            for _ in 0..heads {
                tokens.extend((0..len as u32).filter(|_| random.below(100) < style.columns));
                column_ptr.push(tokens.len() as u32);
            }
        }
        let columns = (style.columns > 0).then_some((column_ptr, tokens));
        let Style { query_block, key_block, per_query_head, .. } = style;
        Lists { query_block, key_block, indptr, blocks, per_query_head, columns }
    }

    fn view(&self) -> BlockLists<'_> {
        BlockLists {
            query_block: self.query_block,
            key_block: self.key_block,
            indptr: &self.indptr,
            blocks: &self.blocks,
            per_query_head: self.per_query_head,
            columns: self.columns.as_ref().map(|(indptr, tokens)| Columns { indptr, tokens }),
        }
    }
}

fn oracle<T: Element>(case: &Case, built: &Built<T>, lists: &Lists) -> Attended {
    run_with(case, built, |queries, pool, pages, _, params| {
        reference::attend_blocks(queries, pool, pages, &lists.view(), params)
    })
}

fn run<T: Element>(
    case: &Case,
    built: &Built<T>,
    lists: &Lists,
    isa: Isa,
    exec: &Executor,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let (rows, q_heads) = (case.queries.iter().sum(), case.kv_heads * case.group);
    let mut o = vec![f32::NAN; rows * q_heads * case.dim_v];
    let mut lse = vec![f32::NAN; rows * q_heads];
    run_with(case, built, |queries, pool, pages, _, params| {
        let o = Tensor3Mut::contiguous(&mut o, [rows, q_heads, case.dim_v]).unwrap();
        let mut out = Out { o, lse2: Some(&mut lse) };
        attend::blocks_at(isa, queries, pool, pages, &lists.view(), params, exec, &mut out)
    })?;
    Ok((o, lse))
}

fn check_built<T: Element>(case: &Case, built: &Built<T>, lists: &Lists) {
    let want = oracle(case, built, lists);
    for isa in Isa::available() {
        let got = run(case, built, lists, isa, &Executor::inline()).unwrap();
        check_rows(case, T::DTYPE, isa, &got, &want);
    }
}

fn check<T: Element>(case: &Case, lists: &Lists) {
    check_built(case, &build::<T>(case), lists);
}

fn check_all(case: &Case, style: Style) {
    let lists = Lists::random(case, style);
    check::<bf16>(case, &lists);
    check::<f16>(case, &lists);
    check::<f32>(case, &lists);
}

/// Makes whole rows of some tokens NaN, in K or in V.
fn poison<T: Element>(case: &Case, built: &mut Built<T>, tokens: &[(u32, bool)]) {
    let nan = T::from_f32(f32::NAN);
    for &(token, value) in tokens {
        let frame = built.list[token as usize / case.page % built.list.len()] as usize;
        let (side, s, dim) = match value {
            true => (&mut built.v, built.layout.v_strides, case.dim_v),
            false => (&mut built.k, built.layout.k_strides, case.dim_k),
        };
        let at = frame * s[0] as usize + token as usize % case.page * s[2] as usize;
        side[at..at + dim].fill(nan);
    }
}

fn style() -> impl Strategy<Value = (Option<usize>, Style)> {
    (
        prop_oneof![Just(1usize), 1usize..20, 20usize..100, Just(64usize)],
        prop_oneof![
            Just(None),
            Just(Some(16usize)),
            Just(Some(32)),
            Just(Some(64)),
            Just(Some(128))
        ],
        any::<bool>(),
        prop_oneof![Just(0usize), 1usize..100, Just(100usize)],
        prop_oneof![2 => Just(0usize), 1 => 1usize..40],
    )
        .prop_map(|(query_block, key_block, per_query_head, density, columns)| {
            (key_block, Style { query_block, key_block: 16, per_query_head, density, columns })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn blocks_equal_the_oracle(
        seed in 0u64..1_000_000,
        dims in prop_oneof![2 => Just((64, 64)), 1 => Just((128, 128)), 2 => (1usize..100, 1usize..100)],
        page in prop_oneof![Just(64usize), Just(16usize), 1usize..70],
        kv_heads in 1usize..4,
        group in 1usize..6,
        shape in prop::collection::vec((0usize..200, 0usize..120), 1..3),
        padding in prop_oneof![3 => Just(0usize), 1 => 1usize..40],
        first_pos in prop_oneof![2 => Just(0usize), 1 => 1usize..1000],
        flags in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        window in prop_oneof![2 => Just(0u32), 1 => 1u32..150],
        soft_cap in prop_oneof![2 => Just(0.0f32), 1 => 1.0f32..50.0],
        (key_block, style) in style(),
        nans in prop::collection::vec((0u32..200, any::<bool>()), 0..3),
    ) {
        let (hnd, per_head, causal, sinks) = flags;
        let lens: Vec<usize> = shape.iter().map(|s| s.0).collect();
        let queries: Vec<usize> = shape.iter().map(|s| s.1).collect();
        let case = Case {
            seed, dim_k: dims.0, dim_v: dims.1, page, padding, first_pos, kv_heads, group, lens,
            queries, hnd, per_head, slots: false, causal, window, soft_cap, sinks,
        };
        let lists = Lists::random(&case, Style { key_block: key_block.unwrap_or(page), ..style });
        match seed % 3 {
            0 => poisoned::<f32>(&case, &lists, &nans),
            1 => poisoned::<f16>(&case, &lists, &nans),
            _ => poisoned::<bf16>(&case, &lists, &nans),
        }
    }
}

fn poisoned<T: Element>(case: &Case, lists: &Lists, nans: &[(u32, bool)]) {
    let mut built = build::<T>(case);
    if !built.list.is_empty() {
        poison(case, &mut built, nans);
    }
    check_built(case, &built, lists);
}

#[test]
fn all_blocks_are_dense_attention() {
    for per_query_head in [false, true] {
        for causal in [false, true] {
            let case = Case { lens: vec![300], queries: vec![130], causal, ..base() };
            let built = build::<bf16>(&case);
            let style =
                Style { query_block: 64, key_block: 64, per_query_head, density: 100, columns: 0 };
            let lists = Lists::random(&case, style);
            let exec = Executor::inline();
            let dense = kernel(&case, &built, Isa::level(), &exec);
            let got = run(&case, &built, &lists, Isa::level(), &exec).unwrap();
            let near = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-2 * (1.0 + b.abs()))
            };
            assert!(near(&got.0, &dense.0) && near(&got.1, &dense.1));
        }
    }
}

#[test]
fn lists_of_single_rows_share_their_keys_and_nothing_else() {
    // Units walk over the union of up to 64 lists: every group and both kinds of heads.
    for group in [1, 3, 4] {
        for per_query_head in [false, true] {
            for (density, columns) in [(8, 0), (50, 0), (20, 5)] {
                let case = Case {
                    group,
                    lens: vec![333, 70],
                    queries: vec![90, 7],
                    causal: true,
                    ..base()
                };
                let style =
                    Style { query_block: 1, key_block: 16, per_query_head, density, columns };
                check_all(&case, style);
                check_all(&Case { causal: false, ..case }, Style { query_block: 5, ..style });
            }
        }
    }
}

#[test]
fn blocks_across_the_diagonal_are_masked() {
    for key_block in [16, 64, 128] {
        for query_block in [16, 48, 64] {
            let case =
                Case { lens: vec![500], queries: vec![200], causal: true, first_pos: 40, ..base() };
            let style =
                Style { query_block, key_block, per_query_head: true, density: 100, columns: 0 };
            check_all(&case, style);
        }
    }
}

#[test]
fn columns_inside_blocks_are_read_once() {
    let case = Case { lens: vec![256], queries: vec![64], kv_heads: 1, ..base() };
    let (blocks, columns) = (vec![1, 3], (vec![0, 5], vec![0, 15, 16, 31, 60]));
    let lists = Lists {
        query_block: 64,
        key_block: 16,
        indptr: vec![0, 2],
        blocks,
        per_query_head: false,
        columns: Some(columns),
    };
    check::<f32>(&case, &lists);
}

#[test]
fn empty_lists_give_nothing() {
    for sinks in [false, true] {
        let case = Case { lens: vec![200], queries: vec![70], sinks, ..base() };
        let style =
            Style { query_block: 32, key_block: 64, per_query_head: true, density: 0, columns: 0 };
        let built = build::<bf16>(&case);
        let lists = Lists::random(&case, style);
        let (o, lse) = run(&case, &built, &lists, Isa::level(), &Executor::inline()).unwrap();
        assert!(o.iter().all(|&x| x == 0.0));
        assert!(lse.iter().all(|&x| x.is_finite() == sinks && x < f32::INFINITY));
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for (query_block, per_query_head) in [(64, true), (64, false), (1, false), (3, true)] {
        let case = Case { lens: vec![3000, 70], queries: vec![700, 70], causal: true, ..base() };
        let style = Style { query_block, key_block: 32, per_query_head, density: 30, columns: 2 };
        let (built, lists) = (build::<bf16>(&case), Lists::random(&case, style));
        let want = run(&case, &built, &lists, Isa::level(), &Executor::inline()).unwrap();
        for threads in [2, 5] {
            let exec = Executor::with_threads(threads).unwrap();
            let got = run(&case, &built, &lists, Isa::level(), &exec).unwrap();
            assert_eq!(bits(&got.0), bits(&want.0), "{threads} threads");
            assert_eq!(bits(&got.1), bits(&want.1), "{threads} threads");
        }
    }
}

#[test]
fn tokens_that_no_list_wants_are_never_multiplied() {
    let case = Case { lens: vec![256], queries: vec![96], kv_heads: 1, causal: false, ..base() };
    let style =
        Style { query_block: 7, key_block: 16, per_query_head: false, density: 15, columns: 0 };
    let (mut built, lists) = (build::<bf16>(&case), Lists::random(&case, style));
    let unwanted = (0..256).filter(|t| !lists.blocks.contains(&(t / 16)));
    let nans: Vec<(u32, bool)> = unwanted.flat_map(|t| [(t, false), (t, true)]).collect();
    assert!(!nans.is_empty());
    poison(&case, &mut built, &nans);
    for isa in Isa::available() {
        let (o, _) = run(&case, &built, &lists, isa, &Executor::inline()).unwrap();
        assert!(o.iter().all(|x| x.is_finite()), "{isa:?}");
    }
}

#[test]
fn bad_block_lists_are_errors() {
    let case = Case { lens: vec![200], queries: vec![70], ..base() };
    let built = build::<f32>(&case);
    let style =
        Style { query_block: 64, key_block: 64, per_query_head: false, density: 100, columns: 3 };
    let fails = |change: &dyn Fn(&mut Lists)| {
        let mut lists = Lists::random(&case, style);
        change(&mut lists);
        run(&case, &built, &lists, Isa::level(), &Executor::inline()).unwrap_err().to_string()
    };
    let text = fails(&|l| l.query_block = 0);
    assert_eq!(text, "query_block: expected at least 1, found 0");
    let text = fails(&|l| l.key_block = 24);
    assert_eq!(text, "key_block: expected a multiple of 16, or a page of 64, found 24");
    let text = fails(&|l| l.blocks[1] = 0);
    assert_eq!(text, "block list: expected strictly ascending numbers, found 0 before 0");
    let text = fails(&|l| l.blocks[3] = 4);
    assert_eq!(text, "block list: expected 0..4, found 4");
    let text = fails(&|l| l.indptr[4] -= 1);
    assert!(text.contains("block lists indptr"), "{text}");
    let text = fails(&|l| l.query_block = 16);
    assert!(text.contains("block lists indptr: expected 11 offsets, found 5"), "{text}");
    let text = fails(&|l| l.columns = Some((vec![0, 1, 1], vec![200])));
    assert_eq!(text, "columns: expected 0..200, found 200");
    // A sequence without queries has no lists.
    let empty = Queries {
        q: kvist_kernels::Tensor3::contiguous(&[0f32; 0], [0, 6, 64]).unwrap(),
        indptr: &[0, 0],
        positions: None,
    };
    let lists =
        Lists { indptr: vec![0], blocks: vec![], columns: None, ..Lists::random(&case, style) };
    run_with(&case, &built, |_, pool, pages, _, params| {
        let o = Tensor3Mut::contiguous(&mut [0f32; 0], [0, 6, 64]).unwrap();
        let mut out = Out { o, lse2: None };
        attend::blocks(&empty, pool, pages, &lists.view(), params, &Executor::inline(), &mut out)
    })
    .unwrap();
}
