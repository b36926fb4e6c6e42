//! A file was renamed into place before its bytes were durable: after a power cut it was there, empty.

use kvist::vfs::sim::SimVfs;

use crate::common::{get, put, simulated, space};

#[test]
fn a_store_whose_making_was_cut_short_is_made_again() {
    let sim = SimVfs::new(1);
    sim.record();
    let store = simulated(sim.process(), 8).build().unwrap();
    let made = sim.points();
    put(&space(&store, 0), 0, 1).unwrap();
    store.run_pending();
    let acknowledged = sim.points();
    drop(store);
    let log = sim.take_log();
    let mut images = 0;
    for point in log.changes() {
        for (index, image) in log.images(point).sample(200, 1) {
            let opened = simulated(image.process(), 8).build();
            let store = opened.unwrap_or_else(|e| panic!("point {point}, image {index}: {e}"));
            let space = space(&store, 0);
            let there = get(&space, 0, 1);
            // The secret is as durable as the store: else its blocks would never be found again.
            assert!(there.is_ok() || point < acknowledged, "point {point}, image {index}");
            assert!(there.is_err() || point > made);
            images += 1;
        }
    }
    println!("rename_without_fsync: {images} images");
}
