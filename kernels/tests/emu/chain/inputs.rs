//! What an engine has on the device, and what of it changes from step to step.

use std::ops::Range;

use half::bf16;
use kvist_kernels::cuda::work::TILE;
use kvist_kernels::summary::{self, UnitKind, UnitSpec};
use kvist_kernels::{DType, KvLayout};

use crate::common::Random;
use crate::machine::Memory;

pub(crate) const DIM: usize = 64;
pub(crate) const HEADS: usize = 2;
pub(crate) const GROUP: usize = 2;
pub(crate) const PAGE: usize = 16;
pub(crate) const SEQUENCES: usize = 2;
pub(crate) const ROWS: usize = SEQUENCES * HEADS;
pub(crate) const WORKERS: usize = 3;
pub(crate) const SCALE: f32 = 0.125;
/// Tokens, and units of a page each, that a sequence has room for.
pub(crate) const TOKENS_MAX: usize = 13 * TILE;
pub(crate) const UNITS_MAX: usize = TOKENS_MAX / PAGE;

/// Tokens of each sequence in the steps that one set of parameters serves.
pub(crate) const STEPS: [[usize; SEQUENCES]; 3] = [[700, 130], [48, 0], [TOKENS_MAX, 333]];

/// What the engine has on the device: small whole numbers, so that scores are exact whatever the order.
pub(crate) struct Inputs {
    pub(crate) q: Vec<bf16>,
    /// `[frames][heads][16][dim]`
    pub(crate) k: Vec<bf16>,
    pub(crate) v: Vec<bf16>,
    /// `[cells][heads]`, cells of four units.
    pub(crate) cells: Vec<u8>,
    /// u32 per sequence and KV head: where its frames, slots and rows of results begin.
    pub(crate) frame_ptr: Vec<u32>,
    pub(crate) slot_ptr: Vec<u32>,
    pub(crate) row_ptr: Vec<u32>,
    pub(crate) frames: Vec<u32>,
    pub(crate) slots: Vec<u32>,
    /// Of a sequence: offsets and numbers of its cells.
    pub(crate) cell_ptr: Vec<u32>,
    pub(crate) cell_ids: Vec<u32>,
    pub(crate) q_indptr: Vec<u32>,
    pub(crate) lens: Lens,
}

/// What changes from step to step.
#[derive(Default)]
pub(crate) struct Lens {
    pub(crate) units: Vec<u32>,
    pub(crate) row_units: Vec<u32>,
    pub(crate) row_tokens: Vec<u32>,
    pub(crate) forced_ptr: Vec<u32>,
    /// Pairs, read at once.
    pub(crate) forced: Vec<u64>,
}

/// The first and the last page of a list.
pub(crate) fn keeps(units: u32) -> Vec<Range<u32>> {
    if units < 3 { vec![] } else { vec![0..1, units - 1..units] }
}

impl Lens {
    pub(crate) fn set(&mut self, tokens: &[usize; SEQUENCES]) {
        let units = tokens.map(|n| n.div_ceil(PAGE) as u32);
        let per_row = |row: usize| row / HEADS;
        self.units = units.to_vec();
        self.row_units = (0..ROWS).map(|row| units[per_row(row)]).collect();
        self.row_tokens = (0..ROWS).map(|row| tokens[per_row(row)] as u32).collect();
        (self.forced_ptr, self.forced) = (vec![0], vec![0; 2 * ROWS]);
        for row in 0..ROWS {
            let first = self.forced_ptr[row] as usize;
            let keeps = keeps(units[per_row(row)]);
            for (i, r) in keeps.iter().enumerate() {
                self.forced[first + i] = u64::from(r.start) | u64::from(r.end) << 32;
            }
            self.forced_ptr.push((first + keeps.len()) as u32);
        }
    }
}

pub(crate) fn layout() -> KvLayout {
    KvLayout::hnd(PAGE, HEADS, DIM, DIM)
}

pub(crate) fn spec() -> UnitSpec {
    UnitSpec::new(UnitKind::Box, DIM, DType::Bf16, PAGE).unwrap()
}

pub(crate) fn build() -> Inputs {
    let mut random = Random(21);
    let mut whole =
        |n: usize| (0..n).map(|_| bf16::from_f32(random.below(7) as f32 - 3.0)).collect::<Vec<_>>();
    let frames_n = SEQUENCES * UNITS_MAX;
    let (q, k) = (whole(SEQUENCES * HEADS * GROUP * DIM), whole(frames_n * HEADS * PAGE * DIM));
    let v = whole(k.len());
    let mut order: Vec<u32> = (0..frames_n as u32).collect();
    (1..frames_n).rev().for_each(|i| order.swap(i, random.below(i + 1)));
    let (cell, cells_n) = (spec().cell_bytes(), TOKENS_MAX / TILE);
    let mut cells = vec![0u8; SEQUENCES * cells_n * HEADS * cell];
    for (i, cell) in cells.chunks_mut(cell).enumerate() {
        let (tile, head) = (i / HEADS, i % HEADS);
        let row = |t: usize| {
            let frame = order[tile * 4 + t / PAGE] as usize;
            k[((frame * HEADS + head) * PAGE + t % PAGE) * DIM..].as_ptr().cast::<u8>()
        };
        let rows: Vec<*const u8> = (0..TILE).map(row).collect();
        // SAFETY: the pointers are rows of `k`.
        unsafe { summary::build_units(&spec(), &rows, cell) }
    }
    let slot = |t: usize| order[t / PAGE] * PAGE as u32 + (t % PAGE) as u32;
    let starts = |n: usize| (0..=ROWS).map(|row| (row / HEADS * n) as u32).collect();
    Inputs {
        q,
        k,
        v,
        cells,
        frame_ptr: starts(UNITS_MAX),
        slot_ptr: starts(TOKENS_MAX),
        row_ptr: (0..=ROWS).map(|row| (row * TOKENS_MAX) as u32).collect(),
        slots: (0..SEQUENCES * TOKENS_MAX).map(slot).collect(),
        frames: order,
        cell_ptr: (0..=SEQUENCES).map(|s| (s * cells_n) as u32).collect(),
        cell_ids: (0..(SEQUENCES * cells_n) as u32).collect(),
        q_indptr: (0..=SEQUENCES as u32).collect(),
        lens: {
            let mut lens = Lens::default();
            lens.set(&STEPS[0]);
            lens
        },
    }
}

pub(crate) fn inputs_memory(inputs: &Inputs) -> Vec<Memory> {
    let lens = &inputs.lens;
    vec![
        Memory::read(&inputs.q),
        Memory::read(&inputs.k),
        Memory::read(&inputs.v),
        Memory::read(&inputs.cells),
        Memory::read(&inputs.frame_ptr),
        Memory::read(&inputs.slot_ptr),
        Memory::read(&inputs.row_ptr),
        Memory::read(&inputs.frames),
        Memory::read(&inputs.slots),
        Memory::read(&inputs.cell_ptr),
        Memory::read(&inputs.cell_ids),
        Memory::read(&lens.units),
        Memory::read(&lens.row_units),
        Memory::read(&lens.row_tokens),
        Memory::read(&lens.forced_ptr),
        Memory::read(&lens.forced),
    ]
}

/// Changes what lies in the buffers, and nothing else.
pub(crate) fn refill(lens: &mut Lens, tokens: &[usize; SEQUENCES]) {
    let mut new = Lens::default();
    new.set(tokens);
    lens.units.copy_from_slice(&new.units);
    lens.row_units.copy_from_slice(&new.row_units);
    lens.row_tokens.copy_from_slice(&new.row_tokens);
    lens.forced_ptr.copy_from_slice(&new.forced_ptr);
    lens.forced.copy_from_slice(&new.forced);
}
