//! Hints: pages brought near by a predicted query, before the query itself is there.
//!
//! Source: InfiniGen (Lee et al., OSDI 2024) predicts the queries of the next layer from the hidden states of
//! this one and fetches what they would read. Here a prediction never decides what is read.

use std::sync::Arc;

use kvist_kernels::Tensor3;
use kvist_policies::prefetch::{self, Recent};
use kvist_policies::{Digest, Method};

use super::gathered::Gathered;
use super::pages::{self, Pages};
use super::sparse::{each_head, votes};
use super::{AttendOptions, Call, Run};
use crate::live::{Clustered, PageKey, Tier};
use crate::selector::Reads;
use crate::{Cache, Error, Sequence};

impl Sequence {
    /// Tells what a layer will probably be asked next, `q` `[1, q_heads, dim_k]`, any dtype: for instance
    /// this layer's hidden state through the next layer's query projection. Pages that the selector would
    /// read for it, by their summaries, and that are not near are sent for, and arrive while other things
    /// are done; how many were sent for.
    ///
    /// Nothing waits, and nothing of a lower tier is touched to choose. What the real query reads is chosen
    /// from that query alone: a hint changes when pages come, and results only as far as
    /// [`Sequence::attend`] says of pages that are near. At most a quarter of the frames is filled by reads
    /// ahead at a time. Nothing happens without a lower tier, for layers that attend densely, for sequences
    /// that are read whole, and for selectors that go by scores if `options` have none.
    ///
    /// `options` are those of the call to come; only its scale, cap, window and scores count.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Shape`], [`Error::Setting`] and [`Error::Count`] as [`Sequence::attend`].
    pub fn hint(&self, layer: usize, q: &Tensor3, options: &AttendOptions) -> Result<usize, Error> {
        self.cache.hint_batch(layer, q, &[self], options)
    }
}

impl Cache {
    /// [`Sequence::hint`] for several sequences, a query each: `q` is `[sequences, q_heads, dim_k]`.
    ///
    /// # Errors
    /// As there, and [`Error::ForeignSequence`] if a sequence belongs to another cache.
    pub fn hint_batch(
        &self,
        layer: usize,
        q: &Tensor3,
        sequences: &[&Sequence],
        options: &AttendOptions,
    ) -> Result<usize, Error> {
        let options = AttendOptions { bound: false, selected: false, ..*options };
        let call = self.check_call(layer, q, sequences, &vec![1; sequences.len()], &options)?;
        let Some(tier) = &self.shared.tier else { return Ok(0) };
        tier.poll();
        let mut sent = 0;
        for (row, sequence) in sequences.iter().enumerate().filter(|(_, s)| call.chooses(s)) {
            let rows = row..row + 1;
            let sequences = &[*sequence];
            let run = Run { sequences, queries: &[1], rows, depths: None, whole: &[] };
            sent += call.hint(&run, tier, &q.rows(row, row + 1))?;
        }
        Ok(sent)
    }
}

impl Call<'_> {
    /// Whether the sequence's selector can say what a query of this call would read.
    fn chooses(&self, sequence: &Sequence) -> bool {
        let derived = !sequence.memories.of(self.layer).index.is_empty();
        let can = |reads: &Arc<Reads>| match &reads.method {
            Method::Parts(parts) => match parts.digest {
                Digest::Given { .. } => self.options.scores.is_some(),
                // Nothing is derived for a mere guess.
                _ => derived || !parts.derives(),
            },
            Method::Full | Method::Boxed(_) => true,
        };
        let reads = sequence.selector.layer(self.layer);
        self.selects(sequence, 1) && reads.iter().all(can)
    }

    /// Sends for what the query of a run, which is of one sequence, would read.
    fn hint(&self, run: &Run, tier: &Tier, q: &Tensor3) -> Result<usize, Error> {
        let votes = votes(self, run, q)?;
        let chosen = each_head(self, run, q, |_, work, method| {
            pages::choose(work, method, votes[0].as_ref())
        })?;
        let recent = |pages: &Pages| Recent { selected: pages.chosen.clone(), runners: Vec::new() };
        let wanted: Vec<Recent> = chosen.iter().map(recent).collect();
        let sealed = &run.sequences[0].layers[self.layer].sealed;
        let key = |head: usize, page: u32| Some(sealed.get(page as usize)?.page(head));
        let most = tier.hints();
        let plan = tier.with_near(|is_near| {
            // Open pages are near.
            let near = |head: usize, page: u32| key(head, page).is_none_or(&mut *is_near);
            prefetch::plan(&wanted, true, 0, most, near)
        });
        let keys: Vec<PageKey> =
            plan.into_iter().filter_map(|(head, page)| key(head, page)).collect();
        let sent = if keys.is_empty() { 0 } else { tier.hint(&keys) };
        Ok(sent + self.clustered(run).map_or(0, |clustered| hint_at_clusters(clustered, &chosen)))
    }
}

/// Sends for pages of clusters.
fn hint_at_clusters(clustered: &Clustered, chosen: &[Pages]) -> usize {
    let tier = clustered.tier();
    tier.poll();
    let all: Vec<PageKey> = chosen
        .iter()
        .filter_map(|pages| pages.gathered.as_ref())
        .flat_map(Gathered::keys)
        .collect();
    let near = tier.near(&all);
    let far = all.into_iter().zip(near).filter(|(_, near)| !near).map(|(key, _)| key);
    let keys: Vec<PageKey> = far.take(tier.hints()).collect();
    if keys.is_empty() { 0 } else { tier.hint(&keys) }
}
