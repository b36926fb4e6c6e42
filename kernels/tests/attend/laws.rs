//! What must hold whatever the numbers are: the same bits for any number of threads and order of
//! frames, parts that merge to the whole, NaN that stays where it is seen.

use half::bf16;
use kvist_kernels::attend::{self, Out};
use kvist_kernels::{Executor, Isa, Tensor3, Tensor3Mut};

use crate::common::{Case, base, bits, build, kernel};

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let case =
        Case { lens: vec![5000, 70, 0, 3000], queries: vec![1, 3, 1, 70], causal: true, ..base() };
    let built = build::<bf16>(&case);
    let want = kernel(&case, &built, Isa::level(), &Executor::inline());
    for threads in [2, 3, 7] {
        let exec = Executor::with_threads(threads).unwrap();
        let got = kernel(&case, &built, Isa::level(), &exec);
        assert_eq!(bits(&got.0), bits(&want.0), "{threads} threads");
        assert_eq!(bits(&got.1), bits(&want.1), "{threads} threads");
    }
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
