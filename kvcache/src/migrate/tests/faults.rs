//! Links that break and callers that give up, at every message: one side owns the sequence then, and it
//! is as it was.

use std::sync::atomic::Ordering;

use super::scene::{Break, Random, seen, serving};
use super::*;
use crate::migrate::{
    Arrived, Destination, Finished, MigrateOptions, MigrationId, Outgoing, Settled,
};
use crate::{Cache, Sequence};

const OPTIONS: MigrateOptions = MigrateOptions { rounds: 2, blocks: 1 };
const ID: MigrationId = MigrationId { sequence: [3; 16], epoch: 9 };

/// A migration with a life between its rounds.
struct Case {
    scene: Scene,
    way: Way,
    start: Vec<Script>,
    between: Vec<Script>,
    /// The caller gives up before this step.
    abort: usize,
}

impl Case {
    fn random(seed: u64) -> Case {
        let mut random = Random(seed);
        let disk = [random.below(2) == 0, random.below(2) == 0];
        let page_tokens = [16, 64][random.below(2)];
        let mut script = |n: usize| (0..n).map(|_| Script::random(&mut random)).collect::<Vec<_>>();
        Case {
            scene: Scene { disk, page_tokens, ..Scene::default() },
            way: Way::Local,
            start: [vec![Script::Append(300)], script(3)].concat(),
            between: script(3),
            abort: usize::MAX,
        }
    }

    /// Moves a sequence; what the source has then, and whether the link broke.
    fn source(
        &self,
        link: scene::Breaking,
        from: &Cache,
        twins: &mut [Sequence; 2],
    ) -> Option<Finished> {
        let (mut sequence, mut seed) = (from.sequence(), 0);
        let mut play = |step: &Script, s: &mut Sequence| {
            seed += 1;
            step.play(s, seed);
            twins.iter_mut().for_each(|twin| step.play(twin, seed));
        };
        self.start.iter().for_each(|step| play(step, &mut sequence));
        let mut between = self.between.iter();
        let mut live =
            |s: &mut Sequence, n: usize| between.by_ref().take(n).for_each(|x| play(x, s));
        let moving = match self.abort {
            0 => return Some(Finished::Kept(sequence, crate::Error::Closed)),
            _ => Outgoing::offer(&sequence, ID, link, OPTIONS),
        };
        let Ok(mut moving) = moving else {
            live(&mut sequence, 3);
            return Some(Finished::Kept(sequence, crate::Error::Closed));
        };
        let mut steps = 1;
        while !moving.is_close(&sequence) {
            let fork = sequence.fork();
            if steps == self.abort || moving.round(fork).is_err() {
                // In so many words, or by letting go.
                if steps % 2 == 0 {
                    let _ = moving.abort();
                }
                live(&mut sequence, 3);
                return Some(Finished::Kept(sequence, crate::Error::Closed));
            }
            live(&mut sequence, 1);
            steps += 1;
        }
        live(&mut sequence, 3);
        (steps != self.abort).then(|| moving.finish(sequence))
    }

    /// Runs it; calls that were made on the end that breaks.
    fn run(&self, how: Option<Break>) -> usize {
        let (from, to) = (self.scene.cache(0), self.scene.cache(1));
        let mut twins = [0, 1].map(|side| self.scene.roomy(side).sequence());
        let destination = Destination::new(&to);
        let [source, far] = self.way.ends(how);
        let calls = if how.is_some_and(|h| h.side == 1) { &far.calls } else { &source.calls };
        let calls = calls.clone();
        let served = serving(&destination, far);
        let finished = self.source(source, &from, &mut twins);
        let (kept, moved) = match finished {
            // Given up at the last moment, without a word: the caller has dropped both.
            None => (None, false),
            Some(Finished::Moved(_)) => (None, true),
            Some(Finished::Kept(sequence, _)) => (Some(sequence), false),
            Some(Finished::Unsure(unsure, _)) => {
                // It may still be at it.
                let [asking, asked] = self.way.ends(None);
                let asked = serving(&destination, asked);
                let settled = unsure.settle(asking);
                asked.join().unwrap().1.unwrap();
                match settled {
                    Settled::Moved => (None, true),
                    Settled::Kept(sequence) => (Some(sequence), false),
                    Settled::Unsure(_, e) => panic!("{e}"),
                }
            }
        };
        let (mut arrived, _) = served.join().unwrap();
        assert_eq!(arrived.len(), usize::from(moved), "one owner: {how:?}");
        let owner = arrived.pop().map(|Arrived { sequence, .. }| sequence).or(kept);
        if let Some(owner) = owner {
            assert_eq!(seen(&owner), seen(&twins[usize::from(moved)]), "{how:?}");
        }
        // Nothing is left of the other side's part, nor of what was reserved.
        for cache in [&from, &to] {
            assert_eq!((cache.stats().used_bytes, cache.stats().stored_bytes), (0, 0), "{how:?}");
        }
        if !moved {
            assert_eq!(destination.open(), 0);
        }
        calls.load(Ordering::Relaxed)
    }
}

#[test]
fn a_link_may_break_at_every_message() {
    for seed in 0..4 {
        let way = [Way::Local, Way::Socket][seed as usize % 2];
        let case = Case { way, ..Case::random(seed) };
        for side in 0..2 {
            let never = Break { side, at: usize::MAX, after: false };
            let calls = case.run(Some(never));
            assert!(calls > 5, "{calls} calls");
            for at in 0..calls {
                for after in [false, true] {
                    case.run(Some(Break { side, at, after }));
                }
            }
        }
    }
}

#[test]
fn a_caller_may_give_up_before_every_step() {
    for seed in 4..12 {
        let way = [Way::Local, Way::Socket][seed as usize % 2];
        for abort in 0..5 {
            Case { way, abort, ..Case::random(seed) }.run(None);
        }
    }
}

#[test]
fn random_breaks_of_random_lives() {
    for seed in 100..220 {
        let mut random = Random(!seed);
        let way = [Way::Local, Way::Socket][random.below(2)];
        let how =
            Break { side: random.below(2), at: random.below(40), after: random.below(2) == 0 };
        Case { way, ..Case::random(seed) }.run(Some(how));
    }
}
