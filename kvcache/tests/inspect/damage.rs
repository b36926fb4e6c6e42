//! One thing is broken, and exactly that is reported.

use kvist::Error;
use kvist::inspect::{StoreView, VerifyOptions, What};

use super::common::*;

/// The golden directory with one change.
fn broken(name: &str, change: impl FnOnce(&Scratch)) -> Scratch {
    let copy = Scratch::copy_of(name, &golden());
    change(&copy);
    copy
}

/// Flips a bit.
fn flip(copy: &Scratch, file: &str, byte: usize) {
    let mut bytes = copy.file(file);
    bytes[byte] ^= 0x10;
    copy.write(file, &bytes);
}

fn finished() -> String {
    segments(&golden()).into_iter().find(|(_, finished)| *finished).unwrap().0
}

fn unfinished() -> String {
    segments(&golden()).into_iter().find(|(_, finished)| !*finished).unwrap().0
}

#[test]
fn every_flipped_bit_of_a_finished_segment_is_found_where_it_is() {
    let file = finished();
    let copy = Scratch::copy_of("flips", &golden());
    let right = copy.file(&file);
    // Every byte of the first sectors, then some of every sector.
    let dense = 0..256;
    let heads = (0..right.len()).step_by(512).flat_map(|at| [at, at + 44, at + 190, at + 500]);
    for at in dense.chain(heads).chain(right.len() - 64..right.len()) {
        let mut bytes = right.clone();
        bytes[at] ^= 1 << (at % 8);
        copy.write(&file, &bytes);
        let report = copy.verify();
        assert_eq!(report.damage.len(), 1, "byte {at}: {:?}", report.damage);
        let damage = &report.damage[0];
        assert_eq!(damage.file, file);
        let bytes = damage.offset..damage.offset + damage.bytes;
        assert!(bytes.contains(&(at as u64)), "byte {at}: {damage:?}");
        assert!(!report.clean);
    }
}

#[test]
fn a_damaged_record_is_named_with_its_block_and_the_check_that_failed() {
    let (file, key) = (finished(), {
        let copy = Scratch::copy_of("key", &golden());
        let store = store(&copy.0);
        space(&store, "tenant b").prefix(&tokens(10)).unwrap().keys()[0]
    });
    let place = {
        let why = StoreView::open(golden()).unwrap().why(&key);
        assert_eq!(why.copies[0].file, file);
        why.copies[0].offset as usize
    };
    let checks = [
        (0, What::Record, "header: no magic"),
        (40, What::Record, "header: checksum mismatch"),
        (200, What::Record, "token ids and directory: checksum mismatch"),
        (512 + 7, What::Record, "K section of layer 0, KV head 0: checksum mismatch"),
        (3 * 512 + 7, What::Record, "K section of layer 1, KV head 0: checksum mismatch"),
        (512 + 300, What::Padding, "padding: impossible field"),
    ];
    for (at, what, check) in checks {
        let copy = broken("record", |copy| flip(copy, &file, place + at));
        let report = copy.verify();
        let [damage] = &report.damage[..] else { panic!("{:?}", report.damage) };
        assert_eq!((damage.what, damage.check.as_str()), (what, check), "byte {at}");
        assert_eq!(damage.key, Some(key));
        assert_eq!(report.records, 6);
        assert_eq!(damage.means.contains("miss"), what == What::Record);
    }
}

#[test]
fn damage_around_the_records_is_told_apart() {
    let (with, without) = (finished(), unfinished());
    let len = Scratch::copy_of("len", &golden()).file(&with).len();
    type Change<'a> = Box<dyn Fn(&Scratch) + 'a>;
    let cases: [(&str, Change, What, &str); 7] = [
        ("head", Box::new(|c| flip(c, &with, 20)), What::Segment, "head: checksum mismatch"),
        ("trailer", Box::new(|c| flip(c, &with, len - 40)), What::Footer, "trailer: checksum"),
        ("magic", Box::new(|c| flip(c, &with, len - 64)), What::Footer, "trailer: no magic"),
        ("secret", Box::new(|c| flip(c, "cache.key", 20)), What::Secret, "checksum mismatch"),
        (
            "odd",
            Box::new(|c| c.write(&with, &c.file(&with)[..len - 100])),
            What::Unknown,
            "no multiple of 512",
        ),
        (
            "moved",
            Box::new(|c| c.write(&with, &c.file(&without))),
            What::Segment,
            "another directory or place",
        ),
        ("middle", Box::new(|c| flip(c, &without, 4096 + 600)), What::Record, "K section"),
    ];
    for (name, change, what, check) in cases {
        let report = broken(name, |copy| change(copy)).verify();
        let [damage] = &report.damage[..] else { panic!("{name}: {:?}", report.damage) };
        assert_eq!(damage.what, what, "{name}");
        assert!(damage.check.contains(check), "{name}: {}", damage.check);
    }
}

#[test]
fn the_torn_end_of_an_unfinished_segment_is_no_damage_unless_asked() {
    let file = unfinished();
    let whole = Scratch::copy_of("whole", &golden()).file(&file);
    for cut in [512, 1024, 2048] {
        let copy = broken("torn", |c| c.write(&file, &whole[..whole.len() - cut]));
        let report = copy.verify();
        assert_eq!((report.damage.len(), report.records, report.torn), (0, 6, 1), "cut {cut}");
        let strict = copy.verify_as(true);
        assert_eq!(strict.damage.len(), 1);
        assert!(strict.damage[0].check.contains("end: truncated"), "{:?}", strict.damage);
    }
    // Its making was cut short.
    for len in [0, 100, 4095] {
        let copy = broken("short", |c| c.write(&file, &whole[..len]));
        let report = copy.verify_as(true);
        assert_eq!((report.damage, report.notes.len()), (vec![], 1));
    }
    let blank = broken("blank", |c| c.write(&file, &[0; 4096]));
    assert!(blank.verify().clean);
}

#[test]
fn what_is_not_the_stores_is_noted() {
    let copy = broken("aliens", |copy| {
        copy.write("notes.txt", b"hello");
        std::os::unix::fs::symlink("/etc/passwd", copy.0.join("seg-00000000000000ff.kv")).unwrap();
        std::fs::create_dir(copy.0.join("seg-00000000000000fe.kv")).unwrap();
        std::fs::remove_file(copy.0.join("cache.key")).unwrap();
    });
    let report = copy.verify();
    assert!(report.clean);
    let notes: Vec<&str> = report.notes.iter().map(|n| n.text.as_str()).collect();
    let all = notes.join("\n");
    for text in
        ["(file); left alone", "(directory)", "(link or special file)", "only with the secret"]
    {
        assert!(all.contains(text), "{all}");
    }
    assert_eq!(notes.len(), 4);
}

#[test]
fn a_directory_that_cannot_be_used_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let open = |copy: &Scratch| StoreView::open(&copy.0).map(drop).unwrap_err();
    let copy = broken("meta", |copy| flip(copy, "kvist.meta", 30));
    assert!(matches!(open(&copy), Error::BadMeta { .. }));
    let meta = b"kvist store 9.0\n".to_vec();
    let copy = broken("newer", |copy| copy.write("kvist.meta", &meta));
    assert!(matches!(open(&copy), Error::Version { found: 9, supported: 1, .. }));
    let copy = broken("none", |copy| std::fs::remove_file(copy.0.join("kvist.meta")).unwrap());
    assert!(matches!(open(&copy), Error::NoStore { .. }));
    copy.write("else", b"");
    assert!(matches!(open(&copy), Error::NotAStore { found, .. } if found == "else"));
    let copy = broken("shared", |copy| {
        std::fs::set_permissions(&copy.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    });
    let view = StoreView::open(&copy.0).unwrap();
    let refused = view.verify(&VerifyOptions::default()).unwrap_err();
    assert!(matches!(refused, Error::Permission { .. }));
    let shared = VerifyOptions { allow_shared_dir: true, ..VerifyOptions::default() };
    assert!(view.verify(&shared).unwrap().clean);
    assert!(matches!(StoreView::open(copy.0.join("nowhere")), Err(Error::Disk { .. })));
    assert!(matches!(StoreView::open(copy.0.join("cache.key")), Err(Error::Permission { .. })));
}
