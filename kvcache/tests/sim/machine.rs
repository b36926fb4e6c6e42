//! Processes, locks, owners, limits, and looking from outside.

use std::io::ErrorKind;
use std::path::Path;

use kvist::vfs::sim::{Alien, Call, Fault, SimVfs, Trigger, USER};
use kvist::vfs::{Access, Entry, Kind, Vfs};

use crate::{Numbers, disk, durable_file, read};

#[test]
fn a_lock_excludes_until_it_or_its_process_is_gone() {
    let (sim, dir) = disk(1);
    let other = sim.process();
    let others = other.open_dir(Path::new("/store"), false).unwrap();
    let lock = dir.lock("LOCK").unwrap();
    assert_eq!(sim.bytes("store/LOCK"), Some(sim.pid().to_string().into_bytes()));
    for dir in [&dir, &others] {
        assert_eq!(dir.lock("LOCK").unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    drop(lock);
    let lock = others.lock("LOCK").unwrap();
    assert_eq!(sim.bytes("store/LOCK"), Some(other.pid().to_string().into_bytes()));
    assert_eq!(sim.open_handles(), 3);
    drop(other);
    assert_eq!(sim.open_handles(), 1, "what a dead process held is closed");
    assert!(dir.lock("LOCK").is_ok());
    assert!(others.list().is_err(), "its handles are of no use");
    drop(lock);
}

#[test]
fn a_killed_process_leaves_its_writes_to_others_and_its_buffers_to_nobody() {
    let (sim, dir) = disk(1);
    let other = sim.process();
    let others = other.open_dir(Path::new("/store"), false).unwrap();
    let file = others.create("f", Access::Buffered).unwrap();
    file.write_at(b"data", 0).unwrap();
    sim.inject(Fault::Stuck, Trigger::nth(1).on(Call::Read));
    drop(other.start(vec![crate::op(&file, kvist::vfs::Transfer::Read, 0, &[0; 4])]));
    assert_eq!((other.parked_bytes(), sim.parked_bytes()), (4, 0));
    other.kill();
    assert_eq!(other.parked_bytes(), 0);
    assert!(file.sync_data().is_err());
    let file = dir.open("f", Access::Buffered).unwrap();
    assert_eq!(read(&*file, 10), b"data");
    assert_eq!(file.write_at(b"x", 0).unwrap_err().kind(), durable_read_only());
}

/// `EBADF`: an existing file is opened for reading.
fn durable_read_only() -> ErrorKind {
    std::io::Error::from_raw_os_error(9).kind()
}

#[test]
fn owners_and_modes_are_enforced_and_told() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", b"mine");
    let stat = file.stat().unwrap();
    assert_eq!((stat.uid, stat.mode, stat.mine), (USER, 0o600, true));
    assert_eq!(dir.stat().unwrap().mode, 0o700);
    let other = sim.process_of(7);
    let denied = other.open_dir(Path::new("/store"), false).unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
    sim.own("store", USER, 0o755);
    let others = other.open_dir(Path::new("/store"), false).unwrap();
    assert!(!others.stat().unwrap().mine);
    for refused in [
        others.open("f", Access::Buffered).map(drop),
        others.create("g", Access::Buffered).map(drop),
        others.remove("f"),
        others.lock("f").map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    let root = sim.process_of(0);
    assert!(root.open_dir(Path::new("/store"), false).unwrap().open("f", Access::Direct).is_ok());
}

#[test]
fn what_is_no_file_is_refused() {
    let (sim, dir) = disk(1);
    sim.plant("store/pipe", Alien::Other);
    sim.plant("store/seg-1", Alien::Dir);
    sim.put("store/seg-2", b"alien");
    for name in ["pipe", "seg-1"] {
        assert_eq!(dir.open(name, Access::Buffered).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert!(dir.subdir("pipe", true).is_err() && dir.subdir("seg-1", false).is_ok());
    assert!(dir.remove("seg-1").is_err() && dir.remove("pipe").is_ok());
    assert!(dir.rename("seg-2", "seg-1").is_err());
    let mut entries = dir.list().unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let entry = |name: &str, kind, len| Entry { name: name.into(), kind, len };
    assert_eq!(entries, [entry("seg-1", Kind::Dir, 0), entry("seg-2", Kind::File, 5)]);
    for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        assert!(dir.open(name, Access::Buffered).is_err(), "{name:?}");
    }
    assert_eq!(dir.open("none", Access::Buffered).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(sim.open_dir(Path::new("/a/b"), true).is_err(), "only the last is made");
    assert!(sim.open_dir(Path::new("/../a"), true).is_err());
}

#[test]
fn a_full_disk_takes_what_fits_and_removal_makes_room() {
    let (sim, dir) = disk(1);
    let file = dir.create("f", Access::Buffered).unwrap();
    sim.disk_limit(Some(3 * 4096));
    assert_eq!(file.write_at(&[1; 4096], 0).unwrap(), 4096);
    assert_eq!(file.write_at(&[1; 16384], 4096).unwrap(), 8192, "what fits");
    assert_eq!(file.write_at(&[1], 12288).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.write_at(&[2; 4096], 0).unwrap(), 4096, "overwriting needs no room");
    assert_eq!(sim.disk_used(), 3 * 4096);
    dir.remove("f").unwrap();
    assert_eq!(sim.disk_used(), 3 * 4096, "an open file keeps its room");
    drop(file);
    assert_eq!(sim.disk_used(), 0);
    let file = dir.create("g", Access::Buffered).unwrap();
    file.allocate(8192).unwrap();
    assert_eq!((file.len().unwrap(), sim.disk_used()), (0, 8192));
    assert_eq!(file.allocate(16384).unwrap_err().kind(), ErrorKind::StorageFull);
    sim.allocate_supported(false);
    assert_eq!(file.allocate(1).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_file_limit_cuts_the_write_that_crosses_it() {
    let (sim, dir) = disk(1);
    let file = dir.create("f", Access::Buffered).unwrap();
    sim.file_limit(1000);
    assert_eq!(file.write_at(&[1; 2000], 0).unwrap(), 1000);
    assert_eq!(file.write_at(&[1], 1000).unwrap_err().kind(), ErrorKind::FileTooLarge);
    assert!(file.write_at(&[1], u64::MAX).is_err());
}

#[test]
fn damage_is_durable_and_leaves_copies_alone() {
    let (sim, dir) = disk(1);
    drop(durable_file(&*dir, "f", &[1; 10_000]));
    let copy = sim.fork(2);
    sim.flip("store/f", 8 * 5000);
    sim.edit("store/f", |bytes| {
        bytes.truncate(9000);
        bytes.swap(0, 5000);
    });
    let mut expected = vec![1; 9000];
    expected[0] = 0;
    let left = sim.images();
    assert_eq!((left.count(), left.get(0).bytes("store/f")), (1, Some(expected)));
    assert_eq!(copy.bytes("store/f"), Some(vec![1; 10_000]));
    sim.delete("store/f");
    assert!(sim.bytes("store/f").is_none() && copy.bytes("store/f").is_some());
    sim.put("new/below/f", b"x");
    let paths: Vec<String> = sim.files().into_iter().map(|f| f.path).collect();
    assert_eq!(paths, ["new", "new/below", "new/below/f", "store"]);
}

#[test]
fn calls_bytes_and_syncs_are_counted() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[1; 100]);
    read(&*file, 60);
    let totals = sim.totals();
    assert_eq!((totals.bytes_written, totals.bytes_read), (100, 60));
    assert_eq!(totals.syncs, ["/store/f", "/store"]);
    assert_eq!((totals.calls(Call::Write), totals.calls(Call::SyncDir)), (1, 1));
    let info = sim.files();
    assert_eq!((info[1].len, info[1].len_durable, info[1].pending), (100, 100, 0));
}

/// All that can be seen of a run that does a bit of everything under faults.
fn trace(seed: u64) -> String {
    let (sim, dir) = disk(seed);
    sim.record();
    for fault in Fault::ALL.into_iter().filter(|fault| *fault != Fault::Stuck) {
        sim.inject(fault, Trigger::chance(0.05));
    }
    let (mut numbers, mut out) = (Numbers(seed), String::new());
    let mut files = Vec::new();
    for i in 0..60 {
        let result = match numbers.below(6) {
            0 => dir.create(&format!("f{i}"), Access::Buffered).map(|f| files.push(f)).err(),
            1 => dir.sync().err(),
            2 => dir.list().map(|list| out += &format!("{list:?}")).err(),
            _ if files.is_empty() => None,
            3 => files[numbers.below(files.len() as u64) as usize].sync_data().err(),
            4 => {
                let mut bytes = [0; 3000];
                let read = files[0].read_at(&mut bytes, 0);
                out += &format!("{bytes:?}");
                read.err()
            }
            _ => {
                let file = &files[numbers.below(files.len() as u64) as usize];
                file.write_at(&[i; 2000], numbers.below(4000)).err()
            }
        };
        out += &format!("{result:?} {:?}\n", sim.now());
    }
    let log = sim.take_log();
    for (index, image) in log.images(log.points()).sample(50, seed) {
        let bytes =
            image.files().into_iter().map(|f| (image.bytes(&f.path), f)).collect::<Vec<_>>();
        out += &format!("{index} {bytes:?}\n");
    }
    out
}

#[test]
fn a_run_is_determined_by_its_seed() {
    for seed in 0..10 {
        assert!(trace(seed) == trace(seed), "seed {seed}");
    }
    assert!(trace(1) != trace(2));
}

#[test]
fn a_new_machine_is_empty() {
    let sim = SimVfs::new(0);
    assert_eq!((sim.files().len(), sim.open_handles(), sim.points()), (0, 0, 0));
    assert_eq!(sim.name(), "sim");
}
