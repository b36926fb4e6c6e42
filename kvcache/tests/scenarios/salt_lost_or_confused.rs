//! Salts that got lost on a path, or that another field could imitate; image ids that collided.

use std::collections::HashSet;

use kvist::vfs::sim::SimVfs;
use kvist::{MissReason, SpaceOptions};

use crate::common::{MODEL, get, layout, prefix, put, salt, simulated, space, tokens};

#[test]
fn no_hit_across_tenants_nor_between_adapter_salt_and_extra() {
    let sim = SimVfs::new(1);
    let store = simulated(sim.process(), 8).build().unwrap();
    let text = [b'x'; 32];
    let plain = || SpaceOptions::new(MODEL, layout());
    let spaces = [
        plain(),
        plain().salt(&text),
        plain().adapter(text),
        plain().extra(&text),
        plain().salt(&text).extra(&text),
        plain().salt(&text[..16]).extra(&text[16..]),
        plain().salt(&text).adapter(text),
        SpaceOptions::new(text, layout()),
    ];
    for (i, options) in spaces.iter().enumerate() {
        let space = store.space(options.clone()).unwrap();
        assert_eq!(get(&space, i as u32, 1), Err(MissReason::Absent), "{i}");
        put(&space, i as u32, 1).unwrap();
    }
    store.run_pending();
    for restart in [false, true] {
        let store =
            if restart { simulated(sim.fork(2), 8).build().unwrap() } else { store.clone() };
        for (i, options) in spaces.iter().enumerate() {
            assert_eq!(get(&store.space(options.clone()).unwrap(), i as u32, 1), Ok(()), "{i}");
        }
    }
}

#[test]
fn a_hundred_thousand_images_have_a_hundred_thousand_keys() {
    let store = simulated(SimVfs::new(1), 8).build().unwrap();
    let mut keys = HashSet::new();
    for image in 0..100_000u64 {
        // Content hashes in full, that differ in few bits.
        let mut extra = [0; 32];
        extra[..8].copy_from_slice(&image.to_le_bytes());
        let space = store.space(SpaceOptions::new(MODEL, layout()).extra(&extra)).unwrap();
        assert!(keys.insert(space.prefix(&tokens(1)).unwrap().keys()[0]), "image {image}");
    }
}

#[test]
fn erasing_one_tenant_leaves_the_others() {
    let sim = SimVfs::new(1);
    let store = simulated(sim.process(), 8).build().unwrap();
    for tenant in 0..3 {
        put(&space(&store, tenant), tenant, 1).unwrap();
    }
    store.run_pending();
    store.erase_tenant(&salt(1)).unwrap();
    for restart in [false, true] {
        let store =
            if restart { simulated(sim.fork(2), 8).build().unwrap() } else { store.clone() };
        for tenant in 0..3 {
            let space = space(&store, tenant);
            let there = space.contains(&prefix(&space, 1)) == 1;
            assert_eq!(there, tenant != 1);
            assert_eq!(get(&space, tenant, 1).is_ok(), tenant != 1);
        }
    }
}
