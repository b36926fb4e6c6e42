//! Keys moved to other positions, against f64.

use half::{bf16, f16};
use kvist_kernels::rope::{Pairs, Rope, shift};
use kvist_kernels::{Element, Tensor3Mut, reference};

const PAIRS: [Pairs; 2] = [Pairs::Halves, Pairs::Neighbours];

fn frequencies(n: usize) -> Vec<f32> {
    (0..n).map(|i| 10_000f32.powf(-(i as f32) / n as f32)).collect()
}

fn numbers<T: Element>(n: usize) -> Vec<T> {
    let number =
        |i: usize| ((i as u32).wrapping_mul(0x9e37_79b9) >> 8) as f32 / 2f32.powi(22) - 2.0;
    (0..n).map(number).map(T::from_f32).collect()
}

fn check<T: Element>(heads: usize, dim: usize, turned: usize, differences: &[i32], error: f64) {
    let frequencies = frequencies(turned / 2);
    let before = numbers::<T>(differences.len() * heads * dim);
    for pairs in PAIRS {
        let rope = Rope { frequencies: &frequencies, pairs };
        let mut rows = before.clone();
        let shape = [differences.len(), heads, dim];
        let mut view = Tensor3Mut::contiguous(&mut rows, shape).expect("whole rows");
        shift(&mut view, differences, &rope).expect("shapes fit");
        for (i, (row, old)) in rows.chunks(dim).zip(before.chunks(dim)).enumerate() {
            let old: Vec<f64> = old.iter().map(|x| f64::from(x.to_f32())).collect();
            let want = reference::rotated(&rope, differences[i / heads], &old);
            for (at, (got, want)) in row.iter().zip(want).enumerate() {
                let off = (f64::from(got.to_f32()) - want).abs();
                assert!(
                    off <= error * (1.0 + want.abs()),
                    "row {i}, {at}: {off}, {want}, {pairs:?}"
                );
            }
        }
    }
}

#[test]
fn rows_turn_as_in_f64() {
    for (heads, dim, turned) in
        [(1, 2, 2), (2, 64, 64), (3, 80, 32), (1, 7, 6), (1, 576, 64), (2, 5, 0)]
    {
        let differences = [0, 1, 1, -1, 17, -4096, 1_000_003, i32::MAX, i32::MIN];
        check::<f32>(heads, dim, turned, &differences, 1e-6);
        check::<f16>(heads, dim, turned, &differences, 1e-3);
        check::<bf16>(heads, dim, turned, &differences, 8e-3);
    }
    check::<f32>(0, 4, 4, &[3], 0.0);
    check::<f32>(1, 4, 4, &[], 0.0);
}

/// There and back, and one step after the other, is where one began and where one goes at once.
#[test]
fn shifts_add_up() {
    let frequencies = frequencies(16);
    for pairs in PAIRS {
        let rope = Rope { frequencies: &frequencies, pairs };
        let before = numbers::<f32>(40);
        let run = |by: &[i32]| {
            let mut row = before.clone();
            for &by in by {
                let mut view = Tensor3Mut::contiguous(&mut row, [1, 1, 40]).expect("a row");
                shift(&mut view, &[by], &rope).expect("shapes fit");
            }
            row
        };
        let near = |a: Vec<f32>, b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near(run(&[900, -900]), &before));
        assert!(near(run(&[10, 20, -7]), &run(&[23])));
        assert!(run(&[23])[32..] == before[32..] && run(&[23])[..32] != before[..32]);
    }
}

#[test]
fn nothing_moves_by_nothing_and_nan_stays_in_its_pair() {
    let rope = Rope { frequencies: &[0.3, 0.1], pairs: Pairs::Halves };
    let mut row = [f32::NAN, 1.0, f32::INFINITY, 2.0];
    let mut view = Tensor3Mut::contiguous(&mut row, [1, 1, 4]).expect("a row");
    shift(&mut view, &[0], &rope).expect("shapes fit");
    assert!(row[0].is_nan() && row[1..] == [1.0, f32::INFINITY, 2.0]);
    let mut view = Tensor3Mut::contiguous(&mut row, [1, 1, 4]).expect("a row");
    shift(&mut view, &[2], &rope).expect("shapes fit");
    assert!(row[0].is_nan() && row[2].is_nan() && row[1].is_finite() && row[3].is_finite());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut row = [1f32; 4];
    let mut text = |frequencies: &[f32], differences: &[i32]| {
        let rope = Rope { frequencies, pairs: Pairs::Neighbours };
        let mut view = Tensor3Mut::contiguous(&mut row, [1, 1, 4]).expect("a row");
        shift(&mut view, differences, &rope).expect_err("it does not fit").to_string()
    };
    assert_eq!(text(&[1.0], &[1, 2]), "differences: expected 1, found 2");
    let expected = "frequencies: expected at most 2, for 4 elements, found 3";
    assert_eq!(text(&[1.0; 3], &[1]), expected);
    assert_eq!(text(&[f32::NAN], &[1]), "frequency: expected a finite number, found NaN");
    assert_eq!(row, [1.0; 4]);
}
