//! Images one by one: which there are, how they are torn, and how fast they come.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use kvist::vfs::sim::{Images, SimVfs};
use kvist::vfs::{Access, Dir, Vfs};

use crate::{disk, durable_file};

/// What a file can be after a crash, all images taken together.
fn outcomes(images: &Images, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    (0..images.count()).map(|i| images.get(i).bytes(path)).collect()
}

#[test]
fn without_pending_changes_there_is_one_image() {
    let (sim, dir) = disk(1);
    durable_file(&*dir, "f", &[3; 5000]);
    assert_eq!(sim.images().count(), 1);
    assert_eq!(sim.images().get(0).bytes("store/f"), Some(vec![3; 5000]));
}

#[test]
fn data_and_names_are_durable_apart() {
    let (sim, dir) = disk(1);
    let file = dir.create("f", Access::Buffered).unwrap();
    file.write_at(&[5; 512], 0).unwrap();
    file.sync_data().unwrap();
    let whole = Some(vec![5; 512]);
    assert_eq!(outcomes(&sim.images(), "store/f"), BTreeSet::from([None, whole.clone()]));

    let (sim, dir) = disk(1);
    let file = dir.create("f", Access::Buffered).unwrap();
    file.write_at(&[5; 512], 0).unwrap();
    dir.sync().unwrap();
    let found = outcomes(&sim.images(), "store/f");
    assert!(!found.contains(&None));
    for expected in [Some(vec![]), Some(vec![0; 512]), whole] {
        assert!(found.contains(&expected), "{expected:?}");
    }
}

#[test]
fn each_sector_of_a_pending_write_may_be_missing() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[1; 6144]);
    file.write_at(&[2; 4096], 1024).unwrap();
    let found: BTreeSet<Vec<u8>> =
        outcomes(&sim.images(), "store/f").into_iter().flatten().collect();
    let with = |old: std::ops::Range<usize>, byte: u8| {
        let mut bytes = [vec![1; 1024], vec![2; 4096], vec![1; 1024]].concat();
        bytes[old].fill(byte);
        bytes
    };
    for start in (1024..5120).step_by(512) {
        for byte in [0, 1] {
            assert!(found.contains(&with(start..5120, byte)), "tail from {start} is {byte}");
            assert!(found.contains(&with(start..start + 512, byte)), "sector at {start} is {byte}");
        }
    }
    assert!(found.contains(&with(1024..4096, 1)), "the first page is old");
    assert!(found.iter().all(|bytes| bytes[..1024] == [1; 1024] && bytes[5120..] == [1; 1024]));
    assert!(found.iter().any(|bytes| !bytes[1024..5120].iter().all(|b| [0, 1, 2].contains(b))));
}

#[test]
fn an_appended_write_may_end_early() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[1; 512]);
    file.write_at(&[2; 2048], 512).unwrap();
    let lengths: BTreeSet<usize> =
        outcomes(&sim.images(), "store/f").into_iter().flatten().map(|b| b.len()).collect();
    assert_eq!(lengths, BTreeSet::from([512, 1024, 1536, 2048, 2560]));
}

#[test]
fn a_cut_is_there_or_not_and_durable_after_a_sync() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[1; 1000]);
    file.allocate(8192).unwrap();
    file.set_len(300).unwrap();
    assert_eq!(sim.disk_used(), 4096, "reserved room goes back");
    let (long, short) = (Some(vec![1; 1000]), Some(vec![1; 300]));
    assert_eq!(outcomes(&sim.images(), "store/f"), BTreeSet::from([long, short.clone()]));
    file.sync_data().unwrap();
    assert_eq!(outcomes(&sim.images(), "store/f"), BTreeSet::from([short]));
    file.set_len(500).unwrap();
    assert_eq!(sim.bytes("store/f"), Some([vec![1; 300], vec![0; 200]].concat()));
}

#[test]
fn writes_are_kept_in_any_combination() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[0; 5]);
    for i in 0..5 {
        file.write_at(&[1], i).unwrap();
    }
    let found = outcomes(&sim.images(), "store/f");
    // None, all, prefixes, only one, all but one, all but two; garbage aside.
    let mut missing = Vec::new();
    for mask in 0u32..32 {
        let bytes: Vec<u8> = (0..5).map(|i| (mask >> i & 1) as u8).collect();
        if !found.contains(&Some(bytes)) {
            missing.push(mask);
        }
    }
    let expected: Vec<u32> = (0..32u32).filter(|m| m.count_ones() == 2 && *m != 0b11).collect();
    assert_eq!(missing, expected);
}

#[test]
fn a_rename_is_there_or_not_and_never_half() {
    let (sim, dir) = disk(1);
    durable_file(&*dir, "old", b"one");
    durable_file(&*dir, "new", b"two");
    dir.rename("old", "new").unwrap();
    let images = sim.images();
    let found: BTreeSet<_> = (0..images.count())
        .map(|i| (images.get(i).bytes("store/old"), images.get(i).bytes("store/new")))
        .collect();
    let (one, two) = (Some(b"one".to_vec()), Some(b"two".to_vec()));
    assert_eq!(found, BTreeSet::from([(one.clone(), two), (None, one)]));
}

#[test]
fn a_file_that_moves_is_never_lost() {
    for synced in ["none", "from", "to"] {
        let (sim, from) = disk(1);
        let to = from.subdir("below", true).unwrap();
        from.sync().unwrap();
        durable_file(&*from, "f", b"one");
        from.rename_into("f", &*to, "g").unwrap();
        match synced {
            "from" => from.sync().unwrap(),
            "to" => to.sync().unwrap(),
            _ => {}
        }
        let images = sim.images();
        let found: BTreeSet<_> = (0..images.count())
            .map(|i| images.get(i))
            .map(|sim| (sim.bytes("store/f").is_some(), sim.bytes("store/below/g").is_some()))
            .collect();
        let (stayed, both, moved) = ((true, false), (true, true), (false, true));
        let expected = match synced {
            "from" => BTreeSet::from([moved]),
            "to" => BTreeSet::from([both, moved]),
            _ => BTreeSet::from([stayed, both, moved]),
        };
        assert_eq!(found, expected, "synced: {synced}");
    }
}

#[test]
fn a_removed_file_may_come_back_whole() {
    let (sim, dir) = disk(1);
    drop(durable_file(&*dir, "f", b"one"));
    dir.remove("f").unwrap();
    let found = outcomes(&sim.images(), "store/f");
    assert_eq!(found, BTreeSet::from([None, Some(b"one".to_vec())]));
    dir.sync().unwrap();
    assert_eq!(outcomes(&sim.images(), "store/f"), BTreeSet::from([None]));
}

#[test]
fn a_directory_that_is_not_durable_takes_its_files_along() {
    let (sim, dir) = disk(1);
    let below = dir.subdir("below", true).unwrap();
    durable_file(&*below, "f", b"one");
    let found = outcomes(&sim.images(), "store/below/f");
    assert_eq!(found, BTreeSet::from([None, Some(b"one".to_vec())]));
}

#[test]
fn an_image_is_a_disk_that_can_crash_again() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", b"one");
    file.write_at(b"two", 0).unwrap();
    let image = sim.images().get(0);
    assert_eq!(image.bytes("store/f"), Some(b"one".to_vec()), "image 0 has nothing pending");
    image.record();
    let dir = image.open_dir(Path::new("/store"), false).unwrap();
    let file = dir.create("g", Access::Direct).unwrap();
    assert_eq!(file.alignment(), 512);
    let log = image.take_log();
    assert_eq!(log.points(), 2);
    assert_eq!(log.images(2).count(), 2);
    assert!(sim.bytes("store/g").is_none(), "images share nothing that changes");
}

#[test]
fn sampling_is_bounded_seeded_and_has_whole_and_torn_writes() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[0; 512]);
    for i in 0..10u64 {
        file.write_at(&[i as u8 + 1; 65536], 512 + i * 65536).unwrap();
    }
    let images = sim.images();
    assert!(images.count() > 10_000);
    let pick = |seed| images.sample(500, seed).map(|(index, _)| index).collect::<Vec<_>>();
    assert_eq!(pick(1).len(), 500);
    assert_eq!(pick(1), pick(1));
    assert_ne!(pick(1), pick(2));
    let torn = pick(1).iter().filter(|i| images.describe(**i).contains("Tear")).count();
    assert!((250..450).contains(&torn), "{torn} torn");
    let whole = (0..images.count()).take_while(|i| !images.describe(*i).contains("Tear"));
    assert_eq!(whole.count(), 2 + 9 + 9 + 9 + 45);
}

/// A store in small: segments with records that are written and synced in turn.
fn store(seed: u64) -> SimVfs {
    let (sim, dir) = disk(seed);
    for segment in 0..4 {
        let file = dir.create(&format!("seg-{segment}"), Access::Buffered).unwrap();
        file.write_at(&[segment; 4096], 0).unwrap();
        file.sync_data().unwrap();
        dir.sync().unwrap();
        for record in 0..15u64 {
            file.write_at(&[record as u8; 2560], 4096 + record * 2560).unwrap();
            if record % 5 == 4 {
                file.sync_data().unwrap();
            }
        }
    }
    sim
}

#[test]
fn figures_of_building_images() {
    let sim = SimVfs::new(0);
    sim.record();
    assert_eq!(sim.points(), 0);
    let (sim, dir) = {
        let sim = store(1);
        let dir = sim.open_dir(Path::new("/store"), false).unwrap();
        (sim, dir)
    };
    sim.record();
    record_more(&*dir);
    let log = sim.take_log();
    let (start, mut images) = (Instant::now(), 0);
    for point in log.changes() {
        images += log.images(point).sample(500, 1).count();
    }
    let rate = images as f64 / start.elapsed().as_secs_f64();
    println!("{} points, {images} images, {rate:.0} images/s", log.points());
}

fn record_more(dir: &dyn Dir) {
    let file = dir.create("seg-4", Access::Buffered).unwrap();
    file.write_at(&[4; 4096], 0).unwrap();
    file.sync_data().unwrap();
    dir.sync().unwrap();
    for record in 0..15u64 {
        file.write_at(&[record as u8; 2560], 4096 + record * 2560).unwrap();
        if record % 5 == 4 {
            file.sync_data().unwrap();
        }
    }
}
