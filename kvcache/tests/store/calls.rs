//! Calls beyond the random scripts: batches, refusals, misuse, threads.

use kvist::{
    AttendOptions, Boxed, Cache, DType, Error, Geometry, Select, Sequence, Tensor3, Tensor3Mut,
};

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, close, dense, rows};
use crate::model::{Model, check_attend};

#[test]
fn batches_read_shared_pages_once_and_equal_separate_calls() {
    let cache = cache(Select::Full, 64 << 20);
    let mut random = Random(7);
    let mut stem = cache.sequence();
    let (k, v) = (random.rows(300 * ROW, 1.0), random.rows(300 * ROW, 1.0));
    stem.append(0, &rows(&k), &rows(&v)).unwrap();
    let mut forks: Vec<Sequence> = (0..4).map(|_| stem.fork()).collect();
    for (i, f) in forks.iter_mut().enumerate() {
        let n = (10 + i) * ROW;
        f.append(0, &rows(&random.rows(n, 1.0)), &rows(&random.rows(n, 1.0))).unwrap();
    }
    let mut lone = cache.sequence();
    lone.append(0, &rows(&k), &rows(&v)).unwrap();
    let batch: Vec<&Sequence> = forks.iter().chain([&lone]).collect();
    let width = HEADS * GROUP * DIM;
    let counts = [1, 3, 1, 2, 1];
    let q: Vec<f32> = (0..8 * width).map(|_| random.normal()).collect();
    let mut out = vec![0f32; 8 * width];
    let shape = [8, HEADS * GROUP, DIM];
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let all = Tensor3::contiguous(&q, shape).unwrap();
    let infos =
        cache.attend_batch(0, &all, &batch, &counts, &AttendOptions::default(), &mut view).unwrap();
    let mut row = 0;
    for ((s, n), info) in batch.iter().zip(counts).zip(&infos) {
        let (want, alone) =
            attend(s, 0, &q[row * width..(row + n) * width], &AttendOptions::default());
        let got = &out[row * width..(row + n) * width];
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 5e-3));
        assert!(info.lse2.iter().zip(&alone.lse2).all(|(a, b)| (a - b).abs() < 1e-3));
        row += n;
    }
    let token = (HEADS * cache.geometry().token_bytes()) as u64;
    let kv: Vec<u64> = infos.iter().map(|i| i.bytes.kv / token).collect();
    assert_eq!(kv, [310, 311 - 256, 312 - 256, 313 - 256, 300]);
}

#[test]
fn an_append_over_budget_changes_nothing() {
    let geometry = Geometry::new(2, HEADS * GROUP, HEADS, DIM, DType::Bf16);
    let page = geometry.page_bytes() as u64;
    let cache = cache(Select::Boxed(Boxed::default()), 9 * page);
    let mut random = Random(3);
    let mut s = cache.sequence();
    let (k, v) = (random.rows(100 * ROW, 1.0), random.rows(100 * ROW, 1.0));
    s.append(0, &rows(&k), &rows(&v)).unwrap();
    let before = cache.stats();
    let big = random.rows(300 * ROW, 1.0);
    let error = s.append(1, &rows(&big), &rows(&big)).unwrap_err();
    assert!(matches!(error, Error::OverBudget { .. }), "{error}");
    assert!(error.to_string().starts_with("over budget: "), "{error}");
    assert_eq!(cache.stats(), before);
    assert_eq!((s.layer_len(0).unwrap(), s.layer_len(1).unwrap()), (100, 0));
    let q = vec![0.5f32; HEADS * GROUP * DIM];
    assert!(close(&attend(&s, 0, &q, &AttendOptions::default()).0, &dense(&k, &v, 100, &q)));
}

#[test]
fn misuse_is_named() {
    let cache = cache(Select::Full, 16 << 20);
    let other = self::cache(Select::Full, 16 << 20);
    let mut s = cache.sequence();
    let good = Random(1).rows(10 * ROW, 1.0);
    let text = |r: Result<(), Error>| r.unwrap_err().to_string();
    assert_eq!(text(s.append(2, &rows(&good), &rows(&good))), "layer 2 is outside 0..2");
    let wide = Tensor3::contiguous(&good, [5, 2 * HEADS, DIM]).unwrap();
    assert_eq!(
        text(s.append(0, &wide, &wide)),
        "keys must have shape [tokens, 2 KV heads, 32], found [5, 4, 32]"
    );
    let floats = vec![0f32; 10 * ROW];
    let f32s = Tensor3::contiguous(&floats, [10, HEADS, DIM]).unwrap();
    assert_eq!(text(s.append(0, &f32s, &f32s)), "keys must be bf16 as the cache is, found f32");
    assert!(
        text(s.append(0, &rows(&good), &rows(&good[..5 * ROW])))
            .contains("as many tokens as the keys, 10")
    );
    assert_eq!(
        text(s.append_at(0, 7, &rows(&good), &rows(&good))),
        "layer 0: the next token has position 0, found 7"
    );
    s.append(0, &rows(&good), &rows(&good)).unwrap();
    assert!(text(s.truncate(1)).contains("the sequence has 0 tokens in layer 1, found 1"));
    let q = vec![0f32; 11 * HEADS * GROUP * DIM];
    let mut out = q.clone();
    let shape = [11, HEADS * GROUP, DIM];
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let query = Tensor3::contiguous(&q, shape).unwrap();
    let options = AttendOptions::default();
    assert!(
        text(s.attend(0, &query, &options, &mut view).map(|_| ()))
            .contains("10 tokens in layer 0, found 11")
    );
    let foreign = other.attend_batch(0, &query, &[&s], &[11], &options, &mut view).unwrap_err();
    assert_eq!(foreign, Error::ForeignSequence { index: 0 });
    for scale in [f32::NAN, 0.0, -1.0] {
        let options = AttendOptions { scale: Some(scale), ..options };
        let one = query.rows(0, 1);
        let e = s.attend(0, &one, &options, &mut view.rows_mut(0, 1)).unwrap_err();
        assert!(e.to_string().starts_with("scale must be finite and above 0"), "{e}");
    }
    let none = Cache::builder(Geometry::new(1, 1, 1, 64, DType::F32)).host_bytes(10).build();
    assert!(none.unwrap_err().to_string().starts_with("over budget"));
}

#[test]
fn threads_share_a_cache() {
    let cache = cache(Select::Boxed(Boxed::with_budget(128)), 64 << 20);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let cache = cache.clone();
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut s = cache.sequence();
                let mut m = Model::default();
                for _ in 0..20 {
                    let (k, v) = (random.rows(37 * ROW, 1.0), random.rows(37 * ROW, 1.0));
                    for layer in 0..2 {
                        s.append(layer, &rows(&k), &rows(&v)).unwrap();
                    }
                    m.k.extend(&k);
                    m.v.extend(&v);
                    check_attend(&s, &m, 1, &mut random);
                }
            });
        }
    });
    assert_eq!(cache.stats().used_bytes, 0);
}

#[test]
fn results_do_not_depend_on_threads() {
    let build = |threads| {
        let cache = Cache::builder(Geometry::new(1, HEADS * GROUP, HEADS, DIM, DType::Bf16))
            .select(Select::Boxed(Boxed::with_budget(300)))
            .threads(threads)
            .build()
            .unwrap();
        let mut random = Random(5);
        let mut s = cache.sequence();
        s.append(0, &rows(&random.rows(3000 * ROW, 1.0)), &rows(&random.rows(3000 * ROW, 1.0)))
            .unwrap();
        let q: Vec<f32> = (0..HEADS * GROUP * DIM).map(|_| random.normal()).collect();
        attend(&s, 0, &q, &AttendOptions { selected: true, ..AttendOptions::default() })
    };
    let want = build(1);
    assert!(build(2) == want && build(5) == want);
}
