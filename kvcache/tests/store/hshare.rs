//! Selections shared between steps, heads and layers, against the rule applied to what each head would
//! have selected alone.

use half::bf16;
use kvist::policies::share::Sharing;
use kvist::policies::{HShare, TidalDecode};
use kvist::{
    AttendInfo, AttendOptions, Cache, DType, Geometry, Select, Sequence, Tensor3, Tensor3Mut,
};
use proptest::prelude::*;

use crate::common::{DIM, Random};

const LAYERS: usize = 5;
const DENSE: usize = 1;
const HEADS: usize = 4;
const Q_HEADS: usize = 2 * HEADS;
const ROW: usize = HEADS * DIM;

fn cache(select: impl Into<Select>) -> Cache {
    Cache::builder(Geometry::new(LAYERS, Q_HEADS, HEADS, DIM, DType::Bf16))
        .host_bytes(64 << 20)
        .select(select.into())
        .dense_layers(&[DENSE])
        .threads(2)
        .build()
        .unwrap()
}

fn settings() -> HShare {
    HShare { budget: 48, sinks: 4, recent: 8, ..HShare::default() }
}

/// The same without any sharing: what each head would select.
fn alone() -> TidalDecode {
    let HShare { budget, sinks, recent, .. } = settings();
    TidalDecode { budget, sinks, recent, anchors: (0..LAYERS).collect() }
}

fn append(s: &mut Sequence, k: &[bf16]) {
    let rows = Tensor3::contiguous(k, [k.len() / ROW, HEADS, DIM]).unwrap();
    (0..LAYERS).for_each(|layer| s.append(layer, &rows, &rows).unwrap());
}

fn ask(s: &Sequence, layer: usize, q: &[f32]) -> AttendInfo {
    let mut out = vec![0f32; q.len()];
    let shape = [1, Q_HEADS, DIM];
    let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    s.attend(layer, &Tensor3::contiguous(q, shape).unwrap(), &options, &mut view).unwrap()
}

/// What every head reads at one step, by layer.
fn step(s: &Sequence, q: &[Vec<f32>]) -> Vec<Vec<Vec<u32>>> {
    (0..LAYERS).map(|layer| ask(s, layer, &q[layer]).selected.unwrap_or_default()).collect()
}

/// Queries of which some heads and layers are nearly the same.
fn queries(random: &mut Random) -> Vec<Vec<f32>> {
    let normal = |random: &mut Random| -> Vec<f32> {
        (0..Q_HEADS * DIM).map(|_| 2.0 * random.normal()).collect()
    };
    let base = normal(random);
    let near = |random: &mut Random, by: f32| -> Vec<f32> {
        base.iter().zip(normal(random)).map(|(b, n)| b + by * n).collect()
    };
    (0..LAYERS).map(|layer| near(random, if layer % 2 == 0 { 0.3 } else { 3.0 })).collect()
}

/// Which head of which layer selects for each, from what all selected.
fn sharing(sets: &[Vec<Vec<u32>>], len: usize, settings: &HShare) -> Sharing {
    let picked = |chosen: &Vec<u32>| -> Vec<u32> {
        let is_picked =
            |&&t: &&u32| t as usize >= settings.sinks && (t as usize) < len - settings.recent;
        chosen.iter().filter(is_picked).copied().collect()
    };
    let of_layer = |layer: usize| match layer {
        DENSE => Vec::new(),
        _ => sets[layer].iter().map(picked).collect::<Vec<_>>(),
    };
    let picked: Vec<Vec<Vec<u32>>> = (0..LAYERS).map(of_layer).collect();
    let picked: Vec<Vec<&[u32]>> =
        picked.iter().map(|layer| layer.iter().map(Vec::as_slice).collect()).collect();
    Sharing::found(&picked, settings.heads, settings.layers)
}

fn owners(sharing: &Sharing, sets: &[Vec<Vec<u32>>]) -> Vec<Vec<Vec<u32>>> {
    let of = |layer: usize, head: usize| {
        let (l, h) = sharing.owner(layer, head);
        sets[l][h].clone()
    };
    (0..LAYERS).map(|l| (0..sets[l].len()).map(|h| of(l, h)).collect()).collect()
}

/// What was read before, and the tokens since.
fn later(sets: &[Vec<Vec<u32>>], from: usize, to: usize) -> Vec<Vec<Vec<u32>>> {
    let with_new = |chosen: &Vec<u32>| -> Vec<u32> {
        chosen.iter().copied().chain(from as u32..to as u32).collect()
    };
    sets.iter().map(|layer| layer.iter().map(with_new).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn heads_and_layers_read_what_those_that_picked_alike_select(
        seed in any::<u64>(), tokens in 60usize..300,
        heads in prop::sample::select(vec![0f32, 0.25, 0.5, 1.0]),
        layers in prop::sample::select(vec![0f32, 0.25, 0.5, 1.0]),
    ) {
        let mut random = Random(seed);
        let hshare = HShare { heads, layers, ..settings() };
        let (mut s, mut each) = (cache(hshare.clone()).sequence(), cache(alone()).sequence());
        let mut k = random.rows(tokens * ROW, 1.0);
        // Heads 0 and 2 have the same keys, nearly.
        for token in k.chunks_mut(ROW) {
            let (front, back) = token.split_at_mut(2 * DIM);
            back[..DIM].copy_from_slice(&front[..DIM]);
        }
        append(&mut s, &k);
        append(&mut each, &k);
        let q = queries(&mut random);
        let first = step(&s, &q);
        prop_assert_eq!(&first, &step(&each, &q), "at the first step all select for themselves");
        let sharing = sharing(&first, tokens, &hshare);
        let borrows = (0..LAYERS)
            .flat_map(|l| (0..HEADS).map(move |h| (l, h)))
            .filter(|&(l, h)| sharing.owner(l, h) != (l, h))
            .count();
        prop_assert!(borrows > 0 || heads < 0.5 && layers < 0.5, "{} {} {}", borrows, heads, layers);
        let new = random.rows(ROW, 1.0);
        append(&mut s, &new);
        append(&mut each, &new);
        // The owners' sets serve a second step, whatever the query.
        let second = step(&s, &queries(&mut random));
        let want = later(&owners(&sharing, &first), tokens, tokens + 1);
        prop_assert_eq!(&second[..DENSE], &want[..DENSE]);
        prop_assert_eq!(&second[DENSE + 1..], &want[DENSE + 1..]);
        prop_assert!(second[DENSE].iter().all(|all| all.len() == tokens + 1), "dense");
        // Then the owners select anew, and the others follow at the same step.
        let new = random.rows(ROW, 1.0);
        append(&mut s, &new);
        append(&mut each, &new);
        let q = queries(&mut random);
        let fork = s.fork();
        let third = step(&s, &q);
        let want = owners(&sharing, &step(&each, &q));
        prop_assert_eq!(&third, &want);
        prop_assert_eq!(&step(&fork, &q), &third, "forks know whose selections they read");
        prop_assert_eq!(third[0][0].len(), hshare.budget);
    }
}

#[test]
fn a_cut_below_the_first_step_forgets_who_shares() {
    let mut random = Random(3);
    let hshare = HShare { heads: 1.0, layers: 1.0, ..settings() };
    let mut s = cache(hshare.clone()).sequence();
    let mut each = cache(alone()).sequence();
    let k = random.rows(203 * ROW, 1.0);
    append(&mut s, &k[..200 * ROW]);
    let first = step(&s, &queries(&mut random));
    let sharing = sharing(&first, 200, &hshare);
    assert_eq!(sharing.owner(4, 0).0, 0);
    for len in 200..202 {
        append(&mut s, &k[len * ROW..(len + 1) * ROW]);
        step(&s, &queries(&mut random));
    }
    append(&mut each, &k[..202 * ROW]);
    // What was selected behind the cut is gone, but not who shares.
    for len in [201, 200] {
        s.truncate(len).unwrap();
        each.truncate(len).unwrap();
        let q = queries(&mut random);
        assert!(step(&s, &q) == owners(&sharing, &step(&each, &q)), "{len}");
    }
    s.truncate(199).unwrap();
    each.truncate(199).unwrap();
    let q = queries(&mut random);
    assert_eq!(step(&s, &q), step(&each, &q), "a first step again");
}

#[test]
fn a_layer_attended_alone_selects_for_itself() {
    let mut random = Random(4);
    let hshare = HShare { heads: 0.0, layers: 1.0, ..settings() };
    let mut s = cache(hshare.clone()).sequence();
    let mut each = cache(alone()).sequence();
    let k = random.rows(203 * ROW, 1.0);
    append(&mut s, &k[..200 * ROW]);
    append(&mut each, &k[..200 * ROW]);
    let first = step(&s, &queries(&mut random));
    assert_ne!(sharing(&first, 200, &hshare).owner(4, 0).0, 4);
    for len in 200..203 {
        append(&mut s, &k[len * ROW..(len + 1) * ROW]);
        append(&mut each, &k[len * ROW..(len + 1) * ROW]);
        let q = queries(&mut random);
        // Whom it follows selected nothing at this step, and what it selected itself would grow old.
        assert_eq!(ask(&s, 4, &q[4]).selected, ask(&each, 4, &q[4]).selected, "{len}");
    }
}

#[test]
fn bounds_are_proven_for_the_queries_that_borrow() {
    let mut random = Random(5);
    let hshare = HShare { heads: 1.0, layers: 1.0, ..settings() };
    let mut s = cache(hshare.clone()).sequence();
    let k = random.rows(150 * ROW, 1.0);
    append(&mut s, &k[..149 * ROW]);
    let first = step(&s, &queries(&mut random));
    let sharing = sharing(&first, 149, &hshare);
    append(&mut s, &k[149 * ROW..]);
    let q = queries(&mut random);
    let mut borrow = 0;
    for layer in [0, 2, 3, 4] {
        let info = ask(&s, layer, &q[layer]);
        assert_eq!(info.bytes.keys, 0, "nobody selects at the second step");
        let (chosen, bound) = (info.selected.unwrap(), info.missed_mass_bound.unwrap());
        for h in 0..Q_HEADS {
            borrow += usize::from(sharing.owner(layer, h / 2) != (layer, h / 2));
            let logit = |t: usize| -> f64 {
                let key = &k[t * ROW + h / 2 * DIM..][..DIM];
                let q = &q[layer][h * DIM..][..DIM];
                q.iter().zip(key).map(|(&a, b)| f64::from(a) * f64::from(b.to_f32())).sum()
            };
            let scale = 1.0 / (DIM as f64).sqrt();
            let exp: Vec<f64> = (0..150).map(|t| (logit(t) * scale).exp()).collect();
            let read: f64 = chosen[h / 2].iter().map(|&t| exp[t as usize]).sum();
            let missed = 1.0 - read / exp.iter().sum::<f64>();
            let bound = f64::from(bound[h]);
            assert!(missed <= bound + 1e-9 && bound <= missed + 1e-3, "{missed} {bound}");
        }
    }
    assert!(borrow > Q_HEADS, "{borrow}");
}
