//! A sequence: one token stream with its pages.

use std::sync::Arc;

use kvist_kernels::{Tensor3, Tensor3Mut, convert};
use kvist_policies::Select;

use crate::arena::CELL_OVERHEAD;
use crate::attend::{AttendInfo, AttendOptions};
use crate::layer::{Cut, Layer};
use crate::stats::SequenceStats;
use crate::summaries::Selector;
use crate::{Cache, Error};

/// One token stream. Layers are appended to one by one, each in order of position.
///
/// `attend` takes `&self`, so several threads may attend to one sequence; appending is exclusive.
/// Dropping a sequence frees the pages that no fork shares.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) cache: Cache,
    pub(crate) selector: Selector,
    pub(crate) layers: Vec<Arc<Layer>>,
}

impl Sequence {
    pub(crate) fn new(cache: Cache, selector: Selector) -> Sequence {
        let shared = &cache.shared;
        let summarised = selector.store.is_some();
        let layer = |&dense: &bool| Arc::new(Layer::new(shared, !dense && summarised));
        let layers = shared.dense_layers.iter().map(layer).collect();
        Sequence { cache, selector, layers }
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
    /// position encoding). Values are stored bit-exact, NaN and infinities included.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Shape`], [`Error::DType`], or [`Error::OverBudget`] if the budget
    /// does not hold the new pages. The sequence is unchanged then.
    pub fn append(&mut self, layer: usize, k: &Tensor3, v: &Tensor3) -> Result<(), Error> {
        self.cache.check_layer(layer)?;
        self.check_rows(k, v)?;
        let tokens = k.shape()[0];
        if tokens == 0 {
            return Ok(());
        }
        let shared = &self.cache.shared;
        Layer::append(&mut self.layers[layer], shared, &self.selector, k, v)?;
        shared.counters.appended(tokens);
        Ok(())
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

    fn check_rows(&self, k: &Tensor3, v: &Tensor3) -> Result<(), Error> {
        let g = &self.cache.shared.geometry;
        for (what, t, dim) in [("keys", k, g.dim_k), ("values", v, g.dim_v)] {
            let found = t.shape();
            if found[1..] != [g.kv_heads, dim] {
                let expected = format!("[tokens, {} KV heads, {dim}]", g.kv_heads);
                return Err(Error::Shape { what, expected, found });
            }
            if t.dtype() != g.dtype {
                return Err(Error::DType { what, expected: g.dtype, found: t.dtype() });
            }
        }
        if k.shape()[0] != v.shape()[0] {
            let expected = format!("as many tokens as the keys, {}", k.shape()[0]);
            return Err(Error::Shape { what: "values", expected, found: v.shape() });
        }
        Ok(())
    }

    /// Attends with the last `queries` positions of a layer: `q` is `[queries, q_heads, dim_k]`,
    /// `out` `[queries, q_heads, dim_v]`, any dtypes. Query `i` sees the tokens up to its own.
    ///
    /// A single query reads what the sequence's selector picks; several queries at once (prefill,
    /// verification) and dense layers read every token they may see. The tokens of the queries
    /// themselves must have been appended.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Shape`], [`Error::Length`] if there are more queries than tokens,
    /// [`Error::Setting`] for impossible options; `out` is unchanged then.
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
        }
    }

    /// A fork with another selector: pages are shared, and so are summaries of the same kind; others
    /// are built anew from the pages.
    ///
    /// # Errors
    /// [`Error::Select`] for impossible settings, [`Error::OverBudget`] if the new summaries do not
    /// fit.
    pub fn fork_with(&self, select: &Select) -> Result<Sequence, Error> {
        let shared = &self.cache.shared;
        let selector = shared.stores.selector(select, &shared.geometry, &shared.budget)?;
        let spec = |s: &Selector| s.store.as_ref().map(|s| s.spec);
        let same = spec(&selector) == spec(&self.selector);
        let layer = |(from, &dense): (&Arc<Layer>, &bool)| -> Result<Arc<Layer>, Error> {
            if same || dense {
                return Ok(from.clone());
            }
            let summarised = selector.store.is_some();
            Ok(Arc::new(from.with_selector(shared, &selector, summarised)?))
        };
        let layers = self.layers.iter().zip(&shared.dense_layers).map(layer);
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Sequence { cache: self.cache.clone(), selector, layers })
    }

    /// Forgets the tokens from `len` on, in every layer that has more. Equal to having appended
    /// only the first `len`.
    ///
    /// # Errors
    /// [`Error::Length`] if a layer has fewer tokens, [`Error::OverBudget`] if something shared with
    /// a fork must be copied and does not fit. The sequence is unchanged then.
    pub fn truncate(&mut self, len: usize) -> Result<(), Error> {
        let shortest = self.layers.iter().enumerate().min_by_key(|(_, l)| l.len);
        if let Some((layer, state)) = shortest
            && state.len < len
        {
            let (what, found) = ("truncate", len);
            return Err(Error::Length { what, layer, len: state.len, found });
        }
        let (shared, selector) = (&self.cache.shared, &self.selector);
        // What the cuts need is taken first, so that nothing changes if it does not fit.
        let plan = |layer: &mut Arc<Layer>| match layer.len > len {
            true => Layer::plan_cut(layer, shared, selector, len).map(Some),
            false => Ok(None),
        };
        let cuts: Vec<Option<Cut>> = self.layers.iter_mut().map(plan).collect::<Result<_, _>>()?;
        for (layer, cut) in self.layers.iter_mut().zip(cuts) {
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
    /// slices have the wrong length.
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
        for (t, (k, v)) in k.chunks_mut(k_row).zip(v.chunks_mut(v_row)).enumerate() {
            let (page, offset) = ((from + t) / g.page_tokens, (from + t) % g.page_tokens);
            let rows = k.chunks_mut(g.dim_k).zip(v.chunks_mut(g.dim_v));
            for (head, (k, v)) in self.layers[layer].heads.iter().zip(rows) {
                let frame = head.ids()[page] as usize;
                // SAFETY: the token is below the layer's length, its page held by this sequence.
                unsafe {
                    convert::widen(g.dtype, pool.k_row(frame, 0, offset), k);
                    convert::widen(g.dtype, pool.v_row(frame, 0, offset), v);
                }
            }
        }
        Ok(())
    }

    /// Bytes this sequence uses, shared ones included.
    #[must_use]
    pub fn stats(&self) -> SequenceStats {
        let page_bytes = self.cache.shared.pages.cell_bytes() as u64;
        let cell_bytes = self.selector.store.as_ref().map_or(0, |s| s.arena.cell_bytes()) as u64;
        let mut stats = SequenceStats { tokens: self.len(), ..SequenceStats::default() };
        for layer in &self.layers {
            stats.overhead_bytes += layer.table_bytes();
            for head in &layer.heads {
                let (pages, cells) = head.counts();
                stats.page_bytes += pages as u64 * page_bytes;
                stats.summary_bytes += cells as u64 * cell_bytes;
                stats.overhead_bytes += (pages + cells) as u64 * CELL_OVERHEAD;
            }
        }
        stats
    }
}
