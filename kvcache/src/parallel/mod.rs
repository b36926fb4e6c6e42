//! A sequence whose tokens lie in several caches: one for each device, or for each bank of memory.
//!
//! KV-parallel attention (Mnemosyne, arXiv 2409.17264, "KV parallelism"): every part attends over its own
//! tokens, and the partial results `(o, lse)` are merged. Nothing but queries and partial results goes
//! between the parts, so that a context may be as long as all of them hold together, and a step reads at
//! the speed of all of them. The merge is in the order of the parts: same tokens, same bits.

mod attend;
mod stripes;
#[cfg(test)]
mod tests;

use std::ops::Range;

use kvist_kernels::Tensor3;

use stripes::Stripes;

use crate::{Cache, Error, Sequence};

/// One token stream over several caches. Positions are dealt out in stripes, in turns.
///
/// Each part selects for itself, by its cache's selector: with `n` parts and a budget of `b` tokens in
/// each, a query reads up to `n * b`.
#[derive(Debug)]
pub struct ParallelSequence {
    parts: Vec<Sequence>,
    stripes: Stripes,
    /// Tokens of each layer.
    lens: Vec<usize>,
}

impl ParallelSequence {
    /// An empty sequence over caches of one geometry; `stripe_tokens` is how many tokens in a row one part
    /// has: a multiple of the page. The longer, the fewer pieces a prompt is computed in; the shorter, the
    /// more evenly short contexts are spread.
    ///
    /// # Errors
    /// [`Error::Setting`] for no caches, other geometries, or stripes that are not whole pages.
    pub fn new(caches: &[&Cache], stripe_tokens: usize) -> Result<ParallelSequence, Error> {
        let Some(first) = caches.first() else {
            return Err(Error::setting("caches", "at least one", "none"));
        };
        let geometry = first.geometry();
        if let Some(other) = caches.iter().find(|cache| cache.geometry() != geometry) {
            let (expected, found) = (format!("all of {geometry:?}"), other.geometry());
            return Err(Error::setting("caches", expected, format!("{found:?}")));
        }
        let page = geometry.page_tokens;
        if stripe_tokens == 0 || !stripe_tokens.is_multiple_of(page) {
            let expected = format!("a multiple of the page, {page} tokens");
            return Err(Error::setting("stripe_tokens", expected, stripe_tokens));
        }
        let stripes = Stripes { parts: caches.len(), tokens: stripe_tokens };
        let lens = vec![0; geometry.layers];
        let parts = caches.iter().map(|cache| cache.sequence()).collect();
        Ok(ParallelSequence { parts, stripes, lens })
    }

    /// What each cache has of it.
    #[must_use]
    pub fn parts(&self) -> &[Sequence] {
        &self.parts
    }

    /// The part, by its number, that has a position.
    #[must_use]
    pub fn part_of(&self, position: usize) -> usize {
        self.stripes.part_of(position)
    }

    /// Tokens present in every layer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lens.iter().copied().min().unwrap_or(0)
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
        self.parts[0].cache().check_layer(layer)?;
        Ok(self.lens[layer])
    }

    /// Appends tokens to a layer, as [`Sequence::append`] does: `k` is `[tokens, kv_heads, dim_k]`, `v`
    /// `[tokens, kv_heads, dim_v]`.
    ///
    /// # Errors
    /// As [`Sequence::append`], of the part whose memory is too small, too. No part is changed then.
    pub fn append(&mut self, layer: usize, k: &Tensor3, v: &Tensor3) -> Result<(), Error> {
        let from = self.layer_len(layer)?;
        self.parts[0].cache().check_rows(k, v)?;
        let end = from + k.shape()[0];
        let pieces: Vec<Range<usize>> = self.stripes.cut(from..end).collect();
        // One piece arrives whole or not at all. Of several, what was there before is kept meanwhile.
        let keep = |part: &Sequence| part.layers[layer].clone();
        let before = (pieces.len() > 1).then(|| self.parts.iter().map(keep).collect::<Vec<_>>());
        for piece in pieces {
            let rows = piece.start - from..piece.end - from;
            let (k, v) = (k.rows(rows.start, rows.end), v.rows(rows.start, rows.end));
            let part = &mut self.parts[self.stripes.part_of(piece.start)];
            if let Err(error) = part.append(layer, &k, &v) {
                for (part, before) in self.parts.iter_mut().zip(before.into_iter().flatten()) {
                    part.layers[layer] = before;
                }
                return Err(error);
            }
        }
        self.lens[layer] = end;
        Ok(())
    }

    /// A sequence that shares all pages of this one; each goes its own way from here.
    #[must_use]
    pub fn fork(&self) -> ParallelSequence {
        let parts = self.parts.iter().map(Sequence::fork).collect();
        ParallelSequence { parts, stripes: self.stripes, lens: self.lens.clone() }
    }

    /// Forgets the tokens from `len` on, in every layer that has more.
    ///
    /// # Errors
    /// [`Error::Length`] if a layer has fewer tokens; else as [`Sequence::truncate`] of a fork: the pages that
    /// the cut goes through are copied. The sequence is unchanged then.
    pub fn truncate(&mut self, len: usize) -> Result<(), Error> {
        let shortest = self.lens.iter().copied().enumerate().min_by_key(|(_, len)| *len);
        if let Some((layer, has)) = shortest
            && has < len
        {
            return Err(Error::Length { what: "truncate", layer, len: has, found: len });
        }
        let mut shorter = self.fork();
        for (i, part) in shorter.parts.iter_mut().enumerate() {
            part.truncate(self.stripes.count(i, len))?;
        }
        shorter.lens.fill(len);
        *self = shorter;
        Ok(())
    }
}
