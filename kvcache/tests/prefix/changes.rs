//! An index kept elsewhere follows a store by what it says has changed, whatever is done to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kvist::format::BlockKey;
use kvist::vfs::sim::SimVfs;
use kvist::{
    BlockRows, BlockRowsMut, Changes, Destination, MissReason, Origin, PrefixStore, Refused,
    Strides, Tier,
};

use crate::common::{
    Numbers, bytes_of, get, layout, prefix, put, salt, seeds, simulated, soak, space,
};

const BLOCKS: u32 = 60;
const TENANTS: u32 = 2;

/// Where blocks are, as far as a store has said.
#[derive(Default)]
struct Index(BTreeSet<(BlockKey, Tier)>);

impl Index {
    fn follow(&mut self, said: Changes) {
        if said.reset {
            self.0.clear();
        }
        for change in said.changes {
            let place = (change.key, change.tier);
            let _ = if change.arrived { self.0.insert(place) } else { self.0.remove(&place) };
        }
    }

    /// Compares with what the store says of every block.
    fn check(&self, store: &PrefixStore) {
        let mut there = 0;
        for (tenant, n) in (0..TENANTS).flat_map(|t| (0..BLOCKS).map(move |n| (t, n))) {
            let space = space(store, tenant);
            let prefix = prefix(&space, n);
            let key = prefix.keys()[0];
            let host = self.0.contains(&(key, Tier::Host));
            let any = host || self.0.contains(&(key, Tier::Disk));
            assert_eq!(any, space.contains(&prefix) == 1, "block {n} of tenant {tenant}");
            there += u64::from(host);
        }
        assert_eq!(there, store.stats().host_blocks);
        let disk = self.0.iter().filter(|(_, tier)| *tier == Tier::Disk).count() as u64;
        assert_eq!(disk, store.stats().disk.unwrap().records);
    }
}

#[test]
fn what_is_said_is_what_is_there() {
    for seed in seeds(4) {
        let (vfs, mut numbers) = (SimVfs::new(seed), Numbers::new(seed));
        // Memory for few blocks, and three segments: both tiers evict.
        let open = || simulated(vfs.clone(), 3).host_bytes(16 << 10).build().unwrap();
        let (mut store, mut index) = (open(), Index::default());
        for _ in 0..2_500 * soak() {
            let (tenant, n) = (numbers.below(2) as u32, numbers.below(u64::from(BLOCKS)) as u32);
            let space = space(&store, tenant);
            match numbers.below(64) {
                0 => {
                    drop(space);
                    store.close();
                    (store, index) = (open(), Index::default());
                }
                1 => drop(store.erase_tenant(&salt(tenant))),
                2..6 => drop(space.evict(prefix(&space, n).keys())),
                6..16 => store.run_pending(),
                16..30 => {
                    let _ = get(&space, tenant, n);
                }
                30..36 => {
                    index.follow(store.changes());
                    index.check(&store);
                }
                _ => {
                    let _ = put(&space, tenant, n);
                }
            }
        }
        index.follow(store.changes());
        index.check(&store);
    }
}

/// A block's memory, given away until it is written.
struct Memory(Arc<parking_lot::Mutex<Vec<u8>>>);

impl Destination for Memory {
    fn with_rows(&mut self, write: &mut dyn FnMut(&mut [BlockRowsMut])) {
        let (layout, mut bytes) = (layout(), self.0.lock());
        write(&mut [BlockRowsMut::new(&layout, &mut bytes, Strides::canonical(&layout)).unwrap()]);
    }
}

impl Origin for Memory {
    fn with_rows(&mut self, read: &mut dyn FnMut(&[BlockRows])) {
        let (layout, bytes) = (layout(), self.0.lock());
        read(&[BlockRows::new(&layout, &bytes, Strides::canonical(&layout)).unwrap()]);
    }
}

#[test]
fn blocks_go_behind_the_callers_back() {
    let store = simulated(SimVfs::new(0), 4).build().unwrap();
    let space = space(&store, 0);
    let memory = Arc::new(parking_lot::Mutex::new(bytes_of(0, 1)));
    let start = || space.put_behind(&prefix(&space, 1), Box::new(Memory(memory.clone()))).unwrap();
    let (first, second) = (start(), start());
    assert!(!first.is_done() && get(&space, 0, 1) == Err(MissReason::Absent));
    store.run_pending();
    assert_eq!(first.wait(Duration::ZERO), Some(vec![Ok(())]));
    assert_eq!(second.wait(Duration::ZERO), Some(vec![Err(Refused::AlreadyPresent)]));
    assert_eq!(get(&space, 0, 1), Ok(()));
    let late = start();
    store.close();
    assert_eq!(late.wait(Duration::ZERO), None);
    assert_eq!(Arc::strong_count(&memory), 1, "the memory is given back");
}

#[test]
fn blocks_come_behind_the_callers_back_or_the_ticket_says_why_not() {
    let store = simulated(SimVfs::new(0), 4).build().unwrap();
    let space = space(&store, 0);
    put(&space, 0, 1).unwrap();
    let memory = Arc::new(parking_lot::Mutex::new(vec![0; layout().bytes()]));
    let start = |n| {
        let to = Box::new(Memory(memory.clone()));
        space.get_behind(&prefix(&space, n), 0..1, to).unwrap()
    };
    let ticket = start(1);
    assert!(!ticket.is_done(), "nothing is written before the store gets to it");
    store.run_pending();
    let restored = ticket.wait(Duration::ZERO).unwrap();
    assert_eq!((restored.blocks, restored.miss), (1, None));
    assert!(*memory.lock() == bytes_of(0, 1));

    let ticket = start(2);
    store.run_pending();
    let restored = ticket.wait(Duration::ZERO).unwrap();
    assert_eq!((restored.blocks, restored.miss), (0, Some(MissReason::Absent)));

    let cancelled = start(1);
    cancelled.cancel();
    memory.lock().fill(9);
    store.run_pending();
    assert_eq!(cancelled.wait(Duration::ZERO), None);
    assert!(memory.lock().iter().all(|&b| b == 9), "nothing is written after that");

    let late = start(1);
    store.close();
    assert!(late.is_done());
    assert_eq!(late.wait(Duration::ZERO), None);
    let to = Box::new(Memory(memory.clone()));
    assert!(space.get_behind(&prefix(&space, 1), 0..1, to).is_err());
    assert_eq!(Arc::strong_count(&memory), 1, "the memory is given back");
}
