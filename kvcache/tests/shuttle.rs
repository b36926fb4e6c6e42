//! The prefix store as it is, its own threads included, under shuttle's scheduler: hardly any memory,
//! callers that want it at the same time, and orders of their steps by chance and by priorities. A
//! budget that two wait for, a wake-up that is lost and a lock that is taken twice are deadlocks here.
//! `make shuttle`.

#![cfg(kvist_shuttle)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "common/prefix.rs"]
mod common;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kvist::vfs::sim::SimVfs;
use kvist::{BlockRows, DiskOptions, MissReason, PrefixStore, Refused, Strides};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

use common::{SEGMENT, get, prefix, put, salt, soak, space};

/// Schedules of each kind, of each of the lives.
const SCHEDULES: usize = 4000;
/// Longer than anything here takes: there is no time.
const PATIENT: Duration = Duration::from_secs(3600);

/// A store with room in memory for three blocks, and for one that waits to be written.
fn store(segments: u64, backpressure: Duration) -> PrefixStore {
    let options = DiskOptions::new("/store", segments * SEGMENT).segment_bytes(SEGMENT);
    let builder = PrefixStore::builder().host_bytes(9_000).queue_bytes(3_000).disk(options);
    builder.backpressure(backpressure).vfs(Arc::new(SimVfs::new(1))).build().unwrap()
}

/// What must hold when everybody is done.
fn settled(store: &PrefixStore) {
    assert!(store.flush(PATIENT), "blocks that are never written");
    let stats = store.stats();
    assert!(stats.host_used_bytes <= stats.host_budget_bytes && stats.queued_bytes == 0);
    let disk = stats.disk.unwrap();
    assert!(disk.used_bytes <= disk.budget_bytes, "{disk:?}");
}

/// Runs a life in many orders.
fn check(life: fn()) {
    let schedules = SCHEDULES * soak() as usize;
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let mut config = Config::new();
        config.stack_size = 1 << 20;
        Runner::new(scheduler, config).run(life)
    };
    let random = run(Box::new(RandomScheduler::new(schedules)));
    let by_priority = run(Box::new(PctScheduler::new(3, schedules)));
    println!("shuttle: {random} by chance, {by_priority} by priorities");
}

fn together(store: &PrefixStore, lives: [fn(&PrefixStore); 3]) {
    let start = |life: fn(&PrefixStore)| {
        let store = store.clone();
        thread::spawn(move || life(&store))
    };
    lives.map(start).into_iter().for_each(|thread| thread.join().unwrap());
}

/// Each is stored, was there, or found no room.
fn puts(store: &PrefixStore, tenant: u32, blocks: Range<u32>) {
    let space = space(store, tenant);
    for n in blocks {
        let stored = put(&space, tenant, n);
        let known = matches!(stored, Ok(()) | Err(Refused::AlreadyPresent | Refused::Throttled));
        assert!(known, "block {n} of {tenant}: {stored:?}");
    }
}

/// Each comes back as it was, or was never there or left.
fn gets(store: &PrefixStore, tenant: u32, blocks: Range<u32>) {
    let space = space(store, tenant);
    for n in blocks {
        let found = get(&space, tenant, n);
        let known = matches!(found, Ok(()) | Err(MissReason::Absent | MissReason::Busy));
        assert!(known, "block {n} of {tenant}: {found:?}");
    }
}

/// The checker sees a wait that nobody ends: without, the others would prove nothing.
#[test]
#[should_panic(expected = "deadlock")]
fn a_wait_that_nobody_ends_is_found() {
    check(|| {
        let options = DiskOptions::new("/store", 8 * SEGMENT).segment_bytes(SEGMENT);
        let builder = PrefixStore::builder().host_bytes(9_000).disk(options).threads(false);
        let store = builder.vfs(Arc::new(SimVfs::new(1))).build().unwrap();
        puts(&store, 0, 0..1);
        assert!(store.flush(PATIENT), "no thread writes it");
    });
}

/// Puts wait for the writer, gets for memory, the writer for the disk.
#[test]
fn callers_that_want_the_same_memory() {
    check(|| {
        let store = store(8, PATIENT);
        together(
            &store,
            [
                |store| puts(store, 0, 0..3),
                |store| {
                    puts(store, 1, 7..8);
                    gets(store, 1, 7..8);
                },
                |store| gets(store, 0, 0..3),
            ],
        );
        settled(&store);
    });
}

/// Leases and prefetches that come while blocks are evicted and a tenant is erased.
#[test]
fn evicted_and_erased_meanwhile() {
    check(|| {
        let store = store(8, Duration::ZERO);
        puts(&store, 0, 1..2);
        together(
            &store,
            [
                |store| {
                    let space = space(store, 0);
                    let keys = prefix(&space, 1);
                    let ticket = space.prefetch(&keys, 0..1);
                    let lease = space.lease(&keys.keys()[0]);
                    assert!(ticket.wait(PATIENT).is_some(), "neither fetched nor missing");
                    let held = lease.as_ref().is_none_or(|l| **l == common::bytes_of(0, 1));
                    assert!(held, "a lease on other bytes");
                    drop(space.prefetch(&keys, 0..1));
                },
                |store| {
                    let space = space(store, 0);
                    space.evict(&[prefix(&space, 1).keys()[0]]);
                    puts(store, 0, 1..2);
                },
                |store| assert!(store.erase_tenant(&salt(0)).is_ok()),
            ],
        );
        settled(&store);
    });
}

/// Closing while others are at it: they are refused, and nobody waits for ever.
#[test]
fn closed_meanwhile() {
    check(|| {
        let store = store(8, PATIENT);
        let (a, b) = (space(&store, 0), space(&store, 1));
        let keys = prefix(&b, 5);
        let putting = thread::spawn(move || {
            let rows = common::bytes_of(0, 1);
            let layout = common::layout();
            let rows = BlockRows::new(&layout, &rows, Strides::canonical(&layout)).unwrap();
            a.prefix(&common::tokens(1)).and_then(|keys| a.put(&keys, 0, &[rows])).is_ok()
        });
        let fetching = thread::spawn(move || b.prefetch(&keys, 0..1).wait(PATIENT));
        store.close();
        putting.join().unwrap();
        fetching.join().unwrap();
    });
}

/// A disk that is full all the time: the writer makes room while others read from what leaves.
#[test]
fn segments_that_leave_while_they_are_read() {
    check(|| {
        let store = store(3, PATIENT);
        together(
            &store,
            [
                |store| puts(store, 0, 0..60),
                |store| gets(store, 0, 0..20),
                |store| {
                    let space = space(store, 0);
                    let keys: Vec<_> = (10..14).map(|n| prefix(&space, n).keys()[0]).collect();
                    assert!(space.evict(&keys) <= 4);
                },
            ],
        );
        settled(&store);
    });
}
