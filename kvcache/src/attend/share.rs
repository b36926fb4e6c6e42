//! Selections that other heads and layers read (HShare): who chooses first, and who reads whose choice.

use std::sync::Arc;

use kvist_kernels::Tensor3;
use kvist_policies::share::Sharing;
use kvist_policies::{Method, Parts, Reuse};

use super::compose;
use super::head::{Choice, Origin, Work};
use super::sparse::{choose, each_head};
use super::{Call, Run};
use crate::memory::{Last, Paired};
use crate::selector::Reads;
use crate::{Error, Sequence};

/// Choices of the heads that others of their layer follow.
pub(super) struct Led {
    heads: usize,
    /// By sequence; none where nothing is shared.
    paired: Vec<Option<Arc<Paired>>>,
    /// By sequence and head; empty where no head follows another.
    choices: Vec<Option<Choice>>,
}

/// Who selects for this head, once that is found.
pub(super) fn owner(work: &Work) -> Option<(usize, usize)> {
    let paired = work.sequence.memories.paired();
    Some(paired.as_ref()?.sharing.owner(work.call.layer, work.number))
}

/// Finds out who shares with whom, where that is due, and lets those choose whom others of this layer follow.
pub(super) fn lead(call: &Call, run: &Run, q: &Tensor3) -> Result<Led, Error> {
    let heads = call.cache.geometry().kv_heads;
    let paired: Vec<_> = run.sequences.iter().map(|s| paired(call, s)).collect();
    let mut led = Led { heads, paired, choices: Vec::new() };
    let leads = |i: usize| (0..heads).any(|h| h != i % heads && led.leader(call, i, h) == Some(i));
    let leads: Vec<bool> = (0..run.sequences.len() * heads).map(leads).collect();
    if leads.contains(&true) {
        led.choices = each_head(call, run, q, |i, work, method| match leads[i] {
            true => choose(work, method, None).map(Some),
            false => Ok(None),
        })?;
    }
    Ok(led)
}

impl Led {
    /// Whom a head of the sequence that list `i` belongs to follows, if it is one of its layer.
    fn leader(&self, call: &Call, i: usize, head: usize) -> Option<usize> {
        let row = i / self.heads;
        let (layer, of) = self.paired[row].as_ref()?.sharing.owner(call.layer, head);
        (layer == call.layer).then_some(row * self.heads + of)
    }

    /// The choice of list `i`, if it was made already: by itself, or by whom it follows.
    pub(super) fn choice(
        &self,
        i: usize,
        work: &Work,
        method: &Method,
    ) -> Result<Option<Choice>, Error> {
        if let Some(own) = self.choices.get(i).and_then(Option::as_ref) {
            return Ok(Some(own.clone()));
        }
        let leader = self.leader(work.call, i, work.number);
        let theirs = leader.and_then(|i| self.choices.get(i)?.as_ref());
        let (Some(theirs), Method::Parts(parts)) = (theirs, method) else { return Ok(None) };
        let Choice { positions, picked, from, .. } = theirs.clone();
        let bound = compose::prove(work, parts, &positions)?;
        let mut choice = Choice {
            positions,
            picked,
            from,
            bound,
            origin: Origin::Borrowed,
            ..Choice::default()
        };
        choice.bytes.kv = choice.positions.len() as u64 * work.token_bytes();
        Ok(Some(choice))
    }
}

/// Whose selections the heads of a sequence read. Found when the second step begins, from what all heads
/// that select at all selected at the first.
fn paired(call: &Call, sequence: &Sequence) -> Option<Arc<Paired>> {
    let shared = |reads: &Arc<Reads>| match &reads.method {
        Method::Parts(Parts { reuse: Reuse::Shared { heads, layers, .. }, .. }) => {
            Some((*heads, *layers))
        }
        Method::Full | Method::Boxed(_) | Method::Parts(_) => None,
    };
    let (heads, layers) = sequence.selector.layer(call.layer).iter().find_map(shared)?;
    let mut paired = sequence.memories.paired();
    if paired.is_none() {
        let first = sequence.memories.of(call.layer).last.first()?.as_ref()?.len;
        if first == sequence.layers[call.layer].len {
            return None;
        }
        let chosen = |layer: usize| -> Vec<Vec<u32>> {
            let memory = sequence.memories.of(layer);
            let at_first = |last: &Option<Last>| {
                last.as_ref().filter(|last| last.len == first).map(|last| last.chosen.clone())
            };
            memory.last.iter().map(at_first).collect::<Option<_>>().unwrap_or_default()
        };
        let sets: Vec<Vec<Vec<u32>>> = (0..sequence.layers.len()).map(chosen).collect();
        let sets: Vec<Vec<&[u32]>> =
            sets.iter().map(|heads| heads.iter().map(Vec::as_slice).collect()).collect();
        let sharing = Sharing::found(&sets, heads, layers);
        *paired = Some(Arc::new(Paired { sharing, len: first }));
    }
    paired.clone()
}
