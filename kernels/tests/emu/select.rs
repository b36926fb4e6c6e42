//! K10 and K11: against the CPU's top-k and top-p, id by id.

use std::ops::Range;

use bytemuck::Zeroable;
use kvist_kernels::cuda::params::{TopKParams, TopPParams};
use kvist_kernels::select::{top_k_forced, top_p_forced};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

/// Shared memory of both kernels, in bytes.
const SHARED: [usize; 2] = [8336, 24992];

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Goal {
    Count(usize),
    /// Of each row.
    Counts(&'static [u32]),
    Mass {
        target: f64,
        least: usize,
        most: usize,
    },
}

/// Rows of scores with forced ranges.
struct Rows {
    scores: Vec<Vec<f32>>,
    forced: Vec<Vec<Range<u32>>>,
}

/// Page lists in whose pages the ids are: frames and tokens; tokens of an id's unit, units of a page, and items
/// of a frame.
struct Pages {
    indptr: Vec<u32>,
    frames: Vec<u32>,
    lens: Vec<u32>,
    unit: u32,
    units: u32,
    items: u32,
}

struct Chosen {
    ids: Vec<Vec<u32>>,
    frames: Vec<Vec<u32>>,
    lens: Vec<u32>,
    masses: Vec<f32>,
}

fn run(
    kernels: &Kernels,
    rows: &Rows,
    goal: Goal,
    pages: Option<&Pages>,
    (schedule, left_out): (Schedule, u32),
) -> (Chosen, Report) {
    let n = rows.scores.len();
    let width = rows.scores.iter().map(Vec::len).max().unwrap_or(0) + 5;
    let mut scores = vec![f32::NAN; n * width];
    for (to, from) in scores.chunks_mut(width).zip(&rows.scores) {
        to[..from.len()].copy_from_slice(from);
    }
    let counts: Vec<u32> = rows.scores.iter().map(|s| s.len() as u32).collect();
    let mut forced_ptr = vec![0u32];
    let mut forced: Vec<[u32; 2]> = Vec::new();
    for ranges in &rows.forced {
        forced.extend(ranges.iter().map(|r| [r.start, r.end]));
        forced_ptr.push(forced.len() as u32);
    }
    // Pairs are read at once.
    let aligned: Vec<u64> =
        forced.iter().map(|r| u64::from(r[0]) | u64::from(r[1]) << 32).collect();
    let (mut out, mut frames) = (vec![u32::MAX; n * width], vec![u32::MAX; n * width]);
    let (mut out_n, mut lens) = (vec![u32::MAX; n], vec![u32::MAX; n]);
    let mut masses = vec![f32::NAN; n];
    let mut params = TopKParams {
        scores: scores.as_ptr() as u64,
        counts: counts.as_ptr() as u64,
        forced_ptr: if forced.is_empty() { 0 } else { forced_ptr.as_ptr() as u64 },
        forced: aligned.as_ptr() as u64,
        out: out.as_ptr() as u64,
        out_n: out_n.as_ptr() as u64,
        scores_row: width as i64,
        out_row: width as i64,
        k: match goal {
            Goal::Count(k) => k,
            Goal::Counts(_) => 0,
            Goal::Mass { most, .. } => most,
        } as u32,
        ..TopKParams::zeroed()
    };
    let wanted = if let Goal::Counts(each) = goal { each } else { &[] };
    if !wanted.is_empty() {
        params.wanted = wanted.as_ptr() as u64;
    }
    let mut memory = vec![
        Memory::read(&scores),
        Memory::read(&counts),
        Memory::read(&forced_ptr),
        Memory::read(&aligned),
        Memory::read(wanted),
        Memory::write(&mut out),
        Memory::write(&mut out_n),
        Memory::write(&mut frames),
        Memory::write(&mut lens),
        Memory::write(&mut masses),
    ];
    if let Some(pages) = pages {
        params = TopKParams {
            indptr: pages.indptr.as_ptr() as u64,
            frames: pages.frames.as_ptr() as u64,
            lens: pages.lens.as_ptr() as u64,
            out_items: frames.as_ptr() as u64,
            out_lens: lens.as_ptr() as u64,
            unit_tokens: pages.unit,
            page_units: pages.units,
            page_items: pages.items,
            ..params
        };
        let lists = [&pages.indptr, &pages.frames, &pages.lens];
        memory.extend(lists.map(|list| Memory::read(list)));
    }
    let grid = |shared_bytes| Grid { blocks: n, shared_bytes, schedule, left_out };
    let report = match goal {
        Goal::Count(_) | Goal::Counts(_) => kernels.run("top_k", &params, grid(SHARED[0]), &memory),
        Goal::Mass { target, least, .. } => {
            let out_mass = masses.as_ptr() as u64;
            let params = TopPParams { of: params, target, out_mass, least: least as u32, zero: 0 };
            kernels.run("top_p", &params, grid(SHARED[1]), &memory)
        }
    };
    let cut = |data: &[u32]| -> Vec<Vec<u32>> {
        let rows = data.chunks(width).zip(&out_n);
        rows.map(|(row, &n)| row[..(n as usize).min(width)].to_vec()).collect()
    };
    (Chosen { ids: cut(&out), frames: cut(&frames), lens, masses }, report)
}

/// Ordinary scores, few distinct ones, all the same, extremes of every kind.
fn scores(kind: usize, n: usize, random: &mut Random) -> Vec<f32> {
    const ODD: [f32; 8] =
        [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40, 2.0];
    let one = |_| match kind {
        0 => random.normal(),
        1 => (random.below(5) as f32) - 2.0,
        2 => 1.5,
        3 => f32::from_bits(0x3f80_0000 + random.below(40) as u32),
        _ => ODD[random.below(ODD.len())],
    };
    (0..n).map(one).collect()
}

fn rows(kinds: Range<usize>, lens: &[usize], random: &mut Random) -> Rows {
    let mut rows = Rows { scores: Vec::new(), forced: Vec::new() };
    for kind in kinds {
        for &n in lens {
            rows.scores.push(scores(kind, n, random));
            // Sinks, a run in the middle, the most recent.
            let n = n as u32;
            rows.forced.push(match n {
                0..8 => vec![],
                _ if kind == 2 => std::iter::once(0..n).collect(),
                _ => vec![0..2, n / 2..n / 2 + 1, n - 3..n],
            });
        }
    }
    rows
}

fn check(kernels: &Kernels, rows: &Rows, k: usize, schedule: Schedule) {
    let (got, report) = run(kernels, rows, Goal::Count(k), None, (schedule, 0));
    report.expect_clean(&(schedule, k));
    for (row, got) in got.ids.iter().enumerate() {
        let mut want = Vec::new();
        top_k_forced(&rows.scores[row], &rows.forced[row], k, &mut want);
        assert!(*got == want, "row {row}, k {k}: {got:?}, {want:?}");
    }
}

pub(crate) fn grid() {
    let kernels = Kernels::compile("select.cu", &[]);
    let mut random = Random(3);
    let forced = rows(0..5, &[0, 1, 9, 512, 513, 700], &mut random);
    let free = Rows { forced: vec![vec![]; forced.scores.len()], scores: forced.scores.clone() };
    for (i, k) in [0, 1, 6, 7, 64, 511, 2000].into_iter().enumerate() {
        check(&kernels, &forced, k, SCHEDULES[i % SCHEDULES.len()]);
        check(&kernels, &free, k, SCHEDULES[(i + 1) % SCHEDULES.len()]);
    }
    let long = rows(0..2, &[5000], &mut random);
    for schedule in SCHEDULES {
        check(&kernels, &long, 900, schedule);
    }
}

/// Masses: a softmax, few distinct ones, all the same, extremes of every kind, nothing, a wide range.
fn masses(kind: usize, n: usize, random: &mut Random) -> Vec<f32> {
    const ODD: [f32; 8] = [0.0, -0.0, f32::NAN, f32::INFINITY, 1e-40, 1e-30, 2.0, 1.0];
    let one = |_| match kind {
        0 => (random.normal() * 4.0).exp2() / n as f32,
        1 => random.below(5) as f32 / 64.0,
        2 => 0.25,
        3 => ODD[random.below(ODD.len())],
        4 => 0.0,
        _ => (-(random.below(60) as f32)).exp2(),
    };
    (0..n).map(one).collect()
}

fn check_mass(kernels: &Kernels, rows: &Rows, goal: (f64, usize, usize), schedule: Schedule) {
    let (target, least, most) = goal;
    let wanted = Goal::Mass { target, least, most };
    let (got, report) = run(kernels, rows, wanted, None, (schedule, 0));
    report.expect_clean(&(schedule, goal));
    for (row, ids) in got.ids.iter().enumerate() {
        let (weights, forced) = (&rows.scores[row], &rows.forced[row]);
        let mut want = Vec::new();
        let mass = top_p_forced(weights, forced, target, least, most, &mut want);
        assert!(*ids == want, "row {row}, {goal:?}: {ids:?}, {want:?}");
        let near = (f64::from(got.masses[row]) - mass).abs() <= 1e-6 * mass.abs();
        assert!(near, "row {row}, {goal:?}: mass {}, {mass}", got.masses[row]);
    }
}

/// Shares of the mass, with floors and caps, with and without forced ids.
pub(crate) fn mass() {
    let kernels = Kernels::compile("select.cu", &[]);
    let mut random = Random(5);
    let (mut forced, mut sums) = (rows(0..0, &[], &mut random), Vec::new());
    for kind in 0..6 {
        for n in [0, 1, 9, 512, 700] {
            let weights = masses(kind, n, &mut random);
            let sum: f64 = weights.iter().filter(|x| x.is_finite()).map(|&x| f64::from(x)).sum();
            sums.push(sum);
            forced.scores.push(weights);
            let n = n as u32;
            forced.forced.push(if n < 8 { vec![] } else { vec![0..2, n / 2..n / 2 + 1, n - 3..n] });
        }
    }
    let free = Rows { forced: vec![vec![]; forced.scores.len()], scores: forced.scores.clone() };
    let all = usize::MAX >> 32;
    let goals = [
        (0.0, 0, all),
        (-1.0, 3, all),
        (0.3, 0, all),
        (0.9, 20, all),
        (1.7, 0, 100),
        (30.0, 600, 650),
        (f64::INFINITY, 0, all),
        (1e300, 0, 7),
        (5.0, 9, 0),
    ];
    for (i, goal) in goals.into_iter().enumerate() {
        check_mass(&kernels, &forced, goal, SCHEDULES[i % SCHEDULES.len()]);
        check_mass(&kernels, &free, goal, SCHEDULES[(i + 1) % SCHEDULES.len()]);
    }
    // To the last unit: sums of these are exact on both sides.
    for (row, sum) in sums.iter().enumerate().filter(|(row, _)| matches!(row / 5, 1 | 2)) {
        let one = Rows { scores: vec![free.scores[row].clone()], forced: vec![vec![]] };
        for target in [*sum, sum - 1.0 / 64.0, sum / 2.0] {
            check_mass(&kernels, &one, (target, 0, all), SCHEDULES[row % SCHEDULES.len()]);
        }
    }
    let long = Rows { scores: vec![masses(0, 5000, &mut random)], forced: vec![vec![]] };
    for schedule in SCHEDULES {
        check_mass(&kernels, &long, (4.0, 10, 3000), schedule);
    }
}

/// Chosen pages come out as lists that attention takes.
pub(crate) fn pages() {
    let kernels = Kernels::compile("select.cu", &[]);
    let mut random = Random(8);
    let counts = [40usize, 3, 0, 700];
    let scores: Vec<Vec<f32>> = counts.iter().map(|&n| scores(0, n, &mut random)).collect();
    // The last page is chosen in some rows only.
    let forced = [Some(39..40), None, None, None].map(|r| r.into_iter().collect()).to_vec();
    let rows = Rows { scores, forced };
    for (unit, units, items) in [(64, 1, 1), (16, 4, 8)] {
        let (mut frames, mut lens, mut indptr) = (vec![], vec![], vec![0]);
        for n in counts.map(|n| n as u32) {
            // Some are marked; without units the mark is a bit of the number.
            frames.extend((0..n.div_ceil(units)).map(|_| random.next() as u32 & 0x8fff_ffff));
            indptr.push(frames.len() as u32);
            lens.push((n * unit).saturating_sub(7));
        }
        let pages = Pages { indptr, frames, lens, unit, units, items };
        for schedule in SCHEDULES {
            check_pages(&kernels, &rows, &pages, schedule);
        }
    }
}

fn check_pages(kernels: &Kernels, rows: &Rows, pages: &Pages, schedule: Schedule) {
    let chosen = |goal| {
        let (chosen, report) = run(kernels, rows, goal, Some(pages), (schedule, 0));
        report.expect_clean(&(schedule, goal));
        chosen
    };
    let got = chosen(Goal::Count(8));
    let same = chosen(Goal::Mass { target: f64::INFINITY, least: 0, most: 8 });
    assert!(same.ids == got.ids && same.frames == got.frames && same.lens == got.lens);
    let apart = chosen(Goal::Counts(&[5, 0, 3, 699]));
    assert!(apart.ids.iter().map(Vec::len).eq([5, 0, 0, 699]));
    for chosen in [got, apart] {
        for (row, ids) in chosen.ids.iter().enumerate() {
            let list = &pages.frames[pages.indptr[row] as usize..];
            let item = |&id: &u32| {
                let frame = list[(id / pages.units) as usize];
                let mark = if pages.items > 1 { frame & 1 << 31 } else { 0 };
                ((frame ^ mark) * pages.items + id % pages.units) | mark
            };
            let items: Vec<u32> = ids.iter().map(item).collect();
            assert_eq!(chosen.frames[row], items, "row {row}");
            let last = ids.last().is_some_and(|&id| id as usize == rows.scores[row].len() - 1);
            let want = ids.len() as u32 * pages.unit - if last { 7 } else { 0 };
            assert_eq!(chosen.lens[row], want, "row {row}");
        }
    }
}

/// Each barrier left out is reported, under every schedule.
pub(crate) fn planted() {
    let kernels = Kernels::compile("select.cu", &[]);
    let rows = rows(0..1, &[3000], &mut Random(4));
    let guards = toolchain::guards("select.cu");
    assert_eq!(guards, [1, 2, 3, 4]);
    for guard in guards {
        for schedule in SCHEDULES {
            let mass = Goal::Mass { target: 900.0, least: 0, most: 3000 };
            for goal in [Goal::Count(300), mass] {
                let (_, report) = run(&kernels, &rows, goal, None, (schedule, guard));
                assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}, {goal:?}");
            }
        }
    }
}
