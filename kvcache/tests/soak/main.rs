//! A store under twice the pressure it was made for, over a real directory, with tenants that mix,
//! work that is cancelled and a disk of which one call in a hundred goes wrong: memory, descriptors and
//! threads stay what they were. `KVIST_SOAK_SECONDS` is how long; 10 by default.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../common/prefix.rs"]
mod common;
mod faulty;
#[path = "../common/scratch.rs"]
mod scratch;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Numbers, SEGMENT, get, get_layer, prefix, put, salt, space};
use faulty::{Faulty, SPEED};
use kvist::{DiskOptions, PrefixStore};
use scratch::Scratch;

const TENANTS: u32 = 4;
/// Blocks of a tenant: all of them are about twice what fits on disk.
const BLOCKS: u64 = 300;
const SEGMENTS: u64 = 30;
const THREADS: u64 = 4;
const STEPS: u64 = 250;
/// Rounds between opening and closing.
const ROUNDS: u64 = 6;
/// What the allocator may keep of one lap more than of another, beside one in a hundred: on the
/// default run, 200 bytes a call.
const SLACK: u64 = 4 << 20;

/// What the process has of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    resident: u64,
    files: usize,
    threads: usize,
}

fn held() -> Held {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    let (files, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
    Held { resident: pages * 4096, files, threads }
}

fn open(path: &Path, vfs: &Faulty) -> PrefixStore {
    let options = DiskOptions::new(path, SEGMENTS * SEGMENT).segment_bytes(SEGMENT);
    let options = options.deadline(Duration::from_secs(20) * SPEED);
    let store = PrefixStore::builder().host_bytes(1 << 20).queue_bytes(200_000);
    let store = store.disk(options).vfs(Arc::new(vfs.clone()));
    // Opening a directory may fail, too.
    (0..20).find_map(|_| store.clone().build().ok()).expect("it opens now and then")
}

/// How often things were done.
#[derive(Clone, Copy, Default)]
struct Did {
    calls: u64,
    found: u64,
    cancelled: u64,
}

fn work(store: &PrefixStore, seed: u64) -> Did {
    let mut numbers = Numbers::new(seed);
    let spaces: Vec<_> = (0..TENANTS).map(|t| space(store, t)).collect();
    let (mut leases, mut did) = (Vec::new(), Did::default());
    for _ in 0..STEPS {
        let (t, n) = (numbers.below(TENANTS.into()) as u32, numbers.below(BLOCKS) as u32);
        let space = &spaces[t as usize];
        did.calls += 1;
        match numbers.below(1000) {
            0 => drop(store.erase_tenant(&salt(t))),
            1..10 => drop(space.evict(&[prefix(space, n).keys()[0]])),
            10..40 => {
                leases.extend(space.lease(&prefix(space, n).keys()[0]));
                leases.truncate(2);
            }
            40..90 => {
                // Dropped before, while or after it is worked on.
                let ticket = space.prefetch(&prefix(space, n), 0..1);
                did.cancelled += 1;
                ticket.cancel();
            }
            90..140 => drop(space.prefetch(&prefix(space, n), 0..1).wait(Duration::from_secs(60))),
            140..200 => did.found += u64::from(get_layer(space, t, n, 1).is_ok()),
            200..600 => did.found += u64::from(get(space, t, n).is_ok()),
            _ => drop(put(space, t, n)),
        }
    }
    did
}

/// Opens, works, closes.
fn lap(path: &Path, lap: u64, total: &mut Did) -> Held {
    let vfs = Faulty::new(lap);
    let store = open(path, &vfs);
    let mut most = held();
    for round in 0..ROUNDS {
        let done = std::thread::scope(|scope| {
            let seed = |thread| (lap * ROUNDS + round) * THREADS + thread;
            let store = &store;
            let start = |thread| scope.spawn(move || work(store, seed(thread)));
            let threads: Vec<_> = (0..THREADS).map(start).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<Did>>()
        });
        for did in done {
            total.calls += did.calls;
            total.found += did.found;
            total.cancelled += did.cancelled;
        }
        assert!(store.flush(Duration::from_secs(60)), "blocks that are never written");
        let (stats, now) = (store.stats(), held());
        let disk = stats.disk.unwrap();
        assert!(stats.host_used_bytes <= stats.host_budget_bytes && stats.queued_bytes == 0);
        assert!(disk.used_bytes <= disk.budget_bytes, "{disk:?}");
        most.files = most.files.max(now.files);
        most.threads = most.threads.max(now.threads);
        most.resident = most.resident.max(now.resident);
    }
    assert!(vfs.struck() > 0, "nothing went wrong");
    most
}

/// What is held once threads that were told to end have ended.
fn after_closing(before: Held) -> Held {
    let started = Instant::now();
    loop {
        let now = held();
        if (now.files, now.threads) == (before.files, before.threads) {
            return now;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{now:?}, once {before:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_it_holds_stays_what_it_was() {
    let seconds = std::env::var("KVIST_SOAK_SECONDS").ok().and_then(|s| s.parse().ok());
    let long = Duration::from_secs(seconds.unwrap_or(10));
    let scratch = Scratch::new("soak");
    let (started, before) = (Instant::now(), held());
    let (mut total, mut closed, mut opened) = (Did::default(), Vec::new(), Vec::new());
    while started.elapsed() < long || closed.len() < 8 {
        opened.push(lap(&scratch.0, closed.len() as u64, &mut total));
        closed.push(after_closing(before));
    }
    assert!(total.found * 10 > total.calls, "hardly anything was found");
    println!(
        "soak: {} laps, {} calls, {} found, {} cancelled",
        closed.len(),
        total.calls,
        total.found,
        total.cancelled
    );
    let files = SEGMENTS as usize + 20;
    assert!(opened.iter().all(|o| o.files <= before.files + files), "{opened:?}");
    // Writer, fetcher, and those of the engine: also the kernel's, one for each write in flight, which it
    // keeps for some seconds.
    assert!(opened.iter().all(|o| o.threads <= before.threads + 2 + 8), "{opened:?}");
    for (what, laps) in [("open", opened), ("closed", closed)] {
        let resident: Vec<u64> = laps.iter().map(|held| held.resident).collect();
        let (first, second) = resident.split_at(resident.len() / 2);
        // A lap in which the disk was slow holds more for a while; what leaks is there in all later laps.
        let mut later = second.to_vec();
        later.sort_unstable();
        let (warm, last) = (first.iter().copied().max().unwrap(), later[later.len() / 2]);
        println!("soak: resident while {what}: {warm} bytes, then {last}");
        assert!(last <= warm + warm / 100 + SLACK, "while {what}: {resident:?}");
    }
}
