//! Long sequences, which are searched by what their tiles promise.

use half::bf16;
use kvist::{AttendInfo, AttendOptions, Boxed, Select, Sequence};

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, masses, rows};

const QUERY: usize = HEADS * GROUP * DIM;

fn tree(tree_from: usize) -> Select {
    Boxed { sinks: 4, recent: 16, tree_from, ..Boxed::with_budget(96) }.into()
}

/// Keys that change slowly, as those of text about one thing and then another.
fn topics(random: &mut Random, tokens: usize) -> Vec<bf16> {
    let mut topic = vec![0f32; ROW];
    let mut k = Vec::with_capacity(tokens * ROW);
    for t in 0..tokens {
        if t % 150 == 0 {
            topic.iter_mut().for_each(|x| *x = 1.5 * random.normal());
        }
        k.extend(topic.iter().map(|&x| bf16::from_f32(x + 0.4 * random.normal())));
    }
    k
}

fn sequence(select: Select, k: &[bf16]) -> Sequence {
    let mut s = cache(select, 256 << 20).sequence();
    (0..2).for_each(|layer| s.append(layer, &rows(k), &rows(k)).unwrap());
    s
}

fn ask(s: &Sequence, q: &[f32]) -> AttendInfo {
    attend(s, 0, q, &AttendOptions { selected: true, ..AttendOptions::default() }).1
}

fn query(random: &mut Random) -> Vec<f32> {
    (0..QUERY).map(|_| 3.0 * random.normal()).collect()
}

/// Mass covered, mean over the query heads.
fn covered(k: &[bf16], q: &[f32], info: &AttendInfo) -> f64 {
    let of_head = |h: usize| -> f64 {
        let mass = masses(k, k.len() / ROW, h, q);
        info.selected.as_ref().unwrap()[h / GROUP].iter().map(|&t| mass[t as usize]).sum()
    };
    (0..HEADS * GROUP).map(of_head).sum::<f64>() / (HEADS * GROUP) as f64
}

#[test]
fn most_of_the_mass_is_found_for_a_part_of_the_bytes() {
    let mut random = Random(1);
    for (tokens, share) in [(6000, 0.7), (40_000, 0.15)] {
        let k = topics(&mut random, tokens);
        let (flat, tree) = (sequence(tree(usize::MAX), &k), sequence(tree(1), &k));
        for _ in 0..4 {
            let q = query(&mut random);
            let (all, part) = (ask(&flat, &q), ask(&tree, &q));
            assert_eq!(all.tokens_read, part.tokens_read);
            let (all_mass, part_mass) = (covered(&k, &q, &all), covered(&k, &q, &part));
            assert!(part_mass >= 0.65 * all_mass, "{part_mass} of {all_mass} at {tokens}");
            let bytes = |i: &AttendInfo| i.bytes.summary as f64;
            assert!(bytes(&part) < share * bytes(&all), "{} {}", bytes(&part), bytes(&all));
        }
    }
}

#[test]
fn short_sequences_are_scored_whole() {
    let mut random = Random(2);
    let k = topics(&mut random, 1500);
    let q = query(&mut random);
    // As many tiles would be scored as there are.
    assert_eq!(ask(&sequence(tree(1), &k), &q), ask(&sequence(tree(usize::MAX), &k), &q));
}

#[test]
fn needles_and_keys_that_say_nothing_are_found() {
    let mut random = Random(3);
    let mut k = topics(&mut random, 20_000);
    let q = query(&mut random);
    for (at, head) in [(13_333usize, 0usize), (100, 4), (19_000, 5)] {
        let of_head = &q[head * DIM..(head + 1) * DIM];
        let norm = of_head.iter().map(|x| x * x).sum::<f32>().sqrt();
        // A passage: one key alone hardly moves its tile's mean.
        for (c, x) in of_head.iter().enumerate() {
            (at..at + 40).for_each(|t| {
                k[t * ROW + head / GROUP * DIM + c] = bf16::from_f32(30.0 * x / norm);
            });
        }
    }
    k[7777 * ROW] = bf16::NAN;
    // Room for all tokens of the tile that says nothing, and for the passages.
    let select = Boxed { sinks: 4, recent: 16, tree_from: 1, ..Boxed::with_budget(256) };
    let selected = ask(&sequence(select.into(), &k), &q).selected.unwrap();
    for (at, head) in [(13_333u32, 0usize), (100, 1), (19_000, 1), (7777, 0)] {
        assert!(selected[head].binary_search(&at).is_ok(), "{at}");
    }
}

#[test]
fn detours_end_at_the_same_bits() {
    let mut random = Random(4);
    let k = topics(&mut random, 9000);
    let want = sequence(tree(1), &k);
    let q = query(&mut random);
    let mut s = sequence(tree(1), &k[..7000 * ROW]);
    ask(&s, &q);
    s.truncate(5001).unwrap();
    ask(&s, &q);
    let fork = s.fork();
    let junk = random.rows(700 * ROW, 3.0);
    (0..2).for_each(|layer| s.append(layer, &rows(&junk), &rows(&junk)).unwrap());
    ask(&s, &q);
    s.truncate(4990).unwrap();
    for (mut s, have) in [(s, 4990), (fork, 5001)] {
        let more = &k[have * ROW..];
        (0..2).for_each(|layer| s.append(layer, &rows(more), &rows(more)).unwrap());
        for _ in 0..3 {
            let q = query(&mut random);
            assert_eq!(ask(&s, &q), ask(&want, &q));
        }
    }
}

#[test]
fn boxes_of_tiles_are_counted_and_given_back() {
    let mut random = Random(5);
    let k = topics(&mut random, 6400);
    let s = sequence(tree(1), &k);
    let cache = s.cache().clone();
    let before = cache.stats();
    ask(&s, &query(&mut random));
    let after = cache.stats();
    // Of 100 tiles of one layer and head, 64 are boxed: middles in 4 bits a channel, squared widths in 2, each
    // with a box around all.
    let cell = 2 * (2 * DIM) + 64 * DIM * 6 / 8;
    assert_eq!(after.summary_bytes - before.summary_bytes, (HEADS * cell) as u64);
    assert!(after.used_bytes - before.used_bytes >= after.summary_bytes - before.summary_bytes);
    drop(s);
    assert_eq!(cache.stats().used_bytes, 0);
}
