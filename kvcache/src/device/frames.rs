//! Which pages of the host tier have a frame on the GPU.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kvist_policies::admit::{Candidate, admit};
use kvist_policies::place::Clock;

use super::wanted::{Pages, Place, Want};
use crate::arena::Arena;

/// A page that no step has read for so many steps may leave: a scan over more pages than there are frames
/// keeps those that it has, where the oldest-first rule would read every page anew each time.
const IDLE_STEPS: u64 = 2;
/// The share of the frames that pages of the next layer get at a time.
const AHEAD_SHARE: usize = 8;

/// The frame of a page that has none.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    host: u32,
    /// The step that read it last.
    step: u64,
    /// The copies that it waits for; 0 if they are over.
    copies: u64,
}

/// A page that is read without a frame: the last step that did, and how many in a row did.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    step: u32,
    steps: u32,
}

/// Tokens of a page to be copied to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) host: u32,
    pub(super) frame: u32,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// What a call needs before it reads.
#[derive(Debug, Default)]
pub(super) struct Arrangement {
    pub(super) moves: Vec<Move>,
    /// The last copies before these that it needs; 0 for none.
    pub(super) copies: u64,
    /// Pages found, and not found.
    pub(super) hits: u64,
    pub(super) misses: u64,
}

/// Frames on the GPU and the pages in them.
#[derive(Debug)]
pub(super) struct Frames {
    /// By frame of the host tier; [`NONE`] for pages that have no frame here.
    of_host: Vec<u32>,
    frames: Vec<Frame>,
    free: BinaryHeap<Reverse<u32>>,
    clock: Clock,
    /// By frame of the host tier.
    seen: Vec<Seen>,
    /// The last step in which some page had no frame.
    missed: u64,
    step: u64,
    layer: usize,
    layers: usize,
    /// The step in which no frame was found that may leave.
    barren: u64,
    /// The step in which frames of cells that are gone were looked for.
    swept: u64,
}

impl Frames {
    /// For a model of so many layers and a host tier of `host` frames.
    pub(super) fn new(frames: usize, host: usize, layers: usize) -> Frames {
        Frames {
            of_host: vec![NONE; host],
            frames: vec![Frame::default(); frames],
            free: (0..frames as u32).map(Reverse).collect(),
            clock: Clock::default(),
            seen: vec![Seen::default(); host],
            missed: 0,
            step: 1,
            layer: 0,
            layers,
            barren: 0,
            swept: 0,
        }
    }

    /// Bytes of what is kept for so many frames, and for a host tier of so many.
    pub(super) fn bytes(frames: usize, host: usize) -> u64 {
        // With its place in the heap, and the clock's.
        let of_frame = size_of::<Frame>() + size_of::<u32>() + 1;
        (host * (size_of::<u32>() + size_of::<Seen>()) + frames * of_frame) as u64
    }

    /// The frame of a cell.
    pub(super) fn of(&self, host: u32) -> Option<u32> {
        self.of_host.get(host as usize).copied().filter(|&frame| frame != NONE)
    }

    /// These cells are read in this step.
    pub(super) fn touch(&mut self, cells: &[u32]) {
        for &host in cells {
            if let Some(frame) = self.of(host) {
                self.frames[frame as usize].step = self.step;
            }
        }
    }

    /// Free frames; where these are less than `wanted`, with those of cells that nobody has any more.
    pub(super) fn free(&mut self, arena: &Arena, wanted: usize) -> usize {
        if self.free.len() < wanted && self.swept != self.step {
            self.swept = self.step;
            for (i, frame) in self.frames.iter().enumerate() {
                let own = &mut self.of_host[frame.host as usize];
                if *own == i as u32 && arena.kept(frame.host) == 0 {
                    *own = NONE;
                    self.free.push(Reverse(i as u32));
                }
            }
        }
        self.free.len()
    }

    /// Frames that are free for `wanted` cells, or whose pages may leave for them; no more are counted.
    pub(super) fn room(&mut self, arena: &Arena, wanted: usize) -> usize {
        let free = self.free(arena, wanted);
        free + self.idle(wanted.saturating_sub(free)).len()
    }

    /// Frames in use.
    pub(super) fn used(&self) -> usize {
        self.frames.len() - self.free.len()
    }

    /// A layer is read. A step ends where a lower layer follows; a layer may be read by several calls. Of a model
    /// of one layer, each call is a step.
    pub(super) fn begin(&mut self, layer: usize) {
        if layer < self.layer || self.layers == 1 {
            self.step += 1;
        }
        self.layer = layer;
    }

    /// Finds a place for each page, for a call whose copies are number `copies`. No call before it reads
    /// any more.
    pub(super) fn arrange(
        &mut self,
        pages: &mut Pages,
        page_tokens: u32,
        arena: &Arena,
        copies: u64,
    ) -> Arrangement {
        let mut all = Arrangement::default();
        let Pages { wanted, places, .. } = pages;
        let mut missing = Vec::new();
        for &want in &*wanted {
            let place = self.found(want, arena, copies, &mut all).unwrap_or_else(|| {
                missing.push(places.len());
                Place::Away
            });
            places.push(place);
        }
        if !missing.is_empty() {
            self.missed = self.step;
        }
        all.hits = (wanted.len() - missing.len()) as u64;
        all.misses = missing.len() as u64;
        let candidates: Vec<Candidate> =
            missing.iter().map(|&i| self.candidate(&wanted[i])).collect();
        let admitted = self.admitted(&candidates, page_tokens, arena);
        for (i, _) in missing.into_iter().zip(admitted).filter(|(_, admitted)| *admitted) {
            let Some(Reverse(frame)) = self.free.pop() else { break };
            self.fill(frame, wanted[i].host, page_tokens, arena, copies, &mut all.moves);
            places[i] = Place::Coming(frame);
        }
        all
    }

    /// Where a page is that has a frame; rows that were appended to it are copied.
    fn found(
        &mut self,
        want: Want,
        arena: &Arena,
        copies: u64,
        all: &mut Arrangement,
    ) -> Option<Place> {
        let Want { host, end, .. } = want;
        let frame = self.of_host[host as usize];
        if frame == NONE {
            return None;
        }
        let of = &mut self.frames[frame as usize];
        let kept = arena.kept(host);
        if kept == 0 {
            // Another page has come to its frame in the host tier.
            self.of_host[host as usize] = NONE;
            self.free.push(Reverse(frame));
            return None;
        }
        of.step = self.step;
        self.clock.used(frame as usize);
        if kept < end {
            all.moves.push(Move { host, frame, from: kept, to: end });
            of.copies = copies;
            arena.copied(host, end);
            return Some(Place::Coming(frame));
        }
        all.copies = all.copies.max(of.copies);
        Some(Place::Here(frame))
    }

    /// Gives a page a frame that nobody has. All of it is copied, what is still to be appended, too: whoever
    /// appends says so to the arena.
    fn fill(
        &mut self,
        frame: u32,
        host: u32,
        tokens: u32,
        arena: &Arena,
        copies: u64,
        moves: &mut Vec<Move>,
    ) {
        moves.push(Move { host, frame, from: 0, to: tokens });
        arena.copied(host, tokens);
        self.frames[frame as usize] = Frame { host, step: self.step, copies };
        self.of_host[host as usize] = frame;
        self.clock.fresh(frame as usize);
        self.seen[host as usize] = Seen::default();
    }

    /// Which candidates get a frame; as many are free then.
    fn admitted(&mut self, candidates: &[Candidate], page_tokens: u32, arena: &Arena) -> Vec<bool> {
        let free = self.free(arena, candidates.len());
        let short = candidates.len().saturating_sub(free);
        let victims = if short > 0 { self.idle(short) } else { Vec::new() };
        let admitted = admit(candidates, page_tokens, free, victims.len());
        let leave = admitted.iter().filter(|&&a| a).count().saturating_sub(free);
        for &frame in &victims[..leave] {
            self.of_host[self.frames[frame].host as usize] = NONE;
            self.free.push(Reverse(frame as u32));
        }
        admitted
    }

    /// Up to `n` frames whose pages may leave.
    fn idle(&mut self, n: usize) -> Vec<usize> {
        if n == 0 || self.barren == self.step {
            return Vec::new();
        }
        let (frames, of_host, step) = (&self.frames, &self.of_host, self.step);
        let idle = |f: usize| {
            let in_use = of_host[frames[f].host as usize] == f as u32;
            in_use && frames[f].step + IDLE_STEPS <= step
        };
        let victims = self.clock.victims(n, idle);
        if victims.len() < n {
            self.barren = step;
        }
        victims
    }

    /// What is known of a missing page.
    fn candidate(&mut self, want: &Want) -> Candidate {
        // It wraps after more steps than a process makes; a page would be taken for new then.
        let (step, seen) = (self.step as u32, &mut self.seen[want.host as usize]);
        let before = if seen.step.wrapping_add(1) == step { seen.steps } else { 0 };
        if seen.step != step || seen.steps == 0 {
            *seen = Seen { step, steps: before + 1 };
        }
        Candidate { tokens: want.tokens, steps: seen.steps }
    }

    /// Gives frames to those full pages that the last step read in place and that the next will probably read,
    /// too: as far as they would get one then.
    pub(super) fn ahead(
        &mut self,
        pages: impl Iterator<Item = u32>,
        page_tokens: u32,
        arena: &Arena,
        copies: u64,
    ) -> Arrangement {
        let most = (self.frames.len() / AHEAD_SHARE).max(1);
        let (mut wanted, mut candidates) = (Vec::new(), Vec::new());
        let mut all = Arrangement::default();
        if self.missed + 1 < self.step {
            return all;
        }
        for host in pages {
            let seen = self.seen[host as usize];
            let lately = seen.steps > 0 && seen.step.wrapping_add(1) >= self.step as u32;
            if lately && self.of_host[host as usize] == NONE {
                wanted.push(host);
                candidates.push(Candidate { tokens: 0, steps: seen.steps + 1 });
            }
            if wanted.len() == most {
                break;
            }
        }
        let admitted = self.admitted(&candidates, page_tokens, arena);
        for (host, _) in wanted.into_iter().zip(admitted).filter(|(_, admitted)| *admitted) {
            let Some(Reverse(frame)) = self.free.pop() else { break };
            self.fill(frame, host, page_tokens, arena, copies, &mut all.moves);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::arena::Care;
    use crate::budget::Budget;

    const PAGE: u32 = 16;

    struct Tier {
        frames: Frames,
        pages: Pages,
        arena: Arc<Arena>,
        copies: u64,
    }

    impl Tier {
        fn new(frames: usize, layers: usize) -> Tier {
            let budget = Arc::new(Budget::new(1 << 20));
            let arena = Arena::new(4096, 100, budget, Care::default()).unwrap();
            arena.watch(arena.cells());
            let host = arena.cells();
            let (frames, pages) = (Frames::new(frames, host, layers), Pages::new(host));
            Tier { frames, pages, arena, copies: 0 }
        }

        /// Reads so many tokens of each page; pages that were in frames, and pages that got one.
        fn read(&mut self, layer: usize, hosts: std::ops::Range<u32>, n: u32) -> (u64, usize) {
            self.frames.begin(layer);
            self.pages.name(hosts.map(|host| Want { host, end: PAGE, tokens: n }));
            self.copies += 1;
            let all = self.frames.arrange(&mut self.pages, PAGE, &self.arena, self.copies);
            (all.hits, all.moves.len())
        }
    }

    #[test]
    fn a_scan_over_more_pages_than_frames_keeps_what_it_has() {
        let mut tier = Tier::new(8, 2);
        for step in 0..10 {
            for layer in 0..2 {
                // Two calls in each layer: that makes no two steps.
                for half in 0..2 {
                    let first = layer as u32 * 20 + half * 10;
                    let (hits, moved) = tier.read(layer, first..first + 10, PAGE);
                    let expected = if layer == 0 && half == 0 { (8, 0) } else { (0, 0) };
                    match (step, layer, half) {
                        (0, 0, 0) => assert_eq!((hits, moved), (0, 8)),
                        _ => assert_eq!((hits, moved), expected, "step {step}"),
                    }
                }
            }
        }
    }

    #[test]
    fn pages_that_rest_give_way_to_those_that_pay() {
        let mut tier = Tier::new(4, 1);
        assert_eq!(tier.read(0, 0..4, PAGE), (0, 4));
        // One step of rest is not enough, and one token of each in one step does not pay.
        assert_eq!(tier.read(0, 10..14, PAGE), (0, 0));
        assert_eq!(tier.read(0, 20..24, 1), (0, 0));
        assert_eq!(tier.read(0, 20..24, 1), (0, 4), "in the second step in a row");
        assert_eq!(tier.read(0, 20..24, 1), (4, 0));
        assert_eq!(tier.read(0, 30..32, PAGE), (0, 0));
        assert_eq!(tier.read(0, 30..32, PAGE), (0, 2), "half of it, at once");
    }

    #[test]
    fn rows_that_were_written_are_copied_again() {
        let mut tier = Tier::new(4, 1);
        let mut cell = tier.arena.take(1).unwrap().pop().unwrap();
        let host = cell.id();
        assert_eq!(tier.read(0, host..host + 1, PAGE), (0, 1));
        assert_eq!(tier.read(0, host..host + 1, PAGE), (1, 0));
        cell.bytes_from(5).unwrap();
        tier.pages.name([Want { host, end: 4, tokens: 4 }].into_iter());
        let all = tier.frames.arrange(&mut tier.pages, PAGE, &tier.arena, 9);
        assert!(all.moves.is_empty(), "nobody reads what was written");
        tier.pages.name([Want { host, end: 9, tokens: 4 }].into_iter());
        let all = tier.frames.arrange(&mut tier.pages, PAGE, &tier.arena, 10);
        assert_eq!(all.moves, [Move { host, frame: 0, from: 5, to: 9 }]);
        drop(cell);
        let again = tier.arena.take(1).unwrap().pop().unwrap();
        assert_eq!(again.id(), host);
        assert_eq!(tier.read(0, host..host + 1, PAGE), (0, 1), "another page has come there");
    }
}
