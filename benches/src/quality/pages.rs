//! Selections that are not in the store: oracles, and page scores for comparison.

use kvist_kernels::score::{self, CellList, UnitQuery};
use kvist_kernels::summary::{self, TILE, UnitKind, UnitSpec};
use kvist_kernels::{DType, Isa, select};

use super::dump::Dump;
use super::truth::Truth;
use crate::Error;

/// Tokens of a unit in the page rows of the table.
pub(crate) const UNIT: usize = 16;
/// Kept tokens of every selection of the table but Quest's.
pub(crate) const SINKS: usize = 16;
/// Kept most recent tokens.
pub(crate) const RECENT: usize = 64;

/// Positions always kept at this length.
fn kept(len: usize) -> Vec<u32> {
    (0..len as u32).filter(|&t| (t as usize) < SINKS || t as usize + RECENT >= len).collect()
}

/// The tokens of largest mass, summed over the group; keeps included.
pub(crate) fn oracle_tokens(truth: &Truth, len: usize, budget: usize) -> Vec<u32> {
    let mut weight = vec![0f32; len];
    for mass in &truth.mass {
        weight.iter_mut().zip(mass).for_each(|(w, &m)| *w += m as f32);
    }
    kept(len).into_iter().for_each(|t| weight[t as usize] = f32::INFINITY);
    let mut ids = Vec::new();
    select::top_k(&weight, budget, &mut ids);
    ids
}

/// Units by score, best first, until the budget is full; keeps included.
fn fill(scores: &[f32], len: usize, budget: usize) -> Vec<u32> {
    let mut read = vec![false; len];
    let kept = kept(len);
    kept.iter().for_each(|&t| read[t as usize] = true);
    let mut count = kept.len();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    for unit in order {
        let tokens = unit * UNIT..((unit + 1) * UNIT).min(len);
        let new = tokens.clone().filter(|&t| !read[t]).count();
        if count + new > budget {
            break;
        }
        count += new;
        read[tokens].fill(true);
    }
    (0..len as u32).filter(|&t| read[t as usize]).collect()
}

/// The units of largest mass.
pub(crate) fn oracle_units(truth: &Truth, len: usize, budget: usize) -> Vec<u32> {
    let mut scores = vec![0f32; len.div_ceil(UNIT)];
    for mass in &truth.mass {
        mass.iter().enumerate().for_each(|(t, &m)| scores[t / UNIT] += m as f32);
    }
    fill(&scores, len, budget)
}

/// Unit rows of one (layer, KV head), for scoring by mean or by mean and variance.
pub(crate) struct Units {
    spec: UnitSpec,
    cells: Vec<u8>,
    ids: Vec<u32>,
}

impl Units {
    pub(crate) fn build(
        dump: &Dump,
        layer: usize,
        head: usize,
        kind: UnitKind,
    ) -> Result<Units, Error> {
        let spec = UnitSpec::new(kind, dump.dim_k, DType::Bf16, UNIT)?;
        let tiles = dump.tokens / TILE;
        let mut cells = vec![0u8; tiles * spec.cell_bytes()];
        for (tile, cell) in cells.chunks_mut(spec.cell_bytes()).enumerate() {
            let row = |t: usize| dump.key(layer, tile * TILE + t, head).as_ptr().cast::<u8>();
            let rows: Vec<*const u8> = (0..TILE).map(row).collect();
            // SAFETY: every pointer is a key row of the dump.
            unsafe { summary::build_units(&spec, &rows, cell) }
        }
        Ok(Units { spec, cells, ids: (0..tiles as u32).collect() })
    }

    /// Bytes of a unit's row per token.
    pub(crate) fn bytes_per_token(&self) -> f64 {
        self.spec.row_bytes() as f64 / UNIT as f64
    }

    /// The best units for one query group by softmax mass of the unit scores.
    pub(crate) fn choose(
        &self,
        dump: &Dump,
        q: &[f32],
        len: usize,
        budget: usize,
    ) -> Result<Vec<u32>, Error> {
        let group = dump.group();
        let cells = CellList::from_slice(&self.cells, self.spec.cell_bytes(), &self.ids)?;
        let cells = cells.slice(0, len / TILE);
        let query = UnitQuery::new(Isa::level(), self.spec, q, group, dump.scale, false);
        let units = cells.len() * self.spec.units();
        let mut raw = vec![0f32; group * units];
        score::units(&query, &cells, &mut raw);
        let scale = dump.scale * std::f32::consts::LOG2_E;
        let mut lse = vec![f32::NEG_INFINITY; group];
        select::lse2(&raw, units, scale, &mut lse);
        let mut scores = vec![0f32; units];
        select::fold_mass(&raw, units, scale, &lse, &mut scores);
        Ok(fill(&scores, len, budget))
    }
}
