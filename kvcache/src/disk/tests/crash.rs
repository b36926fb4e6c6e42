//! A crash at every call: what was acknowledged is there, what was erased is not, and the rest is
//! there whole or not at all.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::crash_check::{ALIENS, check, goes_on};
use super::oracle::{ABSENT, Allowed, either};
use super::rig::{Setup, seeds, soak};
use super::workloads::{self, Life};
use crate::vfs::sim::{Alien, Log, SimVfs};

/// Images that are looked at after each call.
const IMAGES: usize = 40;

/// What was seen of a workload.
#[derive(Default)]
struct Seen {
    points: u64,
    images: u64,
}

/// What holds after a crash at `point`.
fn allowed(moments: &[(usize, Allowed)], point: usize) -> Allowed {
    let next = moments.partition_point(|(at, _)| *at <= point);
    let before = &moments[next - 1].1;
    moments.get(next).map_or_else(|| before.clone(), |(_, after)| either(before, after))
}

fn replayed<T>(line: String, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|e| {
        let text = e.downcast_ref::<String>().cloned();
        let text = text.or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        panic!("{line}: {}", text.unwrap_or_default());
    })
}

/// After some had to leave, any may be missing.
fn relaxed(allowed: &Allowed) -> Allowed {
    let both = |set: u8| if set == ABSENT { set } else { set | ABSENT };
    allowed.iter().map(|(n, set)| (*n, both(*set))).collect()
}

/// The image, the same opened twice, and crashes while it is opened.
fn look(image: &SimVfs, setup: Setup, allowed: &Allowed, deep: bool) -> u64 {
    if !deep {
        check(image, setup, allowed);
        return 1;
    }
    image.record();
    let once = check(image, setup, allowed);
    let log = image.take_log();
    let allowed = &if once.is_some() { allowed.clone() } else { relaxed(allowed) };
    let twice = check(image, setup, allowed);
    assert!(once.is_none() || once == twice, "opening twice is not opening once");
    let mut seen = 2;
    let points: Vec<usize> = log.changes().collect();
    for point in points.iter().rev().step_by(points.len().div_ceil(4)) {
        for (index, inner) in log.images(*point).sample(3, 1) {
            let line = format!("while it was opened, at {point}, image {index}");
            replayed(line, || check(&inner, setup, allowed));
            seen += 1;
        }
    }
    goes_on(image, setup, allowed);
    seen
}

fn sweep(name: &str, seed: u64, life: Life) -> Seen {
    let Life { setup, sim, rig, moments, .. } = life;
    drop(rig);
    let log: Log = sim.take_log();
    let mut seen = Seen::default();
    let case = std::env::var("KVIST_CASE").ok();
    for point in log.changes() {
        seen.points += 1;
        let allowed = allowed(&moments, point);
        let images = log.images(point);
        for (i, (index, image)) in images.sample(IMAGES * soak() as usize, seed).enumerate() {
            let id = format!("{name}.{point}.{index}");
            if case.as_ref().is_some_and(|c| *c != id) {
                continue;
            }
            let line = || format!("KVIST_SEED={seed} KVIST_CASE={id} ({})", images.describe(index));
            ALIENS.iter().for_each(|path| image.plant(path, Alien::File(path.as_bytes())));
            // The first of a directory are the foreign ones: then it is no store, and stays untouched.
            let is_store = image.bytes("store/kvist.meta").is_some();
            if !is_store {
                ALIENS.iter().for_each(|path| image.delete(path));
            }
            seen.images += replayed(line(), || look(&image, setup, &allowed, i % 8 == 0));
        }
    }
    seen
}

fn run(name: &str, setup: Setup, usual_seeds: u64, workload: impl Fn(&mut Life, u64)) {
    let mut total = Seen::default();
    for seed in seeds(usual_seeds) {
        let mut life = Life::begin(setup, seed);
        workload(&mut life, seed);
        let seen = sweep(name, seed, life);
        total = Seen { points: total.points + seen.points, images: total.images + seen.images };
    }
    println!("crash/{name}: {} points, {} images", total.points, total.images);
}

#[test]
fn commits() {
    run("commits", Setup::ROOMY, 2, |life, _| workloads::commits(life));
}

#[test]
fn rolls() {
    run("rolls", Setup::ROOMY, 2, |life, _| workloads::rolls(life));
}

#[test]
fn evictions() {
    run("evictions", Setup::TIGHT, 2, |life, _| workloads::evictions(life));
}

#[test]
fn erasures() {
    run("erasures", Setup::ROOMY, 2, |life, _| workloads::erasures(life));
}

#[test]
fn erasures_when_full() {
    run("erasures_when_full", Setup::TIGHT, 2, |life, _| workloads::erasures_when_full(life));
}

#[test]
fn sessions() {
    run("sessions", Setup::ROOMY, 2, |life, _| workloads::sessions(life));
}

#[test]
fn sealed() {
    run("sealed", Setup::SEALED, 2, |life, _| workloads::sealed(life));
}

#[test]
fn quarantine() {
    run("quarantine", Setup::ROOMY, 2, |life, _| workloads::quarantine(life));
}

#[test]
fn anything() {
    run("anything", Setup::TIGHT, 8, workloads::anything);
}
