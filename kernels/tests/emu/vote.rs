//! K11, votes: folds of scores bit by bit with the CPU's, folds of masses near them.

use kvist_kernels::cuda::params::{Vote, VoteParams};
use kvist_kernels::select;

use crate::common::Random;
use crate::machine::{Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::toolchain;

const SCALE: f32 = 0.37;

/// Scores `[rows][heads * group][width]` with as many in each row and KV head as `counts` says.
struct Case {
    group: usize,
    width: usize,
    counts: Vec<u32>,
    scores: Vec<f32>,
    /// What else the query heads see.
    lse2: Option<Vec<f32>>,
    /// The first score of each row that is in its softmax.
    from: Option<Vec<u32>>,
}

#[derive(PartialEq)]
struct Votes {
    out: Vec<f32>,
    lse2: Vec<f32>,
}

fn run(
    kernels: &Kernels,
    case: &Case,
    vote: Vote,
    (schedule, left_out): (Schedule, u32),
) -> (Votes, Report) {
    let Case { group, width, .. } = *case;
    let rows = case.counts.len();
    let (mut out, mut lse2) = (vec![7f32; rows * (width + 1)], vec![7f32; rows * group]);
    let none: &[f32] = &[];
    let params = VoteParams {
        scores: case.scores.as_ptr() as u64,
        counts: case.counts.as_ptr() as u64,
        lse2: case.lse2.as_ref().map_or(0, |l| l.as_ptr() as u64),
        out: out.as_ptr() as u64,
        out_lse2: lse2.as_ptr() as u64,
        from: case.from.as_ref().map_or(0, |from| from.as_ptr() as u64),
        scores_row: width as i64,
        out_row: width as i64 + 1,
        scale: SCALE,
        group: group as u32,
        fold: vote as u32,
        zero: 0,
    };
    let memory = [
        Memory::read(&case.scores),
        Memory::read(&case.counts),
        Memory::read(case.from.as_deref().unwrap_or(&[])),
        Memory::read(case.lse2.as_deref().unwrap_or(none)),
        Memory::write(&mut out),
        Memory::write(&mut lse2),
    ];
    let grid = Grid { blocks: rows, shared_bytes: 128 + 4 * group, schedule, left_out };
    let report = kernels.run("vote", &params, grid, &memory);
    (Votes { out, lse2 }, report)
}

/// The CPU's votes of a row and KV head, and the lse of its query heads.
fn on_cpu(case: &Case, row: usize, vote: Vote) -> Votes {
    let Case { group, width, .. } = *case;
    let n = case.counts[row] as usize;
    let est = &case.scores[row * group * width..][..group * width];
    let (mut out, none) = (vec![0f32; n], vec![f32::NEG_INFINITY; group]);
    let mut lse2 = case.lse2.as_ref().map_or(none, |l| l[row * group..][..group].to_vec());
    let from = case.from.as_ref().map_or(0, |from| from[row] as usize);
    if from < n {
        select::lse2_strided(&est[from..], width, n - from, SCALE, &mut lse2);
    }
    match vote {
        Vote::Max => select::fold_max(est, width, group, &mut out),
        Vote::Mean => select::fold_mean(est, width, group, &mut out),
        // What the mean divides.
        Vote::Sum => (0..n).for_each(|i| {
            let first = est[i];
            out[i] = (1..group).fold(first, |sum, g| sum + est[g * width + i]);
        }),
        Vote::Mass => select::fold_mass_strided(est, width, n, SCALE, &lse2, &mut out),
        Vote::MassMax => select::fold_mass_max(est, width, SCALE, &lse2, &mut out),
    }
    Votes { out, lse2 }
}

fn check(kernels: &Kernels, case: &Case, vote: Vote) {
    let Case { group, width, .. } = *case;
    let masses = matches!(vote, Vote::Mass | Vote::MassMax);
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    let mut first: Option<Vec<u32>> = None;
    for schedule in SCHEDULES {
        let (got, report) = run(kernels, case, vote, (schedule, 0));
        report.expect_clean(&(schedule, vote));
        for (row, &n) in case.counts.iter().enumerate() {
            let want = on_cpu(case, row, vote);
            let out = &got.out[row * (width + 1)..][..width + 1];
            for (&x, &want) in out.iter().zip(&want.out) {
                let near = masses && (x - want).abs() <= 1e-4 * want;
                assert!(near || same(x, want), "row {row}: {x}, {want}, {vote:?}");
            }
            assert!(out[n as usize..].iter().all(|&x| x == 7.0));
            for (&x, &want) in got.lse2[row * group..][..group].iter().zip(&want.lse2) {
                let near = (x - want).abs() <= 1e-5 + 1e-6 * want.abs();
                assert!(near || x == want || !masses, "lse of row {row}: {x}, {want}");
                assert!(masses || x == 7.0);
            }
        }
        let bits: Vec<u32> = got.out.iter().chain(&got.lse2).map(|x| x.to_bits()).collect();
        assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{schedule:?}");
    }
}

/// Ordinary scores, equal ones, and some that are not finite; NaN behind each row's count.
fn build(kind: usize, group: usize, counts: &[u32], others: bool) -> Case {
    const ODD: [f32; 6] = [0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -3.0, 50.0];
    let mut random = Random(kind as u64 + 7);
    let width = *counts.iter().max().unwrap() as usize + 2;
    let mut scores = vec![f32::NAN; counts.len() * group * width];
    for (row, own) in scores.chunks_mut(width).enumerate() {
        own[..counts[row / group] as usize].fill_with(|| match kind {
            0 => random.normal() * 8.0,
            1 => 2.5,
            2 => f32::NEG_INFINITY,
            _ => ODD[random.below(ODD.len())],
        });
    }
    let lse2 = others.then(|| (0..counts.len() * group).map(|_| random.normal() * 5.0).collect());
    // Of every other kind of case.
    let from = (others && kind == 0)
        .then(|| counts.iter().map(|&n| n / 3 + n % 2 * n.div_ceil(3)).collect());
    Case { group, width, counts: counts.to_vec(), scores, lse2, from }
}

const VOTES: [Vote; 5] = [Vote::Max, Vote::Sum, Vote::Mean, Vote::Mass, Vote::MassMax];

pub(crate) fn grid() {
    let kernels = Kernels::compile("vote.cu", &[]);
    for vote in VOTES {
        check(&kernels, &build(0, 4, &[0, 1, 255, 257, 1000], false), vote);
        check(&kernels, &build(0, 1, &[33, 0, 600], true), vote);
        let none = build(0, 2, &[64, 7], true);
        check(&kernels, &Case { from: Some(none.counts.clone()), ..none }, vote);
        check(&kernels, &build(1, 24, &[300], true), vote);
        check(&kernels, &build(2, 3, &[40], false), vote);
        check(&kernels, &build(2, 3, &[40], true), vote);
        check(&kernels, &build(3, 5, &[77, 5], false), vote);
    }
}

/// A small case for the sanitizers.
pub(crate) fn small() {
    let kernels = Kernels::compile("vote.cu", &[]);
    VOTES.into_iter().for_each(|vote| check(&kernels, &build(0, 3, &[0, 70], true), vote));
}

/// Each barrier left out is reported, under every schedule.
pub(crate) fn planted() {
    let kernels = Kernels::compile("vote.cu", &[]);
    let case = build(0, 3, &[700], true);
    let guards = toolchain::guards("vote.cu");
    assert_eq!(guards, [1, 2]);
    for guard in guards {
        for schedule in SCHEDULES {
            let (_, report) = run(&kernels, &case, Vote::Mass, (schedule, guard));
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
        }
    }
}
