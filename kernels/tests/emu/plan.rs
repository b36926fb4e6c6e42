//! K15: plans made on the device are those of the host, bit by bit.

use bytemuck::Zeroable;
use kvist_kernels::cuda::params::{PlanParams, Segment, Unit};
use kvist_kernels::cuda::work::{PlanRoom, TILES_MIN, Work};

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

pub(crate) const SHARED: usize = 384;

/// Units that walk lists of these lengths, for some workers.
struct Case {
    units: Vec<Unit>,
    lens: Vec<u32>,
    workers: usize,
    tile: u32,
    /// Lengths come from offsets.
    slots: bool,
}

/// What is written, and what of it was not (all ones).
#[derive(Clone, Debug, PartialEq)]
struct Planned {
    units: Vec<Unit>,
    segments: Vec<Segment>,
    workers: Vec<u32>,
}

const UNTOUCHED: Segment = Segment { unit: u32::MAX, begin: u32::MAX, end: u32::MAX, partial: -1 };

fn run(kernels: &Kernels, case: &Case, (schedule, left_out): (Schedule, u32)) -> (Planned, Report) {
    let room = PlanRoom::new(case.units.len(), case.workers);
    // What the host knows of the cut is nothing.
    let unknown = |unit: &Unit| Unit { reduce: u32::MAX, partial: u32::MAX, ..*unit };
    let mut made = Planned {
        units: case.units.iter().map(unknown).collect(),
        segments: vec![UNTOUCHED; room.segments],
        workers: vec![u32::MAX; room.workers],
    };
    let mut indptr = vec![0u32];
    case.lens.iter().for_each(|n| indptr.push(indptr[indptr.len() - 1] + n));
    let params = PlanParams {
        units: made.units.as_ptr() as u64,
        segments: made.segments.as_ptr() as u64,
        workers: made.workers.as_ptr() as u64,
        lens: if case.slots { 0 } else { case.lens.as_ptr() as u64 },
        indptr: if case.slots { indptr.as_ptr() as u64 } else { 0 },
        units_n: case.units.len() as u32,
        workers_n: case.workers as u32,
        tile: case.tile,
        tiles_min: TILES_MIN,
    };
    let memory = [
        Memory::read(&case.lens),
        Memory::read(&indptr),
        Memory::write(&mut made.units),
        Memory::write(&mut made.segments),
        Memory::write(&mut made.workers),
    ];
    let grid = Grid { blocks: 1, shared_bytes: SHARED, schedule, left_out };
    let report = kernels.run("plan", &params, grid, &memory);
    (made, report)
}

fn check(kernels: &Kernels, case: &Case, schedule: Schedule) {
    let tiles = |unit: &Unit| 0..case.lens[unit.list as usize].div_ceil(case.tile);
    let want = Work::cut(case.units.clone(), tiles, case.workers);
    let room = PlanRoom::new(case.units.len(), case.workers);
    assert!(want.segments.len() <= room.segments && want.partials <= room.partials);
    let (mut segments, mut workers) = (want.segments, want.workers);
    let last = segments.len() as u32;
    segments.resize(room.segments, UNTOUCHED);
    workers.resize(room.workers, last);
    let (got, report) = run(kernels, case, (schedule, 0));
    report.expect_clean(&(case.units.len(), case.workers));
    let want = Planned { units: want.units, segments, workers };
    assert_eq!(got, want, "{:?} for {} workers", case.lens, case.workers);
}

/// Lists of these lengths, with a unit each; every third has two.
fn case(lens: Vec<u32>, workers: usize, tile: u32) -> Case {
    let numbers = (0..lens.len()).flat_map(|list| vec![list; 1 + usize::from(list % 3 == 2)]);
    let units = numbers.map(|list| Unit { list: list as u32, rows: 4, ..Unit::zeroed() }).collect();
    Case { units, lens, workers, tile, slots: tile == 1 }
}

/// No units, no tokens, empty ones everywhere, one long list, many short ones, equal ones, more units than threads.
pub(crate) fn grid() {
    let kernels = Kernels::compile("plan.cu", &[]);
    let mut random = Random(11);
    let mut lens = vec![
        vec![],
        vec![0],
        vec![0; 7],
        vec![1],
        vec![127, 0, 129, 0],
        vec![0, 0, 100_000, 0],
        vec![64; 100],
        vec![1_000_000, 1, 1, 0, 70_000],
    ];
    for n in [3usize, 12, 400, 900] {
        let most = [5usize, 300, 20_000, 700][n % 4];
        lens.push((0..n).map(|_| (random.below(3) * random.below(most)) as u32).collect());
    }
    for (i, lens) in lens.into_iter().enumerate() {
        for (j, workers) in [1, 2, 7, 132, 264].into_iter().enumerate() {
            for tile in [64, 1] {
                let case = case(lens.clone(), workers, tile);
                check(&kernels, &case, SCHEDULES[(i + j) % SCHEDULES.len()]);
            }
        }
    }
    let case = case((0..50).map(|i| i * 90 % 4000).collect(), 13, 64);
    SCHEDULES.into_iter().for_each(|schedule| check(&kernels, &case, schedule));
}

/// A small case for the sanitizers.
pub(crate) fn small() {
    let kernels = Kernels::compile("plan.cu", &[]);
    check(&kernels, &case(vec![700, 0, 65, 3000], 5, 64), SCHEDULES[2]);
}

/// Each barrier left out is reported, under every schedule.
pub(crate) fn planted() {
    let kernels = Kernels::compile("plan.cu", &[]);
    let case = case(vec![900; 600], 40, 64);
    let guards = toolchain::guards("plan.cu");
    assert_eq!(guards, [1]);
    for guard in guards {
        for schedule in SCHEDULES {
            let (_, report) = run(&kernels, &case, (schedule, guard));
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
        }
    }
}
