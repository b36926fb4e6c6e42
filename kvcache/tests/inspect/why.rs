//! Why a block would miss.

use kvist::MissReason;
use kvist::format::BlockKey;
use kvist::inspect::{Answer, State, StoreView};

use super::common::*;

fn key(copy: &Scratch, salt: &str, n: u32) -> BlockKey {
    let s = store(&copy.0);
    space(&s, salt).prefix(&tokens(n)).unwrap().keys()[0]
}

/// What a store that opens the directory says.
fn served(copy: &Scratch, salt: &str, n: u32) -> bool {
    let s = store(&copy.0);
    let space = space(&s, salt);
    let mut out = vec![0; layout().bytes()];
    let strides = kvist::Strides::canonical(&layout());
    let mut rows = [kvist::BlockRowsMut::new(&layout(), &mut out, strides).unwrap()];
    space.get(&space.prefix(&tokens(n)).unwrap(), 0..1, &mut rows).unwrap().blocks == 1
}

#[test]
fn the_answer_is_what_a_store_would_say() {
    let copy = Scratch::copy_of("answers", &golden());
    let cases = [
        ("tenant a", 1, Answer::Hit),
        ("tenant b", 11, Answer::Hit),
        ("tenant b", 21, Answer::Hit),
        ("tenant b", 99, Answer::Miss(MissReason::Absent)),
        ("tenant c", 11, Answer::Miss(MissReason::Absent)),
    ];
    for (salt, n, answer) in cases {
        let key = key(&copy, salt, n);
        let why = StoreView::open(&copy.0).unwrap().why(&key);
        assert_eq!(why.answer, answer, "{salt} {n}: {why:?}");
        assert_eq!(served(&copy, salt, n), answer == Answer::Hit);
    }
}

#[test]
fn a_damaged_copy_is_named_with_its_bytes() {
    let scratch = Scratch::new("why-damaged");
    fill(&scratch.0);
    for n in [11, 21] {
        let copy = Scratch::copy_of("why-copy", &scratch.0);
        let key = key(&copy, "tenant b", n);
        let copy = Scratch::copy_of("why-copy-2", &scratch.0);
        let hit = StoreView::open(&copy.0).unwrap().why(&key);
        let (file, offset) = (hit.copies[0].file.clone(), hit.copies[0].offset);
        let right = copy.file(&file);
        for (at, reason) in
            [(40, MissReason::Checksum), (700, MissReason::Checksum), (9, MissReason::Version)]
        {
            let mut bytes = right.clone();
            bytes[offset as usize + at] ^= 4;
            copy.write(&file, &bytes);
            let why = StoreView::open(&copy.0).unwrap().why(&key);
            assert!(matches!(why.answer, Answer::Miss(_)), "block {n}, byte {at}: {why:?}");
            let Some(damaged) = why.copies.first() else {
                // A damaged key in a segment without an index is nobody's.
                assert_eq!((n, at), (21, 40));
                continue;
            };
            let State::Damaged { reason: found, offset: from, bytes: len, .. } = &damaged.state
            else {
                panic!("{:?}", damaged.state)
            };
            assert_eq!(*found, reason, "byte {at}");
            assert!((*from..from + len).contains(&(offset + at as u64)));
        }
    }
}

#[test]
fn erased_and_superseded_copies_are_told_apart() {
    let scratch = Scratch::new("why-erased");
    let s = store(&scratch.0);
    let a = space(&s, "tenant a");
    let key = put(&a, 1);
    s.run_pending();
    // The segment as it was comes back, as from a backup.
    let file = segments(&scratch.0)[0].0.clone();
    let old = scratch.file(&file);
    s.erase_tenant(b"tenant a").unwrap();
    drop((s, a));
    scratch.write(&file, &old);
    let why = StoreView::open(&scratch.0).unwrap().why(&key);
    assert_eq!(why.answer, Answer::Miss(MissReason::Erased));
    assert_eq!(why.copies[0].state, State::Erased);
    let inventory = StoreView::open(&scratch.0).unwrap().inventory();
    assert_eq!((inventory.records, inventory.erased_tenants), (0, 1));
    assert!(inventory.erased_bytes > 0);
    let s = store(&scratch.0);
    put(&space(&s, "tenant a"), 1);
    s.run_pending();
    let why = StoreView::open(&scratch.0).unwrap().why(&key);
    assert_eq!(why.answer, Answer::Hit);
}

#[test]
fn answers_have_names_in_json() {
    let json = |answer: Answer| serde_json::to_string(&answer).unwrap();
    assert_eq!(json(Answer::Hit), r#"{"is":"hit"}"#);
    assert_eq!(json(Answer::Miss(MissReason::Torn)), r#"{"is":"miss","reason":"torn"}"#);
}
