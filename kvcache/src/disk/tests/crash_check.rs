//! What must hold of a store that is opened on what a crash left.

use std::collections::BTreeMap;

use super::super::MissReason;
use super::oracle::{ABSENT, Allowed, PRESENT};
use super::rig::{Rig, Setup};
use crate::vfs::sim::SimVfs;

/// Files that are not the store's, and must be as they are after anything.
pub(super) const ALIENS: [&str; 3] =
    ["store/notes.txt", "store/seg-0000000000000000.kv.bak", "store/x"];

/// Bytes of segments and aliens, by path.
fn files(sim: &SimVfs) -> BTreeMap<String, Vec<u8>> {
    let of_interest = |path: &str| path.contains("seg-") || ALIENS.contains(&path);
    let files = sim.files().into_iter().filter(|f| of_interest(&f.path));
    files.filter_map(|f| Some((f.path.clone(), sim.bytes(&f.path)?))).collect()
}

/// Which blocks are there. Opening may have had to evict some.
pub(super) fn answers(rig: &Rig, setup: Setup, allowed: &Allowed) -> Vec<bool> {
    let ids: Vec<u32> = allowed.keys().copied().collect();
    let evicted = rig.disk.usage().evicted;
    let results = rig.get_all(&ids);
    let mut missing = 0;
    for ((n, set), result) in allowed.iter().zip(&results) {
        match result {
            Ok(()) => assert!(set & PRESENT != 0, "block {n} came back"),
            // Nobody but its tenant can tell whether a sealed record is whole.
            Err(MissReason::Decrypt) if setup.sealed => assert!(set & ABSENT != 0, "block {n}"),
            Err(MissReason::Absent) if set & ABSENT != 0 => {}
            Err(MissReason::Absent) if missing < evicted => missing += 1,
            Err(MissReason::Absent) => {
                let files = rig.sim.files();
                panic!(
                    "block {n} was acknowledged, and is missing: {:?} {files:?}",
                    rig.disk.usage()
                )
            }
            Err(reason) => panic!("block {n} is listed and cannot be had: {reason:?}"),
        }
    }
    results.iter().map(Result::is_ok).collect()
}

/// Opens the image, checks everything that can be seen, and returns which blocks are there; `None` if
/// some had to leave, so that older copies of them may be found the next time.
pub(super) fn check(image: &SimVfs, setup: Setup, allowed: &Allowed) -> Option<Vec<bool>> {
    let before = files(image);
    let rig = setup.open(image.process()).unwrap_or_else(|e| panic!("cannot be opened: {e}"));
    let there = answers(&rig, setup, allowed);
    let after = files(image);
    for (path, bytes) in &after {
        let changed = before.get(path).is_some_and(|old| old != bytes);
        assert!(!changed, "{path} was written to");
    }
    for path in ALIENS {
        assert_eq!(before.get(path), after.get(path), "{path} is not the store's");
    }
    let usage = rig.disk.usage();
    assert!(usage.used_bytes <= usage.budget_bytes, "{usage:?}");
    assert!(rig.file_bytes() <= usage.used_bytes, "{} bytes of files, {usage:?}", rig.file_bytes());
    (usage.evicted == 0 && usage.quarantined == 0).then_some(there)
}

/// It works as if nothing had happened.
pub(super) fn goes_on(image: &SimVfs, setup: Setup, allowed: &Allowed) {
    let rig = setup.open(image.process()).unwrap();
    let fresh = [900, 901, 903];
    assert_eq!(rig.put(&fresh), [Ok(()); 3]);
    assert!(rig.get_all(&fresh).iter().all(Result::is_ok));
    drop(rig);
    let rig = setup.open(image.process()).unwrap();
    assert!(rig.get_all(&fresh).iter().all(Result::is_ok), "what was put after a crash is lost");
    answers_of_old(&rig, allowed);
}

/// Putting more may have evicted some; what is erased stays so.
fn answers_of_old(rig: &Rig, allowed: &Allowed) {
    let erased: Vec<u32> =
        allowed.iter().filter(|(_, set)| **set == ABSENT).map(|(n, _)| *n).collect();
    for (n, result) in erased.iter().zip(rig.get_all(&erased)) {
        assert_eq!(result, Err(MissReason::Absent), "block {n} came back");
    }
}
