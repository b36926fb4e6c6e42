//! Moving pages on purpose: offload, restore, pin; and what moves by itself.

use super::*;

fn boxed() -> Select {
    selects()[2].clone()
}

#[test]
fn offload_and_restore_move_every_finished_page() {
    let (cache, memory) = tiered(&boxed(), 2 << 20, Faults::default());
    let mut random = Random(11);
    let [s, twin] = filled([&cache, &roomy(&boxed(), 64)], 500, &mut random);
    let before = s.stats();
    let pages = s.offload().unwrap();
    assert_eq!(pages, LAYERS * HEADS * (500 / 64));
    let bytes = (pages * cache.geometry().page_bytes()) as u64;
    let after = s.stats();
    assert_eq!((after.demoted_bytes, after.stored_bytes), (bytes, bytes));
    assert_eq!(after.page_bytes + bytes, before.page_bytes);
    assert_eq!(after.summary_bytes, before.summary_bytes);
    assert_eq!(cache.stats().stored_bytes, bytes);
    assert_eq!(s.offload().unwrap(), 0);
    assert_eq!(s.restore().unwrap(), pages);
    assert_eq!((s.restore().unwrap(), s.stats().demoted_bytes), (0, 0));
    let q = query(&mut random, 1);
    let options = AttendOptions { selected: true, ..AttendOptions::default() };
    assert_eq!(attend(&s, 0, &q, &options).unwrap(), attend(&twin, 0, &q, &options).unwrap());
    // What is stored already leaves without being written again.
    let written = cache.stats().below_written_bytes;
    assert_eq!((s.offload().unwrap(), cache.stats().below_written_bytes), (pages, written));
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn pinned_pages_stay_and_what_is_too_much_is_refused() {
    let (cache, memory) = tiered(&boxed(), 300 << 10, Faults::default());
    let mut random = Random(12);
    let [mut s, _] = filled([&cache, &roomy(&boxed(), 64)], 1000, &mut random);
    let pin = s.pin(64..192).unwrap();
    s.offload().unwrap();
    let kept = (LAYERS * HEADS * 2 * cache.geometry().page_bytes()) as u64;
    assert_eq!(s.stats().stored_bytes - s.stats().demoted_bytes, kept);
    assert!(matches!(s.pin(0..960), Err(Error::OverBudget { .. })));
    assert!(matches!(s.pin(0..1001), Err(Error::Length { .. })));
    // The pin outlives the tokens.
    s.truncate(10).unwrap();
    assert_eq!(cache.stats().stored_bytes, kept);
    drop(pin);
    assert_eq!(cache.stats().stored_bytes, 0);
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn one_append_of_many_times_the_budget_is_exact_or_changes_nothing() {
    let (cache, memory) = tiered(&boxed(), 400 << 10, Faults::default());
    let mut random = Random(15);
    let [mut s, mut twin] = filled([&cache, &roomy(&boxed(), 64)], 150, &mut random);
    let (k, v) = data(&mut random, 3000);
    let q = query(&mut random, 1);
    let all = |s: &Sequence| attend(s, 1, &q, &AttendOptions::default()).unwrap().0;
    let before = all(&s);
    memory.set(Faults { write_fails: 1000, ..Faults::default() });
    let refused = s.append(1, &rows(&k), &rows(&v)).unwrap_err();
    assert!(matches!(refused, Error::OverBudget { .. }), "{refused}");
    assert_eq!((s.layer_len(1).unwrap(), all(&s)), (150, before));
    memory.set(Faults::default());
    [&mut s, &mut twin].into_iter().for_each(|s| append(s, &k, &v).unwrap());
    assert!(s.len() == 3150 && near(&all(&s), &all(&twin)));
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn a_prompt_of_many_times_the_budget_is_prefilled_exactly() {
    let (cache, memory) =
        tiered(&Select::Full, 200 << 10, Faults { delay: 9, ..Faults::default() });
    let mut s = cache.sequence();
    let mut random = Random(13);
    let (mut k, mut v) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let (nk, nv) = data(&mut random, 150);
        append(&mut s, &nk, &nv).unwrap();
        k.extend(nk);
        v.extend(nv);
        let q = query(&mut random, 150);
        let (out, info) = attend(&s, 1, &q, &AttendOptions::default()).unwrap();
        let last = common::dense(&k, &v, k.len() / ROW, &q[149 * WIDTH..]);
        assert!(common::close(&out[149 * WIDTH..], &last));
        let first = common::dense(&k, &v, k.len() / ROW - 149, &q[..WIDTH]);
        assert!(common::close(&out[..WIDTH], &first));
        assert_eq!(info.missed_mass_bound, Some(vec![0.0; HEADS * GROUP]));
    }
    let stats = s.stats();
    assert!(stats.page_bytes + stats.demoted_bytes > 4 * (200 << 10));
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn without_whole_pages_a_sequence_in_memory_is_selected_from_by_token() {
    let memory = Memory::new(Faults::default(), 1);
    let below = Arc::new(Handle(memory));
    let cache = builder(&boxed(), 8 << 20, 64).whole_pages(false).below(below).build().unwrap();
    let plain = builder(&boxed(), 8 << 20, 64).build().unwrap();
    let mut random = Random(14);
    let [s, twin] = filled([&cache, &plain], 900, &mut random);
    let q = query(&mut random, 1);
    let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
    let same = || {
        assert_eq!(attend(&s, 0, &q, &options).unwrap(), attend(&twin, 0, &q, &options).unwrap())
    };
    same();
    s.offload().unwrap();
    let (_, info) = attend(&s, 0, &q, &options).unwrap();
    assert!(info.selected.unwrap()[0].chunk_by(|a, b| a + 1 == *b).all(|run| run[0] % 64 == 0));
    s.restore().unwrap();
    same();
    // Batches of both kinds in one call.
    let (fork, rest) = (s.fork(), [s.fork(), s.fork()]);
    let all = [&s, &fork, &rest[0], &rest[1]];
    let q = query(&mut random, 7);
    let shape = [7, HEADS * GROUP, DIM];
    let (mut out, mut want) = (vec![0f32; q.len()], vec![0f32; q.len()]);
    let run = |cache: &Cache, all: &[&Sequence], out: &mut Vec<f32>| {
        let mut out = Tensor3Mut::contiguous(out, shape).unwrap();
        let q = Tensor3::contiguous(&q, shape).unwrap();
        cache.attend_batch(0, &q, all, &[1, 1, 4, 1], &AttendOptions::default(), &mut out).unwrap()
    };
    run(&cache, &all, &mut out);
    run(&plain, &[&twin; 4], &mut want);
    assert!(near(&out, &want));
}

#[test]
fn a_tree_finds_the_best_pages() {
    let select = LeoAm { budget: 400, sinks: 20, recent: 40, ..LeoAm::default() }.into();
    let (cache, memory) = tiered(&select, 2 << 20, Faults::default());
    let mut random = Random(18);
    let mut s = cache.sequence();
    let (k, v) = data(&mut random, 2400);
    append(&mut s, &k, &v).unwrap();
    s.offload().unwrap();
    for _ in 0..5 {
        let q = query(&mut random, 1);
        let options = AttendOptions { selected: true, ..AttendOptions::default() };
        let info = attend(&s, 0, &q, &options).unwrap().1;
        // A page weighs what its heaviest chunk does; the first and what holds the window is read.
        for (head, chosen) in info.selected.unwrap().iter().enumerate() {
            let chunks = common::chunk_weights(&k, &q, 2400, head, 2..147);
            let heaviest =
                |page: usize| chunks[page * 4 - 2..][..4].iter().copied().fold(f64::MIN, f64::max);
            let (mut least, mut most, mut read) = (f64::MAX, f64::MIN, 0);
            for page in 1..36 {
                match chosen.binary_search(&(page as u32 * 64)) {
                    Ok(_) => (least, read) = (least.min(heaviest(page)), read + 1),
                    Err(_) => most = most.max(heaviest(page)),
                }
            }
            assert!(read == (400 - 64 - 96) / 64 && most <= least + 0.02, "{read} {most} {least}");
        }
    }
    drop(s);
    nothing_left(&cache, &memory);
}

#[test]
fn reads_on_wrong_guesses_stay_few() {
    let (cache, memory) = tiered(&boxed(), 600 << 10, Faults { delay: 3, ..Faults::default() });
    let mut random = Random(17);
    let [s, twin] = filled([&cache, &roomy(&boxed(), 64)], 2500, &mut random);
    let options = AttendOptions { selected: true, ..AttendOptions::default() };
    for _ in 0..100 {
        let q = query(&mut random, 1);
        for layer in 0..LAYERS {
            let (out, info) = attend(&s, layer, &q, &options).unwrap();
            let (want, reference) = attend(&twin, layer, &q, &options).unwrap();
            assert!(near(&out, &want) && info.selected == reference.selected);
        }
    }
    let stats = cache.stats();
    assert!(stats.prefetched > 0, "{stats:?}");
    let (unused, used) = (stats.prefetched - stats.prefetch_used, stats.prefetch_used);
    let asked = memory.reads.load(Ordering::Relaxed) as u64 - stats.prefetched;
    assert!(unused <= used / 5 + asked / 50 + 1, "{stats:?}");
    drop((s, twin));
    nothing_left(&cache, &memory);
}

#[test]
fn what_is_prefetched_and_used_is_counted() {
    let (cache, memory) = tiered(&boxed(), 600 << 10, Faults::default());
    let mut random = Random(15);
    let [s, _] = filled([&cache, &roomy(&boxed(), 64)], 2500, &mut random);
    let mut q = query(&mut random, 1);
    for step in 0..40 {
        // What is asked for pays for guesses.
        if step % 8 == 0 {
            s.offload().unwrap();
        }
        // Queries that drift, as those of decoding do.
        q.iter_mut().for_each(|x| *x += 0.2 * random.normal());
        (0..LAYERS).for_each(|l| drop(attend(&s, l, &q, &AttendOptions::default()).unwrap()));
    }
    let stats = cache.stats();
    assert!(stats.prefetch_used > 0 && stats.page_hits > 0 && stats.page_misses > 0, "{stats:?}");
    assert!(stats.prefetch_used + stats.prefetch_wasted <= stats.prefetched, "{stats:?}");
    let off = builder(&boxed(), 600 << 10, 64).prefetch(false);
    let off = off.below(Arc::new(Handle(memory.clone()))).build().unwrap();
    let [other, _] = filled([&off, &roomy(&boxed(), 64)], 2500, &mut random);
    attend(&other, 0, &q, &AttendOptions::default()).unwrap();
    assert_eq!(off.stats().prefetched, 0);
    drop((s, other));
    nothing_left(&cache, &memory);
}

/// Among pages that are nearly worth the same, those in memory are chosen; without the preference, or
/// where they are worth more, those below are.
#[test]
fn what_is_near_is_preferred_as_far_as_it_is_told() {
    let read = |residency: f32, offload: bool| {
        let select = Boxed { sinks: 4, recent: 16, residency, ..Boxed::with_budget(512) };
        let (cache, _memory) = tiered(&select.into(), 64 << 20, Faults::default());
        let mut random = Random(5);
        let mut s = cache.sequence();
        let (k, v) = data(&mut random, 2000);
        append(&mut s, &k, &v).unwrap();
        let (first, second) = (query(&mut random, 1), query(&mut random, 1));
        let options = AttendOptions { selected: true, ..AttendOptions::default() };
        if offload {
            s.offload().unwrap();
        }
        // Brings its pages near.
        let brought = attend(&s, 0, &first, &options).unwrap().1.selected.unwrap();
        let before = cache.stats().below_read_bytes;
        let info = attend(&s, 0, &second, &options).unwrap().1;
        (brought, info.selected.unwrap(), cache.stats().below_read_bytes - before)
    };
    let (_, pure, _) = read(0.0, false);
    let (_, without, bytes) = read(0.0, true);
    assert_eq!(without[0].len(), pure[0].len());
    let (_, slightly, fewer) = read(1e-6, true);
    assert_eq!(slightly, without, "no two pages are that near to each other");
    let (brought, strongly, none) = read(50.0, true);
    assert!(none < bytes && fewer <= bytes, "{none} {fewer} {bytes}");
    for (brought, strongly) in brought.iter().zip(&strongly) {
        let again = strongly.iter().filter(|t| brought.binary_search(t).is_ok()).count();
        assert_eq!(again, strongly.len(), "all of it was near");
    }
}
