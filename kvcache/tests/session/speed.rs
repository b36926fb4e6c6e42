//! How much sooner the first token comes than after a full load.

use std::time::{Duration, Instant};

use kvist::{AttendOptions, Tensor3Mut};

use super::*;

/// A token of both layers.
fn token(s: &Sequence) {
    let (q, mut out) = (vec![0.3f32; 2 * ROW], vec![0f32; 2 * ROW]);
    let q = Tensor3::contiguous(&q, [1, 2 * HEADS, 32]).unwrap();
    for layer in 0..2 {
        let mut out = Tensor3Mut::contiguous(&mut out, [1, 2 * HEADS, 32]).unwrap();
        s.attend(layer, &q, &AttendOptions::default(), &mut out).unwrap();
    }
}

fn timed(path: &Path, work: impl Fn(&Sequence)) -> (Duration, u64) {
    let cache = builder(path, 256 << 20, 512 << 20).prefetch(false).build().unwrap();
    let before = cache.disk().unwrap().read_bytes;
    let start = Instant::now();
    let s = cache.open_session("long").unwrap();
    work(&s);
    (start.elapsed(), cache.disk().unwrap().read_bytes - before)
}

/// Prints times; asserts bytes, which do not depend on the machine.
#[test]
fn the_first_token_of_a_long_session_needs_a_small_part_of_it() {
    let scratch = Scratch::new("speed");
    let cache = builder(&scratch.0, 256 << 20, 512 << 20).build().unwrap();
    let mut s = cache.sequence();
    (0..200).for_each(|_| append(&mut s, 1, 500));
    let saved = s.save("long").unwrap();
    drop((s, cache));
    let (soon, few) = timed(&scratch.0, token);
    let (late, all) = timed(&scratch.0, |s| {
        s.restore().unwrap();
        token(s);
    });
    println!("{} bytes: first token {soon:?}, {few} bytes; all {late:?}, {all} bytes", saved.bytes);
    assert!(few * 4 <= saved.bytes, "{few} of {}", saved.bytes);
    assert!(all >= saved.bytes * 9 / 10, "{all} of {}", saved.bytes);
}

#[test]
fn what_is_restored_behind_the_scenes_is_all_there_in_the_end() {
    let scratch = Scratch::new("behind");
    let cache = builder(&scratch.0, 64 << 20, 256 << 20).build().unwrap();
    let mut s = cache.sequence();
    (0..40).for_each(|_| append(&mut s, 1, 500));
    s.save("long").unwrap();
    drop((s, cache));
    let cache = builder(&scratch.0, 64 << 20, 256 << 20).build().unwrap();
    let s = cache.open_session("long").unwrap();
    let pages = s.stats().demoted_bytes / cache.geometry().page_bytes() as u64;
    let (may, _ticket) = s.restore_behind();
    assert_eq!(may as u64, pages);
    token(&s);
    let deadline = Instant::now() + Duration::from_secs(30);
    while s.stats().demoted_bytes > 0 {
        // Looking takes in what was guessed, too.
        let stats = cache.stats();
        assert!(Instant::now() < deadline, "{:?} {stats:?}", s.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    check(&s, 1);
    assert_eq!(s.restore_behind().0, 0);
    // A sequence that goes while pages come stops it, and leaves nothing.
    let other = cache.open_session("long").unwrap();
    drop(s);
    let _behind = other.restore_behind();
    drop(other);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(cache.stats().used_bytes, 0);
}
