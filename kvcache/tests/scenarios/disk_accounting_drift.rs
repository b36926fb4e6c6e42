//! The books and the files drifted apart: by failures, restarts, and every way of removing.

use kvist::vfs::sim::{Fault, SimVfs, Trigger};
use kvist::{DiskUse, PrefixStore};

use crate::common::{Numbers, prefix, put, salt, seeds, simulated, space};

/// Bytes of all files of segments.
fn files(sim: &SimVfs) -> u64 {
    let files = sim.files();
    files.iter().filter(|f| f.path.contains("seg-")).map(|f| f.len).sum()
}

fn usage(store: &PrefixStore) -> DiskUse {
    store.stats().disk.unwrap()
}

fn life(seed: u64) {
    let (sim, mut numbers) = (SimVfs::new(seed), Numbers::new(seed));
    for session in 0..4 {
        let store = simulated(sim.process(), 5).build().unwrap();
        let spaces = [space(&store, 0), space(&store, 1)];
        for step in 0..40 {
            let n = numbers.below(400) as u32;
            let tenant = n % 2;
            match numbers.below(12) {
                0 => drop(store.erase_tenant(&salt(tenant))),
                1 => {
                    let space = &spaces[tenant as usize];
                    space.evict(&[prefix(space, n).keys()[0]]);
                }
                2 => {
                    let fault = [Fault::WriteIo, Fault::SyncIo, Fault::WriteNoSpace, Fault::ReadIo]
                        [numbers.below(4) as usize];
                    sim.inject(fault, Trigger::nth(1 + numbers.below(4)));
                }
                3 => sim.heal(),
                _ => {
                    for n in n..n + 6 {
                        let _ = put(&spaces[tenant as usize], tenant, n);
                    }
                    store.run_pending();
                }
            }
            let usage = usage(&store);
            assert!(usage.used_bytes <= usage.budget_bytes, "{usage:?}");
            let files = files(&sim);
            assert!(files <= usage.used_bytes, "session {session} step {step}: {files} {usage:?}");
            assert!(usage.live_bytes <= files, "{usage:?}");
        }
        sim.heal();
        drop(spaces);
        drop(store);
        // A new process counts what is there, to the byte, once it has nothing to tidy up.
        drop(simulated(sim.process(), 5).build().unwrap());
        let store = simulated(sim.process(), 5).build().unwrap();
        assert_eq!(usage(&store).used_bytes, files(&sim), "{:?}", usage(&store));
        drop(store);
    }
}

#[test]
fn the_books_are_the_files() {
    for seed in seeds(60) {
        println!("KVIST_SEED={seed}");
        life(seed);
    }
}
