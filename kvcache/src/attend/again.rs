//! Selections that are used again: at later steps, or in later layers.

use std::sync::Arc;

use kvist_policies::{Method, Parts, Reuse, Scope};

use super::head::{Choice, Origin, Work};
use super::{Call, Run, share};
use crate::memory::Last;
use crate::selector::Reads;

/// The earlier selection that this query may use, if there is one.
///
/// Its kept recent tokens begin where they did then: what left the window since was never a candidate, so
/// it is read.
pub(super) fn choose(work: &Work, parts: &Parts) -> Option<Choice> {
    let own = (work.call.layer, work.number);
    let owner = match parts.reuse {
        Reuse::Shared { .. } => share::owner(work).filter(|owner| *owner != own),
        _ => None,
    };
    let fits = |last: &Last| match &parts.reuse {
        Reuse::Never => false,
        Reuse::Cosine(theta) => cosine(&work.queries(parts.scope), &last.q) >= *theta,
        Reuse::Prompt => true,
        Reuse::Layers(_) => last.len == work.len,
        Reuse::Shared { steps, .. } => match owner {
            Some(_) => last.used == work.len,
            None => last.steps < *steps,
        },
    };
    let (from, origin) = match (&parts.reuse, owner) {
        (Reuse::Layers(anchors), _) => {
            let below = anchors.iter().rev().find(|&&a| a <= own.0);
            ((*below.filter(|&&a| a < own.0)?, own.1), Origin::Borrowed)
        }
        (_, Some(owner)) => (owner, Origin::Borrowed),
        _ => (own, Origin::Again),
    };
    let memory = work.sequence.memories.of(from.0);
    let last = memory.last.get(from.1)?.as_ref()?;
    if last.len > work.len || !fits(last) {
        return None;
    }
    let sinks = parts.keep.sinks.next_multiple_of(parts.unit_tokens()).min(last.from);
    let mut choice = Choice { origin, ..Choice::default() };
    choice.set(&[0..sinks, last.from..work.len], &last.chosen);
    Some(choice)
}

/// Cosine of two lists of queries; NaN where one is zero or not finite.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32
}

impl Work<'_> {
    /// The queries that share a selection.
    pub(super) fn queries(&self, scope: Scope) -> Vec<f32> {
        let g = self.call.cache.geometry();
        if scope == Scope::KvHead {
            return self.q.to_vec();
        }
        let mut rows = vec![0f32; g.q_heads * g.dim_k];
        for (head, row) in rows.chunks_mut(g.dim_k).enumerate() {
            self.all.read_f32(self.row_of_run, head, row);
        }
        rows
    }
}

impl Call<'_> {
    /// Notes what was selected at this step, for the sequences whose selectors may use it again.
    pub(super) fn remember(&self, run: &Run, choices: &[Choice]) {
        let heads = self.cache.geometry().kv_heads;
        for (sequence, choices) in run.sequences.iter().zip(choices.chunks(heads)) {
            let used = |reads: &Arc<Reads>| match &reads.method {
                Method::Parts(parts) => parts.reuse != Reuse::Never,
                Method::Boxed(boxed) => boxed.reuse.is_some(),
                Method::Full => false,
            };
            let reads = sequence.selector.layer(self.layer);
            if !reads.iter().any(used) {
                continue;
            }
            let shares = |reads: &Reads| match &reads.method {
                Method::Parts(parts) => matches!(parts.reuse, Reuse::Shared { .. }),
                Method::Full | Method::Boxed(_) => false,
            };
            let len = sequence.layers[self.layer].len;
            let mut memory = sequence.memories.of(self.layer);
            memory.last.resize(heads, None);
            // What is chosen for good goes by the prompt, which may be cut back to.
            let prompt = memory.observed.as_ref().map_or(len, |o| o.positions.end);
            let made = |reads: &Reads| match &reads.method {
                Method::Parts(parts) if parts.reuse == Reuse::Prompt => prompt,
                _ => len,
            };
            let each = memory.last.iter_mut().zip(choices).zip(reads);
            for ((last, choice), reads) in each.filter(|(_, reads)| used(reads)) {
                match (choice.origin, last) {
                    (Origin::Fresh, last) => {
                        let (q, from) = (choice.q.clone(), choice.from);
                        let chosen = choice.positions[choice.picked.clone()].to_vec();
                        let made = made(reads);
                        *last = Some(Last { q, chosen, from, len: made, steps: 1, used: len });
                    }
                    (Origin::Again, Some(last)) => (last.steps, last.used) = (last.steps + 1, len),
                    // It would be old by the time it is needed.
                    (Origin::Borrowed, last) if shares(reads) => *last = None,
                    (Origin::Again | Origin::Borrowed, _) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::cosine;

    #[test]
    fn cosines() {
        assert_eq!(cosine(&[1.0, 2.0], &[2.0, 4.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), 0.0);
        assert!(cosine(&[0.0], &[1.0]).is_nan() && cosine(&[f32::NAN], &[1.0]).is_nan());
    }
}
