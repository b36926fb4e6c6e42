//! Reads that fail, hang, or are wanted by several threads at once.

use std::sync::atomic::Ordering;

use super::*;
use crate::MissReason;

fn boxed() -> Select {
    selects()[2].clone()
}

#[test]
fn a_page_whose_read_fails_is_missing_for_good_and_named() {
    let (cache, memory) = tiered(&boxed(), 1 << 20, Faults::default());
    let mut random = Random(3);
    let [s, twin] = filled([&cache, &roomy(&boxed(), 64)], 600, &mut random);
    assert!(s.offload().unwrap() > 0);
    memory.set(Faults { read_fails: 1000, ..Faults::default() });
    let q = query(&mut random, 1);
    let options = AttendOptions::default();
    let error = attend(&s, 0, &q, &options).unwrap_err();
    let Error::Missing { layer: 0, page, reason: MissReason::Checksum } = error else {
        panic!("{error}")
    };
    assert!(error.to_string().starts_with(&format!("page {page} of layer 0 is missing")));
    // It does not come back, and nobody waits for it; other layers are whole.
    memory.set(Faults::default());
    assert_eq!(attend(&s, 0, &q, &options).unwrap_err(), error);
    let (out, _) = attend(&s, 1, &q, &options).unwrap();
    assert!(near(&out, &attend(&twin, 1, &q, &options).unwrap().0));
    assert!(cache.stats().pages_failed > 0);
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn a_read_that_hangs_ends_at_its_deadline_and_its_frame_stays_charged() {
    let (cache, memory) = tiered(&boxed(), 1 << 20, Faults::default());
    let mut random = Random(4);
    let [s, twin] = filled([&cache, &roomy(&boxed(), 64)], 600, &mut random);
    s.offload().unwrap();
    let before = cache.stats().used_bytes;
    memory.set(Faults { read_hangs: 1000, ..Faults::default() });
    let q = query(&mut random, 1);
    let options = AttendOptions::default();
    let error = attend(&s, 0, &q, &options).unwrap_err();
    assert!(matches!(error, Error::Missing { reason: MissReason::Timeout, .. }), "{error}");
    assert!(cache.stats().used_bytes > before, "what is in flight is charged");
    assert!(memory.settle() > 0, "parked, not freed");
    assert_eq!(cache.stats().used_bytes, before);
    // Late is not lost.
    memory.set(Faults::default());
    let (out, _) = attend(&s, 0, &q, &options).unwrap();
    assert!(near(&out, &attend(&twin, 0, &q, &options).unwrap().0));
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn reads_of_every_head_end_with_the_first_that_is_too_late() {
    let (cache, memory) = tiered(&boxed(), 1 << 20, Faults::default());
    let mut random = Random(16);
    let [s, _] = filled([&cache, &roomy(&boxed(), 64)], 900, &mut random);
    s.offload().unwrap();
    memory.set(Faults { read_hangs: 1000, ..Faults::default() });
    let q = query(&mut random, 1);
    let error = attend(&s, 0, &q, &AttendOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Missing { reason: MissReason::Timeout, .. }), "{error}");
    let asked = memory.reads.load(Ordering::Relaxed) as u64;
    assert_eq!(cache.stats().pages_failed, asked, "nobody finds one in flight");
    drop(s);
    memory.settle();
    nothing_left(&cache, &memory);
}

#[test]
fn a_sequence_dropped_while_pages_are_in_flight_leaves_nothing() {
    let (cache, memory) = tiered(&boxed(), 1 << 20, Faults::default());
    let mut random = Random(5);
    let [s, _] = filled([&cache, &roomy(&boxed(), 64)], 900, &mut random);
    let q = query(&mut random, 1);
    // Enough is asked for to pay for guesses.
    for _ in 0..10 {
        (0..LAYERS).for_each(|l| drop(attend(&s, l, &q, &AttendOptions::default()).unwrap()));
        s.offload().unwrap();
    }
    // What is asked for comes at once, each head by itself; what is guessed does not.
    memory.set(Faults { delay: 1 << 40, quick: HEADS as u64, ..Faults::default() });
    let before = cache.stats().prefetched;
    attend(&s, 0, &q, &AttendOptions::default()).unwrap();
    assert!(cache.stats().prefetched > before);
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn a_write_that_fails_leaves_pages_where_they_are() {
    let (cache, memory) = tiered(&boxed(), 300 << 10, Faults::default());
    memory.set(Faults { write_fails: 1000, ..Faults::default() });
    let mut random = Random(6);
    let mut s = cache.sequence();
    let mut len = 0;
    let refused = loop {
        let (k, v) = data(&mut random, 64);
        match append(&mut s, &k, &v) {
            Ok(()) => len += 64,
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, Error::OverBudget { .. }), "{refused}");
    s.truncate(len).unwrap();
    let error = s.offload().unwrap_err();
    assert_eq!(error, Error::Demote { pages: 0, reason: MissReason::Io });
    memory.set(Faults::default());
    let (k, v) = data(&mut random, 64);
    append(&mut s, &k, &v).unwrap();
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn threads_share_reads_and_agree() {
    let (cache, memory) = tiered(&boxed(), 600 << 10, Faults { delay: 3, ..Faults::default() });
    let mut random = Random(8);
    let [s, twin] = filled([&cache, &roomy(&boxed(), 64)], 2000, &mut random);
    let queries: Vec<Vec<f32>> = (0..6).map(|_| query(&mut random, 1)).collect();
    let options = AttendOptions::default();
    let want: Vec<_> = queries.iter().map(|q| attend(&twin, 0, q, &options).unwrap().0).collect();
    let done = AtomicUsizeSum::default();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (s, queries, want, done) = (&s, &queries, &want, &done);
            scope.spawn(move || {
                for round in 0..30 {
                    let i = (t + round) % queries.len();
                    let (out, _) = attend(s, 0, &queries[i], &AttendOptions::default()).unwrap();
                    assert!(near(&out, &want[i]));
                    if round % 10 == t {
                        s.offload().unwrap();
                    }
                    done.0.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.0.load(Ordering::Relaxed), 120);
    drop(s);
    nothing_left(&cache, &memory);
}

#[derive(Default)]
struct AtomicUsizeSum(std::sync::atomic::AtomicUsize);

#[test]
fn a_page_that_many_want_is_read_once() {
    let (cache, memory) = tiered(&boxed(), 2 << 20, Faults { delay: 3, ..Faults::default() });
    let mut random = Random(9);
    let [s, _] = filled([&cache, &roomy(&boxed(), 64)], 1000, &mut random);
    let pages = s.offload().unwrap();
    let q = query(&mut random, 3);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| attend(&s, 0, &q, &AttendOptions::default()).unwrap());
        }
    });
    // All pages of one layer, once.
    assert_eq!(memory.reads.load(Ordering::Relaxed), pages / LAYERS);
}

#[test]
fn the_demoting_thread_writes_before_frames_are_needed_and_ends() {
    let memory = Memory::new(Faults::default(), 1);
    let below = Arc::new(Handle(memory.clone()));
    let cache = builder(&boxed(), 400 << 10, 64).write_ahead(true).below(below).build().unwrap();
    let mut random = Random(10);
    let mut s = cache.sequence();
    for _ in 0..30 {
        let (k, v) = data(&mut random, 64);
        append(&mut s, &k, &v).unwrap();
    }
    let q = query(&mut random, 1);
    attend(&s, 0, &q, &AttendOptions::default()).unwrap();
    assert!(cache.stats().below_written_bytes > 0);
    drop(s);
    nothing_left(&cache, &memory);
}
