//! Random scripts on a cache of few frames and on one with room for everything.

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::Pin;

#[derive(Clone, Debug)]
enum Step {
    Append { sequence: usize, tokens: usize },
    Fork { sequence: usize },
    ForkWith { sequence: usize, select: usize },
    Truncate { sequence: usize, keep: usize },
    Drop { sequence: usize },
    Attend { sequence: usize, layer: usize, queries: usize, window: usize },
    Verify { sequence: usize, nodes: usize, window: usize },
    Read { sequence: usize, from: usize, tokens: usize },
    Offload { sequence: usize },
    Restore { sequence: usize },
    Pin { sequence: usize, from: usize, tokens: usize },
    Unpin,
    Pump,
}

fn step() -> impl Strategy<Value = Step> {
    let s = 0usize..5;
    let window = prop_oneof![3 => Just(0usize), 1 => 1usize..300];
    prop_oneof![
        6 => (s.clone(), prop_oneof![1usize..4, 1usize..200]).prop_map(|(sequence, tokens)| Step::Append { sequence, tokens }),
        1 => s.clone().prop_map(|sequence| Step::Fork { sequence }),
        1 => (s.clone(), 0usize..4).prop_map(|(sequence, select)| Step::ForkWith { sequence, select }),
        1 => (s.clone(), 0usize..100).prop_map(|(sequence, keep)| Step::Truncate { sequence, keep }),
        1 => s.clone().prop_map(|sequence| Step::Drop { sequence }),
        6 => (s.clone(), 0..LAYERS, prop_oneof![3 => Just(1usize), 1 => 2usize..90], window.clone())
            .prop_map(|(sequence, layer, queries, window)| Step::Attend { sequence, layer, queries, window }),
        2 => (s.clone(), 1usize..20, window.clone())
            .prop_map(|(sequence, nodes, window)| Step::Verify { sequence, nodes, window }),
        1 => (s.clone(), 0usize..100, 1usize..200).prop_map(|(sequence, from, tokens)| Step::Read { sequence, from, tokens }),
        1 => s.clone().prop_map(|sequence| Step::Offload { sequence }),
        1 => s.clone().prop_map(|sequence| Step::Restore { sequence }),
        1 => (s, 0usize..100, 1usize..100).prop_map(|(sequence, from, tokens)| Step::Pin { sequence, from, tokens }),
        1 => Just(Step::Unpin),
        1 => Just(Step::Pump),
    ]
}

/// A sequence of few frames, its twin with room for everything, and what they should hold.
struct Twins {
    few: Sequence,
    all: Sequence,
    k: Vec<bf16>,
    v: Vec<bf16>,
}

impl Twins {
    fn len(&self) -> usize {
        self.k.len() / ROW
    }
}

/// What a call on the small cache may say: its answer, or a refusal that faults explain.
fn allowed<T>(result: Result<T, Error>, faulty: bool) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::OverBudget { .. }) => None,
        Err(Error::Missing { .. } | Error::Demote { .. }) if faulty => None,
        Err(e) => panic!("{e}"),
    }
}

struct World {
    few: Cache,
    live: Vec<Twins>,
    pins: Vec<Pin>,
    random: Random,
    faulty: bool,
}

impl World {
    /// Appends to both, or to none; false if a sequence was left in between and must go.
    fn append(&mut self, i: usize, tokens: usize) -> bool {
        let (k, v) = data(&mut self.random, tokens);
        let (faulty, twins) = (self.faulty, &mut self.live[i]);
        let len = twins.len();
        if allowed(append(&mut twins.few, &k, &v), faulty).is_none() {
            return allowed(twins.few.truncate(len), faulty).is_some();
        }
        append(&mut twins.all, &k, &v).unwrap();
        twins.k.extend(&k);
        twins.v.extend(&v);
        true
    }

    fn attend(&mut self, i: usize, layer: usize, queries: usize, window: usize) {
        let twins = &self.live[i];
        let n = queries.min(twins.len());
        if n == 0 {
            return;
        }
        let q = query(&mut self.random, n);
        let sinks: Vec<f32> = (0..HEADS * GROUP).map(|_| self.random.normal()).collect();
        let options = AttendOptions {
            selected: true,
            bound: n == 1,
            window,
            sinks: (queries % 3 == 1).then_some(&sinks),
            ..AttendOptions::default()
        };
        let (want, reference) = attend(&twins.all, layer, &q, &options).unwrap();
        let Some((out, info)) = allowed(attend(&twins.few, layer, &q, &options), self.faulty)
        else {
            return;
        };
        assert!(near(&out, &want), "{n} queries, window {window}, {} tokens", twins.len());
        assert!(near(&info.lse2, &reference.lse2));
        assert_eq!(info.selected, reference.selected);
        assert_eq!(info.bytes, reference.bytes);
        let bounds = [info.missed_mass_bound, reference.missed_mass_bound];
        assert_eq!(bounds[0].is_some(), bounds[1].is_some());
        for (a, b) in bounds[0].iter().flatten().zip(bounds[1].iter().flatten()) {
            assert!((a - b).abs() < 1e-3, "{a} and {b}");
        }
    }

    /// Verifies a draft tree.
    fn verify(&mut self, i: usize, nodes: usize, window: usize) {
        let twins = &self.live[i];
        let q = query(&mut self.random, nodes);
        let draft = Draft::new(nodes, &mut self.random);
        let sinks: Vec<f32> = (0..HEADS * GROUP).map(|_| self.random.normal()).collect();
        let sinks = (nodes % 3 == 1).then_some(&sinks[..]);
        let options = AttendOptions { selected: true, window, sinks, ..AttendOptions::default() };
        let (want, reference) = draft.attend(&twins.all, &q, &options).unwrap();
        let Some((out, info)) = allowed(draft.attend(&twins.few, &q, &options), self.faulty) else {
            return;
        };
        assert!(near(&out, &want), "{nodes} nodes, window {window}, {} tokens", twins.len());
        assert!(near(&info.lse2, &reference.lse2));
        assert_eq!(info.selected, reference.selected);
        assert_eq!(info.bytes, reference.bytes);
    }

    fn read(&mut self, i: usize, from: usize, tokens: usize) {
        let twins = &self.live[i];
        let from = from * twins.len() / 100;
        let n = tokens.min(twins.len() - from);
        let (mut k, mut v) = (vec![0f32; n * ROW], vec![0f32; n * ROW]);
        if allowed(twins.few.read(1, from, &mut k, &mut v), self.faulty).is_some() {
            let same =
                |got: &[f32], want: &[bf16]| got.iter().zip(want).all(|(a, b)| *a == b.to_f32());
            assert!(same(&k, &twins.k[from * ROW..]) && same(&v, &twins.v[from * ROW..]));
        }
    }

    fn step(&mut self, step: Step) {
        let n = self.live.len();
        let faulty = self.faulty;
        match step {
            Step::Append { sequence, tokens } => {
                let whole = self.append(sequence % n, tokens);
                let mut at = 0..;
                self.live.retain(|_| at.next() != Some(sequence % n) || whole);
            }
            Step::Fork { sequence } if n < 6 => {
                let t = &self.live[sequence % n];
                let (few, all) = (t.few.fork(), t.all.fork());
                self.live.push(Twins { few, all, k: t.k.clone(), v: t.v.clone() });
            }
            Step::ForkWith { sequence, select } if n < 6 => {
                let t = &self.live[sequence % n];
                let select = &selects()[select];
                if let Some(few) = allowed(t.few.fork_with(select), faulty) {
                    let all = t.all.fork_with(select).unwrap();
                    self.live.push(Twins { few, all, k: t.k.clone(), v: t.v.clone() });
                }
            }
            Step::Truncate { sequence, keep } => {
                let t = &mut self.live[sequence % n];
                let len = t.len() * keep / 100;
                if allowed(t.few.truncate(len), faulty).is_some() {
                    t.all.truncate(len).unwrap();
                    t.k.truncate(len * ROW);
                    t.v.truncate(len * ROW);
                }
            }
            Step::Drop { sequence } if n > 1 => drop(self.live.swap_remove(sequence % n)),
            Step::Attend { sequence, layer, queries, window } => {
                self.attend(sequence % n, layer, queries, window);
            }
            Step::Verify { sequence, nodes, window } => self.verify(sequence % n, nodes, window),
            Step::Read { sequence, from, tokens } => self.read(sequence % n, from, tokens),
            Step::Offload { sequence } => {
                allowed(self.live[sequence % n].few.offload(), faulty);
            }
            Step::Restore { sequence } => {
                allowed(self.live[sequence % n].few.restore(), faulty);
            }
            Step::Pin { sequence, from, tokens } => {
                let t = &self.live[sequence % n];
                let from = from * t.len() / 100;
                self.pins.extend(allowed(t.few.pin(from..(from + tokens).min(t.len())), faulty));
            }
            Step::Unpin => {
                self.pins.pop();
            }
            Step::Pump => {
                self.few.shared.tier.as_ref().unwrap().catch_up();
            }
            _ => {}
        }
        if self.live.is_empty() {
            let new = |cache: &Cache| cache.sequence();
            let all = roomy(self.few.select(), self.few.geometry().page_tokens);
            let twins = Twins { few: new(&self.few), all: new(&all), k: Vec::new(), v: Vec::new() };
            self.live.push(twins);
        }
        let s = self.few.stats();
        assert_eq!(s.used_bytes, s.page_bytes + s.summary_bytes + s.overhead_bytes);
        assert!(s.used_bytes <= s.budget_bytes);
    }
}

fn run(steps: Vec<Step>, seed: u64, select: usize, page_tokens: usize, bytes: u64, faults: Faults) {
    let select = &selects()[select];
    let memory = Memory::new(faults, seed);
    let below = Arc::new(Handle(memory.clone()));
    let few = builder(select, bytes, page_tokens).below(below).build().unwrap();
    let all = roomy(select, page_tokens);
    let faulty = faults.read_fails + faults.write_fails + faults.read_hangs > 0;
    let first = Twins { few: few.sequence(), all: all.sequence(), k: Vec::new(), v: Vec::new() };
    let mut world = World {
        few: few.clone(),
        live: vec![first],
        pins: Vec::new(),
        random: Random(seed),
        faulty,
    };
    // More than the small cache holds.
    for _ in 0..8 {
        world.step(Step::Append { sequence: 0, tokens: 100 });
    }
    steps.into_iter().for_each(|s| world.step(s));
    for i in 0..world.live.len() {
        world.attend(i, 1, 1, 0);
        world.attend(i, 0, 3, 0);
    }
    drop(world);
    nothing_left(&few, &memory);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn few_frames_give_what_many_give(
        steps in prop::collection::vec(step(), 1..40), seed in any::<u64>(), select in 0usize..4,
        page in prop_oneof![3 => Just(64usize), 1 => Just(16), 1 => Just(48), 1 => Just(128)],
        kib in 100u64..400, delay in 0u64..50,
    ) {
        run(steps, seed, select, page, kib << 10, Faults { delay, ..Faults::default() });
    }

    #[test]
    fn faults_give_errors_and_never_wrong_numbers(
        steps in prop::collection::vec(step(), 1..40), seed in any::<u64>(), select in 0usize..4,
        kib in 100u64..400, read_fails in 0u64..30, write_fails in 0u64..200, read_hangs in 0u64..20,
    ) {
        let faults =
            Faults { read_fails, write_fails, read_hangs, delay: 20, ..Faults::default() };
        run(steps, seed, select, 64, kib << 10, faults);
    }
}
