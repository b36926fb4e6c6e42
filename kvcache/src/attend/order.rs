//! Rows in the order of clusters: stored when a sequence with pages below first needs them.

use super::derive::Taken;
use super::{Call, Run};
use crate::Error;
use crate::index::{Index, Made};
use crate::live::{Clustered, Extent, Tier, TokenRows};

impl Call<'_> {
    /// Where rows in the order of clusters are, if the sequences of a run read from there.
    pub(super) fn clustered(&self, run: &Run) -> Option<&Clustered> {
        let tier = self.cache.shared.tier.as_ref().filter(|_| run.whole.is_empty());
        tier.and_then(Tier::clustered)
    }

    /// Stores the rows of the parts of a head's index, where nobody has tried to. `taken` has those of one
    /// of them.
    pub(super) fn order(
        &self,
        run: &Run,
        row: usize,
        head: usize,
        index: &Index,
        mut taken: Option<Taken>,
    ) -> Result<(), Error> {
        let Some(clustered) = self.clustered(run) else { return Ok(()) };
        let g = self.cache.geometry();
        for part in index.parts() {
            let Made::Clusters(clusters) = &part.made else { continue };
            if !part.ordered.is_untried() {
                continue;
            }
            let taken = match taken.take_if(|taken| taken.tokens == part.tokens) {
                Some(taken) => taken,
                None => self.take(run, row, head, part.tokens.clone(), true)?,
            };
            let row_bytes = [g.dim_k, g.dim_v].map(|dim| dim * g.dtype.size());
            let rows = TokenRows { k: &taken.k, v: &taken.v, row_bytes };
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
