//! After a sparse step: which pages to send for before the next layer and the next step ask.

use kvist_policies::prefetch::{self, Recent};

use super::pages::Pages;
use super::{Call, Run};
use crate::Sequence;
use crate::live::{PageKey, Tier};

impl Call<'_> {
    /// Notes what each sequence read, and sends for what the next layer and then this one will want.
    pub(super) fn predict(&self, run: &Run, tier: &Tier, choices: Vec<Pages>) {
        let heads = self.cache.geometry().kv_heads;
        let mut choices = choices.into_iter();
        for sequence in run.sequences {
            let recent = |c: Pages| Recent { selected: c.chosen, runners: c.runners };
            let recent: Vec<Recent> = choices.by_ref().take(heads).map(recent).collect();
            if !tier.options().prefetch {
                continue;
            }
            let next = (self.layer + 1) % sequence.layers.len();
            let soon = sequence.memories.of(next).recent.clone();
            send(sequence, tier, next, &soon, true);
            send(sequence, tier, self.layer, &recent, false);
            sequence.memories.of(self.layer).recent = recent;
        }
    }
}

fn send(sequence: &Sequence, tier: &Tier, layer: usize, recent: &[Recent], again: bool) {
    let sealed = &sequence.layers[layer].sealed;
    let (most, guesses) = tier.ahead();
    if recent.is_empty() || most == 0 {
        return;
    }
    let key = |head: usize, page: u32| Some(sealed.get(page as usize)?.page(head));
    let plan = tier.with_near(|is_near| {
        // Open pages are near, and those that were cut off are not wanted.
        let near = |head: usize, page: u32| key(head, page).is_none_or(&mut *is_near);
        prefetch::plan(recent, again, guesses, most, near)
    });
    let keys: Vec<PageKey> = plan.into_iter().filter_map(|(head, page)| key(head, page)).collect();
    if !keys.is_empty() {
        tier.prefetch(&keys);
    }
}
