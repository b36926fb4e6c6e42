//! Saved sessions, looked at from outside.

use kvist::inspect::What;
use kvist::{Cache, DType, DiskOptions, Geometry, Tensor3};

use super::common::*;

const FILE: &str = "sessions/chat.kvs";

fn cache(scratch: &Scratch) -> Cache {
    Cache::builder(Geometry::new(1, 2, 2, 16, DType::F32))
        .host_bytes(8 << 20)
        .threads(1)
        .disk(DiskOptions::new(&scratch.0, 64 << 20))
        .model("weights 1")
        .build()
        .unwrap()
}

fn filled(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    let cache = cache(&scratch);
    let mut s = cache.sequence();
    let rows: Vec<f32> = (0..500 * 2 * 16).map(|i| i as f32).collect();
    let rows = Tensor3::contiguous(&rows, [500, 2, 16]).unwrap();
    s.append(0, &rows, &rows).unwrap();
    s.save("chat").unwrap();
    drop(s);
    drop(cache);
    scratch
}

#[test]
fn a_saved_session_is_listed_and_right() {
    let scratch = filled("session");
    let report = scratch.verify_as(true);
    assert_eq!((report.damage, report.notes, report.sessions), (vec![], vec![], 1));
    let inventory = kvist::inspect::StoreView::open(&scratch.0).unwrap().inventory();
    let session = &inventory.sessions[0];
    assert_eq!((session.name.as_str(), session.model.as_str()), ("chat", "weights 1"));
    assert_eq!((session.tokens, session.missing_records, &session.unreadable), (500, 0, &None));
    assert!(session.records > 7 && session.stored_bytes > 0);
}

#[test]
fn damage_to_its_file_or_records_is_found() {
    let scratch = filled("session-damage");
    let good = scratch.file(FILE);
    for at in (0..good.len()).step_by(11) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        scratch.write(FILE, &bad);
        let damage = scratch.verify().damage;
        assert_eq!(damage.len(), 1, "byte {at}");
        assert_eq!((damage[0].what, damage[0].file.as_str()), (What::Session, FILE));
    }
    scratch.write(FILE, &good);
    scratch.write("sessions/notes.txt", b"mine");
    let report = scratch.verify();
    assert!(report.clean && report.notes.iter().any(|n| n.file == "sessions/notes.txt"));
    // Without its segment it cannot be opened.
    for entry in std::fs::read_dir(&scratch.0).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "kv") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let damage = scratch.verify().damage;
    assert!(damage[0].check.ends_with("records are not there"), "{damage:?}");
    assert!(cache(&scratch).open_session("chat").is_err());
}
