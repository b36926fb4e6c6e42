//! What boxes prove of tiles that are not opened: how many of them a certificate must open if it knows no more of
//! the others than their boxes.

use kvist_kernels::score::{self, BoxedQuery, CellList};
use kvist_kernels::summary::{self, BoxedSpec, TILE};
use kvist_kernels::{DType, Isa};

use super::dump::Dump;
use super::truth::Truth;
use crate::Error;

/// Share of the allowed miss that tiles may hold which stay closed; the rest is for tokens of the others.
const CLOSED: f64 = 0.25;

/// Boxes of one (layer, KV head).
pub(super) struct Boxes {
    spec: BoxedSpec,
    cells: Vec<u8>,
    ids: Vec<u32>,
}

impl Boxes {
    pub(super) fn build(dump: &Dump, layer: usize, head: usize) -> Result<Boxes, Error> {
        let spec = BoxedSpec::new(dump.dim_k, 2)?;
        let tiles = dump.tokens / TILE;
        let mut cells = vec![0u8; tiles * spec.cell_bytes()];
        for (tile, cell) in cells.chunks_mut(spec.cell_bytes()).enumerate() {
            let row = |t: usize| dump.key(layer, tile * TILE + t, head).as_ptr().cast::<u8>();
            let rows: Vec<*const u8> = (0..TILE).map(row).collect();
            // SAFETY: every pointer is a key row of the dump.
            unsafe { summary::build_boxed_at(Isa::level(), &spec, DType::Bf16, &rows, cell) }
        }
        Ok(Boxes { spec, cells, ids: (0..tiles as u32).collect() })
    }

    /// The fewest tiles, as a share, without which the bounds of the others sum to little enough of the mass for each
    /// query head of a group, `missed` being what may be missed. `q` is `[group, dim_k]`.
    pub(super) fn to_open(
        &self,
        dump: &Dump,
        q: &[f32],
        truth: &Truth,
        len: usize,
        missed: f32,
    ) -> Result<f64, Error> {
        let cells = CellList::from_slice(&self.cells, self.spec.cell_bytes(), &self.ids)?;
        let cells = cells.slice(0, len / TILE);
        let (group, n) = (dump.group(), cells.len());
        let query = BoxedQuery::new(Isa::level(), self.spec, q, group);
        let mut uppers = vec![0f32; group * n];
        score::tile_uppers(&query, &cells, &mut uppers);
        let scale = f64::from(dump.scale);
        let cap = f64::from(dump.soft_cap);
        let capped = |x: f64| if cap > 0.0 { cap * (x / cap).tanh() } else { x };
        let mut worst = vec![0f64; n];
        for (upper, lse) in uppers.chunks(n.max(1)).zip(truth.log_sums()) {
            let most = |&u: &f32| TILE as f64 * (capped(f64::from(u) * scale) - lse).exp();
            worst.iter_mut().zip(upper.iter().map(most)).for_each(|(w, m)| *w = w.max(m));
        }
        worst.sort_by(f64::total_cmp);
        let mut sum = 0.0;
        let closed = worst.iter().take_while(|&&most| {
            sum += most;
            sum <= CLOSED * f64::from(missed)
        });
        Ok(1.0 - closed.count() as f64 / n.max(1) as f64)
    }
}
