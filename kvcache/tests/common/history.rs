//! What several threads did to blocks and saw of them, and whether one thread could have.

use std::collections::HashSet;

/// What somebody did to a block, and saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// It is there afterwards.
    Put,
    /// It was there: put said so, or get found it.
    Found,
    Missed,
    /// Removed or erased; whether it was there is not told.
    Removed,
}

/// Between two moments of a clock that all threads share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event<K> {
    pub(crate) block: K,
    pub(crate) did: Did,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Whether each block's events have an order: Wing and Gong's search, with memory. Returns how many
/// histories were looked at; those too long for a word of bits are not.
pub(crate) fn check<K: Copy + Eq + std::fmt::Debug>(
    seed: u64,
    blocks: &[K],
    all: &[Event<K>],
) -> u64 {
    let mut histories = 0;
    for &block in blocks {
        let mut of: Vec<Event<K>> = all.iter().copied().filter(|e| e.block == block).collect();
        of.sort_unstable_by_key(|e| e.from);
        if of.len() <= 64 {
            let told = of.iter().map(|e| format!("{:?} {}..{}", e.did, e.from, e.to));
            let told: Vec<String> = told.collect();
            assert!(has_order(&of), "KVIST_SEED={seed} block {block:?}: {told:?}");
            histories += 1;
        }
    }
    histories
}

fn has_order<K>(events: &[Event<K>]) -> bool {
    let all = ((1u128 << events.len()) - 1) as u64;
    let mut seen = HashSet::new();
    let mut stack = vec![(0u64, false)];
    while let Some((done, present)) = stack.pop() {
        if done == all {
            return true;
        }
        if !seen.insert((done, present)) {
            continue;
        }
        let left = |i: &usize| done & (1 << i) == 0;
        let first_end = (0..events.len()).filter(left).map(|i| events[i].to).min().unwrap();
        for i in (0..events.len()).filter(left).filter(|&i| events[i].from <= first_end) {
            let next = match (events[i].did, present) {
                (Did::Put, _) | (Did::Found, true) => Some(true),
                (Did::Missed, false) | (Did::Removed, _) => Some(false),
                _ => None,
            };
            stack.extend(next.map(|present| (done | (1 << i), present)));
        }
    }
    false
}

#[test]
fn the_search_finds_what_is_wrong() {
    let event = |did, from, to| Event { block: (), did, from, to };
    assert!(has_order::<()>(&[]));
    assert!(has_order(&[event(Did::Put, 0, 5), event(Did::Missed, 1, 2), event(Did::Found, 3, 4)]));
    assert!(!has_order(&[event(Did::Put, 0, 1), event(Did::Missed, 2, 3)]));
    let back = [event(Did::Put, 0, 1), event(Did::Removed, 2, 3), event(Did::Found, 4, 5)];
    assert!(!has_order(&back));
}
