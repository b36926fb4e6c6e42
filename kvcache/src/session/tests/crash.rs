//! A crash at every call: every session is as it was saved last, or as it was being saved.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::MissReason;

/// Images that are looked at after each call.
const IMAGES: usize = 12;

/// Seed and length by name.
type Sessions = BTreeMap<&'static str, (u64, usize)>;

fn soak() -> u64 {
    std::env::var("KVIST_SOAK").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

fn small() -> Setup {
    Setup { segment: 64 << 10, host_bytes: 2 << 20, ..Setup::default() }
}

fn tight() -> Setup {
    Setup { segments: 5, ..small() }
}

/// A run that is recorded, and what was promised when.
struct Life {
    sim: SimVfs,
    setup: Setup,
    cache: Option<Cache>,
    now: Sessions,
    moments: Vec<(usize, Sessions)>,
}

impl Life {
    fn begin(setup: Setup) -> Life {
        let sim = SimVfs::new(1);
        let cache = Some(setup.open(&sim));
        sim.record();
        Life { sim, setup, cache, now: Sessions::new(), moments: vec![(0, Sessions::new())] }
    }

    fn cache(&self) -> &Cache {
        self.cache.as_ref().unwrap()
    }

    fn moment(&mut self) {
        self.moments.push((self.sim.points(), self.now.clone()));
    }

    fn save(&mut self, s: &Sequence, name: &'static str, seed: u64) {
        s.save(name).unwrap();
        self.now.insert(name, (seed, s.len()));
        self.moment();
    }

    fn delete(&mut self, name: &'static str) {
        assert!(self.cache().delete_session(name).unwrap());
        self.now.remove(name);
        self.moment();
    }

    fn reopen(&mut self) {
        self.cache = None;
        self.cache = Some(self.setup.open(&self.sim));
    }
}

/// What may be found under each name after a crash at a point.
fn allowed(moments: &[(usize, Sessions)], point: usize) -> [&Sessions; 2] {
    let next = moments.partition_point(|(at, _)| *at <= point);
    [&moments[next - 1].1, &moments.get(next).unwrap_or(&moments[next - 1]).1]
}

/// Opens what a crash left, and looks at every session.
fn check(image: &SimVfs, setup: &Setup, allowed: [&Sessions; 2]) -> Sessions {
    let cache = setup.open(image);
    let mut found = Sessions::new();
    for listed in cache.sessions().unwrap() {
        assert_eq!(listed.missing, None, "{}", listed.name);
    }
    for name in allowed.iter().flat_map(|s| s.keys()) {
        let may = allowed.map(|s| s.get(name));
        match cache.open_session(name) {
            Ok(s) => {
                let is =
                    |what: &(u64, usize)| s.len() == what.1 && holds(&s, what.0, what.1).unwrap();
                let what = may.into_iter().flatten().find(|what| is(what));
                let what = what.unwrap_or_else(|| panic!("{name} is none of {may:?}"));
                attend(&s, 0, 1).unwrap();
                found.insert(*name, *what);
            }
            Err(Error::Session { reason: MissReason::Absent, .. }) => {
                assert!(may.contains(&None), "{name} is gone");
            }
            Err(e) => panic!("{name}: {e}"),
        }
    }
    let usage = cache.disk().unwrap();
    assert!(usage.used_bytes <= usage.budget_bytes, "{usage:?}");
    found
}

/// Opening twice is opening once, a crash while it is opened changes nothing, and it goes on.
fn look_deep(image: &SimVfs, setup: &Setup, allowed: [&Sessions; 2]) -> u64 {
    image.record();
    let found = check(image, setup, allowed);
    let log = image.take_log();
    assert_eq!(check(image, setup, [&found; 2]), found);
    let points: Vec<usize> = log.changes().collect();
    let mut seen = 2;
    for point in points.iter().step_by(points.len().div_ceil(4).max(1)) {
        for (_, inner) in log.images(*point).sample(3, 1) {
            check(&inner, setup, [&found; 2]);
            seen += 1;
        }
    }
    let cache = setup.open(image);
    let saved = filled(&cache, 99, 90).save("fresh").map(drop);
    let full = Error::Demote { pages: 0, reason: MissReason::Busy };
    assert!(saved.is_ok() || (setup.segments < 8 && saved == Err(full)), "{saved:?}");
    drop(cache);
    check(image, setup, [&found; 2]);
    let cache = setup.open(image);
    if saved.is_err() {
        // What was being moved took the last room: it comes back when a session goes.
        found.keys().for_each(|name| assert!(cache.delete_session(name).unwrap()));
        filled(&cache, 99, 90).save("fresh").unwrap();
    }
    assert!(holds(&cache.open_session("fresh").unwrap(), 99, 90).unwrap());
    seen
}

fn sweep(name: &str, life: Life) {
    let Life { sim, setup, cache, moments, .. } = life;
    drop(cache);
    let log = sim.take_log();
    let only = std::env::var("KVIST_CASE").ok();
    let (mut points, mut seen) = (0, 0);
    for point in log.changes() {
        points += 1;
        let images = log.images(point);
        for (i, (index, image)) in images.sample(IMAGES * soak() as usize, 1).enumerate() {
            let id = format!("{name}.{point}.{index}");
            if only.as_ref().is_some_and(|c| *c != id) {
                continue;
            }
            let allowed = allowed(&moments, point);
            let look = || {
                if (point + i) % 16 == 0 {
                    return look_deep(&image, &setup, allowed);
                }
                check(&image, &setup, allowed);
                1
            };
            seen += catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|e| {
                let text = e.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("KVIST_CASE={id} ({}): {text}", images.describe(index))
            });
        }
    }
    println!("sessions/crash/{name}: {points} points, {seen} images");
}

#[test]
fn saved_and_saved_again() {
    let mut life = Life::begin(small());
    let mut s = filled(life.cache(), 1, 150);
    life.save(&s, "a", 1);
    append(&mut s, 1, 130).unwrap();
    life.save(&s, "a", 1);
    life.save(&s.fork(), "b", 1);
    s.truncate(100).unwrap();
    life.save(&s, "a", 1);
    drop(s);
    sweep("again", life);
}

#[test]
fn another_sequence_takes_the_name() {
    let mut life = Life::begin(small());
    life.save(&filled(life.cache(), 1, 200), "a", 1);
    life.save(&filled(life.cache(), 2, 140), "a", 2);
    life.save(&filled(life.cache(), 3, 20), "a", 3);
    sweep("replaced", life);
}

#[test]
fn deleted() {
    let mut life = Life::begin(small());
    let s = filled(life.cache(), 1, 200);
    life.save(&s, "a", 1);
    life.save(&s, "b", 1);
    drop(s);
    life.delete("a");
    life.save(&filled(life.cache(), 2, 100), "a", 2);
    life.delete("b");
    life.delete("a");
    sweep("deleted", life);
}

#[test]
fn saved_by_one_process_and_changed_by_the_next() {
    let mut life = Life::begin(small());
    life.save(&filled(life.cache(), 1, 200), "a", 1);
    life.reopen();
    let mut s = life.cache().open_session("a").unwrap();
    append(&mut s, 1, 100).unwrap();
    life.save(&s, "b", 1);
    life.save(&s, "a", 1);
    drop(s);
    life.reopen();
    life.delete("b");
    let s = life.cache().open_session("a").unwrap();
    life.delete("a");
    life.save(&s, "c", 1);
    drop(s);
    life.reopen();
    sweep("processes", life);
}

#[test]
fn moved_to_other_segments() {
    let mut life = Life::begin(tight());
    let mut s = filled(life.cache(), 1, 150);
    life.save(&s, "a", 1);
    for round in 0..6 {
        // Sequences that come and go leave segments that are mostly empty.
        let other = filled(life.cache(), 50 + round, 800);
        other.offload().unwrap();
        append(&mut s, 1, 40).unwrap();
        drop(other);
        life.save(&s, "a", 1);
    }
    assert!(life.cache().disk().unwrap().moved > 0, "{:?}", life.cache().disk());
    drop(s);
    life.reopen();
    sweep("moved", life);
}
