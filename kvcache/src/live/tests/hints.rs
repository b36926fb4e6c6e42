//! Hints: what a predicted query brings near, and that it changes nothing else.

use kvist_policies::Nsa;

use super::*;

fn hint(s: &Sequence, layer: usize, q: &[f32]) -> Result<usize, Error> {
    let q = Tensor3::contiguous(q, [1, HEADS * GROUP, DIM]).unwrap();
    s.hint(layer, &q, &AttendOptions::default())
}

fn selected() -> AttendOptions<'static> {
    AttendOptions { selected: true, ..AttendOptions::default() }
}

/// Misses of one call.
fn misses(cache: &Cache, s: &Sequence, q: &[f32]) -> u64 {
    let missed = || cache.stats().page_misses + cache.stats().cluster_misses;
    let before = missed();
    attend(s, 0, q, &selected()).unwrap();
    missed() - before
}

#[test]
fn what_is_hinted_at_is_near_when_it_is_asked_for() {
    for select in &selects()[1..] {
        let mut random = Random(21);
        let (mut with, mut near_by, mut without) = (0, 0, 0);
        for _ in 0..4 {
            let (cache, memory) = tiered(select, 4 << 20, Faults::default());
            let [s, _] = filled([&cache, &roomy(select, 64)], 1200, &mut random);
            let q = query(&mut random, 1);
            let close: Vec<f32> = q.iter().map(|x| x + 0.2 * random.normal()).collect();
            // What is derived from keys is there then, and rows are in the order of clusters.
            s.offload().unwrap();
            misses(&cache, &s, &query(&mut random, 1));
            s.offload().unwrap();
            without += misses(&cache, &s, &q);
            s.offload().unwrap();
            let reads = memory.reads.load(Ordering::Relaxed);
            let sent = hint(&s, 0, &q).unwrap();
            assert!(sent > 0, "{select:?}");
            assert_eq!(memory.reads.load(Ordering::Relaxed) - reads, sent, "nothing else is read");
            assert_eq!(hint(&s, 0, &q).unwrap(), 0, "they are near, or on their way");
            with += misses(&cache, &s, &q);
            s.offload().unwrap();
            hint(&s, 0, &close).unwrap();
            near_by += misses(&cache, &s, &q);
            drop(s);
            nothing_left(&cache, &memory);
        }
        // A proof may want pages that the first choice did not have.
        let proven = matches!(select, Select::Boxed(Boxed { max_missed_mass: Some(_), .. }));
        assert!(with == 0 || proven && with < without / 4, "{with} of {without}, {select:?}");
        assert!(near_by < without / 2, "{near_by} of {without}, {select:?}");
    }
}

#[test]
fn hints_change_no_choice_and_no_result() {
    for (seed, select) in selects().iter().enumerate() {
        let faults = Faults { delay: 5, ..Faults::default() };
        let (cache, memory) = tiered(select, 600 << 10, faults);
        let mut random = Random(22 + seed as u64);
        let [s, twin] = filled([&cache, &roomy(select, 64)], 1500, &mut random);
        for _ in 0..12 {
            let q = query(&mut random, 1);
            for layer in 0..LAYERS {
                // Of another query: the worst there can be.
                let sent = hint(&s, layer, &query(&mut random, 1)).unwrap();
                assert!(*select != Select::Full || sent == 0);
                let (out, info) = attend(&s, layer, &q, &selected()).unwrap();
                let (want, reference) = attend(&twin, layer, &q, &selected()).unwrap();
                assert!(super::near(&out, &want) && info.selected == reference.selected);
            }
        }
        drop((s, twin));
        nothing_left(&cache, &memory);
    }
}

#[test]
fn hints_are_bounded() {
    let select = Select::Quest(Quest { budget: 1024, unit_tokens: 16 });
    let (cache, memory) = tiered(&select, 300 << 10, Faults::default());
    let mut random = Random(23);
    let [s, _] = filled([&cache, &roomy(&select, 64)], 1300, &mut random);
    s.offload().unwrap();
    let sent = hint(&s, 0, &query(&mut random, 1)).unwrap();
    let frames = (300 << 10) / cache.geometry().page_bytes();
    assert!(sent > frames / 8 && sent <= frames / 4, "{sent} of {frames}");
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn hints_earn_nothing_for_guesses() {
    let select = Select::Quest(Quest { budget: 1024, unit_tokens: 16 });
    let (cache, memory) = tiered(&select, 16 << 20, Faults::default());
    let mut random = Random(26);
    let [s, _] = filled([&cache, &roomy(&select, 64)], 2000, &mut random);
    s.offload().unwrap();
    let q = query(&mut random, 1);
    let sent = hint(&s, 0, &q).unwrap();
    attend(&s, 0, &q, &selected()).unwrap();
    let stats = cache.stats();
    assert_eq!((stats.prefetched, stats.prefetch_used), (sent as u64, sent as u64), "{stats:?}");
    assert!(sent > 20 && stats.page_misses == 0);
    assert_eq!(cache.shared.tier.as_ref().unwrap().ahead(), (0, 0));
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn where_nothing_can_be_hinted_at_nothing_happens() {
    let mut random = Random(24);
    let boxed = selects()[2].clone();
    let q = query(&mut random, 1);
    // Without a lower tier, or too short, or dense, or without the scores it goes by.
    let plain = builder(&boxed, 8 << 20, 64).build().unwrap();
    let (cache, memory) = tiered(&boxed, 4 << 20, Faults::default());
    let [s, other] = filled([&plain, &cache], 1000, &mut random);
    assert_eq!(hint(&s, 0, &q).unwrap(), 0);
    other.offload().unwrap();
    let full = other.fork_with(&Select::Full).unwrap();
    assert_eq!(hint(&full, 0, &q).unwrap(), 0);
    assert_eq!(hint(&cache.sequence(), 0, &q).unwrap(), 0);
    let given = other.fork_with(&Nsa { budget: 512, unit_tokens: 64, sinks: 0, recent: 64 }.into());
    let given = given.unwrap();
    assert_eq!(hint(&given, 0, &q).unwrap(), 0);
    let values: Vec<f32> = (0..16).map(|i| if i < 3 { 1.0 } else { -(i as f32) }).collect();
    let scores = crate::Scores { values: &values, heads: 1, units: 16 };
    let options = AttendOptions { scores: Some(scores), ..AttendOptions::default() };
    let shape = [1, HEADS * GROUP, DIM];
    let tensor = Tensor3::contiguous(&q, shape).unwrap();
    assert!(given.hint(1, &tensor, &options).unwrap() >= 3 * HEADS);
    let dense = builder(&boxed, 4 << 20, 64).dense_layers(&[0]);
    let dense = dense.below(Arc::new(Handle(memory.clone()))).build().unwrap();
    let [s, _] = filled([&dense, &plain], 1000, &mut random);
    s.offload().unwrap();
    assert_eq!(hint(&s, 0, &q).unwrap(), 0);
    assert!(hint(&s, 1, &q).unwrap() > 0);
    // Misuse is named as in `attend`.
    assert!(matches!(hint(&s, 9, &q), Err(Error::Layer { layer: 9, .. })));
    let all = Tensor3::contiguous(&q, [1, DIM, HEADS * GROUP]).unwrap();
    assert!(matches!(s.hint(1, &all, &AttendOptions::default()), Err(Error::Shape { .. })));
    let two = dense.hint_batch(1, &tensor, &[&s, &s], &AttendOptions::default());
    assert!(matches!(two, Err(Error::Shape { .. })));
    let foreign = dense.hint_batch(1, &tensor, &[&other], &AttendOptions::default());
    assert!(matches!(foreign, Err(Error::ForeignSequence { index: 0 })));
    let scale = AttendOptions { scale: Some(f32::NAN), ..AttendOptions::default() };
    assert!(matches!(s.hint(1, &tensor, &scale), Err(Error::Setting { .. })));
}

#[test]
fn a_batch_is_hinted_at_like_its_sequences() {
    let mut random = Random(25);
    let select = selects()[1].clone();
    let (cache, memory) = tiered(&select, 4 << 20, Faults::default());
    let [a, _] = filled([&cache, &roomy(&select, 64)], 1000, &mut random);
    let [b, _] = filled([&cache, &roomy(&select, 64)], 800, &mut random);
    let q = query(&mut random, 2);
    let wanted = |s: &Sequence, q: &[f32]| {
        s.offload().unwrap();
        hint(s, 0, q).unwrap()
    };
    let each = wanted(&a, &q[..WIDTH]) + wanted(&b, &q[WIDTH..]);
    // What is on its way arrives, and leaves.
    cache.shared.tier.as_ref().unwrap().poll();
    a.offload().unwrap();
    b.offload().unwrap();
    let rows = Tensor3::contiguous(&q, [2, HEADS * GROUP, DIM]).unwrap();
    assert_eq!(cache.hint_batch(0, &rows, &[&a, &b], &AttendOptions::default()).unwrap(), each);
    drop((a, b));
    nothing_left(&cache, &memory);
}
