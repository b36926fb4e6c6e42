//! Rows in the order of clusters: stored or copied when a sequence first needs them.

use super::derive::Taken;
use super::head::{Choice, Members};
use super::{Call, Run};
use crate::Error;
use crate::index::{Index, Made, Part};
use crate::live::{Clustered, Copies, Extent, Tier, TokenRows};

/// Where a query group that picked clusters reads.
pub(super) struct Sources<T> {
    /// Clusters whose rows lie together, ascending, and where they do, by part.
    pub(super) clusters: Vec<(T, Vec<Members>)>,
    /// Positions that are read from pages, ascending.
    pub(super) paged: Vec<u32>,
}

impl<T> Sources<T> {
    /// `rows` are those of a part that lie together.
    pub(super) fn of<'a>(
        choice: &Choice,
        index: &'a Index,
        rows: impl Fn(&'a Part) -> Option<T>,
    ) -> Sources<T> {
        if choice.clusters.is_empty() {
            return Sources { clusters: Vec::new(), paged: choice.positions.clone() };
        }
        let mut clusters = Vec::new();
        let (before, behind) =
            (&choice.positions[..choice.picked.start], &choice.positions[choice.picked.end..]);
        let mut paged = before.to_vec();
        for part in index.parts() {
            let Made::Clusters(of) = &part.made else { continue };
            let first = part.tokens.start;
            paged.extend(part.open.iter().filter(|&&t| (t as usize) < choice.from));
            let mut picked: Vec<Members> =
                choice.clusters.iter().copied().filter(|m| m.first == first).collect();
            picked.sort_unstable_by_key(|m| m.cluster);
            let Some(rows) = rows(part) else {
                let tokens = picked.iter().flat_map(|m| &of.members(m.cluster)[..m.tokens]);
                paged.extend(tokens.map(|t| t + first as u32));
                continue;
            };
            clusters.push((rows, picked));
        }
        paged[before.len()..].sort_unstable();
        paged.extend(behind);
        Sources { clusters, paged }
    }
}

impl Call<'_> {
    /// Where rows in the order of clusters are, if the sequences of a run read from there.
    pub(super) fn clustered(&self, run: &Run) -> Option<&Clustered> {
        let tier = self.cache.shared.tier.as_ref().filter(|_| run.whole.is_empty());
        tier.and_then(Tier::clustered)
    }

    /// Copies of rows in the order of clusters, where a cache has them.
    pub(super) fn copies(&self) -> Option<&Copies> {
        self.cache.shared.copies.as_ref()
    }

    /// Whether the rows of clusters are to lie together.
    pub(super) fn orders(&self, run: &Run) -> bool {
        self.clustered(run).is_some() || self.copies().is_some()
    }

    /// Stores or copies the rows of the parts of a head's index, where nobody has tried to. `taken` has those
    /// of one of them.
    pub(super) fn order(
        &self,
        run: &Run,
        row: usize,
        head: usize,
        index: &Index,
        mut taken: Option<Taken>,
    ) -> Result<(), Error> {
        if !self.orders(run) {
            return Ok(());
        }
        let g = self.cache.geometry();
        for part in index.parts() {
            let Made::Clusters(clusters) = &part.made else { continue };
            let untried = match self.copies() {
                Some(_) => part.copied.is_untried(),
                None => part.ordered.is_untried(),
            };
            if !untried {
                continue;
            }
            let taken = match taken.take_if(|taken| taken.tokens == part.tokens) {
                Some(taken) => taken,
                None => self.take(run, row, head, part.tokens.clone(), true)?,
            };
            let row_bytes = [g.dim_k, g.dim_v].map(|dim| dim * g.dtype.size());
            let rows = TokenRows { k: &taken.k, v: &taken.v, row_bytes };
            if let Some(copies) = self.copies() {
                copies.add(&part.copied, clusters, &rows);
                continue;
            }
            let Some(clustered) = self.clustered(run) else { continue };
            let at = (self.layer, part.tokens.start / g.page_tokens);
            let room = |take: &mut dyn FnMut() -> Result<(), Error>| self.cache.with_room(take);
            let stored = Extent::store(clustered, at, clusters, &rows, room)?;
            if let Err(reason) = &stored {
                let layer = self.layer;
                tracing::warn!(layer, head, "clusters will be read from pages: {reason}");
            }
            part.ordered.set(stored);
        }
        Ok(())
    }

    /// Gives up what cannot be read back any more; whether there was such.
    pub(super) fn give_up_lost(&self, run: &Run) -> bool {
        let Some(clustered) = self.clustered(run) else { return false };
        let mut any = false;
        for sequence in run.sequences {
            let index = sequence.memories.of(self.layer).index.clone();
            for part in index.iter().flat_map(Index::parts) {
                any |= part.ordered.give_up_lost(clustered);
            }
        }
        any
    }
}
