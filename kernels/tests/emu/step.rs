//! A decode step that chooses what it reads on the GPU, against the same choice on the CPU.

use half::bf16;
use kvist_kernels::cuda::params::Fold;
use kvist_kernels::cuda::work::{AttendSpec, ScoreSpec};
use kvist_kernels::cuda::{
    SCORE, SelectedStep, StepChoice, StepLists, StepMemory, StepRow, StepShape,
};
use kvist_kernels::score::{self, BoxedQuery, CellList};
use kvist_kernels::summary::{self, BoxedSpec, TILE};
use kvist_kernels::{DType, Isa, select};

use crate::common::Random;
use crate::device::{Gpu, There};
use crate::gpu::{self, Played};

/// A step that chooses for itself.
pub(crate) const STEP: StepShape = StepShape {
    sequences: 2,
    kv_heads: 2,
    group: 2,
    dim: 64,
    dtype: DType::Bf16,
    q_dtype: DType::Bf16,
    choice: StepChoice::Units { tokens: UNIT, cell: 4, fold: Fold::Max },
    page_tokens: 32,
    pages_max: 6,
    wanted_max: 4,
    scale: 0.125,
    soft_cap: 0.0,
};
const UNIT: usize = 16;
/// First and last units, which are always read.
const KEEP: [usize; 2] = [1, 1];
const PLANES: u32 = 3;
/// One that chooses tokens.
pub(crate) const TOKENS: StepShape = StepShape {
    choice: StepChoice::Tokens { planes: PLANES as usize },
    page_tokens: 64,
    pages_max: 4,
    wanted_max: 90,
    ..STEP
};
/// The kernels of [`STEP`] and [`TOKENS`] that others do not need.
pub(crate) fn kernels() -> Vec<Played> {
    let StepShape { dim, dtype, .. } = STEP;
    let score = ScoreSpec { dim, dtype, boxes: true }.macros();
    let slots = AttendSpec { dim, dtype, slots: true, wide: false };
    let both = [("score.cu", score.clone(), SCORE.with(score)), gpu::few(&slots)];
    both.into_iter().chain(gpu::choosing(dim, dtype, PLANES)).collect()
}

/// What a step reads.
struct Data {
    q: Vec<bf16>,
    /// Pages of each KV head of each sequence, keys, then values.
    pages: Vec<bf16>,
    /// Boxes of their units, or boxed codes.
    cells: Vec<u8>,
}

impl Data {
    /// With boxes, and small whole numbers: scores are exact, whatever the order.
    fn whole(s: &StepShape) -> Data {
        let mut random = Random(9);
        let mut data = Data::drawn(s, &mut || random.below(7) as f32 - 3.0);
        for page in data.pages.chunks(2 * s.page_tokens * s.dim) {
            for unit in page[..s.page_tokens * s.dim].chunks(UNIT * s.dim) {
                let of = |pick: &dyn Fn(f32, f32) -> f32| -> Vec<bf16> {
                    let column = |d: usize| unit[d..].iter().step_by(s.dim).map(|x| x.to_f32());
                    (0..s.dim).map(|d| bf16::from_f32(column(d).reduce(pick).unwrap())).collect()
                };
                let rows = [of(&f32::max), of(&f32::min)].concat();
                data.cells.extend_from_slice(bytemuck::cast_slice(&rows));
            }
        }
        data
    }

    /// With boxed codes.
    fn normal(s: &StepShape) -> Data {
        let mut random = Random(10);
        let mut data = Data::drawn(s, &mut || random.normal() * 1.5);
        let spec = BoxedSpec::new(s.dim, PLANES).unwrap();
        data.cells = vec![0; s.rows() * s.cells_max() * spec.cell_bytes()];
        for (i, cell) in data.cells.chunks_mut(spec.cell_bytes()).enumerate() {
            let page = &data.pages[i * 2 * s.page_tokens * s.dim..];
            let rows: Vec<*const u8> =
                page.chunks(s.dim).take(TILE).map(|x| x.as_ptr().cast()).collect();
            // SAFETY: 64 rows of keys.
            unsafe { summary::build_boxed(&spec, s.dtype, &rows, cell) }
        }
        data
    }

    fn drawn(s: &StepShape, one: &mut dyn FnMut() -> f32) -> Data {
        let mut draw = |n: usize| -> Vec<bf16> { (0..n).map(|_| bf16::from_f32(one())).collect() };
        let q = draw(s.rows() * s.group * s.dim);
        let pages = draw(s.rows() * s.pages_max * 2 * s.page_tokens * s.dim);
        Data { q, pages, cells: Vec::new() }
    }

    /// Keys, and values, of a token of a row: of page `row * pages_max + i`.
    fn token(&self, s: &StepShape, row: usize, t: usize) -> [&[bf16]; 2] {
        let page = row * s.pages_max + t / s.page_tokens;
        let at = (page * 2 * s.page_tokens + t % s.page_tokens) * s.dim;
        [at, at + s.page_tokens * s.dim].map(|at| &self.pages[at..at + s.dim])
    }
}

/// A step on the GPU, every third page of which lies in another place.
struct Placed<'a> {
    s: StepShape,
    gpu: &'a Gpu,
    there: There<'a>,
    memory: StepMemory,
}

impl<'a> Placed<'a> {
    fn new(gpu: &'a Gpu, s: StepShape, data: &'a Data) -> Placed<'a> {
        let page = 2 * s.page_tokens * s.dim;
        let shape = [s.sequences, s.kv_heads * s.group, s.dim];
        let mut there = There::new(&gpu.device, &gpu.stream, &data.q, shape);
        let (o, lse2) = (there.kept[1].address(), there.kept[2].address());
        let part = |far: bool| -> Vec<bf16> {
            let own = data.pages.chunks(page).enumerate().filter(|(i, _)| is_far(*i) == far);
            own.flat_map(|(_, page)| page.iter().copied()).collect()
        };
        let (near, far) = (there.put(&part(false)) as u64, there.put(&part(true)) as u64);
        let memory = StepMemory {
            q: there.kept[0].address(),
            pages: near,
            far: far.wrapping_sub(near) as i64,
            cells: there.put(&data.cells) as u64,
            o,
            lse2,
            chosen: there.put(&vec![0u32; s.rows() * s.wanted_max]) as u64,
            chosen_n: there.put(&vec![0u32; s.rows()]) as u64,
            candidates: there.put(&vec![0u32; s.rows() * s.candidates_max()]) as u64,
        };
        Placed { s, gpu, there, memory }
    }

    /// The step, its lists written.
    fn step(&self) -> SelectedStep {
        let (s, gpu) = (self.s, self.gpu);
        let mut step = SelectedStep::new(&gpu.device, &gpu.own, s, self.memory).unwrap();
        let lists = step.lists().unwrap();
        let (pages, cells) = (s.rows() * s.pages_max, s.rows() * s.cells_max());
        assert_eq!((lists.frames.len(), lists.cells.len()), (pages, cells));
        let frame = |i: usize| {
            let before = (0..i).filter(|&j| is_far(j) == is_far(i)).count() as u32;
            if is_far(i) { before | StepLists::FAR } else { before }
        };
        lists.frames.iter_mut().enumerate().for_each(|(i, to)| *to = frame(i));
        lists.cells.iter_mut().zip(0..).for_each(|(to, i)| *to = i);
        step
    }

    /// Numbers of a table of the GPU, by row.
    fn table(&self, address: u64, room: usize) -> Vec<Vec<u32>> {
        let kept = self.there.kept.iter().find(|b| b.address() == address).unwrap();
        let mut numbers = vec![0u32; self.s.rows() * room];
        kept.read(&self.gpu.own, 0, &mut numbers).unwrap();
        numbers.chunks(room).map(<[u32]>::to_vec).collect()
    }
}

fn is_far(page: usize) -> bool {
    page % 3 == 1
}

/// Rows of sequences of so many tokens.
fn rows(s: &StepShape, tokens: &[usize], of: impl Fn(usize) -> StepRow) -> Vec<StepRow> {
    tokens.iter().flat_map(|&tokens| vec![of(tokens); s.kv_heads]).collect()
}

fn near(a: &f32, b: &f32) -> bool {
    (a - b).abs() <= 0.02 * b.abs().max(1.0) || a == b
}

impl Gpu {
    /// A step that chooses units, queued and replayed, against the same choice on the CPU.
    pub(crate) fn selects(&mut self) {
        let (s, data) = (STEP, Data::whole(&STEP));
        let placed = Placed::new(self, s, &data);
        let mut step = placed.step();
        let of = |tokens: &[usize; 2], keep, wanted| {
            rows(&s, tokens, |tokens| StepRow { tokens, keep, wanted })
        };
        step.set_rows(&of(&[0, 0], KEEP, 4)).unwrap();
        // SAFETY: the step and its memory outlive the graph's replays.
        let queue = || unsafe { step.send_lists(&self.own).and_then(|()| step.queue(&self.own)) };
        let mut graph = self.own.capture(queue).unwrap();
        let each = [([190, 40], 4), ([192, 1], 3), ([0, 64], 4), ([100, 17], 2)];
        for (i, (tokens, wanted)) in each.into_iter().enumerate() {
            step.set_rows(&of(&tokens, KEEP, wanted)).unwrap();
            // SAFETY: as above.
            let queued =
                unsafe { if i % 2 == 0 { graph.launch(&self.own) } else { step.queue(&self.own) } };
            queued.unwrap();
            step.queued(&self.own).unwrap();
            let (got, lse) = placed.there.read(&self.own);
            let (o, lse2) = attended(&s, &data, &units_on_cpu(&data, &tokens, wanted));
            assert!(
                lse.iter().zip(&lse2).all(|(a, b)| near(a, b)),
                "{tokens:?}: {lse:?}, {lse2:?}"
            );
            assert!(got.iter().zip(&o).all(|(a, b)| near(a, b)), "{tokens:?}");
        }
        let told = "expected 4 rows of up to 192 tokens and 4 units to read";
        for wrong in [
            vec![StepRow::default(); 3],
            of(&[0, 193], KEEP, 2),
            of(&[16, 16], KEEP, 5),
            of(&[100, 100], [3, 2], 1),
        ] {
            let text = step.set_rows(&wrong).unwrap_err().to_string();
            assert!(text.contains(told), "{text}");
        }
        let units = |tokens, cell, fold| StepChoice::Units { tokens, cell, fold };
        for (wrong, text) in [
            (StepShape { wanted_max: 0, ..s }, "wanted_max"),
            (StepShape { group: 17, ..s }, "1 to 16"),
            (StepShape { choice: units(8, 4, Fold::Max), ..s }, "a multiple of 16"),
            (StepShape { choice: units(16, 0, Fold::Max), ..s }, "units of a cell"),
            (StepShape { choice: units(16, 4, Fold::None), ..s }, "a maximum, sum or mean"),
            (StepShape { page_tokens: 40, ..s }, "a multiple of the 16 tokens of a unit"),
            (StepShape { dtype: DType::F32, ..s }, "64, 80, 96 or 128 of f16 or bf16"),
            (StepShape { choice: StepChoice::Tokens { planes: 5 }, ..s }, "planes"),
            (StepShape { soft_cap: 1.0, ..TOKENS }, "0 where tokens are chosen"),
        ] {
            let told =
                SelectedStep::new(&self.device, &self.own, wrong, placed.memory).unwrap_err();
            assert!(told.to_string().contains(text), "{told}");
        }
    }

    /// A step that chooses tokens: each of its two choices against what the CPU thinks of the tokens, and the
    /// attention to what came of it.
    pub(crate) fn selects_tokens(&mut self) {
        let (s, data) = (TOKENS, Data::normal(&TOKENS));
        let placed = Placed::new(self, s, &data);
        let mut step = placed.step();
        for (tokens, wanted) in [([256, 200], 90), ([190, 64], 75), ([70, 40], 85), ([129, 0], 70)]
        {
            let keep = |n: usize| [3, (n % TILE).max(5)];
            let of = |n: usize| StepRow { tokens: n, keep: keep(n), wanted: wanted.min(n) };
            step.set_rows(&rows(&s, &tokens, of)).unwrap();
            // SAFETY: the step and its memory outlive what is queued.
            unsafe { step.send_lists(&self.own).and_then(|()| step.queue(&self.own)).unwrap() }
            step.queued(&self.own).unwrap();
            let (got, lse) = placed.there.read(&self.own);
            let candidates = placed.table(placed.memory.candidates, s.candidates_max());
            let chosen = placed.table(placed.memory.chosen, s.wanted_max);
            let counts = placed.table(placed.memory.chosen_n, 1);
            let mut read = Vec::new();
            for row in 0..s.rows() {
                let n = tokens[row / s.kv_heads];
                let (wanted, [sinks, recent]) = (wanted.min(n), keep(n).map(|k| k.min(n)));
                let all = (wanted + wanted.saturating_sub(sinks + recent).div_ceil(4)).min(n);
                let candidates: Vec<usize> =
                    candidates[row][..all].iter().map(|&t| t as usize).collect();
                let kept = |t: usize| t < sinks || t + recent >= n;
                let (weights, lse) = estimated(&data, row, n);
                is_the_best(&weights, &(0..n).collect::<Vec<_>>(), &candidates, kept);
                let chosen = &chosen[row][..counts[row][0] as usize];
                let tokens: Vec<usize> = chosen.iter().map(|&i| candidates[i as usize]).collect();
                assert_eq!(tokens.len(), wanted);
                is_the_best(&masses(&data, row, &candidates, &lse), &candidates, &tokens, kept);
                read.push(tokens);
            }
            let (o, lse2) = attended(&s, &data, &read);
            assert!(
                lse.iter().zip(&lse2).all(|(a, b)| near(a, b)),
                "{tokens:?}: {lse:?}, {lse2:?}"
            );
            assert!(got.iter().zip(&o).all(|(a, b)| near(a, b)), "{tokens:?}");
        }
        // What no cell speaks of is read in any case.
        let row = |tokens| StepRow { tokens, keep: [0, 5], wanted: 80 };
        let text = step.set_rows(&rows(&s, &[200, 100], row)).unwrap_err().to_string();
        assert!(text.contains("expected 4 rows"), "{text}");
    }
}

/// Checks that of `all` tokens, ascending, the heaviest were chosen, and what is kept.
fn is_the_best(weights: &[f32], all: &[usize], chosen: &[usize], kept: impl Fn(usize) -> bool) {
    assert!(chosen.is_sorted_by(|a, b| a < b));
    let weight = |t: &usize| weights[all.binary_search(t).unwrap()];
    let is_chosen = |t: &usize| chosen.binary_search(t).is_ok();
    assert!(all.iter().filter(|t| kept(**t)).all(is_chosen));
    let least = chosen.iter().filter(|t| !kept(**t)).map(weight).fold(f32::INFINITY, f32::min);
    let most = all.iter().filter(|t| !is_chosen(t)).map(weight).fold(0.0, f32::max);
    assert!(most <= least * 1.001, "{most} was left, {least} was chosen");
}

fn queries<'a>(s: &StepShape, data: &'a Data, row: usize) -> Vec<&'a [bf16]> {
    let group = s.group * s.dim;
    data.q[row * group..][..group].chunks(s.dim).collect()
}

/// Masses of a row's first `n` tokens by their codes, in a softmax with those that no cell speaks of, whose masses are
/// left at 0; and that softmax's log-sum-exps.
fn estimated(data: &Data, row: usize, n: usize) -> (Vec<f32>, Vec<f32>) {
    let s = &TOKENS;
    let spec = BoxedSpec::new(s.dim, PLANES).unwrap();
    let q: Vec<f32> = queries(s, data, row).concat().iter().map(|x| x.to_f32()).collect();
    let query = BoxedQuery::new(Isa::Generic, spec, &q, s.group);
    let ids: Vec<u32> = (0..n / TILE).map(|i| (row * s.cells_max() + i) as u32).collect();
    let cells = CellList::from_slice(&data.cells, spec.cell_bytes(), &ids).unwrap();
    let known = ids.len() * TILE;
    let mut raw = vec![0f32; s.group * known];
    score::boxed(&query, &cells, PLANES, &mut raw, None, None);
    let mut lse = vec![f32::NEG_INFINITY; s.group];
    for (raw, n) in
        [(&raw, known), (&logits(data, row, &(known..n).collect::<Vec<_>>()), n - known)]
    {
        if n > 0 {
            select::lse2(raw, n, SCALE, &mut lse);
        }
    }
    let mut weights = vec![0f32; n];
    if known > 0 {
        select::fold_mass(&raw, known, SCALE, &lse, &mut weights[..known]);
    }
    (weights, lse)
}

const SCALE: f32 = TOKENS.scale * std::f32::consts::LOG2_E;

/// Raw scores of these tokens of a row.
fn logits(data: &Data, row: usize, tokens: &[usize]) -> Vec<f32> {
    let of = |q: &[bf16]| -> Vec<f32> {
        tokens.iter().map(|&t| dot(q, data.token(&TOKENS, row, t)[0])).collect()
    };
    queries(&TOKENS, data, row).into_iter().flat_map(of).collect()
}

/// Masses of these tokens of a row.
fn masses(data: &Data, row: usize, tokens: &[usize], lse: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; tokens.len()];
    if !tokens.is_empty() {
        select::fold_mass(&logits(data, row, tokens), tokens.len(), SCALE, lse, &mut out);
    }
    out
}

fn dot(q: &[bf16], k: &[bf16]) -> f32 {
    q.iter().zip(k).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
}

/// The tokens that [`STEP`] reads in each row.
fn units_on_cpu(data: &Data, tokens: &[usize], wanted: usize) -> Vec<Vec<usize>> {
    let s = STEP;
    let boxes: &[bf16] = bytemuck::cast_slice(&data.cells);
    let of_row = |row: usize| {
        let len = tokens[row / s.kv_heads];
        let queries = queries(&s, data, row);
        let units = len.div_ceil(UNIT);
        let bound = |unit: usize| {
            let at = row * s.pages_max * s.page_tokens / UNIT + unit;
            let (most, least) = boxes[at * 2 * s.dim..][..2 * s.dim].split_at(s.dim);
            let of = |q: &[bf16]| -> f32 {
                let each = q.iter().zip(most).zip(least);
                each.map(|((q, a), b)| (q.to_f32() * a.to_f32()).max(q.to_f32() * b.to_f32())).sum()
            };
            queries.iter().map(|q| of(q)).fold(f32::NEG_INFINITY, f32::max)
        };
        let scores: Vec<f32> = (0..units).map(bound).collect();
        let [first, last] = KEEP.map(|n| n.min(units));
        let last = (units - last).max(first);
        let forced = [0..first as u32, last as u32..units as u32];
        let mut chosen = Vec::new();
        select::top_k_forced(&scores, &forced, wanted, &mut chosen);
        let read = |&u: &u32| (u as usize * UNIT)..((u as usize + 1) * UNIT).min(len);
        chosen.iter().flat_map(read).collect()
    };
    (0..s.rows()).map(of_row).collect()
}

/// Attention to these tokens of each row: outputs and log-sum-exps.
fn attended(s: &StepShape, data: &Data, read: &[Vec<usize>]) -> (Vec<f32>, Vec<f32>) {
    let (mut o, mut lse2) = (Vec::new(), Vec::new());
    for (row, read) in read.iter().enumerate() {
        for q in queries(s, data, row) {
            let scale = s.scale * std::f32::consts::LOG2_E;
            let logits: Vec<f32> =
                read.iter().map(|&t| dot(q, data.token(s, row, t)[0]) * scale).collect();
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = logits.iter().map(|x| (x - most).exp2()).collect();
            let sum: f32 = weights.iter().sum();
            lse2.push(if read.is_empty() { f32::NEG_INFINITY } else { most + sum.log2() });
            for d in 0..s.dim {
                let each = weights.iter().zip(read);
                let x: f32 = each.map(|(w, &t)| w * data.token(s, row, t)[1][d].to_f32()).sum();
                o.push(if read.is_empty() { 0.0 } else { x / sum });
            }
        }
    }
    (o, lse2)
}
