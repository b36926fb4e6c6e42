//! Partial attention over some pages of a run, and the sum of the parts.

use kvist_kernels::attend::{self, Listed, Out, Params, Queries};
use kvist_kernels::{PageLists, SlotLists, Tensor3, Tensor3Mut};

use super::paged::{Item, Stream};
use super::{Call, sparse};
use crate::Error;

/// A partial result.
#[derive(Default)]
pub(super) struct Part {
    o: Vec<f32>,
    lse: Vec<f32>,
}

impl Stream<'_> {
    /// Attends to pages that are near and adds the result to the sum.
    pub(super) fn part(&mut self, items: &[Item]) -> Result<(), Error> {
        self.tally_pages(items);
        let (masked, plain): (Vec<Item>, Vec<Item>) = items.iter().partition(|i| self.is_masked(i));
        // The learned sink logits join once, with the first part.
        if !plain.is_empty() || (self.sum.is_none() && masked.is_empty()) {
            let part = self.plain(&plain)?;
            self.add(part)?;
        }
        if !masked.is_empty() {
            let part = self.masked(&masked)?;
            self.add(part)?;
        }
        Ok(())
    }

    /// Whether some query of the sequence may not see, or does not read, all of a page.
    fn is_masked(&self, item: &Item) -> bool {
        let heads = self.call.cache.geometry().kv_heads;
        let queries = self.run.stands(self.call, item.list as usize / heads);
        let (tokens, window) = (self.tokens_of(item), self.call.options.window);
        self.gathered(item.list).is_some()
            || tokens.end > queries.start + 1
            || (window > 0 && tokens.start.saturating_add(window) < queries.end)
    }

    pub(super) fn lists(&self) -> u32 {
        (self.run.sequences.len() * self.call.cache.geometry().kv_heads) as u32
    }

    /// Pages that every query of their sequence sees.
    fn plain(&mut self, items: &[Item]) -> Result<Part, Error> {
        let frames: Vec<u32> = items.iter().map(|i| i.frame).collect();
        let (mut indptr, mut lens, mut at) = (vec![0], Vec::new(), 0);
        for list in 0..self.lists() {
            let n = items[at..].iter().take_while(|i| i.list == list).count();
            lens.push(items[at..at + n].iter().map(|i| self.tokens_of(i).len() as u32).sum());
            at += n;
            indptr.push(at as u32);
        }
        let (indptr, frames, lens) = (&indptr[..], &frames[..], &lens[..]);
        let lists = PageLists { indptr, frames, lens, first_pos: None, per_head: true };
        let pool = self.call.cache.pool()?;
        self.kernel(self.call.params, |queries, params, out| {
            self.call.kernel(queries, Listed::Pages(&pool, &lists), params, out)
        })
    }

    /// Tokens of pages that some query sees only in part.
    fn masked(&mut self, items: &[Item]) -> Result<Part, Error> {
        let page = self.call.cache.geometry().page_tokens as u32;
        let (mut indptr, mut slots, mut positions, mut at) = (vec![0], Vec::new(), Vec::new(), 0);
        for list in 0..self.lists() {
            for item in items[at..].iter().take_while(|i| i.list == list) {
                let tokens = self.tokens_read(item);
                slots.extend(tokens.iter().map(|t| item.frame * page + t % page));
                positions.extend(tokens);
                at += 1;
            }
            indptr.push(slots.len() as u32);
        }
        let (indptr, slots, positions) = (&indptr[..], &slots[..], Some(&positions[..]));
        let lists = SlotLists { indptr, slots, positions, per_head: true };
        let pool = self.call.cache.pool()?;
        self.kernel(self.call.params(), |queries, params, out| {
            self.call.kernel(queries, Listed::Slots(&pool, &lists), params, out)
        })
    }

    pub(super) fn kernel(
        &mut self,
        params: Params,
        run: impl FnOnce(&Queries, &Params, &mut Out) -> Result<(), Error>,
    ) -> Result<Part, Error> {
        let (indptr, positions) = self.call.rows(self.run);
        let queries = Queries { q: *self.q, indptr: &indptr, positions: Some(&positions) };
        let mut params = params;
        if self.sum.is_some() {
            params.sinks = None;
        }
        let mut part = self
            .spare
            .iter_mut()
            .find(|p| !p.o.is_empty())
            .map_or_else(Part::default, std::mem::take);
        let mut out = part.out(self.call, self.q)?;
        run(&queries, &params, &mut out)?;
        Ok(part)
    }

    pub(super) fn add(&mut self, part: Part) -> Result<(), Error> {
        let Some(sum) = self.sum.take() else {
            self.sum = Some(part);
            return Ok(());
        };
        let mut merged = self
            .spare
            .iter_mut()
            .find(|p| !p.o.is_empty())
            .map_or_else(Part::default, std::mem::take);
        let mut out = merged.out(self.call, self.q)?;
        let shape = out.o.shape();
        let views = [
            (Tensor3::contiguous(&sum.o, shape)?, &sum.lse[..]),
            (Tensor3::contiguous(&part.o, shape)?, &part.lse[..]),
        ];
        attend::merge(&views, &mut out)?;
        self.sum = Some(merged);
        self.spare = [sum, part];
        Ok(())
    }

    /// Writes the result; the log-sum-exps of what was read.
    pub(super) fn finish(&mut self, out: &mut Tensor3Mut) -> Result<Vec<f32>, Error> {
        let Part { o, lse } = self.sum.take().unwrap_or_default();
        let shape = out.shape();
        let g = self.call.cache.geometry();
        let estimates = || self.gathered.iter().map(|g| g.as_ref()?.estimate.as_ref());
        let mut views = vec![(Tensor3::contiguous(&o, shape)?, &lse[..])];
        let (rest, rest_lse);
        if estimates().any(|estimate| estimate.is_some()) {
            (rest, rest_lse) = sparse::estimates(estimates(), g.group(), g.dim_v);
            views.push((Tensor3::contiguous(&rest, shape)?, &rest_lse[..]));
        }
        attend::merge(&views, &mut Out { o: out.rows_mut(0, shape[0]), lse2: None })?;
        Ok(lse)
    }
}

impl Part {
    /// Room for the rows of a call.
    fn out(&mut self, call: &Call, q: &Tensor3) -> Result<Out<'_>, Error> {
        let shape = [q.shape()[0], q.shape()[1], call.cache.geometry().dim_v];
        self.o.resize(shape.iter().product(), 0.0);
        self.lse.resize(shape[0] * shape[1], 0.0);
        let o = Tensor3Mut::contiguous(&mut self.o, shape)?;
        Ok(Out { o, lse2: Some(&mut self.lse) })
    }
}
