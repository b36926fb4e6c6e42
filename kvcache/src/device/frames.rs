//! Which pages of the host tier have a frame on the GPU.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

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
    /// Tokens that were copied.
    tokens: u32,
    /// The step that read it last.
    step: u64,
    /// The copies that it waits for; 0 if they are over.
    copies: u64,
}

/// A page that is read in place: since when, in steps in a row.
#[derive(Clone, Copy, Debug)]
struct Seen {
    step: u64,
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
    seen: HashMap<u32, Seen>,
    step: u64,
    layer: usize,
    /// The step in which no frame was found that may leave.
    barren: u64,
}

impl Frames {
    /// For a host tier of `host` frames.
    pub(super) fn new(frames: usize, host: usize) -> Frames {
        Frames {
            of_host: vec![NONE; host],
            frames: vec![Frame::default(); frames],
            free: (0..frames as u32).map(Reverse).collect(),
            clock: Clock::default(),
            seen: HashMap::new(),
            step: 1,
            layer: 0,
            barren: 0,
        }
    }

    /// Bytes of what is kept for a host tier of so many frames.
    pub(super) fn bytes(host: usize) -> u64 {
        (host * size_of::<u32>()) as u64
    }

    /// Frames in use.
    pub(super) fn used(&self) -> usize {
        self.frames.len() - self.free.len()
    }

    /// A layer is read: if it is none behind the last one, a new step begins.
    pub(super) fn begin(&mut self, layer: usize) {
        if layer <= self.layer {
            self.step += 1;
            // What was read in the last step is all that counts.
            let last = self.step - 1;
            self.seen.retain(|_, seen| seen.step >= last);
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
        all.hits = (wanted.len() - missing.len()) as u64;
        all.misses = missing.len() as u64;
        let candidates: Vec<Candidate> =
            missing.iter().map(|&i| self.candidate(&wanted[i])).collect();
        let admitted = self.admitted(&candidates, page_tokens);
        for (i, _) in missing.into_iter().zip(admitted).filter(|(_, admitted)| *admitted) {
            let Some(Reverse(frame)) = self.free.pop() else { break };
            self.fill(frame, wanted[i], arena, copies, &mut all.moves);
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
        let kept = of.tokens.min(arena.kept(host));
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
            (of.tokens, of.copies) = (end, copies);
            arena.copied(host, end);
            return Some(Place::Coming(frame));
        }
        all.copies = all.copies.max(of.copies);
        Some(Place::Here(frame))
    }

    /// Gives a page a frame that nobody has.
    fn fill(
        &mut self,
        frame: u32,
        Want { host, end, .. }: Want,
        arena: &Arena,
        copies: u64,
        moves: &mut Vec<Move>,
    ) {
        moves.push(Move { host, frame, from: 0, to: end });
        arena.copied(host, end);
        self.frames[frame as usize] = Frame { host, tokens: end, step: self.step, copies };
        self.of_host[host as usize] = frame;
        self.clock.fresh(frame as usize);
        self.seen.remove(&host);
    }

    /// Which candidates get a frame; as many are free then.
    fn admitted(&mut self, candidates: &[Candidate], page_tokens: u32) -> Vec<bool> {
        let free = self.free.len();
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
        if self.barren == self.step {
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
        let step = self.step;
        let seen = self.seen.entry(want.host).or_insert(Seen { step, steps: 0 });
        if seen.steps == 0 || seen.step < step {
            *seen = Seen { step, steps: seen.steps + 1 };
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
        for host in pages {
            if self.seen.is_empty() || wanted.len() == most {
                break;
            }
            let Some(seen) = self.seen.get(&host) else { continue };
            if self.of_host[host as usize] == NONE {
                wanted.push(Want { host, end: page_tokens, tokens: 0 });
                candidates.push(Candidate { tokens: 0, steps: seen.steps + 1 });
            }
        }
        let mut all = Arrangement::default();
        let admitted = self.admitted(&candidates, page_tokens);
        for (want, _) in wanted.into_iter().zip(admitted).filter(|(_, admitted)| *admitted) {
            let Some(Reverse(frame)) = self.free.pop() else { break };
            self.fill(frame, want, arena, copies, &mut all.moves);
        }
        all
    }
}
