//! Two models of one name, fine-tuned apart, shared their blocks.

use kvist::vfs::sim::SimVfs;
use kvist::{BlockRowsMut, MissReason, SpaceOptions, Strides};

use crate::common::{MODEL, get, layout, prefix, put, salt, simulated, space};

#[test]
fn the_weights_are_part_of_the_key() {
    let sim = SimVfs::new(1);
    let store = simulated(sim.process(), 8).build().unwrap();
    let ours = space(&store, 0);
    put(&ours, 0, 1).unwrap();
    store.run_pending();
    drop(store);
    drop(ours);
    let store = simulated(sim.process(), 8).build().unwrap();
    let tuned = SpaceOptions::new([0xF1; 32], layout()).salt(&salt(0));
    let tuned = store.space(tuned).unwrap();
    assert_eq!(tuned.contains(&prefix(&tuned, 1)), 0);
    assert_eq!(get(&tuned, 0, 1), Err(MissReason::Absent));
    // And where somebody hands them the key.
    let ours = space(&store, 0);
    let stolen = tuned.prefix_of_keys(prefix(&ours, 1).keys().to_vec());
    let layout = layout();
    let mut out = vec![0; layout.bytes()];
    let mut rows = [BlockRowsMut::new(&layout, &mut out, Strides::canonical(&layout)).unwrap()];
    let restored = tuned.get(&stolen, 0..1, &mut rows).unwrap();
    assert_eq!(restored.miss, Some(MissReason::ModelMismatch));
    assert_eq!(get(&ours, 0, 1), Ok(()), "the wrong reader costs the right one nothing");
    // An adapter is not the model without it.
    let options = SpaceOptions::new(MODEL, layout.clone()).salt(&salt(0)).adapter([1; 32]);
    let adapted = store.space(options).unwrap();
    assert_eq!(get(&adapted, 0, 1), Err(MissReason::Absent));
}
