//! A sequence: one token stream with its pages.

use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::{Tensor3, Tensor3Mut, convert};
use kvist_policies::{Profile, Select};

use crate::arena::CELL_OVERHEAD;
use crate::attend::{AttendInfo, AttendOptions};
use crate::index::Index;
use crate::layer::{Cut, Layer};
use crate::live::Stripe;
use crate::memory::Memories;
use crate::pages::New;
use crate::selector::Selector;
use crate::stats::SequenceStats;
use crate::ticket::{Ticket, ticket};
use crate::{Cache, Error, Pin};

/// One token stream. Layers are appended to one by one, each in order of position.
///
/// `attend` takes `&self`, so several threads may attend to one sequence; appending is exclusive.
/// Dropping a sequence frees the pages that no fork shares.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) cache: Cache,
    pub(crate) selector: Selector,
    pub(crate) layers: Vec<Arc<Layer>>,
    pub(crate) memories: Memories,
}

impl Sequence {
    pub(crate) fn new(cache: Cache, selector: Selector) -> Sequence {
        let shared = &cache.shared;
        let layers = shared.geometry.layers;
        let memories = Memories::new(layers);
        let layer = |i: usize| Arc::new(Layer::new(shared, i, &selector.summarised(i)));
        let layers = (0..layers).map(layer).collect();
        Sequence { cache, selector, layers, memories }
    }

    /// The cache this sequence belongs to.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The selector of this sequence.
    #[must_use]
    pub fn select(&self) -> &Select {
        &self.selector.select
    }

    /// How each KV head of this sequence is read, if not all alike.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        self.selector.profile.as_deref()
    }

    /// Tokens present in every layer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.iter().map(|l| l.len).min().unwrap_or(0)
    }

    /// Whether some layer has no tokens yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of one layer.
    ///
    /// # Errors
    /// [`Error::Layer`] if there is no such layer.
    pub fn layer_len(&self, layer: usize) -> Result<usize, Error> {
        self.cache.check_layer(layer)?;
        Ok(self.layers[layer].len)
    }

    /// Appends tokens to a layer: `k` is `[tokens, kv_heads, dim_k]`, `v` `[tokens, kv_heads,
    /// dim_v]`, both of the cache's dtype, any strides. Keys come as attention uses them (after
    /// position encoding). Values are stored bit-exact, NaN and infinities included. With a lower tier
    /// they may be more than host memory holds: pages leave while others come.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Shape`], [`Error::DType`], or [`Error::OverBudget`] if the budget
    /// does not hold the new pages: with a lower tier, if not enough others can leave for them. The
    /// sequence is unchanged then.
    pub fn append(&mut self, layer: usize, k: &Tensor3, v: &Tensor3) -> Result<(), Error> {
        self.cache.check_layer(layer)?;
        self.cache.check_rows(k, v)?;
        let tokens = k.shape()[0];
        if tokens == 0 {
            return Ok(());
        }
        let portion = self.cache.portion();
        if tokens <= portion {
            self.append_rows(layer, k, v)?;
        } else {
            // What is shared is copied before it is written to, so that it can be put back.
            let before = self.layers[layer].clone();
            for from in (0..tokens).step_by(portion) {
                let to = tokens.min(from + portion);
                if let Err(error) = self.append_rows(layer, &k.rows(from, to), &v.rows(from, to)) {
                    self.layers[layer] = before;
                    return Err(error);
                }
            }
        }
        self.cache.shared.counters.appended(tokens);
        Ok(())
    }

    /// Appends as many rows as host memory has to hold at once.
    fn append_rows(&mut self, layer: usize, k: &Tensor3, v: &Tensor3) -> Result<(), Error> {
        let (shared, state) = (&self.cache.shared, &mut self.layers[layer]);
        let new = New::Rows(k, v);
        self.cache.with_room(|| Layer::append(state, shared, &self.selector, new))
    }

    /// [`Sequence::append`] that insists on the position of the first new token.
    ///
    /// # Errors
    /// [`Error::Position`] if `position` is not the layer's length, and as `append`.
    pub fn append_at(
        &mut self,
        layer: usize,
        position: usize,
        k: &Tensor3,
        v: &Tensor3,
    ) -> Result<(), Error> {
        let expected = self.layer_len(layer)?;
        if position != expected {
            return Err(Error::Position { layer, expected, found: position });
        }
        self.append(layer, k, v)
    }

    /// Attends with the last `queries` positions of a layer: `q` is `[queries, q_heads, dim_k]`,
    /// `out` `[queries, q_heads, dim_v]`, any dtypes. Query `i` sees the tokens up to its own.
    ///
    /// A single query reads what the sequence's selector picks; several queries at once (prefill,
    /// verification) and dense layers read every token they may see. The tokens of the queries
    /// themselves must have been appended.
    ///
    /// With a lower tier, pages that are not in host memory are read while attention runs over those
    /// that are. While a layer has such pages, selectors pick whole pages, from summaries alone, under
    /// the same budget of tokens; see [`Builder::whole_pages`](crate::Builder::whole_pages). Clusters are
    /// picked as in memory, from rows stored in their order at the first such call. Which
    /// pages were in memory changes results by rounding only; when others arrive, not at all.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Shape`], [`Error::Length`] if there are more queries than tokens,
    /// [`Error::Setting`] for impossible options; `out` is unchanged then. With a lower tier,
    /// [`Error::Missing`] if a page cannot be read, and [`Error::OverBudget`] if no frame can be had
    /// for one; rows of `out` that belong to other sequences of a batch may have been written then.
    pub fn attend(
        &self,
        layer: usize,
        q: &Tensor3,
        options: &AttendOptions,
        out: &mut Tensor3Mut,
    ) -> Result<AttendInfo, Error> {
        let queries = [q.shape()[0]];
        let mut infos = self.cache.attend_batch(layer, q, &[self], &queries, options, out)?;
        Ok(infos.pop().unwrap_or_default())
    }

    /// A sequence that shares all pages and summaries of this one; each goes its own way from here.
    #[must_use]
    pub fn fork(&self) -> Sequence {
        Sequence {
            cache: self.cache.clone(),
            selector: self.selector.clone(),
            layers: self.layers.clone(),
            memories: self.memories.forked(),
        }
    }

    /// A fork with another selector, and without a profile: pages are shared, and so are summaries of the same
    /// kind; others are built anew from the pages.
    ///
    /// # Errors
    /// [`Error::Select`] for impossible settings, [`Error::OverBudget`] if the new summaries do not
    /// fit, [`Error::Missing`] if a page cannot be brought back for them.
    pub fn fork_with(&self, select: &Select) -> Result<Sequence, Error> {
        self.fork_as(self.cache.selector(select, None)?)
    }

    /// [`Sequence::fork_with`] whose heads are read as a profile says.
    ///
    /// # Errors
    /// As [`Sequence::fork_with`], and [`Error::Select`] for a profile of another model or geometry, or one
    /// that does not go with the selector.
    pub fn fork_profiled(&self, select: &Select, profile: &Profile) -> Result<Sequence, Error> {
        self.fork_as(self.cache.selector(select, Some(&Arc::new(profile.clone())))?)
    }

    /// A fork with another selector of the same cache.
    pub(crate) fn fork_as(&self, selector: Selector) -> Result<Sequence, Error> {
        let spec = |s: &Selector| s.store.as_ref().map(|s| s.spec);
        let same = spec(&selector) == spec(&self.selector);
        let layer = |(i, from): (usize, &Arc<Layer>)| -> Result<Arc<Layer>, Error> {
            let wanted = selector.summarised(i);
            if wanted == from.summarised() && (same || !wanted.contains(&true)) {
                return Ok(from.clone());
            }
            let fork = || from.with_selector(&self.cache.shared, &selector, same);
            Ok(Arc::new(self.cache.with_room(fork)?))
        };
        let layers = self.layers.iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        let memories = self.memories.with_selector();
        Ok(Sequence { cache: self.cache.clone(), selector, layers, memories })
    }

    /// Forgets the tokens from `len` on, in every layer that has more. Equal to having appended
    /// only the first `len`.
    ///
    /// # Errors
    /// [`Error::Length`] if a layer has fewer tokens, [`Error::OverBudget`] if something shared with
    /// a fork (or a finished page, which is written to again) must be copied and does not fit,
    /// [`Error::Missing`] if such a page cannot be brought back. The sequence is unchanged then.
    pub fn truncate(&mut self, len: usize) -> Result<(), Error> {
        let shortest = self.layers.iter().enumerate().min_by_key(|(_, l)| l.len);
        if let Some((layer, state)) = shortest
            && state.len < len
        {
            let (what, found) = ("truncate", len);
            return Err(Error::Length { what, layer, len: state.len, found });
        }
        self.cut(0..self.layers.len(), len)?;
        self.memories.cut(len);
        Ok(())
    }

    /// [`Sequence::truncate`] of one layer, of a sequence that nobody has attended to.
    pub(crate) fn truncate_layer(&mut self, layer: usize, len: usize) -> Result<(), Error> {
        self.cut(layer..layer + 1, len)
    }

    /// Forgets the tokens from `len` on in some layers.
    pub(crate) fn cut(&mut self, layers: Range<usize>, len: usize) -> Result<(), Error> {
        let (shared, selector) = (&self.cache.shared, &self.selector);
        let layers = &mut self.layers[layers];
        // What the cuts need is taken first, so that nothing changes if it does not fit.
        let plan = |layer: &mut Arc<Layer>| match layer.len > len {
            true => Layer::plan_cut(layer, shared, selector, len).map(Some),
            false => Ok(None),
        };
        let cuts: Vec<Option<Cut>> =
            self.cache.with_room(|| layers.iter_mut().map(plan).collect::<Result<_, _>>())?;
        for (layer, cut) in layers.iter_mut().zip(cuts) {
            if let Some(cut) = cut {
                Layer::apply(layer, shared, selector, len, cut);
            }
        }
        Ok(())
    }

    /// Copies keys and values of tokens `from..from + n` of a layer into `k` `[n, kv_heads, dim_k]`
    /// and `v` `[n, kv_heads, dim_v]`, widened to f32.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Length`] if the tokens are not there, [`Error::Count`] if the
    /// slices have the wrong length, [`Error::Missing`] if a page cannot be brought back.
    pub fn read(
        &self,
        layer: usize,
        from: usize,
        k: &mut [f32],
        v: &mut [f32],
    ) -> Result<(), Error> {
        let len = self.layer_len(layer)?;
        let g = &self.cache.shared.geometry;
        let (k_row, v_row) = (g.kv_heads * g.dim_k, g.kv_heads * g.dim_v);
        let n = k.len() / k_row;
        if v.len() != n * v_row || k.len() != n * k_row {
            return Err(Error::Count {
                what: "values to read",
                expected: n * v_row,
                found: v.len(),
            });
        }
        if from + n > len {
            return Err(Error::Length { what: "read", layer, len, found: from + n });
        }
        let pool = self.cache.pool()?;
        let (layer, shared) = (&self.layers[layer], &self.cache.shared);
        let mut rows = k.chunks_mut(k_row).zip(v.chunks_mut(v_row));
        for page in from / g.page_tokens..(from + n).div_ceil(g.page_tokens) {
            let (_lease, frames) =
                self.cache.with_frames(|| layer.bring(shared, page..page + 1))?;
            let first = page * g.page_tokens;
            let tokens = from.max(first)..(from + n).min(first + g.page_tokens);
            for (t, (k, v)) in tokens.zip(&mut rows) {
                let heads = k.chunks_mut(g.dim_k).zip(v.chunks_mut(g.dim_v));
                for (frames, (k, v)) in frames.iter().zip(heads) {
                    let (frame, offset) = (frames[0] as usize, t - first);
                    // SAFETY: the token is below the layer's length; its page is open and held by
                    // this sequence, or leased.
                    unsafe {
                        convert::widen(g.dtype, pool.k_row(frame, 0, offset), k);
                        convert::widen(g.dtype, pool.v_row(frame, 0, offset), v);
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves all finished pages to the tier below, as far as they are not in use or pinned; summaries
    /// stay. Returns how many pages left host memory, those of clusters not counted: none without a lower
    /// tier. Pages shared with forks leave for them too. They come back when they are read, and what
    /// is stored stays so: the next time only what was finished since is written (after FastSwitch, arXiv
    /// 2411.18424, §4.3). What is written lies in large runs: [`DiskUse::large_run_bytes`](crate::DiskUse).
    ///
    /// # Errors
    /// [`Error::Demote`] if some could not be stored; those stay.
    pub fn offload(&self) -> Result<usize, Error> {
        let Some(tier) = &self.cache.shared.tier else { return Ok(0) };
        if let Some(clustered) = tier.clustered() {
            // They are stored already.
            for layer in 0..self.layers.len() {
                let index = self.memories.of(layer).index.clone();
                let parts = index.iter().flat_map(Index::parts);
                for extent in parts.filter_map(|part| part.ordered.get()) {
                    extent.leave(clustered)?;
                }
            }
        }
        let stripes: Vec<_> = self.layers.iter().flat_map(|l| l.sealed.iter().cloned()).collect();
        tier.demote(&stripes)
    }

    /// Brings pages back from the tier below: the newest first, as many as fit. Returns how many were
    /// read. Pages of other sequences may leave for them.
    ///
    /// # Errors
    /// [`Error::Missing`] if a page cannot be read; those before it are back.
    pub fn restore(&self) -> Result<usize, Error> {
        let Some(tier) = &self.cache.shared.tier else { return Ok(0) };
        tier.restore(&self.newest_first())
    }

    /// [`Sequence::restore`] behind the scenes, into memory that is free: no page leaves for them, other
    /// sequences go on, and whoever needs a page meanwhile waits for a few MiB at most. Returns how many
    /// pages may come, and a ticket whose result is how many came: when all are back, memory is full, or
    /// the sequence and its forks are gone. Attending before that is as right as at any other time: what
    /// is not there yet is read. Dropping the ticket leaves below what has not been sent for, unless it
    /// was [detached](Ticket::detach).
    ///
    /// The newest pages come if not all fit; those that come do so in the order in which they lie below,
    /// in large reads. Without [`Builder::write_ahead`](crate::Builder::write_ahead) there is no thread for
    /// it, and a part is sent for with each call that attends to selected pages.
    #[must_use = "dropping the ticket ends it"]
    pub fn restore_behind(&self) -> (usize, Ticket<usize>) {
        let (ticket, promise) = ticket();
        let Some(tier) = &self.cache.shared.tier else {
            promise.keep(0);
            return (0, ticket);
        };
        (tier.restore_behind(&self.newest_first(), promise), ticket)
    }

    /// All finished pages, the newest first.
    fn newest_first(&self) -> Vec<Arc<Stripe>> {
        let most = self.layers.iter().map(|l| l.sealed.len()).max().unwrap_or(0);
        let of_run = |page: usize| self.layers.iter().filter_map(move |l| l.sealed.get(page));
        (0..most).rev().flat_map(of_run).cloned().collect()
    }

    /// Brings the pages of these tokens near, in every layer, and keeps them there until the pin is
    /// dropped, whatever becomes of the sequence. Pages not finished yet are always near.
    ///
    /// # Errors
    /// [`Error::Length`] if the tokens are not there, [`Error::OverBudget`] if the pages do not fit
    /// at once, [`Error::Missing`] if one cannot be read. Nothing is pinned then.
    pub fn pin(&self, tokens: Range<usize>) -> Result<Pin, Error> {
        let shortest = self.layers.iter().enumerate().min_by_key(|(_, l)| l.len);
        if let Some((layer, state)) = shortest
            && (state.len < tokens.end || tokens.start > tokens.end)
        {
            let found = tokens.end.max(tokens.start);
            return Err(Error::Length { what: "pin", layer, len: state.len, found });
        }
        let Some(tier) = &self.cache.shared.tier else { return Ok(Pin::default()) };
        let page = self.cache.geometry().page_tokens;
        let of_layer = |l: &Arc<Layer>| {
            let end = tokens.end.div_ceil(page).min(l.sealed.len());
            l.sealed[(tokens.start / page).min(end)..end].to_vec()
        };
        self.cache.with_frames(|| tier.pin(self.layers.iter().flat_map(of_layer).collect()))
    }

    /// Bytes this sequence uses, shared ones included.
    #[must_use]
    pub fn stats(&self) -> SequenceStats {
        let page_bytes = self.cache.shared.pages.cell_bytes() as u64;
        let cell_bytes = self.selector.store.as_ref().map_or(0, |s| s.arena.cell_bytes()) as u64;
        let mut stats = SequenceStats { tokens: self.len(), ..SequenceStats::default() };
        for layer in &self.layers {
            stats.overhead_bytes += layer.table_bytes();
            if let Some(tier) = &self.cache.shared.tier {
                layer.sealed.iter().for_each(|stripe| tier.count(stripe, &mut stats));
            }
            for head in &layer.heads {
                let (pages, cells) = (head.ids().len(), head.counts().1);
                stats.page_bytes += pages as u64 * page_bytes;
                stats.summary_bytes += cells as u64 * cell_bytes;
                stats.overhead_bytes += (pages + cells) as u64 * CELL_OVERHEAD;
            }
        }
        stats
    }
}
