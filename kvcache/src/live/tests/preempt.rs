//! Sequences that give way to others and come back: what is moved, how, and what they say meanwhile.

use std::time::Duration;

use crate::DiskOptions;
use crate::vfs::sim::SimVfs;

use super::*;

/// Bytes of a page of all heads and layers.
const BLOCK: u64 = (LAYERS * HEADS * 64 * 2 * DIM * 2) as u64;

/// A cache with a simulated disk; `ahead` says whether there is a thread.
fn on_disk(bytes: u64, ahead: bool) -> Cache {
    let disk = DiskOptions::new("/store", 256 << 20).segment_bytes(32 << 20);
    let vfs = Arc::new(SimVfs::new(3).process());
    let select = selects()[2].clone();
    builder(&select, bytes, 64)
        .write_ahead(ahead)
        .prefetch(false)
        .disk(disk)
        .vfs(vfs)
        .build()
        .unwrap()
}

#[test]
fn a_second_swap_out_moves_only_what_is_new() {
    let (cache, memory) = tiered(&selects()[2], 4 << 20, Faults::default());
    let mut random = Random(1);
    let [mut s, mut other] = filled([&cache, &cache], 64 * 20, &mut random);
    let written = || cache.stats().below_written_bytes;
    assert_eq!(s.offload().unwrap() as u64 * BLOCK, 20 * BLOCK * (LAYERS * HEADS) as u64);
    assert_eq!(written(), 20 * BLOCK);
    // It comes back, goes on for three blocks and a bit, beside another that does too.
    s.restore().unwrap();
    let (k, v) = data(&mut random, 64 * 3 + 10);
    [&mut s, &mut other].into_iter().for_each(|s| append(s, &k, &v).unwrap());
    let before = cache.stats().page_bytes;
    assert_eq!(s.offload().unwrap(), 23 * LAYERS * HEADS);
    assert_eq!(written(), 23 * BLOCK, "only what is new");
    assert_eq!(before - cache.stats().page_bytes, 23 * BLOCK, "memory is free at once");
    s.restore().unwrap();
    s.offload().unwrap();
    assert_eq!(written(), 23 * BLOCK, "nothing is new");
    // What is cut and written again is new: the page of the cut and those after it.
    s.truncate(64 * 10 + 5).unwrap();
    append(&mut s, &k, &v).unwrap();
    s.offload().unwrap();
    assert_eq!(written(), (23 + 3) * BLOCK);
    drop((s, other));
    nothing_left(&cache, &memory);
}

#[test]
fn nine_tenths_of_the_bytes_are_in_runs_of_a_mebibyte() {
    let cache = on_disk(64 << 20, false);
    let mut random = Random(2);
    let [mut s, mut other] = [cache.sequence(), cache.sequence()];
    // They take turns, as in a batch.
    for _ in 0..160 {
        let (k, v) = data(&mut random, 100);
        [&mut s, &mut other].into_iter().for_each(|s| append(s, &k, &v).unwrap());
    }
    let count =
        || cache.disk().map(|d| (d.written_bytes, d.large_run_bytes, d.write_runs)).unwrap();
    let mut last = count();
    for s in [&s, &other] {
        s.offload().unwrap();
        let now = count();
        let (all, large) = (now.0 - last.0, now.1 - last.1);
        assert!(all > 4 << 20, "{all} bytes");
        assert!(large * 10 >= all * 9, "{large} of {all}");
        assert!(now.2 - last.2 <= 1 + all / (1 << 20), "{now:?} after {last:?}");
        last = now;
    }
    // And the increment.
    s.restore().unwrap();
    let (k, v) = data(&mut random, 64 * 120);
    append(&mut s, &k, &v).unwrap();
    s.offload().unwrap();
    let now = count();
    let (all, large) = (now.0 - last.0, now.1 - last.1);
    assert!(all > 1 << 20 && all < 120 * BLOCK + (1 << 20), "{all} bytes");
    assert!(large * 10 >= all * 9, "{large} of {all}");
}

#[test]
fn a_ticket_tells_when_all_is_back() {
    let cache = on_disk(64 << 20, true);
    let mut random = Random(3);
    let [s, twin] = filled([&cache, &roomy(&selects()[2], 64)], 9000, &mut random);
    let pages = s.offload().unwrap();
    let (may, ticket) = s.restore_behind();
    assert_eq!(may, pages);
    // Right at any moment: what is not there yet is read.
    for _ in 0..20 {
        let q = query(&mut random, 1);
        let options = AttendOptions::default();
        let (a, b) =
            (attend(&s, 1, &q, &options).unwrap(), attend(&twin, 1, &q, &options).unwrap());
        assert!(near(&a.0, &b.0));
    }
    // What attention brought back itself does not count.
    let came = ticket.wait(Duration::from_secs(60)).unwrap();
    assert!(came > 0 && came <= pages, "{came} of {pages}");
    assert_eq!(s.stats().demoted_bytes, 0);
    let (none, ticket) = s.restore_behind();
    assert_eq!((none, ticket.wait(Duration::ZERO)), (0, Some(0)));
}

#[test]
fn others_append_and_attend_while_one_comes_back() {
    let cache = on_disk(32 << 20, true);
    let mut random = Random(4);
    let [s, _] = filled([&cache, &cache], 9000, &mut random);
    s.offload().unwrap();
    let (_, ticket) = s.restore_behind();
    let room = roomy(&selects()[2], 64);
    let [mut other, mut twin] = [cache.sequence(), room.sequence()];
    for _ in 0..100 {
        let (k, v) = data(&mut random, 3);
        [&mut other, &mut twin].into_iter().for_each(|s| append(s, &k, &v).unwrap());
        let (q, options) = (query(&mut random, 1), AttendOptions::default());
        let (a, b) = (attend(&other, 0, &q, &options), attend(&twin, 0, &q, &options));
        assert_eq!(a.unwrap().0, b.unwrap().0);
    }
    assert!(ticket.wait(Duration::from_secs(60)).is_some());
    assert_eq!(s.stats().demoted_bytes, 0);
}

#[test]
fn a_dropped_ticket_brings_nothing_more_and_a_detached_one_goes_on() {
    // Without a thread each token sends for a part: nothing comes between two of them.
    for detached in [false, true] {
        let cache = on_disk(64 << 20, false);
        let mut random = Random(5);
        let [s, other] = filled([&cache, &cache], 3000, &mut random);
        let pages = s.offload().unwrap();
        let small = other.fork();
        small.offload().unwrap();
        let (may, ticket) = s.restore_behind();
        assert_eq!(may, pages);
        if detached {
            ticket.detach();
        } else {
            drop(ticket);
        }
        for _ in 0..50 {
            let q = query(&mut random, 1);
            attend(&other, 0, &q, &AttendOptions::default()).unwrap();
        }
        let back = s.stats().demoted_bytes == 0;
        assert_eq!(back, detached, "{:?}", s.stats());
    }
}

#[test]
fn a_ticket_ends_where_memory_or_the_sequence_does() {
    let cache = on_disk(3 << 20, true);
    let mut random = Random(6);
    let mut s = cache.sequence();
    let (k, v) = data(&mut random, 10_000);
    append(&mut s, &k, &v).unwrap();
    s.offload().unwrap();
    let (may, ticket) = s.restore_behind();
    let came = ticket.wait(Duration::from_secs(60)).unwrap();
    assert!(came > 0 && came < may, "{came} of {may}");
    // The newest are there.
    assert_eq!(s.layers[0].sealed.last().unwrap().place().0, HEADS);
    s.offload().unwrap();
    let (_, ticket) = s.restore_behind();
    drop((s, cache));
    let patience = Duration::from_secs(60);
    let _ = ticket.wait_for(patience);
    assert!(ticket.is_done(), "nobody waits for ever");
}
