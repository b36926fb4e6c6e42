//! Sizes, bounds and tokens that have no finite key.

use kvist_kernels::cluster::{Clusters, Count, KMeans, Last, Metric};
use kvist_kernels::{DType, Isa};
use proptest::prelude::*;

use crate::common::{
    Keys, Kind, Rng, assert_bounds, assert_partition, build_one, dims, dtypes, kinds,
};

/// Sizes are at most `size_max`; a cluster below `size_min` is one that none has room for.
fn assert_sizes(clusters: &Clusters, settings: &KMeans) {
    let sizes: Vec<usize> = (0..clusters.len()).map(|c| clusters.members(c).len()).collect();
    let most = if settings.size_max == 0 { usize::MAX } else { settings.size_max };
    assert!(sizes.iter().all(|&s| s <= most), "{sizes:?}");
    for (i, &small) in sizes.iter().enumerate().filter(|(_, s)| **s < settings.size_min) {
        let room = |(j, s): (usize, &usize)| j != i && s + small <= most;
        assert!(!sizes.iter().enumerate().any(room), "{small} of {sizes:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn clusters_partition_the_tokens_and_keep_their_sizes(
        seed: u64,
        kind in kinds(),
        dtype in dtypes(),
        dim in dims(),
        n in 0..400usize,
        spoiled in prop_oneof![Just(0usize), 1..30usize],
        target in 1..20usize,
        (size_min, size_max) in prop::sample::select(vec![(4, 32), (0, 1), (2, 5), (4, 8), (3, 0), (0, 0)]),
        segment in prop::sample::select(vec![0, 64, 150]),
        metric in prop::sample::select(vec![Metric::Cosine, Metric::Euclidean]),
        last in prop::sample::select(vec![Last::Means, Last::Everywhere]),
    ) {
        let keys = Keys::random(seed, kind, dtype, n, dim);
        let (keys, spoiled) = Keys::spoiled(seed, keys, spoiled);
        let settings = KMeans {
            count: Count::PerTokens(target),
            segment,
            metric,
            last,
            size_min,
            size_max,
            ..KMeans::default()
        };
        let clusters = build_one(&settings, &keys.head(), Isa::level());
        assert_partition(&clusters, n);
        assert_eq!(clusters.unclustered(), spoiled);
        if segment == 0 || last == Last::Everywhere {
            assert_sizes(&clusters, &settings);
        }
        let mut rng = Rng(seed);
        let q: Vec<f32> = (0..dim).map(|_| rng.normal()).collect();
        assert_bounds(&clusters, &keys, &q);
    }
}

#[test]
fn equal_keys_share_clusters_of_full_size() {
    for value in [0.0, 1.5, -3e38, 1e-45] {
        let keys = Keys::new(DType::F32, 24, vec![value; 1000 * 24]);
        let clusters = build_one(&KMeans::default(), &keys.head(), Isa::level());
        assert_partition(&clusters, 1000);
        assert_sizes(&clusters, &KMeans::default());
        assert!(clusters.centroids().iter().all(|&x| x == value));
        assert!(clusters.radii().iter().all(|&r| r == 0.0));
    }
}

#[test]
fn few_keys_make_few_clusters() {
    for n in 0..5 {
        let keys = Keys::random(3, Kind::Groups, DType::F16, n, 40);
        for settings in [KMeans::default(), KMeans::cluster_kv(), KMeans::retro_infer()] {
            let clusters = build_one(&settings, &keys.head(), Isa::level());
            assert_partition(&clusters, n);
            assert_eq!(clusters.len(), n.min(1));
        }
        let clusters = build_one(&KMeans::lloyd(64, 3), &keys.head(), Isa::level());
        assert_eq!(clusters.len(), n);
        assert!(clusters.radii().iter().all(|&r| r == 0.0));
    }
}

#[test]
fn only_spoiled_keys_leave_no_cluster() {
    let keys = Keys::new(DType::Bf16, 8, vec![f32::NAN; 80]);
    for settings in [KMeans::default(), KMeans::cluster_kv(), KMeans::retro_infer()] {
        let clusters = build_one(&settings, &keys.head(), Isa::level());
        assert_partition(&clusters, 10);
        assert!(clusters.is_empty());
        assert_eq!(clusters.unclustered().len(), 10);
    }
}

#[test]
fn settings_without_sense_are_refused() {
    let bad = |settings: KMeans| settings.check().unwrap_err().to_string();
    let own = KMeans::default();
    assert!(
        bad(KMeans { count: Count::Exactly(0), ..own }).contains("clusters: expected at least 1")
    );
    assert!(bad(KMeans { count: Count::PerTokens(0), ..own }).contains("tokens per cluster"));
    assert!(bad(KMeans { iterations: 0, ..own }).contains("iterations"));
    assert!(bad(KMeans { size_max: 7, ..own }).contains("at least twice size_min = 4"));
    assert!(bad(KMeans { last: Last::Labels, ..own }).contains("Last::Labels"));
    for settings in [own, KMeans::cluster_kv(), KMeans::retro_infer(), KMeans::lloyd(1, 1)] {
        settings.check().unwrap();
    }
}
