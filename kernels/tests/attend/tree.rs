//! Attention of draft trees against the oracle, and what is done with an accepted path.

use half::{bf16, f16};
use kvist_kernels::attend::{self, DraftKeys, Listed, Out, Params, Queries, ROOT, Trees};
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{
    Element, Error, Executor, Isa, KvPool, PageLists, SlotLists, Tensor3, Tensor3Mut,
};
use proptest::prelude::*;

use crate::common::{Built, Case, Random, base, bits, build, check_rows, run_with};

/// Where the trees' keys lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Rows,
    Slots,
    Pages,
}

/// Random trees: any node before may be the parent, or none.
fn parents(case: &Case) -> Vec<u32> {
    let mut random = Random(case.seed ^ 0x7ee);
    let tree = |&n: &usize| {
        let parent = |i: usize| match random.below(i + 1) {
            0 => ROOT,
            p => p as u32 - 1,
        };
        (0..n).map(parent).collect::<Vec<_>>()
    };
    case.queries.iter().flat_map(tree).collect()
}

/// Keys and values of the nodes, as rows or in frames of another pool.
fn nodes<T: Element>(case: &Case, place: Place) -> Built<T> {
    // One key for each query row; slot lists of `build` leave tokens out, page lists do not.
    let (hnd, per_head) = match place {
        Place::Rows => (false, false),
        _ => (case.hnd, case.per_head),
    };
    let page =
        if place == Place::Rows { case.queries.iter().sum::<usize>().max(1) } else { case.page };
    let lens = case.queries.clone();
    let own = Case { seed: case.seed + 1, lens, slots: false, page, hnd, per_head, ..case.clone() };
    build::<T>(&own)
}

/// Calls with everything that a tree needs; the third argument describes the nodes to the oracle.
fn with<T: Element, R>(
    case: &Case,
    built: &Built<T>,
    own: &Built<T>,
    place: Place,
    f: impl FnOnce(
        &Queries,
        &Listed,
        &DraftKeys,
        (&KvPool, &[Vec<(usize, usize, u32)>], bool),
        &Params,
    ) -> R,
) -> R {
    run_with(case, built, |queries, pool, pages, slots, params| {
        let context = match slots {
            Some(slots) => Listed::Slots(pool, slots),
            None => Listed::Pages(pool, pages),
        };
        let own_pool = KvPool::new(&own.k, &own.v, own.layout, own.frames).unwrap();
        let lists = PageLists {
            indptr: &own.indptr,
            frames: &own.list,
            lens: &own.lens,
            first_pos: None,
            per_head: case.per_head && place != Place::Rows,
        };
        let mut tokens = reference::page_tokens(&own_pool, &lists);
        let per_head = lists.per_head;
        let (mut indptr, mut numbers) = (vec![0u32], vec![]);
        for list in &tokens {
            numbers.extend(list.iter().map(|t| (t.0 * own.layout.page_tokens + t.1) as u32));
            indptr.push(numbers.len() as u32);
        }
        let own_slots = SlotLists { indptr: &indptr, slots: &numbers, positions: None, per_head };
        let rows: usize = case.queries.iter().sum();
        // The rows lie in the first frame, one sequence behind the other.
        let shape = |dim| [rows, case.kv_heads, dim];
        let strides = |s: [i64; 3]| [s[2], s[1]];
        let k = Tensor3::strided(&own.k, shape(case.dim_k), strides(own.layout.k_strides)).unwrap();
        let v = Tensor3::strided(&own.v, shape(case.dim_v), strides(own.layout.v_strides)).unwrap();
        let keys = match place {
            Place::Rows => DraftKeys::Rows { k, v },
            Place::Slots => DraftKeys::Listed(Listed::Slots(&own_pool, &own_slots)),
            Place::Pages => DraftKeys::Listed(Listed::Pages(&own_pool, &lists)),
        };
        if place == Place::Rows {
            let mut row = 0..;
            tokens = case
                .queries
                .iter()
                .map(|&n| row.by_ref().take(n).map(|r| (0, r, 0)).collect())
                .collect();
        }
        f(queries, &context, &keys, (&own_pool, &tokens, per_head), params)
    })
}

fn oracle<T: Element>(
    case: &Case,
    built: &Built<T>,
    own: &Built<T>,
    place: Place,
    parents: &[u32],
) -> Attended {
    with(case, built, own, place, |queries, context, _, nodes, params| {
        let (pool, tokens) = match context {
            Listed::Slots(pool, slots) => (pool, reference::slot_tokens(pool, slots)),
            Listed::Pages(pool, pages) => (pool, reference::page_tokens(pool, pages)),
        };
        reference::attend_tree(queries, (pool, &tokens, case.per_head), nodes, parents, params)
    })
}

fn run<T: Element>(
    case: &Case,
    built: &Built<T>,
    own: &Built<T>,
    place: Place,
    trees: &Trees,
    isa: Isa,
    exec: &Executor,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let (rows, q_heads) = (case.queries.iter().sum(), case.kv_heads * case.group);
    let mut o = vec![f32::NAN; rows * q_heads * case.dim_v];
    let mut lse = vec![f32::NAN; rows * q_heads];
    with(case, built, own, place, |queries, context, keys, _, params| {
        let o = Tensor3Mut::contiguous(&mut o, [rows, q_heads, case.dim_v]).unwrap();
        let mut out = Out { o, lse2: Some(&mut lse) };
        attend::tree_at(isa, queries, context, trees, keys, params, exec, &mut out)
    })?;
    Ok((o, lse))
}

/// Rows must lie side by side: a pool whose frames hold all of them, in place of the builder's
/// shuffled frames.
fn own_rows<T: Element>(case: &Case) -> Built<T> {
    let mut own = nodes::<T>(case, Place::Rows);
    let mut random = Random(case.seed + 2);
    own.k.fill_with(|| T::from_f32(random.normal()));
    own.v.fill_with(|| T::from_f32(random.normal()));
    own
}

fn check<T: Element>(case: &Case, place: Place, parents: &[u32], poison: Option<(usize, bool)>) {
    let built = build::<T>(case);
    let mut own = if place == Place::Rows { own_rows(case) } else { nodes::<T>(case, place) };
    if let Some((node, value)) = poison {
        let (side, stride) = match value {
            true => (&mut own.v, own.layout.v_strides[2] as usize),
            false => (&mut own.k, own.layout.k_strides[2] as usize),
        };
        let rows = side.len() / stride;
        side[node % rows * stride] = T::from_f32(f32::NAN);
    }
    let trees = Trees::new(&built.q_indptr, parents).unwrap();
    let want = oracle(case, &built, &own, place, parents);
    for isa in Isa::available() {
        let got = run(case, &built, &own, place, &trees, isa, &Executor::inline()).unwrap();
        check_rows(case, T::DTYPE, isa, &got, &want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn trees_equal_the_oracle(
        seed in 0u64..1_000_000,
        dims in prop_oneof![2 => Just((64, 64)), 1 => Just((128, 128)), 2 => (1usize..100, 1usize..100)],
        page in prop_oneof![Just(64usize), 1usize..70],
        kv_heads in 1usize..4,
        group in 1usize..6,
        shape in prop::collection::vec((0usize..200, 0usize..90), 1..4),
        padding in prop_oneof![3 => Just(0usize), 1 => 1usize..40],
        flags in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        window in prop_oneof![2 => Just(0u32), 1 => 1u32..90],
        soft_cap in prop_oneof![2 => Just(0.0f32), 1 => 1.0f32..50.0],
        place in prop_oneof![Just(Place::Rows), Just(Place::Slots), Just(Place::Pages)],
        poison in prop_oneof![3 => Just(None), 1 => (0usize..300, any::<bool>()).prop_map(Some)],
    ) {
        let (hnd, per_head, slots, causal, sinks) = flags;
        let case = Case {
            seed, dim_k: dims.0, dim_v: dims.1, page, padding, first_pos: 0, kv_heads, group,
            lens: shape.iter().map(|s| s.0).collect(), queries: shape.iter().map(|s| s.1).collect(),
            hnd, per_head, slots, causal, window, soft_cap, sinks,
        };
        let parents = parents(&case);
        match seed % 3 {
            0 => check::<f32>(&case, place, &parents, poison),
            1 => check::<f16>(&case, place, &parents, poison),
            _ => check::<bf16>(&case, place, &parents, poison),
        }
    }
}

#[test]
fn trees_of_every_size_around_a_tile() {
    for n in [1, 2, 4, 16, 63, 64, 65, 128, 130] {
        for group in [1, 3, 4] {
            let case = Case { group, queries: vec![n, 1], lens: vec![70, 3], ..base() };
            let parents = parents(&case);
            check::<bf16>(&case, Place::Rows, &parents, None);
            check::<f32>(&case, Place::Slots, &parents, None);
        }
    }
}

/// Nothing of the two passes and their merge: one list of all tokens in one pool, with a mask.
#[test]
fn the_oracle_is_one_masked_softmax() {
    let case =
        Case { kv_heads: 1, group: 2, lens: vec![100], queries: vec![20], sinks: true, ..base() };
    let built = build::<f32>(&case);
    let parents = parents(&case);
    run_with(&case, &built, |queries, pool, pages, _, params| {
        let all = reference::page_tokens(pool, pages);
        let (context, own) = all[0].split_at(80);
        let (context, own) = (vec![context.to_vec()], vec![own.to_vec()]);
        let got = reference::attend_tree(
            queries,
            (pool, &context, true),
            (pool, &own, true),
            &parents,
            params,
        );
        let trees = Trees::new(queries.indptr, &parents).unwrap();
        let wanted = |row: usize, _: usize, token: usize| {
            token < 80 || trees.path(0, row as u32).unwrap().contains(&(token as u32 - 80))
        };
        let want = reference::attend_where(queries, pool, &all, true, params, wanted);
        for (a, b) in got.o.iter().zip(&want.o).chain(got.lse2.iter().zip(&want.lse2)) {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
    });
}

#[test]
fn a_chain_is_causal_attention() {
    // The verification of a draft of one continuation: gamma + 1 queries at the end of the pages.
    let case =
        Case { kv_heads: 1, group: 4, lens: vec![200], queries: vec![4], causal: true, ..base() };
    let built = build::<f32>(&case);
    let want = crate::common::kernel(&case, &built, Isa::level(), &Executor::inline());
    let slot = |t: usize| built.list[t / 64] * 64 + t as u32 % 64;
    let (before, own): (Vec<u32>, Vec<u32>) =
        ((0..196).map(slot).collect(), (196..200).map(slot).collect());
    run_with(&case, &built, |queries, pool, _, _, params| {
        let list = |indptr, slots| SlotLists { indptr, slots, positions: None, per_head: true };
        let (context, own) = (list(&[0, 196], &before), list(&[0, 4], &own));
        let trees = Trees::chains(queries.indptr).unwrap();
        let mut o = vec![0f32; want.0.len()];
        let mut lse = vec![0f32; 16];
        let view = Tensor3Mut::contiguous(&mut o, [4, 4, 64]).unwrap();
        attend::tree(
            queries,
            &Listed::Slots(pool, &context),
            &trees,
            &DraftKeys::Listed(Listed::Slots(pool, &own)),
            params,
            &Executor::inline(),
            &mut Out { o: view, lse2: Some(&mut lse) },
        )
        .unwrap();
        for (a, b) in o.iter().zip(&want.0).chain(lse.iter().zip(&want.1)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    });
}

#[test]
fn a_nan_node_reaches_only_its_descendants() {
    let case = Case { kv_heads: 1, group: 2, lens: vec![50], queries: vec![6], ..base() };
    let parents = [ROOT, 0, 0, 1, 2, ROOT];
    let (built, mut own) = (build::<bf16>(&case), own_rows::<bf16>(&case));
    let stride = own.layout.v_strides[2] as usize;
    own.v[2 * stride..2 * stride + 64].fill(bf16::NAN);
    let trees = Trees::new(&built.q_indptr, &parents).unwrap();
    for isa in Isa::available() {
        let (o, _) =
            run(&case, &built, &own, Place::Rows, &trees, isa, &Executor::inline()).unwrap();
        let nan: Vec<bool> = o.chunks(128).map(|row| row.iter().any(|x| x.is_nan())).collect();
        assert_eq!(nan, [false, false, true, false, true, false], "{isa:?}");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let case = Case { lens: vec![3000, 70], queries: vec![100, 5], ..base() };
    let (built, own) = (build::<bf16>(&case), own_rows::<bf16>(&case));
    let trees = Trees::new(&built.q_indptr, &parents(&case)).unwrap();
    let go = |exec: &Executor| {
        run(&case, &built, &own, Place::Rows, &trees, Isa::level(), exec).unwrap()
    };
    let want = go(&Executor::inline());
    let got = go(&Executor::with_threads(3).unwrap());
    assert_eq!((bits(&got.0), bits(&got.1)), (bits(&want.0), bits(&want.1)));
}

#[test]
fn malformed_trees_are_named() {
    let text =
        |indptr: &[u32], parents: &[u32]| Trees::new(indptr, parents).unwrap_err().to_string();
    let own = text(&[0, 2], &[ROOT, 1]);
    assert_eq!(own, "tree parent: expected a node before node 1 of its tree, or ROOT, found 1");
    let cycle = text(&[0, 1, 3], &[ROOT, 1, 0]);
    assert_eq!(cycle, "tree parent: expected a node before node 0 of its tree, or ROOT, found 1");
    assert!(text(&[0, 3], &[ROOT, 0]).contains("tree indptr"));
    assert!(text(&[], &[]).contains("tree indptr"));
    assert!(Trees::chains(&[0, 3, 2]).unwrap_err().to_string().contains("tree indptr"));

    let case = Case { lens: vec![50, 20], queries: vec![6, 2], ..base() };
    let (built, own) = (build::<f32>(&case), own_rows::<f32>(&case));
    let other = Trees::chains(&[0, 4, 8]).unwrap();
    let go = |own: &Built<f32>, trees: &Trees, place| {
        run(&case, &built, own, place, trees, Isa::level(), &Executor::inline())
    };
    let text = go(&own, &other, Place::Rows).unwrap_err().to_string();
    assert_eq!(text, "trees: expected [0, 6, 8], found [0, 4, 8]");
    let trees = Trees::chains(&[0, 6, 8]).unwrap();
    let mut short = nodes::<f32>(&case, Place::Pages);
    short.lens[3] = 1;
    let text = go(&short, &trees, Place::Pages).unwrap_err().to_string();
    assert_eq!(text, "keys of a tree: expected 2 nodes of sequence 1, found 1");
}

#[test]
fn an_accepted_path_is_moved_to_the_front() {
    let trees = Trees::new(&[0, 1, 7], &[ROOT, ROOT, 0, 0, 2, 2, 4]).unwrap();
    assert_eq!((trees.indptr(), trees.depths()), (&[0, 1, 7][..], vec![0, 0, 1, 1, 2, 2, 3]));
    assert_eq!(trees.path(1, 5).unwrap(), [0, 2, 4, 5]);
    assert_eq!(trees.moves(1, &[0, 2, 4, 5]).unwrap(), [(2, 1), (4, 2), (5, 3)]);
    assert_eq!(trees.moves(1, &[]).unwrap(), []);
    let text = trees.moves(1, &[0, 4]).unwrap_err().to_string();
    assert_eq!(text, "tree path: expected a child of node 0, found 4");
    let text = trees.moves(1, &[2]).unwrap_err().to_string();
    assert_eq!(text, "tree path: expected a root, found 2");
    assert!(trees.path(1, 6).unwrap_err().to_string().contains("tree node: expected 0..6"));
    assert!(trees.path(2, 0).unwrap_err().to_string().contains("sequence: expected 0..2"));
}

proptest! {
    #[test]
    fn moves_in_place_keep_exactly_the_path(seed in 0u64..1_000_000, n in 1usize..80, leaf in 0usize..80) {
        let case = Case { seed, queries: vec![n], ..base() };
        let trees = Trees::new(&[0, n as u32], &parents(&case)).unwrap();
        let path = trees.path(0, (leaf % n) as u32).unwrap();
        let mut rows: Vec<u32> = (0..n as u32).collect();
        for (from, to) in trees.moves(0, &path).unwrap() {
            rows[to as usize] = rows[from as usize];
        }
        prop_assert_eq!(&rows[..path.len()], &path[..]);
    }
}
