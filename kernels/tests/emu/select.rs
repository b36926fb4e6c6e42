//! K10: against the CPU's top-k, id by id.

use std::ops::Range;

use bytemuck::Zeroable;
use kvist_kernels::cuda::params::TopKParams;
use kvist_kernels::select::top_k_forced;

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

const SHARED: usize = 8336;

/// Rows of scores with forced ranges.
struct Rows {
    scores: Vec<Vec<f32>>,
    forced: Vec<Vec<Range<u32>>>,
}

/// Page lists that the ids number: frames and tokens.
struct Pages {
    indptr: Vec<u32>,
    frames: Vec<u32>,
    lens: Vec<u32>,
    tokens: u32,
}

struct Chosen {
    ids: Vec<Vec<u32>>,
    frames: Vec<Vec<u32>>,
    lens: Vec<u32>,
}

fn run(
    kernels: &Kernels,
    rows: &Rows,
    k: usize,
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
    let mut params = TopKParams {
        scores: scores.as_ptr() as u64,
        counts: counts.as_ptr() as u64,
        forced_ptr: if forced.is_empty() { 0 } else { forced_ptr.as_ptr() as u64 },
        forced: aligned.as_ptr() as u64,
        out: out.as_ptr() as u64,
        out_n: out_n.as_ptr() as u64,
        scores_row: width as i64,
        out_row: width as i64,
        k: k as u32,
        ..TopKParams::zeroed()
    };
    let mut memory = vec![
        Memory::read(&scores),
        Memory::read(&counts),
        Memory::read(&forced_ptr),
        Memory::read(&aligned),
        Memory::write(&mut out),
        Memory::write(&mut out_n),
        Memory::write(&mut frames),
        Memory::write(&mut lens),
    ];
    if let Some(pages) = pages {
        params = TopKParams {
            indptr: pages.indptr.as_ptr() as u64,
            frames: pages.frames.as_ptr() as u64,
            lens: pages.lens.as_ptr() as u64,
            out_frames: frames.as_ptr() as u64,
            out_lens: lens.as_ptr() as u64,
            page_tokens: pages.tokens,
            ..params
        };
        let lists = [&pages.indptr, &pages.frames, &pages.lens];
        memory.extend(lists.map(|list| Memory::read(list)));
    }
    let grid = Grid { blocks: n, shared_bytes: SHARED, schedule, left_out };
    let report = kernels.run("top_k", &params, grid, &memory);
    let cut = |data: &[u32]| -> Vec<Vec<u32>> {
        let rows = data.chunks(width).zip(&out_n);
        rows.map(|(row, &n)| row[..(n as usize).min(width)].to_vec()).collect()
    };
    (Chosen { ids: cut(&out), frames: cut(&frames), lens }, report)
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
    let (got, report) = run(kernels, rows, k, None, (schedule, 0));
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

/// Chosen pages come out as lists that attention takes.
pub(crate) fn pages() {
    let kernels = Kernels::compile("select.cu", &[]);
    let mut random = Random(8);
    let counts = [40usize, 3, 0, 700];
    let scores: Vec<Vec<f32>> = counts.iter().map(|&n| scores(0, n, &mut random)).collect();
    // The last page is chosen in some rows only.
    let forced = [Some(39..40), None, None, None].map(|r| r.into_iter().collect()).to_vec();
    let mut pages = Pages { indptr: vec![0], frames: vec![], lens: vec![], tokens: 64 };
    for n in counts {
        pages.frames.extend((0..n).map(|_| random.next() as u32));
        pages.indptr.push(pages.frames.len() as u32);
        pages.lens.push((n as u32 * 64).saturating_sub(17));
    }
    for schedule in SCHEDULES {
        let rows = Rows { scores: scores.clone(), forced: forced.clone() };
        let (got, report) = run(&kernels, &rows, 8, Some(&pages), (schedule, 0));
        report.expect_clean(&schedule);
        for (row, ids) in got.ids.iter().enumerate() {
            assert_eq!(ids.len(), counts[row].min(8));
            let list = &pages.frames[pages.indptr[row] as usize..];
            let frames: Vec<u32> = ids.iter().map(|&id| list[id as usize]).collect();
            assert_eq!(got.frames[row], frames, "row {row}");
            let last = ids.last().is_some_and(|&id| id as usize == counts[row] - 1);
            let want = ids.len() as u32 * 64 - if last { 17 } else { 0 };
            assert_eq!(got.lens[row], want, "row {row}");
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
            let (_, report) = run(&kernels, &rows, 300, None, (schedule, guard));
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
        }
    }
}
