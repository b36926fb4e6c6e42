//! Scores from codes.

use super::codebook::Codebook;
use super::codes::PqSpec;
use crate::rows::QueryRows;
use crate::score::CellList;
use crate::summary::TILE;
use crate::{DType, Isa, arch};

/// Tables of the queries of one KV head's group.
#[derive(Clone, Debug)]
pub struct PqQuery {
    isa: Isa,
    spec: PqSpec,
    heads: usize,
    /// `[heads][parts][2^code_bits]`: q . centroid of the part, 0 where there is no centroid.
    tables: Vec<f32>,
}

impl PqQuery {
    /// Dot products of `q`, `[heads, dim]` unscaled, with all centroids, summed in f32.
    ///
    /// # Panics
    /// If `q` does not hold `heads >= 1` rows.
    #[must_use]
    pub fn new(isa: Isa, book: &Codebook, q: &[f32], heads: usize) -> PqQuery {
        let spec = *book.spec();
        let (dim, part_dim) = (spec.dim(), spec.part_dim());
        assert!(heads > 0 && q.len() == heads * dim, "{} of {heads} x {dim}", q.len());
        let (entries, stride) = (1 << spec.code_bits(), spec.parts() << spec.code_bits());
        let mut tables = vec![0f32; heads * stride];
        let mut rows = Vec::with_capacity(heads * part_dim);
        for part in 0..spec.parts() {
            rows.clear();
            let of = |q: &[f32]| q[part * part_dim..][..part_dim].to_vec();
            rows.extend(q.chunks_exact(dim).flat_map(of));
            let rows = QueryRows::new(isa, DType::F32, &rows, part_dim, true);
            let centroids = book.part(part).chunks_exact(part_dim);
            let ptrs: Vec<*const u8> = centroids.map(|c| c.as_ptr().cast()).collect();
            // SAFETY: the pointers are rows of the codebook.
            unsafe { rows.dots(&ptrs, &mut tables[part * entries..], stride) }
        }
        PqQuery { isa, spec, heads, tables }
    }

    /// Query heads of the group.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.heads
    }
}

/// What the loops of a level score.
pub(crate) struct Job<'a> {
    pub(crate) spec: PqSpec,
    pub(crate) cells: &'a CellList<'a>,
    pub(crate) heads: usize,
    pub(crate) tables: &'a [f32],
    /// `[heads][tiles * 64]`
    pub(crate) out: &'a mut [f32],
}

/// Scores all tokens, `out` `[heads][tiles * 64]`: estimates of q.k, unscaled. The parts' entries are added
/// in order in f32. Tokens that were never encoded score something; the caller knows which they are.
///
/// # Panics
/// If a length does not fit.
pub fn score(query: &PqQuery, cells: &CellList, out: &mut [f32]) {
    let (spec, heads, found) = (query.spec, query.heads, cells.cell_bytes());
    assert!(cells.is_empty() || found == spec.cell_bytes(), "cell of {found} bytes for {spec:?}");
    assert_eq!(out.len(), heads * cells.len() * TILE, "scores of {heads} heads");
    let mut job = Job { spec, cells, heads, tables: &query.tables, out };
    // SAFETY: lengths were just checked; the table of loops only offers levels this CPU has.
    unsafe { (arch::pq::loops(query.isa))(&mut job) }
}

/// Scores in plain Rust.
///
/// # Safety
/// The listed cells must have the length of the spec's.
pub(crate) unsafe fn plain(job: &mut Job) {
    let (spec, tokens) = (job.spec, job.cells.len() * TILE);
    let (entries, stride) = (1 << spec.code_bits(), spec.parts() << spec.code_bits());
    for tile in 0..job.cells.len() {
        // SAFETY: by the function's contract.
        let cell = unsafe { std::slice::from_raw_parts(job.cells.cell(tile), spec.cell_bytes()) };
        for part in 0..spec.parts() {
            let codes = spec.codes(cell, part);
            for head in 0..job.heads {
                let table = &job.tables[head * stride + part * entries..][..entries];
                let out = &mut job.out[head * tokens + tile * TILE..][..TILE];
                for (o, &code) in out.iter_mut().zip(&codes) {
                    let x = table[code as usize];
                    *o = if part == 0 { x } else { *o + x };
                }
            }
        }
    }
}
