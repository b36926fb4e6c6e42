//! Below both: blocks of the store on its disk, pages of the cache on its own.

use std::time::Duration;

use kvist::MissReason;
use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};

use crate::common::*;

/// A cache over a disk with room for about so many blocks in memory.
fn tight(sim: &SimVfs, blocks: u64) -> kvist::Cache {
    tiered(&usual(), blocks * (block() + 4 * 49) + 60_000, sim).write_ahead(false).build().unwrap()
}

#[test]
fn what_was_published_survives_a_restart() {
    for dtype in DTYPES {
        for tier in [false, true] {
            let (sim, geometry) = (SimVfs::new(3), geometry(dtype, 64));
            let builder = || match tier {
                true => tiered(&geometry, 16 << 20, &sim),
                false => builder(&geometry, 16 << 20),
            };
            let all = tokens(1, 500, 0, 500);
            let store = stored(&sim).build().unwrap();
            let space = space_of(&store, &geometry);
            let cache = builder().build().unwrap();
            assert_eq!(space.publish(&filled(&cache, &all), &all).unwrap().new, 7);
            store.run_pending();
            drop((store, space, cache));

            let store = stored(&sim).build().unwrap();
            let space = space_of(&store, &geometry);
            let cache = builder().select(selects()[2].clone()).build().unwrap();
            let started = space.start(&cache, &all).unwrap();
            assert_eq!((started.sequence.len(), started.shared, started.from_disk), (448, 0, 7));
            check(&started.sequence, &all[..448]);
            alike(&started.sequence, &filled(&cache, &all[..448]));
            // No block came to the store's memory, and the next one shares the pages.
            assert_eq!((store.stats().host_blocks, store.stats().lent_blocks), (7, 7));
            let again = space.start(&cache, &all).unwrap();
            assert_eq!((again.sequence.len(), again.shared, again.from_disk), (448, 7, 0));
            check(&again.sequence, &all[..448]);
            assert_eq!(get(&space, &geometry, &all).blocks, 7);
            store.run_pending();
            assert_eq!(store.stats().disk.unwrap().records, 7);
        }
    }
}

#[test]
fn a_run_over_all_tiers() {
    let (sim, geometry, cache) = (SimVfs::new(4), usual(), cache(16 << 20));
    let all = tokens(1, 640, 0, 640);
    let store = stored(&sim).build().unwrap();
    put(&space(&store), &geometry, &all, 0..8);
    store.run_pending();
    drop(store);
    let store = stored(&sim).build().unwrap();
    let space = space(&store);
    // Lent, own, disk.
    let published = space.publish(&filled(&cache, &all[..256]), &all).unwrap();
    assert_eq!((published.new, published.present), (0, 4));
    let ticket = space.prefetch(&space.prefix(&all).unwrap(), 0..6);
    store.run_pending();
    assert_eq!(ticket.wait(Duration::ZERO), Some(6));
    assert_eq!((store.stats().host_blocks, store.stats().lent_blocks), (6, 4));
    let started = space.start(&cache, &all).unwrap();
    assert_eq!((started.sequence.len(), started.shared, started.from_disk), (512, 4, 2));
    check(&started.sequence, &all[..512]);
    assert_eq!(started.miss, ABSENT);
}

#[test]
fn pages_that_left_memory_are_read_written_and_shared() {
    let (pages, blocks) = (SimVfs::new(5), SimVfs::new(6));
    let cache = tight(&pages, 8);
    let store = stored(&blocks).build().unwrap();
    let space = space(&store);
    let of = |family: u32| tokens(family, 320, 0, 320);
    for family in 0..5 {
        let sequence = filled(&cache, &of(family));
        let _ = space.publish(&sequence, &of(family)).unwrap();
    }
    assert!(cache.stats().stored_bytes > 10 * block(), "{:?}", cache.stats());
    assert_eq!(store.stats().lent_blocks, 25);
    for family in 0..5 {
        assert_eq!(get(&space, &usual(), &of(family)).blocks, 5);
        let started = space.start(&cache, &of(family)).unwrap();
        assert_eq!(started.shared, 5);
        check(&started.sequence, &of(family));
    }
    store.run_pending();
    assert_eq!((store.stats().throttled, store.stats().disk.unwrap().records), (0, 25));
    drop((store, space));
    assert_eq!((cache.stats().used_bytes, cache.stats().stored_bytes), (0, 0));
    let store = stored(&blocks).build().unwrap();
    let space = space_of(&store, &usual());
    // Longer than the cache's memory: what came first goes below while the rest comes.
    let long = tokens(7, 1280, 0, 1280);
    put(&space, &usual(), &long, 0..20);
    check(&space.start(&cache, &long).unwrap().sequence, &long);
    for family in 0..5 {
        check(&space.start(&cache, &of(family)).unwrap().sequence, &of(family));
    }
}

#[test]
fn attention_gets_frames_back_from_what_cannot_go_below() {
    // Pages of tiles that are not finished stay in memory, published or not.
    let geometry = geometry(kvist::DType::Bf16, 16);
    let long = tokens(1, 1000, 0, 1000);
    let roomy = builder(&geometry, 64 << 20).build().unwrap();
    let expected = filled(&roomy, &long);
    // However much is left beside whole prompts, for some it is less than a page.
    for extra in (0..8000).step_by(500) {
        let sim = SimVfs::new(7);
        let bytes = 12 * block() + extra;
        let cache = tiered(&geometry, bytes, &sim).write_ahead(false).build().unwrap();
        let store = store();
        let space = space_of(&store, &geometry);
        let sequence = filled(&cache, &long);
        sequence.offload().unwrap();
        for family in 10.. {
            let before = cache.stats().used_bytes;
            let prompt = tokens(family, 16, 0, 16);
            assert_eq!(space.publish(&filled(&cache, &prompt), &prompt).unwrap().new, 1);
            let after = cache.stats().used_bytes;
            if bytes - after < after - before {
                break;
            }
        }
        assert_eq!(store.stats().host_evicted, 0);
        near(&sequence, &expected);
        check(&sequence, &long);
        sequence.offload().unwrap();
        drop(sequence.pin(0..32).unwrap());
    }
}

#[test]
fn pages_that_cannot_be_read_any_more_are_looked_for_in_the_store() {
    for on_disk in [false, true] {
        let (pages, blocks) = (SimVfs::new(8), SimVfs::new(9));
        let cache = tight(&pages, 8);
        let store = stored(&blocks).build().unwrap();
        let space = space(&store);
        let all = tokens(1, 320, 0, 320);
        let sequence = filled(&cache, &all);
        let _ = space.publish(&sequence, &all).unwrap();
        if on_disk {
            store.run_pending();
        }
        sequence.offload().unwrap();
        drop(sequence);
        pages.inject(Fault::ReadIo, Trigger::from(1).on(Call::Read));
        let restored = get(&space, &usual(), &all);
        match on_disk {
            true => assert_eq!((restored.blocks, restored.miss, restored.from_disk), (5, None, 5)),
            false => assert_eq!((restored.blocks, restored.miss), (0, ABSENT)),
        }
        pages.heal();
        let started = space.start(&cache, &all).unwrap().sequence;
        check(&started, &all[..started.len()]);
    }
}

#[test]
fn nothing_is_wrong_when_disks_fail() {
    const FAULTS: [Fault; 6] = [
        Fault::ReadIo,
        Fault::WriteIo,
        Fault::BitFlip,
        Fault::ShortRead,
        Fault::SyncIo,
        Fault::WriteNoSpace,
    ];
    let mut found = 0;
    for seed in 0..24 {
        let (pages, blocks) = (SimVfs::new(seed), SimVfs::new(seed + 100));
        let cache = tight(&pages, 9);
        let store = stored(&blocks).build().unwrap();
        let space = space(&store);
        for round in 0..16 {
            let fault = FAULTS[(seed + round) as usize % FAULTS.len()];
            let sim = if round % 2 == 0 { &pages } else { &blocks };
            sim.inject(fault, Trigger::nth(1 + (seed * 7 + round * 3) % 40));
            let all = tokens((round % 3) as u32, 128, (round % 5) as u32, 330);
            let Ok(started) = space.start(&cache, &all) else { continue };
            let mut sequence = started.sequence;
            found += sequence.len();
            let _ = check_or(&sequence, &all[..sequence.len()]);
            if append(&mut sequence, &all, 64).is_ok() {
                let _ = check_or(&sequence, &all);
                let _ = space.publish(&sequence, &all).unwrap();
            }
            let _ = get(&space, &usual(), &all);
            store.run_pending();
        }
        drop((store, space));
        assert_eq!(cache.stats().used_bytes, 0, "seed {seed}");
    }
    assert!(found > 24 * 16 * 64, "{found} tokens were found");
}

#[test]
fn damaged_records_end_a_start() {
    let (sim, cache) = (SimVfs::new(10), cache(16 << 20));
    let all = tokens(1, 320, 0, 320);
    let store = stored(&sim).build().unwrap();
    let _ = space(&store).publish(&filled(&cache, &all), &all).unwrap();
    store.run_pending();
    drop(store);
    assert_eq!(cache.stats().used_bytes, 0);
    let store = stored(&sim).build().unwrap();
    let space = space(&store);
    sim.inject(Fault::BitFlip, Trigger::nth(1).on(Call::Read));
    let started = space.start(&cache, &all).unwrap();
    let len = started.sequence.len();
    assert!(len < 320, "the flipped bit went unnoticed");
    assert!(matches!(started.miss, Some(MissReason::Checksum | MissReason::Torn)));
    check(&started.sequence, &all[..len]);
    assert!(store.flush(Duration::ZERO));
}

#[test]
fn erased_blocks_do_not_come_back_with_a_start() {
    let (sim, cache) = (SimVfs::new(11), cache(16 << 20));
    let all = tokens(1, 320, 0, 320);
    let store = stored(&sim).build().unwrap();
    let space = space(&store);
    let _ = space.publish(&filled(&cache, &all), &all).unwrap();
    store.run_pending();
    let _ = store.erase_tenant(b"one").unwrap();
    assert_eq!(space.start(&cache, &all).unwrap().miss, ABSENT);
    let _ = space.publish(&filled(&cache, &all), &all).unwrap();
    // What waits to be written is erased with the rest.
    let _ = store.erase_tenant(b"one").unwrap();
    store.run_pending();
    assert_eq!(store.stats().disk.unwrap().records, 0);
    assert_eq!(space.start(&cache, &all).unwrap().miss, ABSENT);
    assert_eq!(cache.stats().used_bytes, 0);
}
