//! Random keys and queries.

use kvist_kernels::summary::{self, BoxedSpec, TILE, UnitSpec};
use kvist_kernels::{DType, Element, Isa};

/// Deterministic numbers, roughly normal.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    pub(crate) fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.uniform() - 0.5).sum::<f32>() * 1.7
    }
}

/// Keys of `tiles` tiles, rounded to a dtype; channels of very different widths and offsets, some
/// constant, some zero.
pub(crate) struct Keys {
    pub(crate) dtype: DType,
    pub(crate) dim: usize,
    pub(crate) values: Vec<f32>,
    pub(crate) bytes: Vec<u8>,
}

fn bytes_of<T: Element>(values: &mut [f32]) -> Vec<u8> {
    let rounded: Vec<T> = values.iter().map(|&x| T::from_f32(x)).collect();
    values.iter_mut().zip(&rounded).for_each(|(v, r)| *v = r.to_f32());
    bytemuck::cast_slice(&rounded).to_vec()
}

impl Keys {
    pub(crate) fn new(dtype: DType, dim: usize, mut values: Vec<f32>) -> Keys {
        let bytes = match dtype {
            DType::F32 => bytes_of::<f32>(&mut values),
            DType::F16 => bytes_of::<half::f16>(&mut values),
            DType::Bf16 => bytes_of::<half::bf16>(&mut values),
        };
        Keys { dtype, dim, values, bytes }
    }

    pub(crate) fn random(rng: &mut Rng, dtype: DType, dim: usize, tiles: usize) -> Keys {
        let scale: Vec<f32> =
            (0..dim).map(|_| [1.0, 0.1, 3.0, 0.0, 0.001][rng.bits() as usize % 5]).collect();
        let shift: Vec<f32> =
            (0..dim).map(|_| [0.0, 0.0, 20.0, -3.0][rng.bits() as usize % 4]).collect();
        let n = tiles * TILE;
        let values = (0..n * dim).map(|i| rng.normal() * scale[i % dim] + shift[i % dim]).collect();
        Keys::new(dtype, dim, values)
    }

    pub(crate) fn tiles(&self) -> usize {
        self.values.len() / self.dim / TILE
    }

    pub(crate) fn row(&self, token: usize) -> &[f32] {
        &self.values[token * self.dim..][..self.dim]
    }

    pub(crate) fn ptrs(&self, tile: usize) -> Vec<*const u8> {
        let row = self.dim * self.dtype.size();
        (0..TILE).map(|t| self.bytes[(tile * TILE + t) * row..].as_ptr()).collect()
    }

    pub(crate) fn boxed(&self, isa: Isa, spec: &BoxedSpec) -> Vec<u8> {
        let mut cells = vec![0xa5u8; self.tiles() * spec.cell_bytes()];
        for (tile, cell) in cells.chunks_exact_mut(spec.cell_bytes()).enumerate() {
            // SAFETY: the pointers are rows of `bytes`.
            unsafe { summary::build_boxed_at(isa, spec, self.dtype, &self.ptrs(tile), cell) }
        }
        cells
    }

    pub(crate) fn units(&self, spec: &UnitSpec) -> Vec<u8> {
        let mut cells = vec![0xa5u8; self.tiles() * spec.cell_bytes()];
        for (tile, cell) in cells.chunks_exact_mut(spec.cell_bytes()).enumerate() {
            // SAFETY: the pointers are rows of `bytes`.
            unsafe { summary::build_units(spec, &self.ptrs(tile), cell) }
        }
        cells
    }

    pub(crate) fn dot(&self, q: &[f32], token: usize) -> f64 {
        q.iter().zip(self.row(token)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }
}

pub(crate) fn queries(rng: &mut Rng, heads: usize, dim: usize) -> Vec<f32> {
    (0..heads * dim).map(|i| rng.normal() * (1.0 + (i % 7) as f32)).collect()
}

pub(crate) fn shapes(rng: &mut Rng) -> Vec<(usize, usize, usize)> {
    let mut shapes =
        vec![(1, 1, 1), (15, 2, 1), (16, 3, 2), (17, 4, 0), (63, 5, 3), (64, 8, 5), (65, 1, 1)];
    shapes.extend([
        (80, 4, 2),
        (96, 7, 1),
        (128, 4, 7),
        (192, 16, 1),
        (256, 4, 2),
        (575, 3, 1),
        (576, 4, 1),
    ]);
    shapes.extend((0..6).map(|_| {
        (1 + rng.bits() as usize % 300, 1 + rng.bits() as usize % 9, rng.bits() as usize % 4)
    }));
    shapes
}
