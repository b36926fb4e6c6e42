//! The emulator itself: each rule broken once is reported, what keeps the rules is not, and matrices,
//! fragments and conversions are what the PTX manual says.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use crate::common::Random;
use crate::machine::{Fault, Grid, Kernels, Memory, Report, SCHEDULES, Schedule};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SelfParams {
    input: u64,
    out: u64,
    mode: u32,
    zero: u32,
}

fn kernels() -> Kernels {
    Kernels::compile("selftest.cu", &[])
}

fn run<T: Pod>(
    kernels: &Kernels,
    name: &str,
    mode: u32,
    schedule: Schedule,
    input: &[T],
    out: &mut [u32],
) -> Report {
    let params =
        SelfParams { input: input.as_ptr() as u64, out: out.as_ptr() as u64, mode, zero: 0 };
    let memory = [Memory::read(input), Memory::write(out)];
    kernels.run(
        name,
        &params,
        Grid { blocks: 1, shared_bytes: 1280, schedule, left_out: 0 },
        &memory,
    )
}

/// In the order of `selftest.cu`.
const MODES: [(&str, Option<Fault>); 27] = [
    ("clean", None),
    ("neighbour", Some(Fault::ReadAfterWrite)),
    ("neighbour behind a warp barrier", None),
    ("other warp behind a warp barrier", Some(Fault::ReadAfterWrite)),
    ("other warp behind a block barrier", None),
    ("a shuffle orders nothing", Some(Fault::ReadAfterWrite)),
    ("overwrites what was read", Some(Fault::WriteAfterRead)),
    ("overwrites what another warp read", Some(Fault::WriteAfterRead)),
    ("overwrites what was written", Some(Fault::WriteAfterWrite)),
    ("reads before the wait", Some(Fault::InFlight)),
    ("waits for another group", Some(Fault::InFlight)),
    ("reads another's copy without a barrier", Some(Fault::ReadAfterWrite)),
    ("copies into what is read", Some(Fault::WriteAfterRead)),
    ("reads what nobody wrote", Some(Fault::Unwritten)),
    ("behind shared memory", Some(Fault::SharedBounds)),
    ("misaligned", Some(Fault::SharedBounds)),
    ("the canary", Some(Fault::SharedBounds)),
    ("behind a buffer", Some(Fault::GlobalBounds)),
    ("writes what is only read", Some(Fault::GlobalBounds)),
    ("two threads write one word", Some(Fault::WrittenTwice)),
    ("half of a block at a barrier", Some(Fault::Deadlock)),
    ("a thread left before a barrier", Some(Fault::Deadlock)),
    ("lanes in different collectives", Some(Fault::Diverged)),
    ("all count", None),
    ("reads what others count", Some(Fault::ReadAfterWrite)),
    ("all add", None),
    ("reads what others add to", Some(Fault::ReadAfterWrite)),
];

pub(crate) fn rules() {
    let kernels = kernels();
    let input = vec![7u32; 256];
    for schedule in SCHEDULES {
        for (mode, (name, fault)) in MODES.into_iter().enumerate() {
            let mut out = vec![0u32; 128];
            let params = SelfParams {
                input: input.as_ptr() as u64,
                out: out.as_ptr() as u64,
                mode: mode as u32,
                zero: 0,
            };
            let memory = [Memory::read(&input), Memory::write(&mut out)];
            let grid = Grid { blocks: 1, shared_bytes: 1024, schedule, left_out: 0 };
            let report = kernels.run("break_rule", &params, grid, &memory);
            match fault {
                None => {
                    report.expect_clean(&name);
                    let want: Vec<u32> = (0..64).collect();
                    assert_eq!(out[64..], want, "{name}, {schedule:?}");
                }
                Some(fault) => {
                    assert!(report.count(fault) > 0, "{name}, {schedule:?}: {}", report.first());
                    assert!(report.first().starts_with("block "), "{name}: {}", report.first());
                }
            }
        }
    }
}

/// Reads behind a buffer on the heap.
pub(crate) fn slip() {
    let kernels = kernels();
    let (input, mut out) = (vec![7u32; 256], vec![0u32; 128]);
    run(&kernels, "break_rule", MODES.len() as u32, SCHEDULES[0], &input, &mut out);
}

/// 1280 bytes: elements of 16 x 16, then of 8 x 16, then 16 x 8 of f32, then nothing.
fn operands(a: &[u16], b: &[u16], c: &[f32]) -> Vec<u32> {
    let mut all = vec![0u32; 320];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut all);
    bytes[..512].copy_from_slice(bytemuck::cast_slice(a));
    bytes[512..768].copy_from_slice(bytemuck::cast_slice(b));
    bytes[768..].copy_from_slice(bytemuck::cast_slice(c));
    all
}

/// PTX manual, ldmatrix: lane l gets row l / 4, elements 2 (l % 4) and the next, of each matrix.
pub(crate) fn matrices() {
    let kernels = kernels();
    let a: Vec<u16> = (0..256).collect();
    let input = operands(&a, &[0; 128], &[0.0; 128]);
    for turned in [false, true] {
        let mut out = vec![0u32; 128];
        let mode = u32::from(turned);
        run(&kernels, "fragments", mode, SCHEDULES[2], &input, &mut out).expect_clean(&turned);
        for lane in 0..32 {
            for matrix in 0..4 {
                let (top, left) = (matrix % 2 * 8, matrix / 2 * 8);
                let at = |i: usize| {
                    let (row, column) = (lane / 4, lane % 4 * 2 + i);
                    let (row, column) = if turned { (column, row) } else { (row, column) };
                    u32::from(a[(top + row) * 16 + left + column])
                };
                assert_eq!(out[lane * 4 + matrix], at(0) | at(1) << 16, "lane {lane}, {matrix}");
            }
        }
    }
}

/// Small whole numbers: products are exact.
pub(crate) fn products() {
    let kernels = kernels();
    let mut random = Random(5);
    let mut small =
        |n: usize| -> Vec<f32> { (0..n).map(|_| random.below(17) as f32 - 8.0).collect() };
    let (a, b, c) = (small(256), small(128), small(128));
    let narrow = |x: &[f32], mode: u32| -> Vec<u16> {
        let one = |&x: &f32| match mode {
            2 => bf16::from_f32(x).to_bits(),
            _ => f16::from_f32(x).to_bits(),
        };
        x.iter().map(one).collect()
    };
    for mode in [2, 3] {
        let input = operands(&narrow(&a, mode), &narrow(&b, mode), &c);
        let mut out = vec![0u32; 128];
        run(&kernels, "fragments", mode, SCHEDULES[1], &input, &mut out).expect_clean(&mode);
        for row in 0..16 {
            for column in 0..8 {
                let dot = |k: usize| a[row * 16 + k] * b[column * 16 + k];
                let want = c[row * 8 + column] + (0..16).map(dot).sum::<f32>();
                assert_eq!(f32::from_bits(out[row * 8 + column]), want, "{mode}: {row}, {column}");
            }
        }
    }
}

/// PTX manual, mma.m16n8k32: four bytes a word, every value of a byte.
pub(crate) fn byte_products() {
    let kernels = kernels();
    let mut random = Random(6);
    let mut bytes = |n: usize| -> Vec<i8> { (0..n).map(|_| random.next() as i8).collect() };
    let (a, b) = (bytes(512), bytes(256));
    let c: Vec<i32> = (0..128).map(|i| i * 1000 - 64_000).collect();
    let mut input = vec![0u32; 320];
    let all: &mut [u8] = bytemuck::cast_slice_mut(&mut input);
    all[..512].copy_from_slice(bytemuck::cast_slice(&a));
    all[512..768].copy_from_slice(bytemuck::cast_slice(&b));
    all[768..].copy_from_slice(bytemuck::cast_slice(&c));
    let mut out = vec![0u32; 128];
    run(&kernels, "bytes", 0, SCHEDULES[1], &input, &mut out).expect_clean(&"bytes");
    for row in 0..16 {
        for column in 0..8 {
            let dot = |k: usize| i32::from(a[row * 32 + k]) * i32::from(b[column * 32 + k]);
            let want = c[row * 8 + column] + (0..32).map(dot).sum::<i32>();
            assert_eq!(out[row * 8 + column] as i32, want, "{row}, {column}");
        }
    }
}

/// PTX manual, wgmma: fragments are those of mma, rows of four warps one below the other.
pub(crate) fn hopper() {
    let kernels = kernels();
    let mut random = Random(6);
    let mut small =
        |n: usize| -> Vec<f32> { (0..n).map(|_| random.below(17) as f32 - 8.0).collect() };
    let (a, x) = (small(64 * 16), small(64 * 64));
    for mode in 0..4 {
        let narrow = |x: &f32| match mode / 2 {
            0 => bf16::from_f32(*x).to_bits(),
            _ => f16::from_f32(*x).to_bits(),
        };
        let input: Vec<u16> = a.iter().chain(&x).map(narrow).collect();
        let mut out = vec![0u32; 64 * 64];
        let params =
            SelfParams { input: input.as_ptr() as u64, out: out.as_ptr() as u64, mode, zero: 0 };
        let memory = [Memory::read(&input), Memory::write(&mut out)];
        let grid = Grid { blocks: 1, shared_bytes: 8192, schedule: SCHEDULES[2], left_out: 0 };
        kernels.run("hopper", &params, grid, &memory).expect_clean(&mode);
        for (i, got) in out.iter().enumerate() {
            let (row, column) = (i / 64, i % 64);
            let b = |k: usize| if mode % 2 == 0 { x[column * 64 + k] } else { x[k * 64 + column] };
            let want = 2.0 * (0..16).map(|k| a[row * 16 + k] * b(16 + k)).sum::<f32>();
            assert_eq!(f32::from_bits(*got), want, "{mode}: {row}, {column}");
        }
    }
}

/// Against the crate `half`: every 16-bit number widened; random and awkward f32 narrowed.
pub(crate) fn conversions() {
    let kernels = kernels();
    type Pack = unsafe extern "C" fn(f32, f32) -> u32;
    type Wide = unsafe extern "C" fn(u16) -> f32;
    // SAFETY: the types are those of `selftest.cu`; the functions only compute.
    let (pack_bf16, pack_f16, wide_bf16, wide_f16) = unsafe {
        (
            kernels.function::<Pack>("kv_pack_bf16"),
            kernels.function::<Pack>("kv_pack_f16"),
            kernels.function::<Wide>("kv_wide_bf16"),
            kernels.function::<Wide>("kv_wide_f16"),
        )
    };
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    for x in 0..=u16::MAX {
        // SAFETY: as above.
        let (b, f) = unsafe { (wide_bf16(x), wide_f16(x)) };
        assert!(same(b, bf16::from_bits(x).to_f32()), "bf16 {x:#x}: {b}");
        assert!(same(f, f16::from_bits(x).to_f32()), "f16 {x:#x}: {f}");
    }
    let mut random = Random(9);
    let edges =
        [0u32, 1, 0x7f80_0000, 0x7fc0_0000, 0x477f_e000, 0x477f_f000, 0x3300_0000, 0x3300_0001];
    for i in 0..200_000 {
        let bits = match edges.get(i / 2) {
            Some(edge) => edge | ((i as u32 % 2) << 31),
            None => random.next() as u32,
        };
        // Half of them in the range of f16, where its rounding matters.
        let near = bits & 0x807f_ffff | (100 + bits % 45) << 23;
        let bits = if i % 2 == 0 || i < 2 * edges.len() { bits } else { near };
        let x =
            f32::from_bits(if i % 3 == 0 && i >= 2 * edges.len() { bits & !0xfff } else { bits });
        // SAFETY: as above.
        let (b, f) = unsafe { (pack_bf16(1.0, x), pack_f16(x, 1.0)) };
        let (b, f) = (bf16::from_bits((b >> 16) as u16), f16::from_bits(f as u16));
        assert!(same(b.to_f32(), bf16::from_f32(x).to_f32()), "bf16 of {x:e}: {b}");
        assert!(same(f.to_f32(), f16::from_f32(x).to_f32()), "f16 of {x:e}: {f}");
    }
}
