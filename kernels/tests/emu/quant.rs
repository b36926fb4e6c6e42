//! K14: codes of eight and four bits, bit for bit those of the CPU; bytes beside them untouched.

use half::{bf16, f16};
use kvist_kernels::cuda::params::{QuantParams, SKIP, type_code};
use kvist_kernels::quant::{Bits, Quant};
use kvist_kernels::{Element, Tensor3, Tensor3Mut};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, SCHEDULES};

const PAGE: usize = 3;
const HEADS: usize = 2;
/// Frames of rows, and of codes, of each item.
const ROWS: [u32; 5] = [3, 0, SKIP, 5, 1];
const CODES: [u32; 5] = [0, 2, 1, 4, SKIP];
const LENS: [u32; 5] = [3, 1, 3, 2, 3];
const FRAMES: usize = 6;

/// Rows of every size, with zeros, constants and what is not finite.
fn rows<T: Element>(dim: usize) -> Vec<T> {
    let mut random = Random(dim as u64);
    let mut rows = Vec::new();
    for row in 0..FRAMES * PAGE * HEADS {
        let (size, shift) = ([1.0, 1e-6, 300.0, 0.0][row % 4], [0.0, 0.0, 50.0, -2.5][row % 4]);
        rows.extend((0..dim).map(|_| T::from_f32(size * random.normal() + shift)));
        if row % 5 == 2 {
            let wild = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38][row / 5 % 4];
            let at = row * dim + random.below(dim);
            rows[at] = T::from_f32(wild);
        }
    }
    rows
}

fn check<T: Element>(kernels: &Kernels, quant: &Quant) {
    let (dim, bytes, scales_n) = (quant.dim(), quant.code_bytes(), quant.scales());
    let rows = rows::<T>(dim);
    let heads = FRAMES * PAGE * HEADS;
    let view = Tensor3::contiguous(&rows, [heads, 1, dim]).unwrap();
    let (mut all_codes, mut all_scales) =
        (vec![0; heads * bytes], vec![f16::ZERO; heads * scales_n]);
    quant.encode(&view, &mut all_codes, &mut all_scales).unwrap();
    let mut all_back = vec![T::from_f32(0.0); rows.len()];
    let mut back_view = Tensor3Mut::contiguous(&mut all_back, [heads, 1, dim]).unwrap();
    quant.decode(&all_codes, &all_scales, &mut back_view).unwrap();

    // Codes lie token by token, rows head by head; four bytes and a number between them.
    let (code_row, scale_row) = (bytes.next_multiple_of(4) + 4, scales_n + 1);
    let mut want_codes = vec![0xa5u8; FRAMES * PAGE * HEADS * code_row];
    let mut want_scales = vec![f16::from_f32(3.0); FRAMES * PAGE * HEADS * scale_row];
    let mut want_back = vec![T::from_f32(9.0); rows.len()];
    for item in (0..5).filter(|&i| ROWS[i] != SKIP && CODES[i] != SKIP) {
        for (token, head) in (0..LENS[item] as usize).flat_map(|t| (0..HEADS).map(move |h| (t, h)))
        {
            let from = (ROWS[item] as usize * HEADS + head) * PAGE + token;
            let to = (CODES[item] as usize * PAGE + token) * HEADS + head;
            want_codes[to * code_row..][..bytes]
                .copy_from_slice(&all_codes[from * bytes..][..bytes]);
            want_scales[to * scale_row..][..scales_n]
                .copy_from_slice(&all_scales[from * scales_n..][..scales_n]);
            want_back[from * dim..][..dim].copy_from_slice(&all_back[from * dim..][..dim]);
        }
    }
    for schedule in SCHEDULES {
        let mut codes = vec![0xa5a5_a5a5u32; want_codes.len() / 4];
        let mut scales = vec![f16::from_f32(3.0); want_scales.len()];
        let mut back = vec![T::from_f32(9.0); rows.len()];
        let p = QuantParams {
            rows: rows.as_ptr() as u64,
            codes: codes.as_ptr() as u64,
            scales: scales.as_ptr() as u64,
            row_items: ROWS.as_ptr() as u64,
            code_items: CODES.as_ptr() as u64,
            lens: LENS.as_ptr() as u64,
            row_item: (HEADS * PAGE * dim) as i64,
            row_head: (PAGE * dim) as i64,
            row_token: dim as i64,
            code_item: (PAGE * HEADS * code_row) as i64,
            code_head: code_row as i64,
            code_token: (HEADS * code_row) as i64,
            scale_item: (PAGE * HEADS * scale_row) as i64,
            scale_head: scale_row as i64,
            scale_token: (HEADS * scale_row) as i64,
            items: 5,
            heads: HEADS as u32,
            page_tokens: PAGE as u32,
            dim: dim as u32,
            group: quant.group() as u32,
            bits: if quant.bits() == Bits::Eight { 8 } else { 4 },
            dtype: type_code(T::DTYPE),
            zero: 0,
        };
        let lists = [Memory::read(&ROWS), Memory::read(&CODES), Memory::read(&LENS)];
        let grid =
            Grid { blocks: (5 * PAGE * HEADS).div_ceil(4), shared_bytes: 0, schedule, left_out: 0 };
        let mut memory = lists.to_vec();
        memory.extend([Memory::read(&rows), Memory::write(&mut codes), Memory::write(&mut scales)]);
        kernels.run("quant_encode", &p, grid, &memory).expect_clean(quant);
        assert!(bytemuck::cast_slice::<u32, u8>(&codes) == want_codes, "{quant:?}, {}", T::DTYPE);
        let bits = |s: &[f16]| s.iter().map(|s| s.to_bits()).collect::<Vec<u16>>();
        assert!(bits(&scales) == bits(&want_scales), "{quant:?}, {}", T::DTYPE);

        let mut memory = lists.to_vec();
        memory.extend([Memory::write(&mut back), Memory::read(&codes), Memory::read(&scales)]);
        let p = QuantParams { rows: back.as_ptr() as u64, ..p };
        kernels.run("quant_decode", &p, grid, &memory).expect_clean(quant);
        let number = |x: &T| x.to_f32();
        let same = |(a, b): (f32, f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let mut pairs = back.iter().map(number).zip(want_back.iter().map(number));
        assert!(pairs.all(same), "{quant:?}, {}", T::DTYPE);
    }
}

/// All groups, dimensions that end inside a group, a warp's width and beyond it.
pub(crate) fn grid() {
    let kernels = Kernels::compile("quant.cu", &[]);
    for bits in [Bits::Eight, Bits::Four] {
        let quant = |dim, group| Quant::new(bits, dim, group).unwrap();
        for group in Quant::GROUPS {
            check::<bf16>(&kernels, &quant(128, group));
            check::<f16>(&kernels, &quant(80, group));
            check::<f32>(&kernels, &quant(4, group));
            check::<f32>(&kernels, &quant(300, group));
        }
    }
}

/// One of each, for the sanitizers.
pub(crate) fn small() {
    let kernels = Kernels::compile("quant.cu", &[]);
    check::<bf16>(&kernels, &Quant::new(Bits::Eight, 72, 32).unwrap());
    check::<f32>(&kernels, &Quant::new(Bits::Four, 132, 64).unwrap());
}
