//! Bringing pages back behind the scenes: into frames that are free, a small part at a time, so that
//! whoever needs a page now waits for two such parts at most.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::demote::LOOK;
use super::stripe::Stripe;
use super::table::{Ahead, PageKey, Place, StripeId, Table};
use super::tier::{Inner, Tier};
use crate::arena::CELL_OVERHEAD;
use crate::ticket::Promise;

/// Bytes of pages that are read at a time.
const PART: usize = 4 << 20;
/// This share of the budget stays free for what is appended.
const SPARE_SHARE: u64 = 8;

/// What is to come back, and for whom.
#[derive(Default)]
pub(super) struct Behind {
    /// Stripes in the order in which they come, with the wish that they are part of.
    queue: VecDeque<(StripeId, u64)>,
    wishes: HashMap<u64, Wish>,
    made: u64,
    /// What is on its way, where no thread waits for it.
    part: Option<Part>,
}

/// Stripes that somebody asked for at once.
struct Wish {
    promise: Promise<usize>,
    /// Stripes that are not dealt with yet.
    left: usize,
    /// Pages that came.
    came: usize,
}

/// A wish that is over, to be told without the lock.
pub(super) struct Over {
    promise: Promise<usize>,
    came: usize,
}

/// Stripes on their way: the pages of each that were missing, and its wish.
pub(super) struct Part {
    flight: u64,
    stripes: Vec<(StripeId, usize, u64)>,
}

impl Behind {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// A stripe of a wish is dealt with.
    fn done(&mut self, wish: u64, came: usize, over: &mut Vec<Over>) {
        let Some(state) = self.wishes.get_mut(&wish) else { return };
        state.left -= 1;
        state.came += came;
        if state.left == 0
            && let Some(Wish { promise, came, .. }) = self.wishes.remove(&wish)
        {
            over.push(Over { promise, came });
        }
    }

    /// Lets go of all that was not sent for.
    fn give_up(&mut self) -> Vec<Over> {
        let mut over = Vec::new();
        while let Some((_, wish)) = self.queue.pop_front() {
            self.done(wish, 0, &mut over);
        }
        over
    }
}

/// Tells those who wait.
fn tell(over: Vec<Over>) {
    over.into_iter().for_each(|Over { promise, came }| promise.keep(came));
}

impl Table {
    /// Takes the next pages to be brought back, about `most`, and their stripes.
    fn next_behind(
        &mut self,
        most: usize,
        over: &mut Vec<Over>,
    ) -> (Vec<PageKey>, Vec<(StripeId, usize, u64)>) {
        let (mut keys, mut stripes) = (Vec::new(), Vec::new());
        while keys.len() < most
            && let Some((id, wish)) = self.behind.queue.pop_front()
        {
            // Nobody wants those that are gone.
            let wanted = |w: &Wish| !w.promise.is_cancelled();
            let wanted = self.is_live(id) && self.behind.wishes.get(&wish).is_some_and(wanted);
            let had = keys.len();
            if wanted {
                let of_stripe = (0..self.heads as u32).map(|head| PageKey { slot: id.slot, head });
                let below = |key: &PageKey| matches!(self.pages[self.at(*key)].place, Place::Below);
                keys.extend(of_stripe.filter(below));
            }
            match keys.len() - had {
                0 => self.behind.done(wish, 0, over),
                missing => stripes.push((id, missing, wish)),
            }
        }
        (keys, stripes)
    }

    fn flies(&self, flight: u64) -> bool {
        self.flights.iter().any(|f| f.id == flight)
    }

    /// A part is there, or will not come.
    fn landed_behind(&mut self, part: Part, over: &mut Vec<Over>) {
        for (id, missing, wish) in part.stripes {
            let far = || self.heads - self.place(id.slot).0;
            let came = if self.is_live(id) { missing.saturating_sub(far()) } else { 0 };
            self.behind.done(wish, came, over);
        }
    }
}

impl Inner {
    /// Frames that pages may come back to without taking what is kept for appends.
    fn spare_frames(&self) -> usize {
        let limit = self.budget.limit();
        let free = limit.saturating_sub(self.budget.used()).saturating_sub(limit / SPARE_SHARE);
        (free / (self.arena.cell_bytes() as u64 + CELL_OVERHEAD)) as usize
    }

    /// Starts to bring the next pages back; the part, if there is one. Without free frames none is, and
    /// the rest is given up.
    pub(super) fn start_behind(&self) -> Option<Part> {
        let frames = self.spare_frames().min(PART / self.arena.cell_bytes());
        let mut over = Vec::new();
        let mut table = self.lock();
        let (keys, stripes) = table.next_behind(frames.max(1), &mut over);
        let mut cells = self.arena.take_some(if frames == 0 { 0 } else { keys.len() });
        if cells.len() < keys.len() {
            over.extend(table.behind.give_up());
        }
        let reads = table.fill(&keys, &mut cells, Ahead::Not);
        let mut part = Some(Part { flight: reads.0, stripes });
        if reads.1.is_empty()
            && let Some(part) = part.take()
        {
            table.landed_behind(part, &mut over);
        }
        drop(table);
        drop(cells);
        tell(over);
        self.launch(reads);
        part
    }

    /// Waits until a part is there, whoever waits for its pages besides.
    pub(super) fn land(&self, part: Part) {
        let deadline = self.below.now() + self.options.deadline;
        let mut table = self.lock();
        while table.flies(part.flight) && !table.stopped && self.below.now() < deadline {
            match self.driver(&mut table, part.flight) {
                Some(mut driver) => {
                    drop(table);
                    while driver.step(deadline, true) {}
                    drop(driver);
                    table = self.lock();
                }
                None => {
                    self.changed.wait_for(&mut table, LOOK);
                }
            }
        }
        drop(table);
        self.landed(part);
    }

    fn landed(&self, part: Part) {
        let mut over = Vec::new();
        self.lock().landed_behind(part, &mut over);
        tell(over);
    }
}

impl Tier {
    /// Brings stripes back behind the scenes: the first of them, as many as there are frames for now, in
    /// the order in which they lie below, then the others in theirs. How many pages that may be.
    pub(crate) fn restore_behind(&self, stripes: &[Arc<Stripe>], promise: Promise<usize>) -> usize {
        let inner = &self.inner;
        let frames = inner.spare_frames();
        let table = inner.lock();
        let heads = table.heads;
        let far = |s: &&Arc<Stripe>| table.place(s.id().slot).0 < heads;
        let missing = |s: &Arc<Stripe>| heads - table.place(s.id().slot).0;
        let mut wanted: Vec<&Arc<Stripe>> = stripes.iter().filter(far).collect();
        let pages: usize = wanted.iter().map(|s| missing(s)).sum();
        drop(table);
        let fit = (frames / heads).min(wanted.len());
        wanted[..fit]
            .sort_by_cached_key(|s| s.stored().map_or(0, |stored| inner.below.position(&*stored)));
        if wanted.is_empty() {
            promise.keep(0);
            return 0;
        }
        let mut table = inner.lock();
        let behind = &mut table.behind;
        behind.made += 1;
        let wish = behind.made;
        behind.wishes.insert(wish, Wish { promise, left: wanted.len(), came: 0 });
        behind.queue.extend(wanted.iter().map(|s| (s.id(), wish)));
        drop(table);
        inner.work.notify_one();
        pages
    }

    /// Starts the next part if the last one is there: what the thread does, for caches without one.
    pub(super) fn catch_up_behind(&self) {
        let inner = &self.inner;
        let mut table = inner.lock();
        let part = table.behind.part.take();
        if part.as_ref().is_some_and(|part| table.flies(part.flight)) {
            table.behind.part = part;
            return;
        }
        let idle = part.is_none() && table.behind.is_empty();
        drop(table);
        if idle {
            return;
        }
        if let Some(part) = part {
            inner.landed(part);
        }
        let next = inner.start_behind();
        inner.lock().behind.part = next;
    }
}
