//! The same bits again: other levels, numbers of threads, heads together or apart.

use kvist_kernels::cluster::{Head, KMeans, build};
use kvist_kernels::{DType, Executor, Isa};

use crate::common::{KINDS, Keys, build_one};

const TOKENS: usize = 2500;

fn presets() -> [KMeans; 4] {
    let small = |settings| KMeans { segment: 900, ..settings };
    [
        small(KMeans::default()),
        small(KMeans::retro_infer()),
        KMeans { iterations: 3, ..KMeans::cluster_kv() },
        KMeans::lloyd(64, 3),
    ]
}

#[test]
fn levels_agree_on_every_bit() {
    for (seed, kind) in KINDS.into_iter().enumerate() {
        let dtype = DType::ALL[seed % 3];
        let keys = Keys::random(seed as u64, kind, dtype, TOKENS, [64, 80, 33, 128][seed]);
        let values = Keys::random(seed as u64 + 9, kind, dtype, TOKENS, 20);
        let head = Head { keys: keys.rows(), values: Some(values.rows()) };
        for settings in presets() {
            let want = build_one(&settings, &head, Isa::Generic);
            for isa in Isa::available() {
                assert!(build_one(&settings, &head, isa) == want, "{kind:?} {isa:?}");
            }
        }
    }
}

#[test]
fn threads_agree_on_every_bit() {
    let keys: Vec<Keys> = (0..3)
        .map(|i| {
            let keys =
                Keys::random(i, KINDS[i as usize], DType::Bf16, TOKENS + 77 * i as usize, 64);
            Keys::spoiled(i, keys, 5).0
        })
        .collect();
    let heads: Vec<Head> = keys.iter().map(Keys::head).collect();
    for settings in presets() {
        let alone: Vec<_> = heads.iter().map(|h| build_one(&settings, h, Isa::level())).collect();
        for threads in [1, 2, 3, 7] {
            let exec = Executor::with_threads(threads).unwrap();
            let all = build(&settings, &heads, Isa::level(), &exec).unwrap();
            assert!(all == alone, "{threads} threads");
            let one = build(&settings, &heads[..1], Isa::level(), &exec).unwrap();
            assert!(one == alone[..1], "{threads} threads, one head");
        }
    }
}
