//! What is opened is what was saved.

use kvist_policies::{Class, Shape};

use super::*;

/// Saves, ends the process, opens in another, and compares everything that can be seen.
fn round_trip(setup: &Setup, lens: &[usize]) {
    let sim = SimVfs::new(1);
    let cache = setup.open(&sim);
    let mut before = Vec::new();
    for (i, &len) in lens.iter().enumerate() {
        let s = filled(&cache, i as u64, len);
        let saved = s.save(&format!("s{i}")).unwrap();
        assert_eq!(saved.tokens, len);
        assert!(saved.written <= saved.bytes);
        before.push((seen_from_below_of(&s, len), s.restore().map(|_| seen_of(&s, len)).unwrap()));
    }
    drop(cache);
    let cache = setup.open(&sim);
    for (i, &len) in lens.iter().enumerate() {
        let s = cache.open_session(&format!("s{i}")).unwrap();
        assert_eq!(s.stats().tokens, len);
        let case = format!("{len} tokens, {:?}, {}", setup.select, setup.dtype);
        assert_eq!(seen_from_below_of(&s, len), before[i].0, "{case}, from below");
        s.restore().unwrap();
        assert_eq!(seen_of(&s, len), before[i].1, "{case}, in memory");
        assert!(holds(&s, i as u64, len).unwrap(), "{case}");
        // It goes on as any sequence.
        let (mut fork, mut twin) = (s.fork(), filled(&cache, i as u64, len));
        append(&mut fork, i as u64, 70).unwrap();
        append(&mut twin, i as u64, 70).unwrap();
        assert!(holds(&fork, i as u64, len + 70).unwrap(), "{case}, appended to");
        let all = [&fork, &twin].map(|s| s.restore().map(|_| seen(s)).unwrap());
        assert_eq!(all[0], all[1], "{case}, appended to");
        drop(s);
        fork.truncate(len / 2).unwrap();
        assert!(holds(&fork, i as u64, len / 2).unwrap(), "{case}, cut");
    }
    drop(cache);
}

fn seen_of(s: &Sequence, len: usize) -> Vec<(Vec<f32>, AttendInfo)> {
    if len == 0 { Vec::new() } else { seen(s) }
}

fn seen_from_below_of(s: &Sequence, len: usize) -> Vec<(Vec<f32>, AttendInfo)> {
    if len == 0 { Vec::new() } else { seen_from_below(s) }
}

const LENS: [usize; 7] = [0, 1, 63, 64, 200, 640, 700];

#[test]
fn every_selector_and_type_comes_back_bit_by_bit() {
    for select in selects() {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            round_trip(&Setup { select: select.clone(), dtype, ..Setup::default() }, &LENS);
        }
    }
}

#[test]
fn every_page_size_and_dense_layers_too() {
    for select in selects() {
        for page_tokens in [16, 48, 128] {
            let select = select.clone();
            round_trip(&Setup { select, page_tokens, ..Setup::default() }, &LENS);
        }
        round_trip(&Setup { select, dense: vec![1], ..Setup::default() }, &LENS);
    }
}

/// A stream and a head that reads everything beside heads that select.
fn mixed() -> Profile {
    let stream = Class::Streaming { sinks: 4, recent: 40 };
    let (dense, share) = (Class::Dense, |share| Class::Select { share });
    let shape = Shape { layers: LAYERS, q_heads: HEADS * GROUP, kv_heads: HEADS, dim_k: DIM };
    let rows = [[stream, share(1.1)], [share(0.9), dense]];
    let heads = rows.iter().cycle().take(LAYERS).map(|row| row.to_vec()).collect();
    Profile::new("weights 1", shape, heads).unwrap()
}

#[test]
fn profiles_too() {
    let profile = Some(mixed());
    for select in &selects()[..3] {
        for page_tokens in [16, 64] {
            let (select, profile) = (select.clone(), profile.clone());
            round_trip(&Setup { select, profile, page_tokens, ..Setup::default() }, &LENS);
        }
    }
}

#[test]
fn a_profile_builds_the_summaries_that_it_wants_from_the_keys() {
    let sim = SimVfs::new(1);
    let [plain, profiled] =
        [None, Some(mixed())].map(|profile| Setup { profile, ..Setup::default() });
    for (from, to) in [(&plain, &profiled), (&profiled, &plain)] {
        let cache = from.open(&sim);
        filled(&cache, 3, 700).save("a").unwrap();
        drop(cache);
        let cache = to.open(&sim);
        let (s, twin) = (cache.open_session("a").unwrap(), filled(&cache, 3, 700));
        assert_eq!(seen_from_below(&s), seen_from_below(&twin));
        assert!(holds(&s, 3, 700).unwrap());
    }
}

#[test]
fn layers_of_different_lengths_come_back_as_they_were() {
    let (sim, setup) = (SimVfs::new(1), Setup::default());
    let cache = setup.open(&sim);
    let mut s = filled(&cache, 3, 300);
    append_layer(&mut s, 3, 0, 300, 50).unwrap();
    s.save("uneven").unwrap();
    drop((s, cache));
    let cache = setup.open(&sim);
    let mut s = cache.open_session("uneven").unwrap();
    assert_eq!((s.layer_len(0).unwrap(), s.layer_len(1).unwrap()), (350, 300));
    append_layer(&mut s, 3, 1, 300, 50).unwrap();
    assert!(holds(&s, 3, 350).unwrap());
}

#[test]
fn another_selector_builds_its_summaries_from_the_keys() {
    let (sim, setup) = (SimVfs::new(1), Setup::default());
    let cache = setup.open(&sim);
    filled(&cache, 3, 700).save("a").unwrap();
    drop(cache);
    for select in selects() {
        for dense in [vec![], vec![0]] {
            let setup = Setup { select: select.clone(), dense, ..Setup::default() };
            let cache = setup.open(&sim);
            let (s, twin) = (cache.open_session("a").unwrap(), filled(&cache, 3, 700));
            assert_eq!(seen_from_below(&s), seen_from_below(&twin), "{select:?}");
            assert!(holds(&s, 3, 700).unwrap());
        }
    }
}

#[test]
fn saving_again_writes_only_what_is_new() {
    let (sim, setup) = (SimVfs::new(1), Setup::default());
    let cache = setup.open(&sim);
    let mut s = filled(&cache, 3, 3000);
    let first = s.save("a").unwrap();
    let again = s.save("a").unwrap();
    // A file and the rows of unfinished pages.
    assert_eq!(again.bytes, first.bytes);
    assert!(again.written * 8 < first.bytes, "{first:?} {again:?}");
    append(&mut s, 3, 200).unwrap();
    let more = s.save("a").unwrap();
    assert!(more.written < first.bytes / 3, "{first:?} {more:?}");
    // So does a sequence that was opened, also under another name, and a fork.
    drop((s, cache));
    let cache = setup.open(&sim);
    let s = cache.open_session("a").unwrap();
    let same = s.save("b").unwrap();
    assert!(same.written * 8 < same.bytes, "{same:?}");
    let fork = s.fork().save("c").unwrap();
    assert!(fork.written * 8 < fork.bytes, "{fork:?}");
    assert!(cache.disk().unwrap().live_bytes < 2 * first.bytes);
    let names = |cache: &Cache| -> Vec<String> {
        cache.sessions().unwrap().into_iter().map(|s| s.name).collect()
    };
    assert_eq!(names(&cache), ["a", "b", "c"]);
    drop((s, cache));
    // Any of them keeps what all share.
    let cache = setup.open(&sim);
    assert!(cache.delete_session("a").unwrap() && cache.delete_session("c").unwrap());
    assert!(!cache.delete_session("a").unwrap());
    drop(cache);
    let cache = setup.open(&sim);
    assert_eq!(names(&cache), ["b"]);
    assert!(holds(&cache.open_session("b").unwrap(), 3, 3200).unwrap());
    assert!(cache.delete_session("b").unwrap());
    assert_eq!(cache.disk().unwrap().live_bytes, 0);
}

#[test]
fn a_sequence_that_was_cut_and_grew_otherwise_is_saved_as_it_is() {
    let (sim, setup) = (SimVfs::new(1), Setup::default());
    let cache = setup.open(&sim);
    let mut s = filled(&cache, 3, 1500);
    s.save("a").unwrap();
    let fork = s.fork();
    s.truncate(700).unwrap();
    let mut twin = filled(&cache, 3, 700);
    for s in [&mut s, &mut twin] {
        (0..LAYERS).for_each(|layer| append_layer(s, 4, layer, 700, 500).unwrap());
    }
    s.save("b").unwrap();
    let expected = [seen_from_below(&fork), seen_from_below(&twin)];
    drop((s, twin, fork, cache));
    let cache = setup.open(&sim);
    let opened = ["a", "b"].map(|name| cache.open_session(name).unwrap());
    assert_eq!(opened.each_ref().map(seen_from_below), expected);
}

#[test]
fn many_small_saves_do_not_make_many_small_records() {
    let (sim, setup) = (SimVfs::new(1), Setup::default());
    let cache = setup.open(&sim);
    let mut s = filled(&cache, 3, 64);
    let mut written = 0;
    for _ in 0..60 {
        append(&mut s, 3, 64).unwrap();
        written += s.save("a").unwrap().written;
    }
    let chunks: Vec<usize> = s.layers[0].chunks().iter().map(|c| c.tiles.len()).collect();
    assert!(chunks.len() < 16 && chunks.iter().sum::<usize>() == 61, "{chunks:?}");
    let total = s.save("a").unwrap().bytes;
    assert!(written < 8 * total, "{written} bytes written for {total}");
}

#[test]
fn sequences_opened_twice_go_their_own_ways() {
    let (sim, setup) = (SimVfs::new(1), Setup::default());
    let cache = setup.open(&sim);
    filled(&cache, 3, 400).save("a").unwrap();
    let (mut one, mut two) = (cache.open_session("a").unwrap(), cache.open_session("a").unwrap());
    append(&mut one, 3, 100).unwrap();
    two.truncate(250).unwrap();
    one.save("one").unwrap();
    two.save("a").unwrap();
    drop((one, two));
    assert!(holds(&cache.open_session("one").unwrap(), 3, 500).unwrap());
    assert!(holds(&cache.open_session("a").unwrap(), 3, 250).unwrap());
}
