//! What the GPU computes is what the CPU would have.

use kvist::kernels::cuda::{Compiler, Device};
use kvist::policies::{ArkVale, ClusterKv, TokenSelect};
use kvist::{
    AttendOptions, Boxed, Builder, Cache, DeviceOptions, DeviceUse, DiskOptions, Geometry,
    ParallelSequence, Quest, Select, Tensor3Mut,
};

use crate::pair::{DIM, Pair, Random, geometry, same_rows};

const SEEDS: u64 = 3;
const STEPS: usize = 40;

fn selects() -> Vec<Select> {
    let (sinks, recent, budget) = (4, 8, 80);
    vec![
        Select::Full,
        Quest { budget, ..Quest::default() }.into(),
        // A reused choice depends on the last bits of log-sum-exps.
        Select::Boxed(Boxed { sinks, recent, reuse: None, ..Boxed::with_budget(budget) }),
        TokenSelect { sinks, recent, budget, ..TokenSelect::default() }.into(),
        ClusterKv { sinks, window: recent, cluster_tokens: 8, budget, ..ClusterKv::default() }
            .into(),
    ]
}

fn base(select: &Select) -> Builder {
    Cache::builder(geometry()).host_bytes(2 << 20).select(select.clone()).threads(1)
}

fn frames(n: usize) -> DeviceOptions {
    DeviceOptions::default().bytes((n * geometry().page_bytes()) as u64)
}

/// Wanders with every selector; the sum of what the GPUs did.
fn wander(mapped: bool, gpu: DeviceOptions) -> DeviceUse {
    let mut all = DeviceUse::default();
    for (select, seed) in selects().iter().flat_map(|s| (0..SEEDS).map(move |seed| (s, seed))) {
        // What `boxed` chooses on the GPU is compared in `selects_tokens`.
        let options = gpu.clone().selects(!matches!(select, Select::Boxed(_)));
        let own = base(select).prefault(mapped).device(options);
        let mut pair = Pair::new(own, base(select), seed);
        pair.wander(STEPS);
        let done = pair.gpu.device().unwrap();
        assert_eq!(done.degraded, None);
        assert!(done.used_bytes <= done.budget_bytes);
        assert!(done.calls + done.calls_on_cpu >= pair.attended as u64);
        all.calls += done.calls;
        all.calls_on_cpu += done.calls_on_cpu;
        all.selections += done.selections;
        all.page_hits += done.page_hits;
        all.page_misses += done.page_misses;
        all.pages_on_cpu += done.pages_on_cpu;
        all.pages_in_place += done.pages_in_place;
        all.copied_bytes += done.copied_bytes;
    }
    all
}

/// With limits that small calls come past: parts of their own, runs by the copy engine, several stages.
fn small(options: DeviceOptions) -> DeviceOptions {
    let page = geometry().page_bytes();
    options.limits(1, 2 * page, page)
}

pub(crate) fn roomy() {
    let done = wander(false, small(frames(256)));
    assert_eq!((done.calls_on_cpu, done.pages_on_cpu, done.pages_in_place), (0, 0, 0));
    let done = wander(false, frames(256));
    assert_eq!((done.calls_on_cpu, done.pages_on_cpu, done.pages_in_place), (0, 0, 0));
    assert!(done.page_hits > 2 * done.page_misses, "{done:?}");
}

pub(crate) fn tight() {
    let done = wander(false, frames(9));
    assert!(done.pages_on_cpu > 0 && done.page_hits > 0, "{done:?}");
    // A mask over pages without frames is the CPU's.
    assert!(done.calls_on_cpu > 0 && done.calls > done.calls_on_cpu, "{done:?}");
    assert_eq!(done.pages_in_place, 0);
    let again = wander(false, small(frames(9)));
    assert_eq!((again.page_hits, again.pages_on_cpu), (done.page_hits, done.pages_on_cpu));
    let none = wander(false, frames(0));
    assert_eq!((none.page_hits, none.copied_bytes, none.used_bytes), (0, 0, 0));
}

pub(crate) fn mapped() {
    let done = wander(true, frames(9));
    assert!(done.pages_in_place > 0 && done.page_hits > 0, "{done:?}");
    assert_eq!(done.pages_on_cpu, 0, "{done:?}");
    wander(true, small(frames(9)));
    wander(true, small(frames(256)));
    let done = wander(true, frames(9).zero_copy(false));
    assert_eq!(done.pages_in_place, 0);
}

pub(crate) fn ahead() {
    let dense = Select::Full;
    let of = |on: bool| {
        let mut pair = Pair::new(base(&dense).device(frames(24).prefetch(on)), base(&dense), 7);
        pair.add();
        for sequence in 0..2 {
            pair.append(sequence, 16 * 5);
        }
        // The second finds four frames free, and more once the first has rested for a step.
        for sequence in [0, 0, 0, 1, 1, 1] {
            pair.attend(sequence, 1, &AttendOptions::default());
        }
        pair.gpu.device().unwrap()
    };
    let (with, without) = (of(true), of(false));
    assert_eq!((with.prefetched, without.prefetched), (3, 0), "an eighth of the frames");
    assert_eq!(with.page_misses + 3, without.page_misses);
}

pub(crate) fn below() {
    let folder = tempfile::TempDir::new().unwrap();
    // Keys of the lower tier cannot be scored one by one.
    let by_summaries = |s: &&Select| !matches!(s, Select::TokenSelect(_));
    for (i, select) in selects().iter().filter(by_summaries).enumerate() {
        let at = |name: &str| {
            let disk = DiskOptions::new(folder.path().join(format!("{name}{i}")), 64 << 20);
            base(select).host_bytes(400 << 10).whole_pages(true).disk(disk)
        };
        let mut pair = Pair::new(at("gpu").device(frames(40)), at("cpu"), 3);
        pair.append(0, 16 * 28);
        for _ in 0..12 {
            pair.append(0, 1);
            pair.attend(0, 1, &AttendOptions::default());
        }
        let (done, stats) = (pair.gpu.device().unwrap(), pair.gpu.stats());
        assert!(done.calls > 0 && done.degraded.is_none(), "{done:?}");
        assert!(stats.below_read_bytes > 0, "{stats:?}");
    }
}

pub(crate) fn lent() {
    let device = Device::open(0, std::sync::Arc::new(Compiler::from_env())).unwrap();
    let bytes = 40 * geometry().page_bytes();
    let memory = device.buffer(bytes).unwrap();
    // SAFETY: held by its owner, and used by nobody else.
    let options = unsafe { DeviceOptions::default().memory(memory.address(), bytes as u64) };
    let owner = std::sync::Arc::new(memory);
    let options = options.owner(owner.clone());
    let again = base(&Select::Full).device(options.clone());
    let mut pair = Pair::new(base(&Select::Full).device(options), base(&Select::Full), 5);
    let text = again.build().unwrap_err().to_string();
    assert_eq!(text, "device memory must be one cache's, found taken by another one");
    pair.wander(STEPS);
    assert_eq!(pair.gpu.device().unwrap().budget_bytes, bytes as u64);
    assert_eq!(std::sync::Arc::strong_count(&owner), 2);
    let last = pair.sequences[0].0.fork();
    drop(pair);
    assert_eq!(std::sync::Arc::strong_count(&owner), 2, "a sequence uses it");
    drop(last);
    assert_eq!(std::sync::Arc::strong_count(&owner), 1);
    drop(owner);
    // By itself it takes half of what is free.
    // SAFETY: no other thread runs.
    unsafe { std::env::set_var("FAKE_MEMORY", (8u64 << 20).to_string()) }
    let large = base(&Select::Full).host_bytes(64 << 20);
    let taken = |builder: Builder| {
        let cache = builder.device(DeviceOptions::default()).build().unwrap();
        cache.device().unwrap().budget_bytes
    };
    assert!((3 << 20..=4 << 20).contains(&taken(large)));
    assert!(taken(base(&Select::Full)) < 2 << 20, "no more than the host tier has pages");
}

/// Queries of more rows than the kernel for few of them takes, alone and beside others.
pub(crate) fn prompts() {
    let base = base(&Select::Full);
    let mut pair = Pair::new(base.clone().device(small(frames(256))), base, 11);
    for (i, tokens) in [130, 70, 1, 33].into_iter().enumerate() {
        pair.append(0, tokens);
        pair.attend(0, tokens, &AttendOptions::default());
        pair.attend(0, tokens, &AttendOptions { window: 50, ..AttendOptions::default() });
        pair.add();
        pair.append(i + 1, 20 + tokens);
        pair.batch_of(60);
    }
    let done = pair.gpu.device().unwrap();
    assert!(done.calls >= 24 && done.calls_on_cpu == 0, "{done:?}");
}

/// Units of several sizes, in pages of several, chosen as the CPU chooses them.
pub(crate) fn selects_units() {
    let quest = |unit_tokens| Select::from(Quest { budget: 192, unit_tokens });
    let arkvale =
        ArkVale { sinks: 32, recent: 20, budget: 160, layer_wide: false, ..ArkVale::default() };
    let each =
        [(quest(16), 16), (quest(16), 64), (quest(32), 128), (quest(64), 64), (arkvale.into(), 32)];
    for (i, (select, page_tokens)) in each.into_iter().enumerate() {
        let geometry = Geometry { page_tokens, ..geometry() };
        let frames = |n: usize| DeviceOptions::default().bytes((n * geometry.page_bytes()) as u64);
        let base = Cache::builder(geometry.clone()).host_bytes(4 << 20).select(select).threads(1);
        let small = 512 / page_tokens;
        for gpu in [
            base.clone().device(frames(4096 / page_tokens)),
            base.clone().prefault(true).device(frames(small)),
            base.clone().prefault(true).device(self::small(frames(3 * small))),
        ] {
            chosen_as_by(Pair::new(gpu, base.clone(), i as u64));
        }
    }
}

/// Summaries of one sequence have room, those of two do not: the one that is there goes on, and nothing is swapped.
pub(crate) fn selects_in_turn() {
    let select = Select::Quest(Quest { budget: 192, ..Quest::default() });
    // Two layers, two heads and six cells of 64 tokens; a quarter of the bytes is for them.
    let cells = 2 * 2 * 6 * 4 * (4 * 2 * DIM * 2);
    let options = DeviceOptions::default().bytes(cells as u64);
    let mut pair = Pair::new(base(&select).prefault(true).device(options), base(&select), 13);
    pair.add();
    pair.append(0, 340);
    pair.append(1, 340);
    let plain = AttendOptions { selected: true, ..AttendOptions::default() };
    let mut copied = Vec::new();
    for _ in 0..6 {
        for sequence in [0, 1] {
            pair.append(sequence, 1);
            pair.attend(sequence, 1, &plain);
        }
        copied.push(pair.gpu.device().unwrap().copied_bytes);
    }
    let done = pair.gpu.device().unwrap();
    assert_eq!((done.selections, done.degraded.clone()), (12, None), "{done:?}");
    assert!(done.calls == 24 && copied[5] - copied[3] < copied[1], "{copied:?}");
    // The first is gone: its room is the other's.
    drop(pair.sequences.swap_remove(0));
    for _ in 0..3 {
        pair.append(0, 1);
        pair.attend(0, 1, &plain);
    }
    assert_eq!(pair.gpu.device().unwrap().selections, 18);
}

/// Sequences that grow, share pages and are cut.
fn chosen_as_by(mut pair: Pair) {
    let plain = AttendOptions { selected: true, ..AttendOptions::default() };
    let [soft, scaled] = [(5.0, None), (0.0, Some(0.3))].map(|(soft_cap, scale)| AttendOptions {
        soft_cap,
        scale,
        ..plain
    });
    pair.append(0, 333);
    for options in [plain, soft, scaled, plain] {
        pair.append(0, 1);
        pair.attend(0, 1, &options);
    }
    let (a, b) = &pair.sequences[0];
    let fork = (a.fork(), b.fork());
    pair.sequences.push(fork);
    pair.append(1, 30);
    for sequence in [0, 1] {
        pair.attend(sequence, 1, &plain);
    }
    let (a, b) = &mut pair.sequences[0];
    a.truncate(290).unwrap();
    b.truncate(290).unwrap();
    for _ in 0..3 {
        pair.append(0, 7);
        pair.attend(0, 1, &plain);
        pair.batch();
    }
    let done = pair.gpu.device().unwrap();
    assert_eq!(done.degraded, None);
    assert!(done.selections >= 18, "of two layers: {done:?}");
}

/// Tokens chosen by codes and then by keys: nearly those that the CPU chooses, and as good.
pub(crate) fn selects_tokens() {
    let (sinks, recent) = (4, 8);
    let select = Select::Boxed(Boxed { sinks, recent, ..Boxed::with_budget(120) });
    for (page_tokens, mapped) in [(16, false), (64, true)] {
        let geometry = Geometry { page_tokens, ..geometry() };
        let base = Cache::builder(geometry.clone()).host_bytes(4 << 20).select(select.clone());
        let bytes = if mapped { 1200 } else { 4096 } / page_tokens * geometry.page_bytes();
        let gpu = base.clone().prefault(mapped);
        let gpu = gpu.device(DeviceOptions::default().bytes(bytes as u64));
        let mut pair = Pair::new(gpu, base, 5);
        pair.append(0, 500);
        let (mut same, mut all, mut more) = (0, 0, Vec::new());
        for step in 0..6 {
            pair.append(0, 1 + 20 * (step / 3));
            for (got, want) in pair.choices(0) {
                assert_eq!(got.tokens_read, want.tokens_read);
                more.extend(got.lse2.iter().zip(&want.lse2).map(|(a, b)| a - b));
                let lists = got.selected.unwrap().into_iter().zip(want.selected.unwrap());
                for (got, want) in lists {
                    all += want.len();
                    same += want.iter().filter(|t| got.binary_search(t).is_ok()).count();
                    assert!(got.is_sorted_by(|a, b| a < b));
                }
            }
        }
        let done = pair.gpu.device().unwrap();
        assert_eq!((done.selections, done.calls_on_cpu, done.degraded), (12, 0, None));
        assert!(done.pages_in_place > 0 || !mapped);
        assert!(same * 100 > all * 95, "{same} of {all} tokens");
        // Log-sum-exps of what was read: single heads win or lose, together they have the same mass.
        assert!(more.iter().all(|x| x.abs() < 0.1), "{more:?}");
        let mean = more.iter().sum::<f32>() / more.len() as f32;
        assert!(mean > -0.002, "{mean}");
    }
}

/// KV-parallel over two GPUs: each holds part of the tokens, and partial results are merged.
pub(crate) fn parallel() {
    let select = Select::Quest(Quest { budget: 32, ..Quest::default() });
    for select in [Select::Full, select] {
        let gpus = [0, 1].map(|ordinal| {
            let cache = base(&select).device(frames(64).ordinal(ordinal)).build().unwrap();
            assert_eq!(cache.device().unwrap().name, format!("Fake {ordinal}"));
            cache
        });
        let cpus = [0, 1].map(|_| base(&select).build().unwrap());
        let mut random = Random(3);
        let mut pair = [&gpus, &cpus]
            .map(|caches| ParallelSequence::new(&[&caches[0], &caches[1]], 32).unwrap());
        for tokens in [150, 1, 1, 20] {
            let [k, v] = random.tokens(tokens);
            for (layer, sequence) in (0..2).flat_map(|l| [0, 1].map(|s| (l, s))) {
                pair[sequence].append(layer, &k.view(), &v.view()).unwrap();
            }
            let q = random.queries(1);
            for layer in 0..2 {
                let of = |sequence: &ParallelSequence| {
                    let mut out = vec![f32::NAN; 4 * DIM];
                    let mut view = Tensor3Mut::contiguous(&mut out, [1, 4, DIM]).unwrap();
                    let options = AttendOptions::default();
                    sequence.attend(layer, &q.view(), &options, &mut view).unwrap();
                    out
                };
                same_rows(&of(&pair[0]), &of(&pair[1]));
            }
        }
        for gpu in &gpus {
            let done = gpu.device().unwrap();
            assert!(done.calls > 0 && done.calls_on_cpu == 0, "{done:?}");
        }
    }
}

/// Two threads with a sequence each: whoever finds the GPU busy for long goes to the CPU.
pub(crate) fn threads() {
    let select = Select::Full;
    let (gpu, cpu) =
        (base(&select).device(frames(64)).build().unwrap(), base(&select).build().unwrap());
    let one = |seed: u64| {
        let mut pair = Pair::of(&gpu, &cpu, seed);
        pair.append(0, 40);
        for _ in 0..10 {
            pair.append(0, 1);
            pair.attend(0, 1, &AttendOptions::default());
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| one(1));
        one(2);
    });
    let done = gpu.device().unwrap();
    assert!(done.calls > 0 && done.calls + done.calls_on_cpu <= 40, "{done:?}");
}
