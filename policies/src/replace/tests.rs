//! Orders against plain ones, and what holds for all of them.

use proptest::prelude::*;

use super::plain::plain;
use super::*;

/// Uses of keys, removals and refusals, on both.
fn agree(replace: Replace, capacity: usize, steps: &[(u8, u32)]) -> Result<(), TestCaseError> {
    let (mut order, mut plain) = (Order::new(replace, capacity), plain(replace));
    for &(what, key) in steps {
        let there = order.contains(key);
        let arrival = Arrival { key: u64::from(key), ..Arrival::default() };
        match (what, there) {
            (0..8, true) => {
                order.touch(key);
                plain.touch(key, capacity);
            }
            (0..8, false) => {
                order.insert(key, &arrival);
                plain.insert(key, capacity);
            }
            (_, true) => {
                order.remove(key);
                plain.remove(key);
            }
            (_, false) => {}
        }
        while order.len() > capacity {
            // Some may not leave now.
            let may = |k: u32| !(k + key).is_multiple_of(5);
            let mut left = order.evict(0, may);
            prop_assert_eq!(left, plain.evict(capacity, &may));
            if left.is_none() {
                left = order.evict(0, |_| true);
                prop_assert_eq!(left, plain.evict(capacity, &|_| true));
            }
            prop_assert!(left.is_some());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn orders_do_what_their_papers_say(
        replace in prop::sample::select(Replace::ALL.to_vec()),
        capacity in 1usize..24,
        steps in prop::collection::vec((0u8..9, 0u32..48), 0..400),
    ) {
        agree(replace, capacity, &steps)?;
    }

    /// Chains of blocks that requests use from the front: no block leaves before those that continue it, pinned ones
    /// stay, and all counts are right.
    #[test]
    fn blocks_leave_last_first(
        replace in prop::sample::select(Replace::ALL.to_vec()),
        capacity in 4usize..40,
        requests in prop::collection::vec((0u32..6, 0u32..4, 1usize..10, 0u8..7), 1..80),
    ) {
        let mut order = Order::new(replace, capacity);
        let mut parents = std::collections::HashMap::<u32, u32>::new();
        let mut pinned = Vec::new();
        for (now, (root, branch, len, what)) in requests.into_iter().enumerate() {
            // Branches of a root share its first three blocks.
            let number = |i: usize| match i {
                0..3 => root * 8 + i as u32,
                i => 64 + (root * 4 + branch) * 16 + i as u32,
            };
            let blocks: Vec<u32> = (0..len).map(number).collect();
            let keys: Vec<u64> = blocks.iter().map(|&b| u64::from(b)).collect();
            order.request(&Uses::all(&keys));
            for &block in blocks.iter().rev() {
                match order.contains(block) {
                    true => order.touch(block),
                    false => order.insert(block, &Arrival { key: u64::from(block), ..Arrival::default() }),
                }
            }
            for pair in blocks.windows(2) {
                order.link(pair[1], pair[0]);
                parents.insert(pair[1], pair[0]);
            }
            match what {
                0 => order.session_closed(&blocks, 1),
                1 => order.wanted(&blocks, now as u32 + 3, 2),
                2 if pinned.len() < 3 => {
                    order.pin(blocks[0]);
                    pinned.push(blocks[0]);
                }
                3 => pinned.drain(..).for_each(|b| order.unpin(b)),
                4 => {
                    // What continued it stands by itself.
                    order.remove(blocks[len - 1]);
                    parents.retain(|_, parent| *parent != blocks[len - 1]);
                    pinned.retain(|pin| *pin != blocks[len - 1]);
                }
                // Nothing continues what continues it.
                _ => order.link(blocks[0], blocks[len - 1]),
            }
            while order.len() > capacity {
                let before = order.len();
                let Some(left) = order.evict(now as u32, |_| true) else {
                    prop_assert!(false, "nothing leaves of {before}");
                    break;
                };
                prop_assert!(!pinned.contains(&left) && !order.contains(left));
                prop_assert_eq!(order.len(), before - 1);
                let continued = parents.iter().any(|(c, p)| *p == left && order.contains(*c));
                let held = pinned.iter().any(|&pin| {
                    std::iter::successors(Some(pin), |b| parents.get(b).copied()).any(|b| b == left)
                });
                prop_assert!(!continued || held, "{left} leaves before what continues it");
            }
        }
        let precision = order.precision(1);
        prop_assert!(precision.iter().all(|p| (0.0..=1.0).contains(p)));
    }

    #[test]
    fn tenants_have_their_floors_and_ceilings(
        replace in prop::sample::select(Replace::ALL.to_vec()),
        uses in prop::collection::vec((0u16..3, 0u32..40), 1..400),
    ) {
        let capacity = 40;
        let mut order = Order::new(replace, capacity);
        order.set_share(0, Share { floor: 0.5, ceiling: 1.0 }).unwrap();
        order.set_share(1, Share { floor: 0.0, ceiling: 0.25 }).unwrap();
        let mut held = [0usize; 3];
        for (tenant, key) in uses {
            let block = u32::from(tenant) * 40 + key;
            if order.contains(block) {
                order.touch(block);
                continue;
            }
            order.insert(block, &Arrival { key: u64::from(block), tenant, ..Arrival::default() });
            held[usize::from(tenant)] += 1;
            prop_assert_eq!(order.above_ceiling(1), held[1].saturating_sub(10));
            while order.len() > capacity || order.above_ceiling(1) > 0 {
                let above = order.above_ceiling(1) > 0;
                let left = order.evict(0, |_| true).unwrap();
                let of = left as usize / 40;
                prop_assert!(!above || of == 1);
                prop_assert!(of != 0 || held[0] > 20, "the floor of the first tenant");
                held[of] -= 1;
            }
        }
    }
}

#[test]
fn lower_priorities_leave_first() {
    let mut order = Order::new(Replace::Lru, 4);
    for (block, priority) in [(0, 1), (1, -1), (2, 0), (3, -1)] {
        order.insert(block, &Arrival { key: u64::from(block), priority, ..Arrival::default() });
    }
    let left: Vec<_> = (0..5).map(|_| order.evict(0, |_| true)).collect();
    assert_eq!(left, [Some(1), Some(3), Some(2), Some(0), None]);
}

#[test]
fn what_is_wanted_stays_and_leaves_by_when() {
    let mut order = Order::new(Replace::Lru, 4);
    for block in 0..4 {
        order.insert(block, &Arrival { key: u64::from(block), ..Arrival::default() });
    }
    order.wanted(&[0], 10, 0);
    order.wanted(&[1], 30, 0);
    order.wanted(&[2], 20, 0);
    assert_eq!(order.evict(5, |_| true), Some(3));
    // All are wanted: the last to be used leaves.
    assert_eq!(order.evict(5, |_| true), Some(1));
    // The first was not wanted after all.
    assert_eq!(order.evict(12, |_| true), Some(0));
    assert!(order.precision(0)[1] < 1.0);
    // Who is wrong most of the time is not believed.
    for block in 10..100 {
        order.insert(block, &Arrival { key: u64::from(block), ..Arrival::default() });
        order.wanted(&[block], 13, 0);
        order.evict(20, |b| b == block).unwrap();
    }
    order.insert(5, &Arrival { key: 5, ..Arrival::default() });
    order.wanted(&[2], 200, 0);
    assert_eq!((order.evict(50, |_| true), order.precision(0)[1] < 0.6), (Some(2), true));
}

#[test]
fn closed_sessions_leave_first_while_that_is_right() {
    let mut order = Order::new(Replace::Lru, 64);
    let arrival = |block: u32| Arrival { key: u64::from(block), ..Arrival::default() };
    (0..64).for_each(|block| order.insert(block, &arrival(block)));
    order.session_closed(&[40, 41, 42], 3);
    // Used by many: not the session's own.
    (0..6).for_each(|_| order.touch(50));
    order.session_closed(&[50], 3);
    let left: Vec<_> = (0..4).map(|_| order.evict(0, |_| true).unwrap()).collect();
    assert_eq!(left, [42, 41, 40, 0]);
    // Sessions of this source go on after all.
    for round in 0..50 {
        let blocks = [1 + round % 30, 31 + round % 9];
        order.session_closed(&blocks, 3);
        blocks.iter().for_each(|&block| order.touch(block));
    }
    order.session_closed(&[63], 3);
    assert!(order.precision(3)[0] < 0.6);
    assert_ne!(order.evict(0, |_| true), Some(63));
}

#[test]
fn wrong_settings_are_errors() {
    let mut order = Order::new(Replace::Adaptive, 10);
    let error = order.set_share(0, Share { floor: 0.8, ceiling: 0.5 }).unwrap_err().to_string();
    assert!(error.contains("found 0.8 and 0.5"), "{error}");
    order.set_share(0, Share { floor: 0.8, ..Share::default() }).unwrap();
    let error = order.set_share(1, Share { floor: 0.3, ..Share::default() }).unwrap_err();
    assert!(error.to_string().contains("sum of floors must be at most 1"), "{error}");
    assert_eq!(Replace::parse("arc").unwrap(), Replace::Arc);
    let error = Replace::parse("s3fif").unwrap_err().to_string();
    assert!(error.contains("did you mean \"s3fifo\"?"), "{error}");
}

#[test]
fn a_block_takes_no_more_than_is_said() {
    let capacity = 20_000;
    for replace in Replace::ALL {
        let mut order = Order::new(replace, capacity);
        for block in 0..8 * capacity as u32 {
            let (number, key) = (block % capacity as u32, u64::from(block));
            order.request(&Uses::all(&[key]));
            if order.len() == capacity {
                assert_eq!(order.evict(0, |b| b == number), Some(number));
            }
            order.insert(number, &Arrival { key, ..Arrival::default() });
        }
        let all: Vec<u32> = (0..capacity as u32).collect();
        (0..SOURCES as u8).for_each(|source| {
            order.session_closed(&all[usize::from(source)..][..capacity - SOURCES], source);
            (0..capacity / 2).for_each(|_| assert!(order.evict(0, |_| true).is_some()));
            (0..capacity as u32)
                .filter(|&b| !order.contains(b))
                .collect::<Vec<_>>()
                .iter()
                .for_each(|&b| {
                    order.insert(b, &Arrival { key: u64::from(b), ..Arrival::default() })
                });
        });
        let (bytes, charged) = (order.bytes(), replace.block_bytes() as usize * capacity);
        assert!(bytes <= charged && charged < 2 * bytes, "{replace:?}: {bytes} of {charged}");
    }
}

#[test]
fn a_long_chain_leaves_from_its_end_in_no_time() {
    let len = 50_000u32;
    for replace in Replace::ALL {
        let mut order = Order::new(replace, len as usize);
        for block in 0..len {
            let parent = block.checked_sub(1);
            order.insert(block, &Arrival { key: u64::from(block), parent, ..Arrival::default() });
        }
        // Going through all of it for each would take minutes.
        for block in (0..len).rev() {
            assert_eq!(order.evict(0, |_| true), Some(block), "{replace:?}");
        }
        // One that is held keeps those it continues, as long as others may leave.
        (0..4u32).for_each(|b| {
            order.insert(b, &Arrival { parent: b.checked_sub(1), ..Arrival::default() });
        });
        (8..10).for_each(|b| order.insert(b, &Arrival::default()));
        let left: Vec<_> = (0..5).filter_map(|_| order.evict(0, |b| b != 3)).collect();
        assert!([8, 9].iter().all(|b| left[..2].contains(b)), "{replace:?}: {left:?}");
        assert!(order.contains(3) && order.evict(0, |b| b != 3).is_none());
    }
}
