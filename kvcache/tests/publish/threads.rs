//! Everything at once: what is started is right whoever publishes, evicts, erases or needs memory.

use std::sync::Arc;
use std::thread;

use kvist::vfs::sim::SimVfs;
use kvist::{Cache, PrefixStore, Space};

use crate::common::*;

const FAMILIES: usize = 3;
const ROUNDS: usize = 60;

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        ((self.0 >> 33) % n as u64) as usize
    }
}

/// A request: starts, computes the rest as far as there is memory, publishes.
fn request(cache: &Cache, space: &Space, numbers: &mut Numbers) {
    let (family, len) = (numbers.below(FAMILIES) as u32, 1 + numbers.below(400));
    let all = tokens(family, 128 + 64 * numbers.below(3), numbers.below(4) as u32, len);
    let mut started = space.start(cache, &all).unwrap().sequence;
    check(&started, &all[..started.len()]);
    if append(&mut started, &all, 64).is_ok() {
        check(&started, &all);
        let published = space.publish(&started, &all).unwrap();
        assert_eq!(published.blocks, len / 64);
        if numbers.below(3) == 0 {
            let cut = numbers.below(len);
            if started.truncate(cut).is_ok() {
                let other = branch(&all, cut, 80);
                if append(&mut started, &other, 30).is_ok() {
                    check(&started, &other);
                }
            }
        }
    }
    let restored = get(space, &usual(), &all);
    assert!(restored.blocks <= len / 64);
}

fn act(cache: &Cache, store: &PrefixStore, space: &Space, numbers: &mut Numbers) {
    match numbers.below(12) {
        0 => {
            let all = tokens(numbers.below(FAMILIES) as u32, 128, 0, 192);
            space.evict(space.prefix(&all).unwrap().keys());
        }
        1 if numbers.below(4) == 0 => {
            let _ = store.erase_tenant(b"one").unwrap();
        }
        2 => {
            let all = tokens(numbers.below(FAMILIES) as u32, 192, 0, 192);
            let prefix = space.prefix(&all).unwrap();
            let lease =
                prefix.keys().iter().enumerate().find_map(|(n, k)| Some((n, space.lease(k)?)));
            if let Some((n, lease)) = lease {
                assert!(lease[..] == block_of(&usual(), &all, n)[..]);
            }
        }
        3 => store.run_pending(),
        _ => request(cache, space, numbers),
    }
}

fn run(cache: &Cache, store: &PrefixStore, seed: u64) {
    let space = space(store);
    thread::scope(|scope| {
        for thread in 0..4 {
            let space = &space;
            scope.spawn(move || {
                let mut numbers = Numbers(seed * 100 + thread);
                (0..ROUNDS).for_each(|_| act(cache, store, space, &mut numbers));
            });
        }
    });
    store.run_pending();
    let stats = store.stats();
    assert!(stats.host_used_bytes <= stats.host_budget_bytes);
    assert!(stats.shared > 0 && stats.published > 0, "{stats:?}");
    store.close();
    assert_eq!((cache.stats().used_bytes, cache.stats().stored_bytes), (0, 0), "seed {seed}");
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("KVIST_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => {
            let soak = std::env::var("KVIST_SOAK").ok().and_then(|s| s.parse().ok());
            0..4 * soak.unwrap_or(1)
        }
    }
}

#[test]
fn in_memory() {
    for seed in seeds() {
        let cache = builder(&usual(), 22 * block()).select(selects()[2].clone()).build().unwrap();
        run(&cache, &PrefixStore::builder().host_bytes(4 * block()).build().unwrap(), seed);
    }
}

#[test]
fn over_disks() {
    for seed in seeds() {
        let (pages, blocks) = (SimVfs::new(seed), SimVfs::new(seed + 100));
        let cache = tiered(&usual(), 22 * block(), &pages).build().unwrap();
        let vfs = Arc::new(blocks.process());
        let store = stored(&blocks).vfs(vfs).threads(true).host_bytes(6 * block()).build().unwrap();
        run(&cache, &store, seed);
    }
}
