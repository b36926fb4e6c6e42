//! Attention of a batch: each sequence densely or over what its selector picks.

mod again;
mod begin;
mod blockwise;
mod boxed;
mod certify;
mod clusters;
mod compose;
mod dense;
mod derive;
mod derived;
mod drafts;
mod flights;
mod gate;
mod gathered;
mod head;
mod hint;
mod leo;
mod make;
mod observed;
#[cfg(feature = "cuda")]
mod on_device;
mod order;
mod paged;
mod pages;
mod parts;
mod predict;
mod proof;
mod share;
mod slots;
mod sparse;
mod support;
mod tree;

use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::attend::{self, Listed, Out, Params, Queries};
use kvist_kernels::{Tensor3, Tensor3Mut};
use kvist_policies::{Digest, Method};

pub(crate) use derive::check as check_digest;
pub use drafts::Drafts;
#[cfg(feature = "cuda")]
pub(crate) use on_device::choice as device_choice;

#[cfg(feature = "cuda")]
use crate::device::Job;
use crate::live::Whole;
use crate::prefill::Prefill;
use crate::selector::Reads;
use crate::{Cache, Error, Sequence};

/// How to attend; the default is plain softmax attention with scale 1/sqrt(dim_k).
#[derive(Clone, Copy, Debug, Default)]
pub struct AttendOptions<'a> {
    /// Multiplies q.k; `None` is 1/sqrt(dim_k).
    pub scale: Option<f32>,
    /// Scores become `cap * tanh(score / cap)`; 0 is off.
    pub soft_cap: f32,
    /// A query sees this many tokens up to its own; 0 is all. Such a layer attends densely.
    pub window: usize,
    /// One learned logit per query head that joins the softmax without a value.
    pub sinks: Option<&'a [f32]>,
    /// Report the positions that were read.
    pub selected: bool,
    /// Prove a bound of the missed mass even where the selector does not need one.
    pub bound: bool,
    /// Scores of a trained indexer, for the selectors that go by them.
    pub scores: Option<Scores<'a>>,
    /// How several queries at once read the keys: `None` is densely. Fewer than [`BLOCK`](crate::prefill::BLOCK) queries,
    /// windows, learned sinks, and sequences with pages in a lower tier, are read densely all the same.
    pub prefill: Option<&'a Prefill>,
}

/// Scores that come with the queries: the higher, the sooner a unit is read.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// `[queries, heads, units]`: unit `u` is the `u`-th run of the selector's `unit_tokens` tokens. Units
    /// behind the sequence are ignored; NaN is read first.
    pub values: &'a [f32],
    /// KV heads, or 1: all heads have the same.
    pub heads: usize,
    /// Units of each query.
    pub units: usize,
}

impl Scores<'_> {
    /// Those of one query and KV head.
    fn of(&self, row: usize, head: usize) -> &[f32] {
        let head = if self.heads == 1 { 0 } else { head };
        &self.values[(row * self.heads + head) * self.units..][..self.units]
    }

    fn check(&self, rows: usize, kv_heads: usize) -> Result<(), Error> {
        if self.heads != 1 && self.heads != kv_heads {
            let expected = format!("of 1 head or of {kv_heads} KV heads");
            return Err(Error::setting("scores", expected, self.heads));
        }
        let expected = rows.checked_mul(self.heads).and_then(|n| n.checked_mul(self.units));
        if expected != Some(self.values.len()) {
            let (expected, found) = (expected.unwrap_or(usize::MAX), self.values.len());
            return Err(Error::Count { what: "scores of all queries", expected, found });
        }
        Ok(())
    }
}

/// Bytes read for one query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BytesRead {
    /// Summaries: boxes, planes, unit rows.
    pub summary: u64,
    /// Keys read to decide, and not attended.
    pub keys: u64,
    /// Keys and values attended. Pages that a batch shares count for its first sequence only.
    pub kv: u64,
}

impl BytesRead {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.summary + self.keys + self.kv
    }
}

/// What one sequence's queries read, and what came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttendInfo {
    /// Base-2 log-sum-exp of the scaled logits of the tokens read (and of the learned sink logit,
    /// if one was given), `[queries, q_heads]`.
    pub lse2: Vec<f32>,
    /// Tokens read per KV head; of several queries, those of the last.
    pub tokens_read: Vec<u32>,
    /// Proven upper bound of the softmax mass not read, `[q_heads]`: zeros for dense attention,
    /// `None` where no bound was asked for or the selector has none.
    pub missed_mass_bound: Option<Vec<f32>>,
    /// Positions read per KV head, ascending, if asked for.
    pub selected: Option<Vec<Vec<u32>>>,
    /// Bytes read.
    pub bytes: BytesRead,
}

/// One call's checked arguments.
pub(crate) struct Call<'a> {
    cache: &'a Cache,
    layer: usize,
    options: &'a AttendOptions<'a>,
    params: Params<'a>,
    /// Where the queries stand behind their sequence, each so far; none if they are its last tokens.
    depths: Option<&'a [u32]>,
}

/// Neighbouring sequences of a batch that are treated alike, and their rows of the query.
struct Run<'a> {
    sequences: &'a [&'a Sequence],
    queries: &'a [usize],
    rows: Range<usize>,
    /// [`Call::depths`] of the rows.
    depths: Option<&'a [u32]>,
    /// With a lower tier: leases on all their pages, or none if some are not near.
    whole: &'a [Whole<'a>],
}

/// How a sequence is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    /// A selector decides what is read.
    sparse: bool,
    /// All its pages are near.
    near: bool,
}

impl Run<'_> {
    /// Frames of a head's pages: of all of them, or of the open ones where some are not near.
    fn ids(&self, call: &Call, i: usize, head: usize) -> &[u32] {
        let open = || self.sequences[i].layers[call.layer].heads[head].ids();
        self.whole.get(i).map_or_else(open, |whole| whole.ids(head))
    }

    /// Some of the sequences, whose queries start at `row`.
    fn part(&self, of: Range<usize>, row: usize) -> Run<'_> {
        let queries = &self.queries[of.clone()];
        let rows = row..row + queries.iter().sum::<usize>();
        let depths = self.depths.map(|depths| &depths[rows.clone()]);
        let whole = self.whole.get(of.clone()).unwrap_or_default();
        Run { sequences: &self.sequences[of], queries, rows, depths, whole }
    }

    /// Position of each query.
    fn positions(&self, call: &Call) -> Vec<u32> {
        let (mut positions, mut row) = (Vec::with_capacity(self.rows.len()), 0);
        for (s, &n) in self.sequences.iter().zip(self.queries) {
            let len = s.layers[call.layer].len;
            match self.depths {
                Some(depths) => {
                    positions.extend(depths[row..row + n].iter().map(|d| len as u32 + d));
                }
                None => positions.extend((len - n..len).map(|p| p as u32)),
            }
            row += n;
        }
        positions
    }

    /// The lowest position of sequence `i`'s queries, and the one behind the highest.
    fn stands(&self, call: &Call, i: usize) -> Range<usize> {
        let (len, n) = (self.sequences[i].layers[call.layer].len, self.queries[i]);
        let Some(depths) = self.depths else { return len - n..len };
        let first: usize = self.queries[..i].iter().sum();
        let deepest = depths[first..first + n].iter().max();
        len..len + deepest.map_or(0, |&d| d as usize + 1)
    }
}

impl Cache {
    /// Attends for several sequences in one call. Sequence `i` owns the next `queries[i]` rows of
    /// `q` `[rows, q_heads, dim_k]` and of `out` `[rows, q_heads, dim_v]`; see
    /// [`Sequence::attend`] for what they read. Neighbouring sequences that share leading pages
    /// and attend densely read those pages once (RelayAttention, arXiv 2402.14808).
    ///
    /// # Errors
    /// As [`Sequence::attend`], [`Error::Count`] if `queries` and `sequences` differ in length, and
    /// [`Error::ForeignSequence`] if a sequence belongs to another cache.
    pub fn attend_batch(
        &self,
        layer: usize,
        q: &Tensor3,
        sequences: &[&Sequence],
        queries: &[usize],
        options: &AttendOptions,
        out: &mut Tensor3Mut,
    ) -> Result<Vec<AttendInfo>, Error> {
        let call = self.check_call(layer, q, sequences, queries, options)?;
        self.check_heads("out", out.shape(), q.shape()[0], self.geometry().dim_v)?;
        call.check_lengths(sequences, queries)?;
        let infos = call.attend(q, sequences, queries, out)?;
        call.count(sequences, queries, &infos);
        Ok(infos)
    }

    fn check_call<'a>(
        &'a self,
        layer: usize,
        q: &Tensor3,
        sequences: &[&Sequence],
        queries: &[usize],
        options: &'a AttendOptions,
    ) -> Result<Call<'a>, Error> {
        self.check_layer(layer)?;
        let g = self.geometry();
        if queries.len() != sequences.len() {
            let (expected, found) = (sequences.len(), queries.len());
            return Err(Error::Count { what: "query counts of the batch", expected, found });
        }
        let rows: usize = queries.iter().sum();
        self.check_heads("queries", q.shape(), rows, g.dim_k)?;
        let foreign = |s: &&Sequence| !Arc::ptr_eq(&s.cache.shared, &self.shared);
        if let Some(index) = sequences.iter().position(foreign) {
            return Err(Error::ForeignSequence { index });
        }
        if let Some(scores) = &options.scores {
            scores.check(rows, g.kv_heads)?;
        }
        if let Some(sinks) = options.sinks {
            if sinks.len() != g.q_heads {
                let (expected, found) = (g.q_heads, sinks.len());
                return Err(Error::Count { what: "sink logits", expected, found });
            }
            if let Some(x) = sinks.iter().find(|x| x.is_nan() || **x == f32::INFINITY) {
                return Err(Error::setting("sinks", "finite logits or -inf", x));
            }
        }
        let scale = options.scale.unwrap_or(1.0 / (g.dim_k as f32).sqrt());
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Error::setting("scale", "finite and above 0", scale));
        }
        if !(options.soft_cap.is_finite() && options.soft_cap >= 0.0) {
            return Err(Error::setting("soft_cap", "finite and at least 0", options.soft_cap));
        }
        let params =
            Params { soft_cap: options.soft_cap, sinks: options.sinks, ..Params::new(scale) };
        Ok(Call { cache: self, layer, options, params, depths: None })
    }
}

impl Sequence {
    /// [`Sequence::attend`] with queries that stand behind the sequence: each sees every token, densely.
    pub(crate) fn attend_all(
        &self,
        layer: usize,
        q: &Tensor3,
        options: &AttendOptions,
        out: &mut Tensor3Mut,
    ) -> Result<AttendInfo, Error> {
        let (sequences, queries) = ([self], [q.shape()[0]]);
        let depths = vec![0; queries[0]];
        let call = self.cache.check_call(layer, q, &sequences, &queries, options)?;
        let call = Call { depths: Some(&depths), ..call };
        let infos = call.attend(q, &sequences, &queries, out)?;
        call.count(&sequences, &queries, &infos);
        Ok(infos.into_iter().next().unwrap_or_default())
    }
}

impl Cache {
    /// Checks that a tensor has so many rows of all query heads.
    pub(crate) fn check_heads(
        &self,
        what: &'static str,
        found: [usize; 3],
        rows: usize,
        dim: usize,
    ) -> Result<(), Error> {
        let heads = self.geometry().q_heads;
        if found == [rows, heads, dim] {
            return Ok(());
        }
        let expected = format!("[{rows} queries, {heads} query heads, {dim}]");
        Err(Error::Shape { what, expected, found })
    }
}

impl Call<'_> {
    /// Checks that no sequence is asked by more queries than it has tokens.
    fn check_lengths(&self, sequences: &[&Sequence], queries: &[usize]) -> Result<(), Error> {
        let layer = self.layer;
        for (s, &found) in sequences.iter().zip(queries) {
            let len = s.layers[layer].len;
            if found > len {
                return Err(Error::Length { what: "queries to attend", layer, len, found });
            }
        }
        Ok(())
    }

    /// Attends, run by run of neighbours that are treated alike.
    fn attend(
        &self,
        q: &Tensor3,
        sequences: &[&Sequence],
        queries: &[usize],
        out: &mut Tensor3Mut,
    ) -> Result<Vec<AttendInfo>, Error> {
        let mut infos = Vec::with_capacity(sequences.len());
        let (mut i, mut row) = (0, 0);
        while i < sequences.len() {
            let (kind, first) = self.kind(sequences[i], queries[i]);
            let mut whole: Vec<Whole> = first.into_iter().collect();
            let mut end = i + 1;
            while end < sequences.len() {
                let (next, lease) = self.kind(sequences[end], queries[end]);
                if next != kind {
                    break;
                }
                whole.extend(lease);
                end += 1;
            }
            let rows = row..row + queries[i..end].iter().sum::<usize>();
            let depths = self.depths.map(|depths| &depths[rows.clone()]);
            let (sequences, queries) = (&sequences[i..end], &queries[i..end]);
            let run = Run { sequences, queries, rows, depths, whole: &whole };
            (i, row) = (end, run.rows.end);
            let q = q.rows(run.rows.start, run.rows.end);
            let mut out = out.rows_mut(run.rows.start, run.rows.end);
            infos.append(&mut match (&self.cache.shared.tier, kind.near, kind.sparse) {
                (Some(tier), false, sparse) => {
                    let paged = || paged::attend(self, &run, tier, sparse, &q, &mut out);
                    self.cache.with_frames(paged)?
                }
                (_, _, true) => sparse::attend(self, &run, &q, &mut out)?,
                (_, _, false) => match self.blockwise(&run) {
                    true => blockwise::attend(self, &run, &q, &mut out)?,
                    false => dense::attend(self, &run, &q, &mut out)?,
                },
            });
            if self.depths.is_none() {
                self.observe(&run, &q);
            }
            #[cfg(feature = "cuda")]
            self.copy_ahead(&run);
        }
        Ok(infos)
    }

    /// Attends over pages of the host tier: on the GPU, if there is one, else on the CPU.
    fn kernel(
        &self,
        queries: &Queries,
        listed: Listed,
        params: &Params,
        out: &mut Out,
    ) -> Result<(), Error> {
        let (shared, layer) = (&self.cache.shared, self.layer);
        let exec = &shared.exec;
        #[cfg(feature = "cuda")]
        if let Some(device) = &shared.device
            && device.attend(&Job { layer, queries, listed, params, exec }, out)?
        {
            return Ok(());
        }
        #[cfg(not(feature = "cuda"))]
        let _ = layer;
        match listed {
            Listed::Pages(pool, lists) => attend::pages(queries, pool, lists, params, exec, out)?,
            Listed::Slots(pool, lists) => attend::slots(queries, pool, lists, params, exec, out)?,
        }
        Ok(())
    }

    /// Lets the GPU have pages of the next layer, while the model computes what comes before it.
    #[cfg(feature = "cuda")]
    fn copy_ahead(&self, run: &Run) {
        let Some(device) = &self.cache.shared.device else { return };
        let page = self.cache.geometry().page_tokens;
        for sequence in run.sequences {
            let layer = &sequence.layers[(self.layer + 1) % sequence.layers.len()];
            let full = (layer.len / page).saturating_sub(layer.sealed.len());
            let pages = layer.heads.iter().flat_map(|head| &head.ids()[..full]);
            device.ahead(pages.copied());
        }
    }

    /// Whether a selector decides what this sequence reads.
    fn selects(&self, sequence: &Sequence, queries: usize) -> bool {
        let len = sequence.layers[self.layer].len;
        let step = queries == 1 && self.depths.is_none();
        step && self.options.window == 0 && sequence.selector.selects(self.layer, len)
    }

    /// Whether no head picks pages, wherever they are.
    fn picks_clusters(&self, sequence: &Sequence) -> bool {
        let picks = |reads: &Arc<Reads>| match &reads.method {
            Method::Full => true,
            Method::Parts(parts) => matches!(parts.digest, Digest::Clusters(_)),
            Method::Boxed(_) => false,
        };
        sequence.selector.layer(self.layer).iter().all(picks)
    }

    /// How to treat a sequence; with a lower tier, and where all its pages are near, a lease on them.
    fn kind<'a>(&'a self, sequence: &Sequence, queries: usize) -> (Kind, Option<Whole<'a>>) {
        let sparse = self.selects(sequence, queries);
        let Some(tier) = &self.cache.shared.tier else {
            return (Kind { sparse, near: true }, None);
        };
        let layer = &sequence.layers[self.layer];
        let pages = tier.options().whole_pages && !self.picks_clusters(sequence);
        let whole = match sparse && pages {
            true => None,
            false => tier.whole(&layer.sealed, &layer.open_ids()),
        };
        (Kind { sparse, near: whole.is_some() }, whole)
    }

    fn count(&self, sequences: &[&Sequence], queries: &[usize], infos: &[AttendInfo]) {
        let (mut dense, mut read, mut bytes) = (0, 0, 0);
        for ((s, &n), info) in sequences.iter().zip(queries).zip(infos) {
            dense += (n * s.layers[self.layer].len * info.tokens_read.len()) as u64;
            read += n as u64 * info.tokens_read.iter().map(|&t| u64::from(t)).sum::<u64>();
            bytes += info.bytes.total();
        }
        self.cache.shared.counters.attended(queries.iter().sum(), dense, read, bytes);
    }
}
