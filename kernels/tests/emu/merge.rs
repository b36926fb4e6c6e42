//! K6: parts over disjoint tokens.

use half::{bf16, f16};
use kvist_kernels::attend::{self, Out};
use kvist_kernels::cuda::params::{MergePartsParams, Part, type_code};
use kvist_kernels::{Element, Tensor3, Tensor3Mut};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, SCHEDULES};

const ROWS: usize = 3;
const HEADS: usize = 3;

/// Parts with every kind of lse: ordinary, -inf with garbage behind it, far apart, NaN.
fn some<T: Element>(n: usize, dim: usize) -> Vec<(Vec<T>, Vec<f32>)> {
    let mut random = Random(n as u64);
    let lse = |part: usize, at: usize, x: f32| match at {
        0 => f32::NEG_INFINITY,
        1 if part == 0 => f32::NEG_INFINITY,
        2 if part == n - 1 => x + 300.0,
        3 if part == n / 2 => f32::NAN,
        _ => 3.0 * x,
    };
    let one = |part| {
        let lses: Vec<f32> = (0..ROWS * HEADS).map(|at| lse(part, at, random.normal())).collect();
        let number = |i: usize| match lses[i / dim] {
            f32::NEG_INFINITY => f32::NAN,
            _ => random.normal(),
        };
        let o = (0..ROWS * HEADS * dim).map(number).map(T::from_f32).collect();
        (o, lses)
    };
    (0..n).map(one).collect()
}

fn check<T: Element, O: Element>(kernels: &Kernels, n: usize, dim: usize) {
    let parts = some::<T>(n, dim);
    let shape = [ROWS, HEADS, dim];
    let views: Vec<(Tensor3, &[f32])> =
        parts.iter().map(|(o, l)| (Tensor3::contiguous(o, shape).unwrap(), &l[..])).collect();
    let (mut want, mut want_lse) = (vec![0f32; ROWS * HEADS * dim], vec![0f32; ROWS * HEADS]);
    let view = Tensor3Mut::contiguous(&mut want, shape).unwrap();
    attend::merge(&views, &mut Out { o: view, lse2: Some(&mut want_lse) }).unwrap();

    let part = |(o, lse): &(Vec<T>, Vec<f32>)| Part {
        o: o.as_ptr() as u64,
        lse2: lse.as_ptr() as u64,
        row: (HEADS * dim) as i64,
        head: dim as i64,
    };
    let list: Vec<Part> = parts.iter().map(part).collect();
    // Rows of the output lie in wider ones.
    let width = dim + 16;
    for schedule in SCHEDULES {
        let mut o = vec![O::from_f32(7.0); ROWS * HEADS * width];
        let mut lse = vec![7f32; ROWS * HEADS];
        let params = MergePartsParams {
            parts: list.as_ptr() as u64,
            o: o.as_ptr() as u64,
            lse2: lse.as_ptr() as u64,
            o_row: (HEADS * width) as i64,
            o_head: width as i64,
            parts_n: n as u32,
            rows: ROWS as u32,
            heads: HEADS as u32,
            dim: dim as u32,
            part_type: type_code(T::DTYPE),
            o_type: type_code(O::DTYPE),
        };
        let mut memory = vec![Memory::read(&list), Memory::write(&mut o), Memory::write(&mut lse)];
        for (o, lse) in &parts {
            memory.extend([Memory::read(o), Memory::read(lse)]);
        }
        let grid =
            Grid { blocks: (ROWS * HEADS).div_ceil(4), shared_bytes: 0, schedule, left_out: 0 };
        kernels.run("merge_parts", &params, grid, &memory).expect_clean(&(n, dim));
        let near = |a: f32, b: f32, by: f32| {
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) || (a - b).abs() <= by
        };
        for (row, got) in o.chunks(width).enumerate() {
            for (i, got) in got.iter().map(|x| x.to_f32()).enumerate() {
                let want = if i < dim { want[row * dim + i] } else { 7.0 };
                let by = if O::DTYPE.size() == 4 { 1e-6 } else { 4e-3 } * want.abs().max(1.0);
                assert!(near(got, want, by), "row {row}, {i}: {got}, {want}");
            }
            assert!(near(lse[row], want_lse[row], 1e-5), "{row}: {} {}", lse[row], want_lse[row]);
        }
    }
}

/// Against the CPU's merge.
pub(crate) fn parts() {
    let kernels = Kernels::compile("merge.cu", &[]);
    for n in [0, 1, 2, 5] {
        check::<f32, f32>(&kernels, n, 128);
        check::<bf16, f32>(&kernels, n, 80);
        check::<f16, bf16>(&kernels, n, 132);
    }
}
