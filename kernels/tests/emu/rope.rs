//! K14: keys moved to other positions, against f64 and the CPU.

use half::{bf16, f16};
use kvist_kernels::cuda::params::{RopeParams, SKIP, type_code};
use kvist_kernels::rope::{self, Pairs, Rope};
use kvist_kernels::{Element, Tensor3Mut, reference};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, SCHEDULES};

const PAGE: usize = 4;
const HEADS: usize = 2;
const FRAMES: [u32; 4] = [2, SKIP, 0, 4];
const LENS: [u32; 4] = [4, 4, 1, 3];
const ALL: usize = 5;

/// `strides`: differences from item to item, and from token to token.
fn check<T: Element>(kernels: &Kernels, dim: usize, pairs: usize, how: Pairs, strides: [usize; 2]) {
    let mut random = Random(dim as u64);
    let frequencies: Vec<f32> =
        (0..pairs).map(|i| 500_000f32.powf(-(i as f32) / pairs as f32)).collect();
    let rope = Rope { frequencies: &frequencies, pairs: how };
    let some =
        [5, 0, -3, 1_000_003, 77, i32::MIN, 0, i32::MAX, 1, -131_072, 9, 2, 4, -1, 6, 12_345];
    let before: Vec<T> =
        (0..ALL * HEADS * PAGE * dim).map(|_| T::from_f32(random.normal())).collect();
    let row =
        |frame: usize, head: usize, token: usize| ((frame * HEADS + head) * PAGE + token) * dim;
    // What f64 says, and how large the numbers are that went into it.
    let mut want: Vec<(f64, f64)> = before.iter().map(|x| (f64::from(x.to_f32()), 0.0)).collect();
    let mut cpu = before.clone();
    for item in (0..4).filter(|&i| FRAMES[i] != SKIP) {
        for (token, head) in (0..LENS[item] as usize).flat_map(|t| (0..HEADS).map(move |h| (t, h)))
        {
            let by = some[item * strides[0] + token * strides[1]];
            let at = row(FRAMES[item] as usize, head, token);
            let old: Vec<f64> = before[at..][..dim].iter().map(|x| f64::from(x.to_f32())).collect();
            let size = if by == 0 { 0.0 } else { 3.0 };
            let turned = reference::rotated(&rope, by, &old);
            let both = want[at..][..dim].iter_mut().zip(turned);
            both.enumerate()
                .for_each(|(i, (w, x))| *w = (x, if i < 2 * pairs { size } else { 0.0 }));
            let mut view = Tensor3Mut::contiguous(&mut cpu[at..][..dim], [1, 1, dim]).unwrap();
            rope::shift(&mut view, &[by], &rope).unwrap();
        }
    }
    let unit = [1e-7, 2f64.powi(-11), 2f64.powi(-8)][type_code(T::DTYPE) as usize];
    let mut first: Option<Vec<u32>> = None;
    for schedule in SCHEDULES {
        let mut k = before.clone();
        let p = RopeParams {
            k: k.as_ptr() as u64,
            frames: FRAMES.as_ptr() as u64,
            lens: LENS.as_ptr() as u64,
            differences: some.as_ptr() as u64,
            frequencies: frequencies.as_ptr() as u64,
            k_item: (HEADS * PAGE * dim) as i64,
            k_head: (PAGE * dim) as i64,
            k_token: dim as i64,
            difference_item: strides[0] as i64,
            difference_token: strides[1] as i64,
            items: 4,
            heads: HEADS as u32,
            page_tokens: PAGE as u32,
            pairs: pairs as u32,
            neighbours: u32::from(how == Pairs::Neighbours),
            dtype: type_code(T::DTYPE),
        };
        let memory = [
            Memory::read(&FRAMES),
            Memory::read(&LENS),
            Memory::read(&some),
            Memory::read(&frequencies),
            Memory::write(&mut k),
        ];
        let grid = Grid { blocks: 4 * PAGE / 4, shared_bytes: 0, schedule, left_out: 0 };
        kernels.run("rope_shift", &p, grid, &memory).expect_clean(&(dim, pairs, how));
        for (i, ((got, cpu), &(want, size))) in k.iter().zip(&cpu).zip(&want).enumerate() {
            // The rounding of the result, and what sines, cosines and products in f32 lose.
            let most = if size > 0.0 { unit * want.abs() + 4e-7 * size } else { 0.0 };
            let off = |x: &T| (f64::from(x.to_f32()) - want).abs();
            assert!(off(got) <= most && off(cpu) <= most, "{i}: {} {want}, {how:?}", got.to_f32());
        }
        let bits: Vec<u32> = k.iter().map(|x| x.to_f32().to_bits()).collect();
        assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{schedule:?}");
    }
}

/// Both kinds of pairs, rows that are turned whole and in part, differences shared and not.
pub(crate) fn grid() {
    let kernels = Kernels::compile("rope.cu", &[]);
    for how in [Pairs::Halves, Pairs::Neighbours] {
        check::<bf16>(&kernels, 128, 64, how, [4, 1]);
        check::<f16>(&kernels, 80, 16, how, [1, 0]);
        check::<f32>(&kernels, 7, 3, how, [4, 1]);
        check::<f32>(&kernels, 70, 35, how, [0, 0]);
        check::<bf16>(&kernels, 8, 0, how, [0, 1]);
    }
}

/// One of each, for the sanitizers.
pub(crate) fn small() {
    let kernels = Kernels::compile("rope.cu", &[]);
    check::<bf16>(&kernels, 72, 35, Pairs::Halves, [4, 1]);
    check::<f32>(&kernels, 8, 4, Pairs::Neighbours, [1, 0]);
}
