//! What a call reads, page by page, and its lists cut by where pages are.

use std::collections::HashMap;

use kvist_kernels::attend::{Listed, Params, Queries};
use kvist_kernels::{KvPool, PageLists, SlotLists};

/// A page of the host tier that a call reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// Its frame in the host tier.
    pub(super) host: u32,
    /// Tokens of it that must be there: its first ones.
    pub(super) end: u32,
    /// Tokens of it that are read.
    pub(super) tokens: u32,
}

/// Where a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In this frame of the GPU, and all of it is there.
    Here(u32),
    /// In this frame of the GPU, once copies are done.
    Coming(u32),
    /// In the host tier.
    Away,
}

/// Pages that are read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// What is on the GPU at first.
    Here,
    /// What is copied there meanwhile.
    Coming,
    /// Both.
    Device,
    /// What stays in the host tier.
    Away,
}

impl Part {
    /// The frame in which this part reads a page.
    fn frame(self, host: u32, place: Place) -> Option<u32> {
        match (self, place) {
            (Part::Here | Part::Device, Place::Here(frame)) => Some(frame),
            (Part::Coming | Part::Device, Place::Coming(frame)) => Some(frame),
            (Part::Away, Place::Away) => Some(host),
            _ => None,
        }
    }
}

/// Places by frame of the host tier.
pub(super) type Places = HashMap<u32, Place>;

/// Each page of the lists once, by its frame.
pub(super) fn wanted(listed: &Listed, page: u32) -> Vec<Want> {
    let mut all: HashMap<u32, (u32, u32)> = HashMap::new();
    let mut add = |host: u32, end: u32, tokens: u32| {
        let of = all.entry(host).or_default();
        *of = (of.0.max(end), (of.1 + tokens).min(page));
    };
    match listed {
        Listed::Pages(_, lists) => {
            for (i, frames) in each_list(lists.indptr, lists.frames).enumerate() {
                for (host, tokens) in pages_of(frames, lists.lens[i], page) {
                    add(host, tokens, tokens);
                }
            }
        }
        Listed::Slots(_, lists) => {
            lists.slots.iter().for_each(|slot| add(slot / page, slot % page + 1, 1));
        }
    }
    let want = |(host, (end, tokens))| Want { host, end, tokens };
    let mut wanted: Vec<Want> = all.into_iter().map(want).collect();
    wanted.sort_unstable_by_key(|want| want.host);
    wanted
}

fn each_list<'a>(indptr: &'a [u32], items: &'a [u32]) -> impl Iterator<Item = &'a [u32]> {
    indptr.windows(2).map(|w| &items[w[0] as usize..w[1] as usize])
}

/// Pages of a list of so many tokens, and the tokens of each.
fn pages_of(frames: &[u32], len: u32, page: u32) -> impl Iterator<Item = (u32, u32)> {
    let first = (0u32..).step_by(page as usize);
    frames.iter().zip(first).map(move |(&frame, first)| (frame, (len - first).min(page)))
}

/// Whether every query sees all that is listed for it.
pub(super) fn sees_all(queries: &Queries, listed: &Listed, params: &Params) -> bool {
    if params.window > 0 {
        return false;
    }
    let (Listed::Pages(_, lists), true) = (listed, params.causal) else { return !params.causal };
    let Some(positions) = queries.positions else { return false };
    let sequences = queries.indptr.len() - 1;
    let per_sequence = lists.lens.len() / sequences.max(1);
    (0..sequences).all(|s| {
        let rows = queries.indptr[s] as usize..queries.indptr[s + 1] as usize;
        let Some(lowest) = positions[rows].iter().min() else { return true };
        let mut own = s * per_sequence..(s + 1) * per_sequence;
        let end = |i: usize| lists.first_pos.map_or(0, |first| first[i]) + lists.lens[i];
        own.all(|i| end(i) <= lowest + 1)
    })
}

/// Lists of some of a call's pages or slots.
#[derive(Debug, Default)]
pub(super) struct Lists {
    indptr: Vec<u32>,
    items: Vec<u32>,
    lens: Vec<u32>,
    first: Option<Vec<u32>>,
    positions: Option<Vec<u32>>,
    per_head: bool,
    pages: bool,
}

/// Lists as kernels take them.
pub(super) enum View<'a> {
    Pages(PageLists<'a>),
    Slots(SlotLists<'a>),
}

impl Lists {
    /// What a part reads. Pages of a part of the lists have no positions any more.
    pub(super) fn new(listed: &Listed, places: &Places, part: Part, page: u32) -> Lists {
        let mut own = Lists { indptr: vec![0], ..Lists::default() };
        let place = |host: u32| places.get(&host).copied().unwrap_or(Place::Away);
        match listed {
            Listed::Pages(_, lists) => {
                (own.pages, own.per_head) = (true, lists.per_head);
                for (i, frames) in each_list(lists.indptr, lists.frames).enumerate() {
                    let mut len = 0;
                    for (host, tokens) in pages_of(frames, lists.lens[i], page) {
                        if let Some(frame) = part.frame(host, place(host)) {
                            own.items.push(frame);
                            len += tokens;
                        }
                    }
                    own.lens.push(len);
                    own.indptr.push(own.items.len() as u32);
                }
                let whole = own.lens == lists.lens;
                own.first = lists.first_pos.filter(|_| whole).map(<[u32]>::to_vec);
            }
            Listed::Slots(_, lists) => {
                own.per_head = lists.per_head;
                let mut positions = Vec::new();
                for range in lists.indptr.windows(2) {
                    for i in range[0] as usize..range[1] as usize {
                        let slot = lists.slots[i];
                        if let Some(frame) = part.frame(slot / page, place(slot / page)) {
                            own.items.push(frame * page + slot % page);
                            positions.extend(lists.positions.map(|p| p[i]));
                        }
                    }
                    own.indptr.push(own.items.len() as u32);
                }
                own.positions = lists.positions.map(|_| positions);
            }
        }
        own
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn view(&self) -> View<'_> {
        let (indptr, per_head) = (&self.indptr[..], self.per_head);
        match self.pages {
            true => View::Pages(PageLists {
                indptr,
                frames: &self.items,
                lens: &self.lens,
                first_pos: self.first.as_deref(),
                per_head,
            }),
            false => View::Slots(SlotLists {
                indptr,
                slots: &self.items,
                positions: self.positions.as_deref(),
                per_head,
            }),
        }
    }
}

impl<'a> View<'a> {
    pub(super) fn over(&'a self, pool: &'a KvPool<'a>) -> Listed<'a> {
        match self {
            View::Pages(lists) => Listed::Pages(pool, lists),
            View::Slots(lists) => Listed::Slots(pool, lists),
        }
    }
}

#[cfg(test)]
mod tests {
    use kvist_kernels::{DType, KvLayout, Tensor3};

    use super::*;

    fn pool() -> KvPool<'static> {
        let (layout, none) = (KvLayout::page(16, 16, 16), std::ptr::dangling::<u64>().cast());
        // SAFETY: nothing is read.
        unsafe { KvPool::from_raw(none, none, DType::F32, layout, 100) }.unwrap()
    }

    #[test]
    fn pages_of_lists_are_cut_by_place() {
        let pool = pool();
        let lists = PageLists {
            indptr: &[0, 3, 5],
            frames: &[7, 8, 9, 7, 4],
            lens: &[40, 20],
            first_pos: Some(&[0, 0]),
            per_head: true,
        };
        let listed = Listed::Pages(&pool, &lists);
        let want = |host, end, tokens| Want { host, end, tokens };
        let all = [want(4, 4, 4), want(7, 16, 16), want(8, 16, 16), want(9, 8, 8)];
        assert_eq!(wanted(&listed, 16), all);
        let places = Places::from([(7, Place::Here(1)), (9, Place::Coming(0)), (8, Place::Away)]);
        let part = |part| {
            let lists = Lists::new(&listed, &places, part, 16);
            (lists.indptr, lists.items, lists.lens, lists.first.is_some())
        };
        assert_eq!(part(Part::Here), (vec![0, 1, 2], vec![1, 1], vec![16, 16], false));
        assert_eq!(part(Part::Coming), (vec![0, 1, 1], vec![0], vec![8, 0], false));
        assert_eq!(part(Part::Device), (vec![0, 2, 3], vec![1, 0, 1], vec![24, 16], false));
        assert_eq!(part(Part::Away), (vec![0, 1, 2], vec![8, 4], vec![16, 4], false));
        let places = Places::from([7, 8, 9, 4].map(|h| (h, Place::Here(h))));
        let lists = Lists::new(&listed, &places, Part::Device, 16);
        assert_eq!(lists.first, Some(vec![0, 0]), "whole lists keep their positions");
    }

    #[test]
    fn slots_keep_their_positions() {
        let pool = pool();
        let (slots, positions) = ([17, 18, 40, 16], [1, 2, 8, 0]);
        let lists = SlotLists {
            indptr: &[0, 3, 4],
            slots: &slots,
            positions: Some(&positions),
            per_head: true,
        };
        let listed = Listed::Slots(&pool, &lists);
        let want = |host, end, tokens| Want { host, end, tokens };
        assert_eq!(wanted(&listed, 16), [want(1, 3, 3), want(2, 9, 1)]);
        let places = Places::from([(1, Place::Here(5))]);
        let lists = Lists::new(&listed, &places, Part::Here, 16);
        assert_eq!((lists.indptr, lists.items), (vec![0, 2, 3], vec![81, 82, 80]));
        assert_eq!(lists.positions, Some(vec![1, 2, 0]));
        let lists = Lists::new(&listed, &places, Part::Away, 16);
        assert_eq!(
            (lists.indptr, lists.items, lists.positions),
            (vec![0, 1, 1], vec![40], Some(vec![8]))
        );
    }

    #[test]
    fn who_sees_all() {
        let pool = pool();
        let q = [0f32; 64];
        let q = Tensor3::contiguous(&q, [2, 2, 16]).unwrap();
        let lists = PageLists {
            indptr: &[0, 1, 2],
            frames: &[1, 2],
            lens: &[10, 10],
            first_pos: Some(&[6, 6]),
            per_head: true,
        };
        let listed = Listed::Pages(&pool, &lists);
        let sees = |positions: &[u32; 2], causal, window| {
            let queries = Queries { q, indptr: &[0, 2], positions: Some(positions) };
            sees_all(&queries, &listed, &Params { causal, window, ..Params::new(1.0) })
        };
        assert!(sees(&[15, 16], true, 0) && sees(&[0, 0], false, 0));
        assert!(!sees(&[14, 15], true, 0) && !sees(&[15, 15], true, 100));
    }
}
