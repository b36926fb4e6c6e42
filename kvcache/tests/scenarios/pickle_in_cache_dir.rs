//! Files that others put into a cache's directory were loaded, and ran as code.

use kvist::vfs::Kind;
use kvist::vfs::sim::{Alien, Call, SimVfs};
use kvist::{Error, MissReason};

use crate::common::{get, put, simulated, space};

/// What `pickle` makes of a call of `os.system`.
const PICKLE: &[u8] =
    b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.";

#[test]
fn what_others_put_there_is_ignored_and_left_alone() {
    let sim = SimVfs::new(1);
    let store = simulated(sim.process(), 8).build().unwrap();
    put(&space(&store, 0), 0, 1).unwrap();
    store.run_pending();
    drop(store);
    let names = [
        "cache.pkl",
        "model.pt",
        "kvist.pickle",
        "seg-0000000000000009.pkl",
        "seg-000000000000000a.kv",
        "seg-ffffffffffffffff.kv",
        "seg-00000000ffffffff.kv",
        "SEG-0000000000000001.KV",
        "quarantine/evil.so",
    ];
    for name in names {
        sim.plant(&format!("store/{name}"), Alien::File(PICKLE));
    }
    sim.plant("store/seg-000000000000000b.kv", Alien::Dir);
    sim.plant("store/seg-000000000000000c.kv", Alien::Other);
    let opened = sim.totals().calls(Call::Open);
    let store = simulated(sim.process(), 8).build().unwrap();
    // Description, secret, one segment, and those that have a segment's name.
    assert!(sim.totals().calls(Call::Open) - opened <= 5);
    let space = space(&store, 0);
    assert_eq!(get(&space, 0, 1), Ok(()));
    assert!(store.stats().disk.unwrap().alien_files >= 8, "{:?}", store.stats().disk);
    for n in 2..40 {
        put(&space, 0, n).unwrap();
    }
    store.run_pending();
    assert_eq!(get(&space, 0, 39), Ok(()));
    assert_eq!(store.stats().write_errors, 0, "an alien number does not stop the log");
    drop((store, space));
    for name in names {
        assert_eq!(sim.bytes(&format!("store/{name}")).as_deref(), Some(PICKLE), "{name}");
    }
    let kinds = |kind: Kind| sim.files().into_iter().filter(|f| f.kind == kind).count();
    assert_eq!((kinds(Kind::Other), kinds(Kind::Dir)), (1, 3));
}

#[test]
fn a_directory_of_somebody_else_is_not_touched() {
    let sim = SimVfs::new(1);
    sim.plant("store/cache.pkl", Alien::File(PICKLE));
    let error = simulated(sim.process(), 8).build().unwrap_err();
    assert!(matches!(error, Error::NotAStore { .. }), "{error}");
    assert_eq!(sim.files().len(), 2);
    let other = SimVfs::new(2);
    drop(simulated(other.process(), 8).build().unwrap());
    // A segment of another directory under a free name.
    let foreign = SimVfs::new(3);
    let store = simulated(foreign.process(), 8).build().unwrap();
    put(&space(&store, 0), 0, 1).unwrap();
    store.run_pending();
    drop(store);
    let path = "store/seg-0000000000000001.kv";
    other.put(path, &foreign.bytes(path).unwrap());
    let store = simulated(other.process(), 8).build().unwrap();
    assert_eq!(get(&space(&store, 0), 0, 1), Err(MissReason::Absent));
    drop(store);
    assert_eq!(other.bytes(path), foreign.bytes(path));
}
