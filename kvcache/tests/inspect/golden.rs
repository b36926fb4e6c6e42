//! A directory of format 1.0, written once. It stays readable.
//!
//! `KVIST_WRITE_GOLDEN=1 cargo test -p kvist --test inspect golden` writes it anew: for a new version
//! of the format only.

use kvist::inspect::StoreView;

use super::common::*;

#[test]
fn the_golden_directory_is_clean_and_holds_what_it_held() {
    if std::env::var_os("KVIST_WRITE_GOLDEN").is_some() {
        let _ = std::fs::remove_dir_all(golden());
        fill(&golden());
    }
    let copy = Scratch::copy_of("golden", &golden());
    let report = copy.verify_as(true);
    assert_eq!((report.damage, report.notes, report.torn), (vec![], vec![], 0));
    assert_eq!((report.records, report.tombstones, report.sealed), (7, 1, 0));
    assert_eq!((report.segments, report.finished, report.in_use), (2, 1, Some(false)));

    let mut inventory = StoreView::open(&copy.0).unwrap().inventory();
    inventory.path = "store-v1".to_owned();
    let found = serde_json::to_string_pretty(&inventory).unwrap() + "\n";
    let expected = golden().with_extension("json");
    if std::env::var_os("KVIST_WRITE_GOLDEN").is_some() {
        std::fs::write(&expected, &found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&expected).unwrap());
}

#[test]
fn the_golden_directory_opens_and_serves_its_blocks() {
    let copy = Scratch::copy_of("golden-open", &golden());
    let s = store(&copy.0);
    let (a, b) = (space(&s, "tenant a"), space(&s, "tenant b"));
    let layout = layout();
    let get = |space: &kvist::Space, n: u32| {
        let prefix = space.prefix(&tokens(n)).unwrap();
        let mut out = vec![0; layout.bytes()];
        let strides = kvist::Strides::canonical(&layout);
        let mut rows = [kvist::BlockRowsMut::new(&layout, &mut out, strides).unwrap()];
        let restored = space.get(&prefix, 0..1, &mut rows).unwrap();
        assert!(restored.blocks == 0 || out == block(n), "block {n}");
        restored.blocks == 1
    };
    assert_eq!([0, 1, 2].map(|n| get(&a, n)), [false, true, false]);
    assert_eq!([10, 11, 12, 20, 21, 22].map(|n| get(&b, n)), [true, true, true, true, true, false]);
}
