//! The stream-K plan: cuts ragged work into ranges of equal size that cross list borders.
//!
//! Source: LeanAttention (arXiv 2405.10480). The number of ranges depends on the amount of work
//! only, never on the number of threads, so the same lists give the same bits everywhere.

/// A run of consecutive tiles of one list, done by one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The list.
    pub list: u32,
    /// First tile.
    pub begin: u32,
    /// One behind the last tile.
    pub end: u32,
    /// Number of the partial result, or `None` if the segment is its whole list and may write
    /// straight to the output.
    pub partial: Option<u32>,
}

/// Segments by worker, and the partial results to merge by list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// All segments, in tile order.
    pub segments: Vec<Segment>,
    /// Worker `w` does `segments[workers[w]..workers[w + 1]]`.
    pub workers: Vec<u32>,
    /// List `i` merges the partial results `reduce[i]..reduce[i + 1]`, in that order.
    pub reduce: Vec<u32>,
}

/// Cuts lists of `tiles[i]` tiles, each tile of list `i` costing `cost[i]`, into at most
/// `ranges_max` ranges that differ by at most one tile's cost. A range costs `cost_min` or more, if
/// that much is there: smaller ones cost more to merge than they gain. Every list gets at least one
/// segment, empty ones too (their output must be written).
///
/// # Panics
/// If the two slices differ in length.
#[must_use]
pub fn stream_k(tiles: &[u32], cost: &[u32], cost_min: u64, ranges_max: usize) -> Plan {
    assert_eq!(tiles.len(), cost.len(), "one cost per list");
    let total: u64 = tiles.iter().zip(cost).map(|(&t, &c)| u64::from(t) * u64::from(c)).sum();
    let ranges = (total / cost_min.max(1)).clamp(1, ranges_max.max(1) as u64);
    let mut plan = Plan { workers: vec![0], reduce: vec![0], ..Plan::default() };
    let (mut done, mut worker, mut partials) = (0u64, 0u64, 0u32);
    for (list, (&n, &c)) in tiles.iter().zip(cost).enumerate() {
        let first = plan.segments.len();
        let mut begin = 0;
        loop {
            // Tiles of this list until the current worker's share is full.
            let share_end = total * (worker + 1) / ranges;
            let room = share_end.saturating_sub(done).div_ceil(u64::from(c.max(1)));
            let take = u64::from(n - begin).min(room) as u32;
            let end = if worker + 1 == ranges { n } else { begin + take };
            if end > begin || n == 0 {
                plan.segments.push(Segment { list: list as u32, begin, end, partial: None });
                done += u64::from(end - begin) * u64::from(c);
                begin = end;
            }
            if begin >= n {
                break;
            }
            worker += 1;
            plan.workers.push(plan.segments.len() as u32);
        }
        if plan.segments.len() - first > 1 {
            for s in &mut plan.segments[first..] {
                s.partial = Some(partials);
                partials += 1;
            }
        }
        plan.reduce.push(partials);
    }
    plan.workers.push(plan.segments.len() as u32);
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_tile_is_covered_once_and_shares_are_even(
            lists in prop::collection::vec((0u32..300, 1u32..9), 0..40),
            cost_min in 0u64..20,
            ranges_max in 0usize..70,
        ) {
            let (tiles, cost): (Vec<_>, Vec<_>) = lists.into_iter().unzip();
            let plan = stream_k(&tiles, &cost, cost_min, ranges_max);
            let mut at = vec![0u32; tiles.len()];
            let mut seen = vec![0usize; tiles.len()];
            let mut partials = 0;
            for s in &plan.segments {
                let i = s.list as usize;
                prop_assert_eq!(s.begin, at[i]);
                prop_assert!(s.end > s.begin || tiles[i] == 0);
                at[i] = s.end;
                seen[i] += 1;
                if let Some(p) = s.partial {
                    prop_assert_eq!(p, partials);
                    partials += 1;
                }
            }
            prop_assert_eq!(&at, &tiles);
            prop_assert!(seen.iter().all(|&n| n >= 1));
            for (r, &seen) in plan.reduce.windows(2).zip(&seen) {
                prop_assert_eq!((r[1] - r[0]) as usize, if seen > 1 { seen } else { 0 });
            }
            let workers = plan.workers.len() - 1;
            prop_assert!(workers <= ranges_max.max(1));
            prop_assert_eq!(plan.workers[workers] as usize, plan.segments.len());
            let total: u64 = tiles.iter().zip(&cost).map(|(&t, &c)| u64::from(t * c)).sum();
            let highest = u64::from(cost.iter().copied().max().unwrap_or(0));
            for w in plan.workers.windows(2) {
                let load: u64 = plan.segments[w[0] as usize..w[1] as usize]
                    .iter()
                    .map(|s| u64::from((s.end - s.begin) * cost[s.list as usize]))
                    .sum();
                let ranges = (total / cost_min.max(1)).clamp(1, ranges_max.max(1) as u64);
                prop_assert!(load <= total.div_ceil(ranges) + highest);
            }
        }
    }
}
