//! What a call reads, page by page, and its lists cut by where pages are.

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

/// The pages of a call, each once, and where they are read. Made anew for each call in the same memory, since
/// a call may name as many pages as there are.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// In the order in which lists name them.
    pub(super) wanted: Vec<Want>,
    /// Of each of these.
    pub(super) places: Vec<Place>,
    /// By frame of the host tier: the call that named it last, and its number there.
    named: Vec<(u32, u32)>,
    call: u32,
}

impl Pages {
    /// For a host tier of so many frames.
    pub(super) fn new(frames: usize) -> Pages {
        Pages { named: vec![(0, 0); frames], ..Pages::default() }
    }

    /// Bytes of what is kept for a host tier of so many frames, all of which a call may name.
    pub(super) fn bytes(frames: usize) -> u64 {
        let each = size_of::<(u32, u32)>() + size_of::<Want>() + size_of::<Place>();
        (frames * each) as u64
    }

    /// Begins a call over such pages.
    pub(super) fn name(&mut self, wanted: impl Iterator<Item = Want>) {
        self.begin();
        wanted.for_each(|want| self.add(want.host, want.end, want.tokens, u32::MAX));
    }

    /// Begins another call.
    pub(super) fn want(&mut self, listed: &Listed, page: u32) {
        self.begin();
        each_page(listed, page, |host, end, tokens| self.add(host, end, tokens, page));
    }

    fn begin(&mut self) {
        self.wanted.clear();
        self.places.clear();
        self.call = self.call.wrapping_add(1);
        if self.call == 0 {
            // After four billion calls an old number could be taken for this one.
            self.named.fill((0, 0));
            self.call = 1;
        }
    }

    fn add(&mut self, host: u32, end: u32, tokens: u32, page: u32) {
        let (call, number) = &mut self.named[host as usize];
        if *call == self.call {
            let want = &mut self.wanted[*number as usize];
            want.end = want.end.max(end);
            want.tokens = want.tokens.saturating_add(tokens).min(page);
            return;
        }
        (*call, *number) = (self.call, self.wanted.len() as u32);
        self.wanted.push(Want { host, end, tokens });
    }

    /// Where a page is read that the call names.
    pub(super) fn place(&self, host: u32) -> Place {
        self.places[self.named[host as usize].1 as usize]
    }

    /// Pages that are read in the host tier.
    pub(super) fn away(&self) -> impl Iterator<Item = u32> + '_ {
        let pairs = self.wanted.iter().zip(&self.places);
        pairs.filter(|(_, place)| **place == Place::Away).map(|(want, _)| want.host)
    }
}

/// Calls `f` with the frames, ends and numbers of tokens of the pages that lists name.
fn each_page(listed: &Listed, page: u32, mut f: impl FnMut(u32, u32, u32)) {
    match listed {
        Listed::Pages(_, lists) => {
            for (i, frames) in each_list(lists.indptr, lists.frames).enumerate() {
                pages_of(frames, lists.lens[i], page).for_each(|(host, n)| f(host, n, n));
            }
        }
        Listed::Slots(_, lists) => {
            for run in lists.slots.chunk_by(|a, b| a / page == b / page) {
                let end = run.iter().map(|slot| slot % page + 1).max().unwrap_or(0);
                f(run[0] / page, end, run.len() as u32);
            }
        }
    }
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
    pub(super) fn new(listed: &Listed, pages: &Pages, part: Part, page: u32) -> Lists {
        let mut own = Lists { indptr: vec![0], ..Lists::default() };
        let frame_of = |host: u32| part.frame(host, pages.place(host));
        match listed {
            Listed::Pages(_, lists) => {
                (own.pages, own.per_head) = (true, lists.per_head);
                for (i, frames) in each_list(lists.indptr, lists.frames).enumerate() {
                    let mut len = 0;
                    for (host, tokens) in pages_of(frames, lists.lens[i], page) {
                        if let Some(frame) = frame_of(host) {
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
                    let mut at = range[0] as usize;
                    let slots = &lists.slots[at..range[1] as usize];
                    for run in slots.chunk_by(|a, b| a / page == b / page) {
                        if let Some(frame) = frame_of(run[0] / page) {
                            own.items.extend(run.iter().map(|slot| frame * page + slot % page));
                            let of_run = lists.positions.map(|p| &p[at..at + run.len()]);
                            positions.extend(of_run.into_iter().flatten());
                        }
                        at += run.len();
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
        let mut pages = Pages::new(100);
        pages.want(&listed, 16);
        let all = [want(7, 16, 16), want(8, 16, 16), want(9, 8, 8), want(4, 4, 4)];
        assert_eq!(pages.wanted, all);
        pages.places = vec![Place::Here(1), Place::Away, Place::Coming(0), Place::Away];
        assert!(pages.away().eq([8, 4]));
        let part = |part| {
            let lists = Lists::new(&listed, &pages, part, 16);
            (lists.indptr, lists.items, lists.lens, lists.first.is_some())
        };
        assert_eq!(part(Part::Here), (vec![0, 1, 2], vec![1, 1], vec![16, 16], false));
        assert_eq!(part(Part::Coming), (vec![0, 1, 1], vec![0], vec![8, 0], false));
        assert_eq!(part(Part::Device), (vec![0, 2, 3], vec![1, 0, 1], vec![24, 16], false));
        assert_eq!(part(Part::Away), (vec![0, 1, 2], vec![8, 4], vec![16, 4], false));
        pages.want(&listed, 16);
        pages.places = [7, 8, 9, 4].map(Place::Here).to_vec();
        let lists = Lists::new(&listed, &pages, Part::Device, 16);
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
        let mut pages = Pages::new(100);
        pages.want(&listed, 16);
        assert_eq!(pages.wanted, [want(1, 3, 3), want(2, 9, 1)]);
        pages.places = vec![Place::Here(5), Place::Away];
        let lists = Lists::new(&listed, &pages, Part::Here, 16);
        assert_eq!((lists.indptr, lists.items), (vec![0, 2, 3], vec![81, 82, 80]));
        assert_eq!(lists.positions, Some(vec![1, 2, 0]));
        let lists = Lists::new(&listed, &pages, Part::Away, 16);
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
