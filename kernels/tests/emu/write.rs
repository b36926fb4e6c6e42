//! K12: rows and boxes, byte for byte what the CPU writes.

use half::{bf16, f16};
use kvist_kernels::cuda::params::{AppendParams, SKIP, type_code};
use kvist_kernels::summary::{UnitKind, UnitSpec, update_unit};
use kvist_kernels::{Element, KvLayout};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, SCHEDULES};

const PAGE: usize = 64;
const HEADS: usize = 2;
const FRAMES: usize = 5;

/// Slots of each call: runs that start, extend and fill units, go on in another page, and tokens left out.
fn calls() -> Vec<Vec<u32>> {
    let run = |slots: std::ops::Range<u32>| slots.collect::<Vec<u32>>();
    let skip = vec![SKIP];
    vec![
        [run(0..37), run(192..256), run(64..69)].concat(),
        [run(37..38), skip.clone(), run(128..130), skip, run(69..70)].concat(),
        [run(38..64), run(256..257), run(70..81)].concat(),
        vec![SKIP],
        vec![],
        [run(81..82), run(130..145)].concat(),
    ]
}

fn check<T: Element>(kernels: &Kernels, (dim_k, dim_v): (usize, usize), unit: usize, hnd: bool) {
    let mut random = Random(unit as u64);
    let layout = if hnd { KvLayout::hnd } else { KvLayout::nhd }(PAGE, HEADS, dim_k, dim_v);
    let spec = UnitSpec::new(UnitKind::Box, dim_k, T::DTYPE, unit).unwrap();
    let size = T::DTYPE.size();
    let cell = spec.cell_bytes() / size;
    let nan = T::from_f32(f32::NAN);
    let mut k_pool = vec![nan; FRAMES * layout.k_strides[0] as usize];
    let mut v_pool = vec![nan; FRAMES * layout.v_strides[0] as usize];
    let mut boxes = vec![nan; FRAMES * HEADS * cell];
    let (mut k_want, mut v_want, mut boxes_want) = (k_pool.clone(), v_pool.clone(), boxes.clone());
    for (call, slots) in calls().into_iter().enumerate() {
        // New rows lie in wider ones.
        let (k_row, v_row) = (HEADS * dim_k + 16, HEADS * dim_v + 8);
        let mut rows =
            |n: usize| -> Vec<T> { (0..n).map(|_| T::from_f32(random.normal())).collect() };
        let (mut k, v) = (rows(slots.len() * k_row), rows(slots.len() * v_row));
        if call == 2 {
            k[5] = nan;
        }
        for (token, &slot) in slots.iter().enumerate().filter(|s| *s.1 != SKIP) {
            let (frame, offset) = (slot as usize / PAGE, slot as usize % PAGE);
            for head in 0..HEADS {
                let at = |s: [i64; 3]| {
                    frame * s[0] as usize + head * s[1] as usize + offset * s[2] as usize
                };
                let (from, to) = (token * k_row + head * dim_k, at(layout.k_strides));
                k_want[to..to + dim_k].copy_from_slice(&k[from..from + dim_k]);
                let row = k[from..].as_ptr().cast::<u8>();
                let own = &mut boxes_want[(frame * HEADS + head) * cell..][..cell];
                let own = bytemuck::cast_slice_mut(own);
                // SAFETY: the row is a key of the spec's dimensions and type.
                unsafe { update_unit(&spec, own, offset / unit, offset % unit, &[row]) }
                let (from, to) = (token * v_row + head * dim_v, at(layout.v_strides));
                v_want[to..to + dim_v].copy_from_slice(&v[from..from + dim_v]);
            }
        }
        let params = AppendParams {
            k: k.as_ptr() as u64,
            v: v.as_ptr() as u64,
            slots: slots.as_ptr() as u64,
            k_pool: k_pool.as_ptr() as u64,
            v_pool: v_pool.as_ptr() as u64,
            boxes: boxes.as_ptr() as u64,
            k_row: k_row as i64,
            k_head: dim_k as i64,
            v_row: v_row as i64,
            v_head: dim_v as i64,
            k_frame: layout.k_strides[0],
            k_pool_head: layout.k_strides[1],
            k_token: layout.k_strides[2],
            v_frame: layout.v_strides[0],
            v_pool_head: layout.v_strides[1],
            v_token: layout.v_strides[2],
            box_frame: (HEADS * cell) as i64,
            box_head: cell as i64,
            box_unit: 2 * dim_k as i64,
            tokens: slots.len() as u32,
            heads: HEADS as u32,
            dim_k: dim_k as u32,
            dim_v: dim_v as u32,
            page_tokens: PAGE as u32,
            unit_tokens: unit as u32,
            dtype: type_code(T::DTYPE),
            zero: 0,
        };
        let memory = [
            Memory::read(&k),
            Memory::read(&v),
            Memory::read(&slots),
            Memory::write(&mut k_pool),
            Memory::write(&mut v_pool),
            Memory::write(&mut boxes),
        ];
        let blocks = (slots.len() * HEADS).div_ceil(4);
        let schedule = SCHEDULES[call % SCHEDULES.len()];
        let grid = Grid { blocks, shared_bytes: 0, schedule, left_out: 0 };
        kernels.run("append", &params, grid, &memory).expect_clean(&(call, unit));
        let same = |a: &[T], b: &[T]| {
            let equal = |(a, b): (&T, &T)| {
                let (a, b) = (a.to_f32(), b.to_f32());
                a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
            };
            a.iter().zip(b).all(equal)
        };
        assert!(same(&k_pool, &k_want) && same(&v_pool, &v_want), "rows, call {call}");
        assert!(same(&boxes, &boxes_want), "boxes, call {call}, units of {unit}");
    }
}

pub(crate) fn append() {
    let kernels = Kernels::compile("write.cu", &[]);
    check::<bf16>(&kernels, (128, 128), 16, true);
    check::<f16>(&kernels, (80, 64), 32, false);
    check::<f32>(&kernels, (256, 64), 64, true);
}
