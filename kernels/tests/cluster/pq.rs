//! Codebooks, codes and scores against plain arithmetic.

use kvist_kernels::cluster::pq::{Codebook, PqQuery, PqSpec, score};
use kvist_kernels::score::CellList;
use kvist_kernels::{DType, Executor, Isa};
use proptest::prelude::*;

use crate::common::{Keys, Kind, Rng, distance, dtypes};

/// Dimension and parts.
fn shapes() -> impl Strategy<Value = (usize, usize)> {
    prop::sample::select(vec![
        (1, 1),
        (6, 3),
        (14, 2),
        (64, 2),
        (64, 16),
        (96, 32),
        (128, 2),
        (576, 9),
    ])
}

fn train(spec: PqSpec, keys: &Keys, isa: Isa) -> Codebook {
    Codebook::train(spec, &keys.rows(), 4, isa, &Executor::inline()).expect("a codebook")
}

fn encode(book: &Codebook, keys: &Keys, isa: Isa) -> (Vec<u8>, Vec<u32>) {
    let mut cells = vec![0xa5; keys.len().div_ceil(64) * book.spec().cell_bytes()];
    let skipped = book.encode(&keys.rows(), 0, &mut cells, isa, &Executor::inline());
    (cells, skipped.expect("cells that fit"))
}

fn centroid(book: &Codebook, part: usize, code: usize) -> &[f32] {
    let (dim, count) = (book.spec().part_dim(), book.spec().centroids());
    &book.centroids()[(part * count + code) * dim..][..dim]
}

/// Code of a token as the module says it lies.
fn code(spec: &PqSpec, cells: &[u8], part: usize, token: usize) -> usize {
    let bytes = 8 * spec.code_bits();
    let cell = &cells[token / 64 * spec.cell_bytes() + part * bytes..][..bytes];
    let t = token % 64;
    let nibble = || if t < 32 { cell[t] & 15 } else { cell[t - 32] >> 4 };
    usize::from(match spec.code_bits() {
        4 => nibble(),
        6 => nibble() | ((cell[32 + t % 16] >> (2 * (t / 16))) & 3) << 4,
        _ => cell[t],
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn codes_name_the_nearest_centroid_and_scores_are_sums_of_products(
        seed: u64,
        (dim, parts) in shapes(),
        bits in 1..=8u32,
        dtype in dtypes(),
        n in 0..300usize,
        kind in prop::sample::select(vec![Kind::Groups, Kind::Integers, Kind::Repeated]),
        heads in 1..6usize,
    ) {
        let (keys, spoiled) = Keys::spoiled(seed, Keys::random(seed, kind, dtype, n, dim), 3);
        let spec = PqSpec::new(dim, parts, bits).unwrap();
        let book = train(spec, &keys, Isa::level());
        let (cells, skipped) = encode(&book, &keys, Isa::level());
        assert_eq!(skipped, spoiled);
        let part_dim = spec.part_dim();
        for token in (0..n).filter(|&t| !spoiled.contains(&(t as u32))) {
            for part in 0..parts {
                let key = &keys.row(token)[part * part_dim..][..part_dim];
                let found = code(&spec, &cells, part, token);
                let to = |c: usize| distance(key, centroid(&book, part, c));
                let best = (0..spec.centroids()).map(to).fold(f64::INFINITY, f64::min);
                // Scores differ from distances by rounding of the squares that they leave out.
                let size = key.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
                prop_assert!(to(found).powi(2) - best.powi(2) <= 1e-12 * size, "{} {best}", to(found));
                prop_assert!((0..found).all(|c| to(c) > to(found) || distance(
                    centroid(&book, part, c), centroid(&book, part, found)) > 0.0));
            }
        }
        for isa in Isa::available() {
            prop_assert_eq!(&train(spec, &keys, isa), &book);
            prop_assert_eq!(&encode(&book, &keys, isa), &(cells.clone(), skipped.clone()));
        }
        let mut rng = Rng(seed);
        let q: Vec<f32> = (0..heads * dim).map(|_| rng.normal()).collect();
        check_scores(&book, &cells, &q, heads, n);
    }
}

fn check_scores(book: &Codebook, cells: &[u8], q: &[f32], heads: usize, tokens: usize) {
    let spec = book.spec();
    let (dim, part_dim, tiles) = (spec.dim(), spec.part_dim(), cells.len() / spec.cell_bytes());
    // In any order, some twice.
    let ids: Vec<u32> = (0..tiles as u32).rev().chain(0..tiles as u32).collect();
    let list = CellList::from_slice(cells, spec.cell_bytes(), &ids).expect("cells that exist");
    for isa in Isa::available() {
        let mut out = vec![f32::NAN; heads * ids.len() * 64];
        score(&PqQuery::new(isa, book, q, heads), &list, &mut out);
        for (head, out) in out.chunks_exact((ids.len() * 64).max(1)).enumerate() {
            for (i, &found) in out.iter().enumerate() {
                let token = ids[i / 64] as usize * 64 + i % 64;
                if token >= tokens {
                    continue;
                }
                let (mut want, mut size) = (0f64, 0f64);
                for part in 0..spec.parts() {
                    let centroid = centroid(book, part, code(spec, cells, part, token));
                    for (q, c) in q[head * dim + part * part_dim..].iter().zip(centroid) {
                        want += f64::from(*q) * f64::from(*c);
                        size += (f64::from(*q) * f64::from(*c)).abs();
                    }
                }
                let error = (f64::from(found) - want).abs();
                assert!(error <= 1e-5 * size, "{isa:?}: {found} {want}");
            }
        }
    }
}

#[test]
fn scores_of_whole_numbers_are_equal_bits() {
    let keys = Keys::random(1, Kind::Integers, DType::F32, 500, 64);
    for bits in [4, 6, 8] {
        let spec = PqSpec::new(64, 4, bits).unwrap();
        let whole: Vec<f32> =
            train(spec, &keys, Isa::level()).centroids().iter().map(|x| x.round()).collect();
        let book = Codebook::from_centroids(spec, whole).unwrap();
        let (cells, _) = encode(&book, &keys, Isa::level());
        let ids: Vec<u32> = (0..8).collect();
        let list = CellList::from_slice(&cells, spec.cell_bytes(), &ids).unwrap();
        let q: Vec<f32> = (0..3 * 64).map(|i| (i % 11) as f32 - 5.0).collect();
        let scores = |isa| {
            let mut out = vec![0f32; 3 * 512];
            score(&PqQuery::new(isa, &book, &q, 3), &list, &mut out);
            out
        };
        let want = scores(Isa::Generic);
        assert!(Isa::available().into_iter().all(|isa| scores(isa) == want));
    }
}

#[test]
fn tokens_encoded_later_leave_the_others_alone() {
    let keys = Keys::random(2, Kind::Groups, DType::Bf16, 200, 64);
    for bits in [4, 6, 8] {
        let book = train(PqSpec::new(64, 2, bits).unwrap(), &keys, Isa::level());
        let (all, _) = encode(&book, &keys, Isa::level());
        let mut cells = vec![0; all.len()];
        for (from, to) in [(0, 70), (70, 71), (71, 128), (128, 200)] {
            let rows = keys.rows().slice(from, to);
            book.encode(&rows, from, &mut cells, Isa::level(), &Executor::inline()).unwrap();
        }
        let spec = book.spec();
        for part in 0..2 {
            assert!((0..200).all(|t| code(spec, &cells, part, t) == code(spec, &all, part, t)));
        }
        for threads in [2, 3] {
            let exec = Executor::with_threads(threads).unwrap();
            let mut again = vec![0xa5; all.len()];
            book.encode(&keys.rows(), 0, &mut again, Isa::level(), &exec).unwrap();
            assert_eq!(again, all);
            let rows = keys.rows();
            assert_eq!(Codebook::train(*spec, &rows, 4, Isa::level(), &exec).unwrap(), book);
        }
    }
}

#[test]
fn keys_far_from_the_codebook_are_encoded_like_any() {
    let near = Keys::random(3, Kind::Groups, DType::F32, 300, 16);
    let book = train(PqSpec::pq_cache(16).unwrap(), &near, Isa::level());
    for by in [1e30f32, 1e-30] {
        let far = Keys::new(DType::F32, 16, near.values.iter().map(|x| x * by).collect());
        let want = encode(&book, &far, Isa::Generic);
        assert!(Isa::available().into_iter().all(|isa| encode(&book, &far, isa) == want));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let message = |spec: Result<PqSpec, kvist_kernels::Error>| spec.unwrap_err().to_string();
    assert!(message(PqSpec::new(0, 1, 4)).contains("dim: expected 1..=576"));
    assert!(message(PqSpec::new(64, 3, 4)).contains("a divisor of 64"));
    assert!(message(PqSpec::new(64, 2, 9)).contains("bits: expected 1..=8"));
    assert!(message(PqSpec::pq_cache(7)).contains("a divisor of 7"));
    let keys = Keys::random(4, Kind::Groups, DType::F16, 70, 8);
    let (isa, exec) = (Isa::level(), Executor::inline());
    let spec = PqSpec::new(8, 2, 4).unwrap();
    let book = Codebook::train(spec, &keys.rows(), 1, isa, &exec).unwrap();
    assert!(Codebook::train(spec, &keys.rows(), 0, isa, &exec).is_err());
    let other = PqSpec::new(16, 2, 4).unwrap();
    assert!(Codebook::train(other, &keys.rows(), 1, isa, &exec).is_err());
    let mut cells = vec![0; spec.cell_bytes()];
    let problem = book.encode(&keys.rows(), 0, &mut cells, isa, &exec).unwrap_err().to_string();
    assert!(problem.contains("at least 2 cells of 64 bytes"), "{problem}");
    assert!(Codebook::from_centroids(spec, vec![0.0; 3]).is_err());
    assert!(Codebook::from_centroids(spec, vec![f32::NAN; 128]).is_err());
}
