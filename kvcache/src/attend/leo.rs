//! Chunks of 16 tokens found best first in a tree of key boxes (LeoAM).

use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::score::{self, UnitQuery};
use kvist_kernels::summary::UnitSpec;
use kvist_kernels::{Isa, select};
use kvist_policies::tree::{Node, Search};
use kvist_policies::{Digest, Method};

use super::head::Work;
use super::tree::extended;
use super::{Call, Run};
use crate::Error;
use crate::boxes::{Boxes, FAN, RUN, TOP};
use crate::selector::Reads;

/// Level whose chunks are read where attention is flat: 256 tokens.
pub(super) const COARSE: u32 = 2;
/// Tokens of a leaf, as an exponent of 2.
const LEAF_LOG2: f32 = 4.0;

/// What the search finds.
pub(super) struct Found {
    /// One weight per candidate: minus infinity for those that were not taken.
    pub(super) weights: Vec<f32>,
    /// Bytes of boxes that were read.
    pub(super) bytes: u64,
}

impl Call<'_> {
    /// Makes the boxes that trees are searched by.
    pub(super) fn grow_trees(&self, run: &Run) -> Result<(), Error> {
        for sequence in run.sequences {
            let (layer, selector) = (&sequence.layers[self.layer], &sequence.selector);
            let unit = |reads: &Arc<Reads>| match &reads.method {
                Method::Parts(parts) => {
                    matches!(parts.digest, Digest::Tree { .. }).then(|| parts.unit_tokens())
                }
                Method::Full | Method::Boxed(_) => None,
            };
            let units: Vec<_> = selector.layer(self.layer).iter().map(unit).collect();
            if units.iter().all(Option::is_none) {
                continue;
            }
            let leaves = |head: usize| units[head].map_or(0, |unit| layer.len / unit);
            let known = {
                let mut memory = sequence.memories.of(self.layer);
                memory.boxes.resize_with(layer.heads.len(), Default::default);
                memory.boxes.clone()
            };
            let mut each = known.iter().enumerate();
            if each.all(|(head, boxes)| (boxes.runs() + 1) * RUN > leaves(head)) {
                continue;
            }
            let more = || {
                extended(self, &known, |head, boxes: &mut Boxes| {
                    match layer.heads[head].store(selector.store.as_ref()) {
                        Some(store) => store.boxes(&layer.heads[head], leaves(head), boxes),
                        None => Ok(()),
                    }
                })
            };
            let boxes = self.cache.with_room(more)?;
            sequence.memories.of(self.layer).boxes = boxes;
        }
        Ok(())
    }
}

/// Searches `candidates`, numbers of 16-token chunks, for the `wanted` best, or as long as `take` wants more
/// of the chunks it gets. Chunks of level `grain` are taken whole.
///
/// A chunk's weight is the largest of the group's query heads: the upper bound of its logits, less the
/// log-sum-exp of the head's bounds of the largest chunks. That is fixed before the search, and a chunk's
/// bound is at least those of the chunks inside, so the order is that of a scan of all chunks.
pub(super) fn search(
    work: &Work,
    candidates: Range<usize>,
    grain: u32,
    wanted: usize,
    mut take: impl FnMut(Range<usize>) -> bool,
) -> Found {
    let first = candidates.start;
    let mut weights = vec![f32::NEG_INFINITY; candidates.len()];
    let mut tree = Tree::new(work);
    let roots = tree.roots(&candidates);
    let search = Search { fan: FAN, candidates, grain, wanted };
    let children = |node: &Node| (node.level - 1, node.index * FAN..(node.index + 1) * FAN);
    let open = |node: &Node, soon: &[Node], out: &mut Vec<Node>| {
        for (level, boxes) in soon.iter().map(children) {
            score::fetch_unit_rows(&tree.spec, tree.rows_of(level, boxes));
        }
        let (level, boxes) = children(node);
        tree.score(level, boxes, out);
    };
    search.run(&roots, open, |leaves, score| {
        weights[leaves.start - first..leaves.end - first].fill(score);
        take(leaves)
    });
    let bytes = (tree.read * tree.spec.row_bytes()) as u64;
    Found { weights, bytes }
}

/// The boxes of a head, scored by its query group.
struct Tree<'a> {
    work: &'a Work<'a>,
    spec: UnitSpec,
    boxes: Option<Arc<Boxes>>,
    query: UnitQuery,
    /// By query head: base-2 log-sum-exp of the roots' upper bounds.
    lse: Vec<f32>,
    rows: Vec<*const u8>,
    raw: Vec<f32>,
    most: Vec<f32>,
    /// Boxes read.
    read: usize,
}

impl<'a> Tree<'a> {
    fn new(work: &'a Work<'a>) -> Tree<'a> {
        let (spec, _) = work.units();
        let scale = work.call.params.scale;
        let query = UnitQuery::new(Isa::level(), spec, work.q, work.group, scale, false);
        Tree {
            work,
            spec,
            boxes: work.sequence.memories.of(work.call.layer).boxes.get(work.number).cloned(),
            query,
            lse: vec![f32::NEG_INFINITY; work.group],
            rows: Vec::new(),
            raw: Vec::new(),
            most: Vec::new(),
            read: 0,
        }
    }

    /// Where boxes of one level lie.
    fn rows_of(&self, level: u32, boxes: Range<usize>) -> impl Iterator<Item = *const u8> + '_ {
        boxes.map(move |i| match (level, &self.boxes) {
            (0, _) => self.work.unit_row(i),
            (_, Some(above)) => above.row(&self.spec, level, i),
            (_, None) => unreachable!("only runs that have boxes are roots"),
        })
    }

    /// Raw upper bounds of boxes of one level, `[group][boxes]`.
    fn raw(&mut self, level: u32, boxes: Range<usize>) {
        let n = boxes.len();
        let mut rows = std::mem::take(&mut self.rows);
        rows.clear();
        rows.extend(self.rows_of(level, boxes));
        self.rows = rows;
        self.raw.resize(self.work.group * n, 0.0);
        // SAFETY: rows of the sequence's cells, and of boxes that are held here.
        unsafe { score::unit_rows(&self.query, &self.rows, &mut self.raw) }
        if self.work.call.params.soft_cap > 0.0 {
            self.work.cap(&mut self.raw);
        }
    }

    /// Scores boxes of one level.
    fn score(&mut self, level: u32, boxes: Range<usize>, out: &mut Vec<Node>) {
        let (first, n) = (boxes.start, boxes.len());
        if n == 0 {
            return;
        }
        self.read += n;
        self.raw(level, boxes);
        self.fold(n);
        out.extend(self.most.iter().enumerate().map(|(i, &upper)| {
            // Nothing is known of keys that are no numbers: they are read.
            let upper = if upper.is_nan() { f32::INFINITY } else { upper };
            Node { level, index: first + i, upper }
        }));
    }

    /// The largest of the group, relative to each head's log-sum-exp; NaN where some are.
    fn fold(&mut self, n: usize) {
        let scale = self.work.scale_log2();
        self.most.clear();
        self.most.resize(n, f32::NEG_INFINITY);
        for (row, &lse) in self.raw.chunks(n).zip(&self.lse) {
            for (most, &x) in self.most.iter_mut().zip(row) {
                // Plus zero: there shall be one zero only.
                let x = x * scale - lse + 0.0;
                *most = if x > *most || x.is_nan() { x } else { *most };
            }
        }
    }

    /// The largest boxes that hold the candidates, and the 16-token boxes behind the last whole run.
    fn roots(&mut self, candidates: &Range<usize>) -> Vec<Node> {
        let runs = self.boxes.as_ref().map_or(0, |boxes| boxes.runs());
        let runs = (candidates.start / RUN).min(runs)..runs.min(candidates.end.div_ceil(RUN));
        let rest = candidates.start.max(runs.end * RUN)..candidates.end;
        let rest = rest.start.min(rest.end)..rest.end;
        let mut lse = vec![f32::NEG_INFINITY; self.work.group];
        for (level, boxes) in [(TOP, runs.clone()), (0, rest.clone())] {
            let n = boxes.len();
            if n == 0 {
                continue;
            }
            self.raw(level, boxes);
            let mut part = vec![f32::NEG_INFINITY; self.work.group];
            select::lse2_strided(&self.raw, n, n, self.work.scale_log2(), &mut part);
            let tokens = LEAF_LOG2 + 2.0 * level as f32;
            for (lse, part) in lse.iter_mut().zip(part) {
                *lse = select::log2_add(*lse, part + tokens);
            }
        }
        // Of a head whose bounds are no numbers, or none, the scores are taken as they are.
        self.lse = lse.into_iter().map(|x| if x.is_finite() { x } else { 0.0 }).collect();
        let mut roots = Vec::with_capacity(runs.len() + rest.len());
        self.score(TOP, runs, &mut roots);
        self.score(0, rest, &mut roots);
        roots
    }
}
