//! Migrations that nothing disturbs.

use super::scene::{LAYERS, Random, seen, serving};
use super::*;
use crate::migrate::{Destination, Finished, MigrateOptions, MigrationId, Moved, Outgoing};
use crate::{Quest, Select, Sequence};

fn id(epoch: u64) -> MigrationId {
    MigrationId { sequence: [7; 16], epoch }
}

/// Moves a sequence over a way; between rounds `between` is played on it and on its twin.
fn moved(
    scene: &Scene,
    way: Way,
    start: &[Script],
    between: &[Script],
    options: MigrateOptions,
) -> (Moved, Sequence, Sequence) {
    let (from, to, still) = (scene.cache(0), scene.cache(1), scene.roomy(1));
    let (mut sequence, mut twin) = (from.sequence(), still.sequence());
    let mut seed = 0;
    let mut play = |step: &Script, s: &mut Sequence, twin: &mut Sequence| {
        seed += 1;
        [s, twin].into_iter().for_each(|s| step.play(s, seed));
    };
    start.iter().for_each(|step| play(step, &mut sequence, &mut twin));
    let destination = Destination::new(&to);
    let [source, far] = way.ends(None);
    let serving = serving(&destination, far);
    let mut moving = Outgoing::offer(&sequence, id(1), source, options).unwrap();
    let mut between = between.iter();
    while !moving.is_close(&sequence) {
        moving.round(sequence.fork()).unwrap();
        between.by_ref().take(2).for_each(|step| play(step, &mut sequence, &mut twin));
    }
    between.for_each(|step| play(step, &mut sequence, &mut twin));
    let done = match moving.finish(sequence) {
        Finished::Moved(done) => done,
        other => panic!("{other:?}"),
    };
    let (mut arrived, ended) = serving.join().unwrap();
    ended.unwrap();
    assert_eq!((arrived.len(), destination.open()), (1, 0));
    assert_eq!(from.stats().used_bytes, 0, "the source has let go");
    let arrived = arrived.remove(0);
    assert_eq!(arrived.id, id(1));
    (done, arrived.sequence, twin)
}

const SMALL: MigrateOptions = MigrateOptions { rounds: 3, blocks: 2 };

#[test]
fn what_moved_is_what_never_did() {
    let quest = Select::Quest(Quest { budget: 128, unit_tokens: 16 });
    for (n, select) in [Select::Full, quest, Scene::default().select].into_iter().enumerate() {
        for disk in [[false, false], [true, false], [false, true], [true, true]] {
            for (page_tokens, way) in [(64, Way::Local), (16, Way::Socket), (48, Way::Local)] {
                let scene = Scene { select: select.clone(), disk, page_tokens, ..Scene::default() };
                let start = [Script::Append(700), Script::Offload, Script::Append(200 + n)];
                let between = [Script::Append(130), Script::Append(1), Script::AppendFirst(3)];
                let (done, mut s, mut twin) = moved(&scene, way, &start, &between, SMALL);
                assert!(done.rounds > 0 && done.before.pages > 0);
                assert_eq!(seen(&s), seen(&twin));
                // And goes on alike.
                for s in [&mut s, &mut twin] {
                    s.truncate(s.len() - 10).unwrap();
                    Script::Append(90).play(s, 99);
                }
                assert_eq!(seen(&s), seen(&twin));
            }
        }
    }
}

#[test]
fn truncating_costs_sending_again_and_nothing_else() {
    let start = [Script::Append(1000)];
    for disk in [false, true] {
        let scene = Scene { disk: [disk; 2], ..Scene::default() };
        let between = [Script::Truncate(500), Script::Append(500), Script::Fork];
        let (done, s, twin) = moved(&scene, Way::Local, &start, &between, SMALL);
        assert_eq!(seen(&s), seen(&twin));
        // 15 whole pages, then those from the cut on: 500 tokens are 7 pages and some.
        assert_eq!(done.before.pages, (LAYERS * (15 + 8)) as u64);
    }
}

#[test]
fn rounds_send_only_what_is_new() {
    let (start, between) = ([Script::Append(64 * 40)], [Script::Append(64), Script::Append(64)]);
    let options = MigrateOptions { rounds: 3, blocks: 1 };
    let (done, s, twin) = moved(&Scene::default(), Way::Socket, &start, &between, options);
    assert_eq!(seen(&s), seen(&twin));
    assert_eq!((done.rounds, done.before.pages), (2, (LAYERS * 42) as u64));
    assert_eq!(done.stopped.pages, 0);
}

#[test]
fn short_and_empty_sequences_move_too() {
    for start in
        [vec![], vec![Script::Append(1)], vec![Script::Append(64)], vec![Script::AppendFirst(9)]]
    {
        let (done, s, twin) = moved(&Scene::default(), Way::Socket, &start, &[], SMALL);
        assert_eq!(seen(&s), seen(&twin));
        assert_eq!(done.rounds, 0);
    }
}

#[test]
fn more_than_memory_moves_from_disk_to_disk() {
    let scene = Scene { disk: [true; 2], host_bytes: [640 << 10; 2], ..Scene::default() };
    let start = [Script::Append(6000)];
    let between = [Script::Append(300), Script::Truncate(900), Script::Append(300)];
    let (_, s, twin) = moved(&scene, Way::Socket, &start, &between, SMALL);
    let (n, row) = (s.len(), 2 * 16);
    assert_eq!(n, twin.len());
    let read = |s: &Sequence, layer: usize| {
        let (mut k, mut v) = (vec![0f32; n * row], vec![0f32; n * row]);
        s.read(layer, 0, &mut k, &mut v).unwrap();
        (k, v)
    };
    (0..LAYERS).for_each(|layer| assert!(read(&s, layer) == read(&twin, layer)));
}

#[test]
fn random_lives_move() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let script = |random: &mut Random, n: usize| -> Vec<Script> {
            (0..n).map(|_| Script::random(random)).collect()
        };
        let scene = Scene {
            disk: [random.below(2) == 0, random.below(2) == 0],
            page_tokens: [16, 48, 64, 128][random.below(4)],
            ..Scene::default()
        };
        let start = [vec![Script::Append(600)], script(&mut random, 5)].concat();
        let between = script(&mut random, 8);
        let way = [Way::Local, Way::Socket][random.below(2)];
        let options = MigrateOptions { rounds: random.below(6), blocks: random.below(5) };
        let (_, s, twin) = moved(&scene, way, &start, &between, options);
        assert_eq!(seen(&s), seen(&twin), "seed {seed}");
    }
}
