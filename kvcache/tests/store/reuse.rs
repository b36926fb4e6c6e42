//! Selections of `boxed` that serve several steps, while a sample of the rest says that they still hold enough.

use half::bf16;
use kvist::{AttendInfo, AttendOptions, Boxed, Sequence};

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, masses, rows};

const QUERY: usize = HEADS * GROUP * DIM;

fn select(reuse: Option<f32>) -> Boxed {
    Boxed { sinks: 4, recent: 64, reuse, reuse_steps: 5, ..Boxed::with_budget(256) }
}

fn sequence(select: Boxed, k: &[bf16]) -> Sequence {
    let mut s = cache(select.into(), 64 << 20).sequence();
    append(&mut s, k);
    s
}

fn append(s: &mut Sequence, k: &[bf16]) {
    (0..2).for_each(|layer| s.append(layer, &rows(k), &rows(k)).unwrap());
}

fn ask(s: &Sequence, q: &[f32]) -> AttendInfo {
    let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
    attend(s, 0, q, &options).1
}

fn query(random: &mut Random, scale: f32) -> Vec<f32> {
    (0..QUERY).map(|_| scale * random.normal()).collect()
}

/// Picked positions of head 0 in front of the window.
fn picked(info: &AttendInfo, before: usize) -> Vec<u32> {
    let all = &info.selected.as_ref().unwrap()[0];
    all.iter().copied().filter(|&t| (t as usize) < before).collect()
}

#[test]
fn a_selection_serves_while_it_holds_enough_and_no_longer_than_it_may() {
    let mut random = Random(1);
    let k = random.rows(4100 * ROW, 1.0);
    let q = query(&mut random, 3.0);
    let mut s = sequence(select(Some(0.3)), &k[..4000 * ROW]);
    let plain = sequence(select(None), &k[..4000 * ROW]);
    let first = ask(&s, &q);
    assert_eq!(first, ask(&plain, &q), "the first step selects like any other");
    let before = 3900;
    for step in 1..5 {
        append(&mut s, &k[(3999 + step) * ROW..(4000 + step) * ROW]);
        let near: Vec<f32> = q.iter().map(|x| x + 0.05 * random.normal()).collect();
        let info = ask(&s, &near);
        assert_eq!(picked(&info, before), picked(&first, before), "step {step}");
        let tokens = info.tokens_read[0] as usize;
        assert_eq!(tokens, 256 + step, "what left the window is read");
        assert!(info.bytes.summary < first.bytes.summary / 10);
        let bounds = info.missed_mass_bound.unwrap();
        for (h, &bound) in bounds.iter().enumerate() {
            let mass = masses(&k, 4000 + step, h, &near);
            let read: f64 =
                info.selected.as_ref().unwrap()[h / GROUP].iter().map(|&t| mass[t as usize]).sum();
            assert!(1.0 - read <= f64::from(bound) + 1e-6);
        }
    }
    append(&mut s, &k[4004 * ROW..4005 * ROW]);
    assert_eq!(ask(&s, &q).tokens_read[0], 256, "five steps are over");
}

#[test]
fn another_query_ends_it() {
    let mut random = Random(2);
    let k = random.rows(4100 * ROW, 1.0);
    let mut s = sequence(select(Some(0.5)), &k[..4000 * ROW]);
    ask(&s, &query(&mut random, 4.0));
    let other = query(&mut random, 4.0);
    append(&mut s, &k[4000 * ROW..4001 * ROW]);
    assert_eq!(ask(&s, &other).tokens_read[0], 257, "the check comes after the step");
    append(&mut s, &k[4001 * ROW..4002 * ROW]);
    let anew = ask(&s, &other);
    assert_eq!(anew, ask(&sequence(select(None), &k[..4002 * ROW]), &other));
    // NaN says nothing, so nothing is kept for it.
    let nan = vec![f32::NAN; QUERY];
    append(&mut s, &k[4002 * ROW..4003 * ROW]);
    ask(&s, &nan);
    append(&mut s, &k[4003 * ROW..4004 * ROW]);
    assert_eq!(ask(&s, &other).tokens_read[0], 256);
}

#[test]
fn cuts_and_forks_know_what_was_selected() {
    let mut random = Random(3);
    let k = random.rows(4100 * ROW, 1.0);
    let mut s = sequence(select(Some(0.2)), &k[..4000 * ROW]);
    let q = query(&mut random, 3.0);
    ask(&s, &q);
    let mut fork = s.fork();
    append(&mut fork, &k[4000 * ROW..4001 * ROW]);
    assert_eq!(ask(&fork, &q).tokens_read[0], 257);
    s.truncate(3000).unwrap();
    append(&mut s, &k[3000 * ROW..3001 * ROW]);
    let fresh = sequence(select(None), &k[..3001 * ROW]);
    assert_eq!(ask(&s, &q), ask(&fresh, &q));
}
