//! Appending, truncating, refreshing.

use kvist_kernels::cluster::{Clusters, Head, KMeans, build, refresh};
use kvist_kernels::{DType, Executor, Isa};
use proptest::prelude::*;

use crate::common::{Keys, Kind, assert_bounds, assert_partition, build_one};

const SEGMENT: usize = 128;

fn own() -> KMeans {
    KMeans { segment: SEGMENT, ..KMeans::default() }
}

fn scene(n: usize) -> (Keys, Keys) {
    let (keys, _) = Keys::spoiled(4, Keys::random(5, Kind::Groups, DType::Bf16, n, 48), 4);
    (keys, Keys::random(6, Kind::Groups, DType::F32, n, 24))
}

/// Tokens `from..to` of a scene.
fn part<'a>((keys, values): &'a (Keys, Keys), from: usize, to: usize) -> Head<'a> {
    Head { keys: keys.rows().slice(from, to), values: Some(values.rows().slice(from, to)) }
}

fn sums(values: &Keys, members: &[u32]) -> Vec<f32> {
    let of = |i: usize| members.iter().map(|&t| f64::from(values.row(t as usize)[i])).sum::<f64>();
    (0..values.dim).map(|i| of(i) as f32).collect()
}

fn assert_sums(clusters: &Clusters, values: &Keys) {
    for c in 0..clusters.len() {
        let sum = &clusters.value_sums()[c * values.dim..][..values.dim];
        assert_eq!(sum, sums(values, clusters.members(c)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whole_segments_appended_equal_a_fresh_build(segments in 0..4usize, tail in 0..SEGMENT) {
        let n = segments * SEGMENT + tail;
        let scene = scene(n);
        let fresh = build_one(&own(), &part(&scene, 0, n), Isa::level());
        assert_sums(&fresh, &scene.1);
        let mut grown = Clusters::empty(48, 24);
        for from in (0..n).step_by(SEGMENT) {
            let head = part(&scene, from, n.min(from + SEGMENT));
            grown.append(&build_one(&own(), &head, Isa::level()), from).unwrap();
        }
        assert!(grown == fresh);
        // And back again, to every end of a segment.
        for segments in (0..segments).rev() {
            let end = segments * SEGMENT;
            assert!(grown.truncate(end).is_empty());
            assert!(grown == build_one(&own(), &part(&scene, 0, end), Isa::level()));
        }
    }

    #[test]
    fn a_cut_cluster_keeps_its_bound_and_is_refreshed(n in 1..500usize, cut in 0..500usize) {
        let scene = scene(n);
        let mut clusters = build_one(&own(), &part(&scene, 0, n), Isa::level());
        let whole = clusters.clone();
        let changed = clusters.truncate(cut);
        let left = n.min(cut);
        assert_partition(&clusters, left);
        assert_bounds(&clusters, &scene.0, &[1.0; 48]);
        for c in 0..clusters.len() {
            let sum = &clusters.value_sums()[c * 24..][..24];
            if changed.contains(&(c as u32)) {
                assert!(sum.iter().all(|s| s.is_nan()));
            } else {
                assert_eq!(sum, sums(&scene.1, clusters.members(c)));
            }
        }
        let head = part(&scene, 0, n);
        refresh(&mut clusters, &changed, &head, 0, Isa::level(), &Executor::inline()).unwrap();
        assert_bounds(&clusters, &scene.0, &[1.0; 48]);
        assert_sums(&clusters, &scene.1);
        // All that a build says of its clusters, refreshing says again.
        let mut again = whole.clone();
        let all: Vec<u32> = (0..whole.len() as u32).collect();
        refresh(&mut again, &all, &head, 0, Isa::level(), &Executor::inline()).unwrap();
        assert!(again == whole);
    }
}

#[test]
fn a_window_is_clustered_alone_and_its_segment_again_when_full() {
    let scene = scene(2 * SEGMENT);
    let mut clusters = build_one(&own(), &part(&scene, 0, SEGMENT), Isa::level());
    for from in (SEGMENT..2 * SEGMENT).step_by(32) {
        let window = build_one(&own(), &part(&scene, from, from + 32), Isa::level());
        clusters.append(&window, from).unwrap();
        assert_partition(&clusters, from + 32);
        assert_bounds(&clusters, &scene.0, &[-1.0; 48]);
    }
    assert!(clusters.truncate(SEGMENT).is_empty());
    let segment = build_one(&own(), &part(&scene, SEGMENT, 2 * SEGMENT), Isa::level());
    clusters.append(&segment, SEGMENT).unwrap();
    assert!(clusters == build_one(&own(), &part(&scene, 0, 2 * SEGMENT), Isa::level()));
}

#[test]
fn tokens_before_the_first_belong_to_nobody() {
    let scene = scene(60);
    let mut clusters = Clusters::empty(48, 24);
    clusters.append(&build_one(&own(), &part(&scene, 16, 60), Isa::level()), 16).unwrap();
    assert_eq!(clusters.tokens(), 60);
    assert!(clusters.order().iter().chain(clusters.unclustered()).all(|&t| t >= 16));
    let rest = clusters.len() as u32;
    let head = part(&scene, 16, 60);
    let before = clusters.clone();
    let all: Vec<u32> = (0..rest).collect();
    refresh(&mut clusters, &all, &head, 16, Isa::level(), &Executor::inline()).unwrap();
    assert!(clusters == before);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let scene = scene(100);
    let clusters = build_one(&own(), &part(&scene, 0, 100), Isa::level());
    let refused = |other: &Clusters, first: usize| {
        let mut copy = clusters.clone();
        let problem = copy.append(other, first).unwrap_err().to_string();
        assert!(copy == clusters);
        problem
    };
    assert!(refused(&Clusters::empty(48, 0), 100).contains("keys of 48, values of 24"));
    assert!(refused(&clusters, 99).contains("expected 100.."));
    assert!(refused(&clusters, u32::MAX as usize).contains("4294967295"));
    let mut copy = clusters.clone();
    let mut refused = |which: &[u32], head: &Head, first: usize| {
        let isa = Isa::level();
        refresh(&mut copy, which, head, first, isa, &Executor::inline()).unwrap_err().to_string()
    };
    assert!(refused(&[999], &part(&scene, 0, 100), 0).contains("cluster: expected 0.."));
    assert!(refused(&[0], &part(&scene, 0, 1), 50).contains("expected 50..51"));
    let keys = Head { values: None, ..part(&scene, 0, 100) };
    assert!(refused(&[0], &keys, 0).contains("values of 0"));
    assert!(copy == clusters);
    let uneven = Head { keys: scene.0.rows(), values: Some(scene.1.rows().slice(0, 99)) };
    let problem = build(&own(), &[uneven], Isa::level(), &Executor::inline()).unwrap_err();
    assert!(problem.to_string().contains("100 rows, one per key"), "{problem}");
}
