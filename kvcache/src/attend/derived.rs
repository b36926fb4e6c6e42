//! Scores of what was derived from keys: codes, channels, representatives, and units unlike their mean.

use kvist_kernels::cluster::pq::{self, PqQuery};
use kvist_kernels::rows::QueryRows;
use kvist_kernels::score::CellList;
use kvist_kernels::{DType, Isa, select};
use kvist_policies::Parts;

use super::compose::Weighed;
use super::head::Work;
use crate::index::{BATCH, Made, Part};

/// Raw scores of the candidate units, `[group][candidates]`.
pub(super) fn score(work: &Work, parts: &Parts, weighed: &mut Weighed) -> Vec<f32> {
    let (n, unit) = (weighed.len(), parts.unit_tokens());
    let mut raw = vec![f32::NAN; work.group * n];
    for part in work.index.parts() {
        let (scores, bytes) = of_part(work, part);
        weighed.summary_bytes += bytes;
        let stride = scores.len() / work.group;
        let units = part.tokens.len() / unit;
        // Units in front of the first candidate are kept, and so are those behind the last.
        let first = part.tokens.start / unit;
        let skip = weighed.first.saturating_sub(first);
        if skip >= units || first + skip >= weighed.first + n {
            continue;
        }
        let at = first + skip - weighed.first;
        let count = (units - skip).min(n.saturating_sub(at));
        for head in 0..work.group {
            let from = &scores[head * stride + skip..][..count];
            raw[head * n + at..][..count].copy_from_slice(from);
        }
    }
    raw
}

/// Scores of a part's units, `[group][stride]`, and the bytes read.
fn of_part(work: &Work, part: &Part) -> (Vec<f32>, u64) {
    let g = work.call.cache.geometry();
    match &part.made {
        Made::Codes { book, cells, ids } => {
            let query = PqQuery::new(Isa::level(), book, work.q, work.group);
            let mut out = vec![0f32; work.group * ids.len() * BATCH];
            // SAFETY: the cells lie one behind the other.
            let list = unsafe { CellList::new(cells.as_ptr(), book.spec().cell_bytes(), ids) };
            pq::score(&query, &list, &mut out);
            (out, cells.len() as u64)
        }
        Made::Channels { channels, rows } => {
            let of_head = |q: &[f32]| channels.iter().map(|&c| q[c as usize]).collect::<Vec<f32>>();
            let q: Vec<f32> = work.q.chunks_exact(g.dim_k).flat_map(of_head).collect();
            let query = QueryRows::new(Isa::level(), g.dtype, &q, channels.len(), false);
            (dots(&query, rows, channels.len() * g.dtype.size()), rows.len() as u64)
        }
        Made::Rows(rows) => {
            let query = QueryRows::new(Isa::level(), DType::F32, work.q, g.dim_k, false);
            let bytes: &[u8] = bytemuck::cast_slice(rows);
            (dots(&query, bytes, g.dim_k * size_of::<f32>()), bytes.len() as u64)
        }
        Made::Clusters(_) | Made::Cosines(_) => (Vec::new(), 0),
    }
}

/// Products with rows that lie one behind the other, `[query rows][rows]`.
pub(super) fn dots(query: &QueryRows, rows: &[u8], row_bytes: usize) -> Vec<f32> {
    let ptrs: Vec<*const u8> = rows.chunks_exact(row_bytes).map(<[u8]>::as_ptr).collect();
    let mut out = vec![0f32; query.rows() * ptrs.len()];
    // SAFETY: whole rows of the slice.
    unsafe { query.dots(&ptrs, &mut out, ptrs.len()) }
    out
}

/// Tokens whose keys are not finite are read first.
pub(super) fn open(work: &Work, weighed: &mut Weighed) {
    let (first, unit) = (weighed.first, weighed.unit);
    for &token in work.index.parts().flat_map(|part| &part.open) {
        let at = (token as usize / unit).checked_sub(first);
        if let Some(weight) = at.and_then(|at| weighed.weights.get_mut(at)) {
            *weight = f32::NAN;
        }
    }
}

/// Tokens with a logit above the largest less `alpha`, mean over the group.
pub(super) fn near(work: &Work, raw: &[f32], alpha: f32) -> usize {
    let n = raw.len() / work.group;
    let of_head = |raw: &[f32]| {
        let top = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let least = top - alpha / work.call.params.scale;
        raw.iter().filter(|&&x| x > least).count()
    };
    raw.chunks(n.max(1)).map(of_head).sum::<usize>() / work.group
}

/// The candidates least like their mean are taken first.
pub(super) fn outliers(work: &Work, count: usize, weighed: &mut Weighed) {
    let cosines = work.index.parts().flat_map(|part| match &part.made {
        Made::Cosines(cosines) => &cosines[..],
        _ => &[],
    });
    let unlike: Vec<f32> =
        cosines.skip(weighed.first).take(weighed.len()).map(|cosine| -cosine).collect();
    let mut first = Vec::new();
    select::top_k(&unlike, count, &mut first);
    first.iter().for_each(|&unit| weighed.weights[unit as usize] = f32::INFINITY);
}
