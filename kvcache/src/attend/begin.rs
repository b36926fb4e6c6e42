//! The start of a call's reads: as soon as heads have chosen, while others still do.
//!
//! Heads form a few groups. The last of a group to choose pins what is near of the group's pages and
//! sends for the others, so that the tier below is never without work while summaries are scored.

use parking_lot::Mutex;

use super::paged::{Item, Stream};
use crate::Error;
use crate::live::{Lease, PageKey};

/// Groups of a call: the more, the sooner the first reads start, and the less is left to do after the
/// last page has arrived. Each has its own reads in flight, which cost some system calls.
const GROUPS: usize = 8;
/// Once a group misses so many pages, all later ones begin together: pages of several heads lie side by
/// side, and reading them in large pieces gains more than an early start.
const MANY: usize = 128;

/// Pages of some lists: those that are near are pinned, the first of the others on their way.
pub(super) struct Begun<'a> {
    /// By list, ascending.
    pub(super) near: Vec<Item>,
    /// Keeps what is near there.
    _held: Lease<'a>,
    /// By list, ascending.
    missing: Vec<Item>,
    /// Of what is missing.
    keys: Vec<PageKey>,
    /// Keeps those of them that were sent for.
    coming: Option<Lease<'a>>,
}

/// Pages that were sent for, and are pinned.
pub(super) struct Coming<'a> {
    /// By list, ascending.
    pub(super) items: Vec<Item>,
    /// Of the items.
    pub(super) keys: Vec<PageKey>,
    pub(super) lease: Option<Lease<'a>>,
}

impl<'a> Begun<'a> {
    /// Whether nothing is missing.
    pub(super) fn is_near(&self) -> bool {
        self.missing.is_empty()
    }

    /// Takes off what was not sent for.
    pub(super) fn split_rest(&mut self) -> impl Iterator<Item = (Item, PageKey)> + use<> {
        let started = self.coming.as_ref().map_or(0, Lease::len);
        let (items, keys) = (self.missing.split_off(started), self.keys.split_off(started));
        items.into_iter().zip(keys)
    }

    /// Lets go of what was near.
    pub(super) fn into_coming(self) -> Coming<'a> {
        Coming { items: self.missing, keys: self.keys, lease: self.coming }
    }
}

/// A list, which is sequence times KV heads plus head, and its pages, ascending.
type Listed = (usize, Vec<u32>);

/// The groups of a call.
pub(super) struct Groups<'a> {
    lists: usize,
    size: usize,
    chosen: Vec<Mutex<Vec<Listed>>>,
    begun: Mutex<Vec<Result<Begun<'a>, Error>>>,
}

impl<'a> Groups<'a> {
    /// Groups of so many lists.
    pub(super) fn new(lists: usize) -> Groups<'a> {
        let size = lists.div_ceil(GROUPS).max(1);
        let chosen = (0..lists.div_ceil(size)).map(|_| Mutex::default()).collect();
        Groups { lists, size, chosen, begun: Mutex::default() }
    }

    /// A list has chosen its pages. Groups of which all lists have begin, in their order, so that what
    /// leaves memory for their pages does not depend on threads.
    pub(super) fn chose(&self, stream: &Stream<'a>, list: usize, pages: &[u32]) {
        self.chosen[list / self.size].lock().push((list, pages.to_vec()));
        // Whoever begins others now, or who ends the call, comes to this one too.
        let Some(mut begun) = self.begun.try_lock() else { return };
        while !miss_many(&begun)
            && let Some(chosen) = self.complete(begun.len())
        {
            begun.push(stream.begin(chosen));
        }
    }

    /// What a group has chosen, if all of it has.
    fn complete(&self, group: usize) -> Option<Vec<Listed>> {
        let mut chosen = self.chosen.get(group)?.lock();
        let all = self.size.min(self.lists - group * self.size);
        (chosen.len() == all).then(|| std::mem::take(&mut *chosen))
    }

    /// What was begun, in the order of the lists; begins what was not.
    pub(super) fn begun(self, stream: &Stream<'a>) -> Result<Vec<Begun<'a>>, Error> {
        let mut begun = self.begun.into_inner();
        let mut rest = self.chosen.into_iter().skip(begun.len()).map(Mutex::into_inner);
        while let Some(mut chosen) = rest.next() {
            if miss_many(&begun) {
                chosen.extend(rest.by_ref().flatten());
            }
            begun.push(stream.begin(chosen));
        }
        begun.into_iter().collect()
    }
}

/// Whether the next groups are to begin together: a matter of what the earlier ones missed, not of time.
fn miss_many(begun: &[Result<Begun, Error>]) -> bool {
    begun.iter().flatten().any(|b| b.missing.len() >= MANY)
}

impl<'a> Stream<'a> {
    /// Pins what is near of these pages, and sends for the others unless all pages pass through.
    pub(super) fn begin(&self, mut lists: Vec<Listed>) -> Result<Begun<'a>, Error> {
        lists.sort_unstable_by_key(|(list, _)| *list);
        let heads = self.call.cache.geometry().kv_heads;
        let (mut near, mut sealed, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (list, pages) in lists {
            let (layer, head) = (self.layer_of(list as u32), list % heads);
            let ids = self.run.ids(self.call, list / heads, head);
            for page in pages {
                let item = Item { list: list as u32, page, frame: 0 };
                match layer.sealed.get(page as usize) {
                    Some(stripe) => {
                        keys.push(stripe.page(head));
                        sealed.push(item);
                    }
                    None => {
                        near.push(Item { frame: ids[page as usize - layer.sealed.len()], ..item });
                    }
                }
            }
        }
        let (held, frames) = self.tier.lease(&keys)?;
        let mut missing = (Vec::new(), Vec::new());
        for ((item, key), frame) in sealed.into_iter().zip(keys).zip(frames) {
            match frame {
                Some(frame) => near.push(Item { frame, ..item }),
                None => {
                    missing.0.push(item);
                    missing.1.push(key);
                }
            }
        }
        near.sort_unstable_by_key(|i| (i.list, i.page));
        let (missing, keys) = missing;
        let coming = (!self.scan && !keys.is_empty()).then(|| self.tier.start(&keys, false));
        Ok(Begun { near, _held: held, missing, keys, coming: coming.transpose()? })
    }
}
