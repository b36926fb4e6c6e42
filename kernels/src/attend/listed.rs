//! A pool and lists of its tokens.

use super::source::Source;
use super::{Out, Params, Queries, check_out, check_queries, pool_heads};
use crate::{Error, KvPool, PageLists, SlotLists};

/// Keys and values of some tokens of every sequence.
#[derive(Clone, Copy, Debug)]
pub enum Listed<'a> {
    /// Whole pages, all full but the last.
    Pages(&'a KvPool<'a>, &'a PageLists<'a>),
    /// Single tokens, such as the sparse view that a draft was made with.
    Slots(&'a KvPool<'a>, &'a SlotLists<'a>),
}

impl<'a> Listed<'a> {
    /// The pool and where its tokens are listed.
    pub(crate) fn source(&self) -> (&'a KvPool<'a>, Source<'a>) {
        match *self {
            Listed::Pages(pool, lists) => (pool, Source::Pages(lists)),
            Listed::Slots(pool, lists) => (pool, Source::Slots(lists)),
        }
    }

    /// Checks queries, lists and output; returns the number of KV heads.
    pub(crate) fn check_for(
        &self,
        queries: &Queries,
        params: &Params,
        out: &Out,
    ) -> Result<usize, Error> {
        let heads = self.check(queries, params)?;
        check_out(queries, self.source().0, out)?;
        Ok(heads)
    }

    /// Checks queries and lists; returns the number of KV heads.
    pub(crate) fn check(&self, queries: &Queries, params: &Params) -> Result<usize, Error> {
        let (pool, source) = self.source();
        let sequences = check_queries(queries, pool, params)?;
        let heads = pool_heads(queries, pool, source.per_head(), sequences, source.lists())?;
        self.check_lists(sequences, heads)?;
        let unplaced = matches!(self, Listed::Slots(_, lists) if lists.positions.is_none());
        if unplaced && (params.causal || params.window > 0) {
            return Err(Error::shape("slot positions", "one per slot for a mask", "none"));
        }
        Ok(heads)
    }

    /// Checks the lists against their pool.
    pub(crate) fn check_lists(&self, sequences: usize, kv_heads: usize) -> Result<(), Error> {
        match self {
            Listed::Pages(pool, lists) => lists.check(pool, sequences, kv_heads),
            Listed::Slots(pool, lists) => lists.check(pool, sequences, kv_heads),
        }
    }
}
