//! Which cells of an arena are free, and which stretches of its memory nobody uses.

use std::ops::Range;

/// Free cells as bits, handed out as runs of neighbours where there are such, else lowest first.
#[derive(Debug, Default)]
pub(crate) struct FreeList {
    /// One bit per cell that was ever handed out; set when free.
    bits: Vec<u64>,
    /// No cell below this is free.
    low: usize,
    /// Cells ever handed out.
    touched: usize,
    /// Set bits.
    count: usize,
}

impl FreeList {
    /// Cells in use.
    pub(crate) fn used(&self) -> usize {
        self.touched - self.count
    }

    /// Takes `n` of the first `cells` cells; `None`, and nothing taken, if fewer are free.
    pub(crate) fn take(&mut self, n: usize, cells: usize) -> Option<Vec<usize>> {
        if cells - self.used() < n {
            return None;
        }
        if n > 1
            && let Some(start) = self.run(n, cells)
        {
            (start..start + n).for_each(|id| self.mark(id));
            return Some((start..start + n).collect());
        }
        let lowest = |_| {
            let id = self.lowest();
            self.mark(id);
            id
        };
        Some((0..n).map(lowest).collect())
    }

    /// Gives a cell back.
    pub(crate) fn give(&mut self, id: usize) {
        self.bits[id / 64] |= 1 << (id % 64);
        self.low = self.low.min(id);
        self.count += 1;
    }

    fn is_free(&self, id: usize) -> bool {
        id >= self.touched || self.bits[id / 64] >> (id % 64) & 1 == 1
    }

    fn mark(&mut self, id: usize) {
        if id < self.touched {
            self.bits[id / 64] &= !(1 << (id % 64));
            self.count -= 1;
        } else {
            debug_assert_eq!(id, self.touched, "cells are touched in order");
            self.touched += 1;
            self.bits.resize(self.touched.div_ceil(64), 0);
        }
        if id == self.low {
            self.low += 1;
        }
    }

    fn lowest(&mut self) -> usize {
        if self.count == 0 {
            return self.touched;
        }
        let words = self.bits[self.low / 64..].iter();
        let found = words.enumerate().find(|(_, w)| **w != 0);
        // `count` says that there is one, and none lies below `low`.
        let (word, bits) = found.map_or((0, 0), |(i, &w)| (self.low / 64 + i, w));
        self.low = word * 64 + bits.trailing_zeros() as usize;
        self.low
    }

    /// Start of the lowest `n` neighbours that are free; past the touched cells all are.
    fn run(&self, n: usize, cells: usize) -> Option<usize> {
        if self.count == 0 {
            return (cells - self.touched >= n).then_some(self.touched);
        }
        let (mut id, mut start) = (self.low, self.low);
        while id < self.touched {
            let aligned = id.is_multiple_of(64);
            let word = self.bits[id / 64];
            match word {
                // Whole words at once.
                0 if aligned => (id, start) = (id + 64, id + 64),
                u64::MAX if aligned => id += 64,
                _ => {
                    id += 1;
                    if !self.is_free(id - 1) {
                        start = id;
                    }
                }
            }
            if id.min(self.touched) >= start + n {
                return Some(start);
            }
        }
        let start = start.min(self.touched);
        (cells - start >= n).then_some(start)
    }
}

/// How many cells in use lie in each region of memory, and which regions hold memory for nothing.
#[derive(Debug)]
pub(crate) struct Regions {
    cell_bytes: usize,
    region_bytes: usize,
    /// Cells in use that overlap the region.
    used: Vec<u32>,
    /// Whether the region was touched since it was given back.
    dirty: Vec<bool>,
    /// Regions that are dirty and have no cell in use.
    spare: usize,
}

impl Regions {
    pub(crate) fn new(cell_bytes: usize, region_bytes: usize) -> Regions {
        Regions { cell_bytes, region_bytes, used: Vec::new(), dirty: Vec::new(), spare: 0 }
    }

    fn of(&self, id: usize) -> Range<usize> {
        let (from, to) = (id * self.cell_bytes, (id + 1) * self.cell_bytes);
        from / self.region_bytes..to.div_ceil(self.region_bytes)
    }

    pub(crate) fn take(&mut self, id: usize) {
        let of = self.of(id);
        if self.used.len() < of.end {
            self.used.resize(of.end, 0);
            self.dirty.resize(of.end, false);
        }
        for r in of {
            self.spare -= usize::from(self.used[r] == 0 && self.dirty[r]);
            self.used[r] += 1;
            self.dirty[r] = true;
        }
    }

    /// Counts a cell out; returns how many regions could be given back.
    pub(crate) fn give(&mut self, id: usize) -> usize {
        for r in self.of(id) {
            self.used[r] -= 1;
            self.spare += usize::from(self.used[r] == 0);
        }
        self.spare
    }

    /// Runs of regions to give back; from now on they count as given back.
    pub(crate) fn drain(&mut self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for r in 0..self.used.len() {
            if self.used[r] == 0 && self.dirty[r] {
                self.dirty[r] = false;
                match runs.last_mut() {
                    Some(run) if run.end == r => run.end += 1,
                    _ => runs.push(r..r + 1),
                }
            }
        }
        self.spare = 0;
        runs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_are_found_between_and_behind() {
        let mut free = FreeList::default();
        let all = free.take(300, 400).unwrap();
        assert!(all.into_iter().eq(0..300));
        [3, 4, 5, 70, 71, 72, 73, 298, 299].into_iter().for_each(|id| free.give(id));
        assert_eq!(free.take(4, 400).unwrap(), [70, 71, 72, 73]);
        assert_eq!(free.take(5, 400).unwrap(), [298, 299, 300, 301, 302]);
        assert_eq!(free.take(1, 400).unwrap(), [3]);
        // No run of 99 is left, but 99 cells are.
        assert_eq!(free.take(100, 400), None);
        let scattered = free.take(99, 400).unwrap();
        assert!(scattered.into_iter().eq([4, 5].into_iter().chain(303..400)));
        assert_eq!(free.used(), 400);
    }

    #[test]
    fn regions_are_given_back_once() {
        let mut regions = Regions::new(300, 1000);
        (0..10).for_each(|id| regions.take(id));
        // Cell 3 lies in regions 0 and 1.
        assert_eq!((0..3).map(|id| regions.give(id)).max(), Some(0));
        assert_eq!(regions.give(3), 1);
        assert_eq!(regions.drain(), vec![0..1]);
        assert!(regions.drain().is_empty());
        regions.take(0);
        assert_eq!(regions.give(0), 1);
        regions.take(0);
        assert!(regions.drain().is_empty());
    }

    proptest! {
        #[test]
        fn no_cell_is_handed_out_twice(steps in prop::collection::vec((any::<bool>(), 1usize..90), 1..60)) {
            let (cells, mut free) = (500, FreeList::default());
            let mut held: Vec<Vec<usize>> = Vec::new();
            for (take, n) in steps {
                if take {
                    let used: usize = held.iter().map(Vec::len).sum();
                    let got = free.take(n, cells);
                    prop_assert_eq!(got.is_some(), cells - used >= n);
                    held.extend(got);
                } else if !held.is_empty() {
                    let at = n % held.len();
                    held.swap_remove(at).into_iter().for_each(|id| free.give(id));
                }
                let mut ids: Vec<usize> = held.iter().flatten().copied().collect();
                ids.sort_unstable();
                prop_assert!(ids.windows(2).all(|w| w[0] < w[1]) && ids.iter().all(|&i| i < cells));
                prop_assert_eq!(free.used(), ids.len());
            }
        }
    }
}
