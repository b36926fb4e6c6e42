//! Eight real threads over one store: what each saw of a block has an order that one thread could
//! have done it in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use kvist::vfs::sim::SimVfs;
use kvist::vfs::{Engine, OsVfs, Vfs};
use kvist::{DiskOptions, MissReason, PrefixStore, Refused, Space};

use crate::common::{Numbers, SEGMENT, get, get_layer, prefix, put, salt, seeds, space};
use crate::history::{self, Did};
use crate::scratch::Scratch;

/// Of a tenant's block.
type Event = history::Event<(u32, u32)>;

const BLOCKS: u64 = 3;

fn act(
    store: &PrefixStore,
    spaces: &[Space],
    numbers: &mut Numbers,
    clock: &AtomicU64,
) -> Vec<Event> {
    let (tenant, n) = (numbers.below(2) as u32, numbers.below(BLOCKS) as u32);
    let space = &spaces[tenant as usize];
    let what = numbers.below(16);
    let from = clock.fetch_add(1, SeqCst);
    let did = match what {
        0..5 => match put(space, tenant, n) {
            Ok(()) => Did::Put,
            Err(Refused::AlreadyPresent) => Did::Found,
            Err(refused) => panic!("put: {refused:?}"),
        },
        5..12 => {
            let result = match what {
                5 => get_layer(space, tenant, n, 1),
                _ => get(space, tenant, n),
            };
            match result {
                Ok(()) => Did::Found,
                Err(MissReason::Absent) => Did::Missed,
                Err(reason) => panic!("get: {reason:?}"),
            }
        }
        12 => {
            store.run_pending();
            return Vec::new();
        }
        13 => {
            store.erase_tenant(&salt(tenant)).unwrap();
            let to = clock.fetch_add(1, SeqCst);
            let each = |n| Event { block: (tenant, n), did: Did::Removed, from, to };
            return (0..BLOCKS as u32).map(each).collect();
        }
        _ => {
            space.evict(&[prefix(space, n).keys()[0]]);
            Did::Removed
        }
    };
    let to = clock.fetch_add(1, SeqCst);
    vec![Event { block: (tenant, n), did, from, to }]
}

/// One store, eight threads; how many histories were looked at.
fn run(seed: u64, vfs: Arc<dyn Vfs>, options: DiskOptions, host: u64, threads: bool) -> u64 {
    let builder = PrefixStore::builder().host_bytes(host).queue_bytes(host / 2);
    let store = builder.disk(options).vfs(vfs).threads(threads).build().unwrap();
    let spaces = [space(&store, 0), space(&store, 1)];
    let clock = AtomicU64::new(0);
    let events: Vec<Event> = thread::scope(|scope| {
        let (store, spaces, clock) = (&store, &spaces, &clock);
        let work = |thread: u64| {
            scope.spawn(move || {
                let mut numbers = Numbers::new(seed * 8 + thread);
                (0..12).flat_map(|_| act(store, spaces, &mut numbers, clock)).collect::<Vec<_>>()
            })
        };
        let handles: Vec<_> = (0..8).map(work).collect();
        handles.into_iter().flat_map(|h| h.join().unwrap()).collect()
    });
    let blocks = (0..2).flat_map(|t| (0..BLOCKS as u32).map(move |n| (t, n)));
    history::check(seed, &blocks.collect::<Vec<_>>(), &events)
}

#[test]
fn histories_over_a_simulated_disk() {
    let mut histories = 0;
    for seed in seeds(150) {
        let sim = SimVfs::new(seed);
        let options = DiskOptions::new("/store", 40 * SEGMENT).segment_bytes(SEGMENT);
        histories += run(seed, Arc::new(sim), options, 1 << 20, seed % 2 == 0);
    }
    println!("order/sim: {histories} histories");
}

#[test]
fn histories_over_a_real_directory() {
    let scratch = Scratch::new("order");
    let mut histories = 0;
    for seed in seeds(40) {
        let _ = std::fs::remove_dir_all(&scratch.0);
        let vfs = Arc::new(OsVfs::new(Engine::Auto).unwrap());
        let options = DiskOptions::new(&scratch.0, 40 * SEGMENT).segment_bytes(SEGMENT);
        histories += run(seed, vfs, options, 1 << 20, true);
    }
    println!("order/os: {histories} histories");
}
