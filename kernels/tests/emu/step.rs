//! A decode step that chooses what it reads on the GPU, against the same choice on the CPU.

use half::bf16;
use kvist_kernels::DType;
use kvist_kernels::cuda::params::Fold;
use kvist_kernels::cuda::work::ScoreSpec;
use kvist_kernels::cuda::{SCORE, SelectedStep, StepLists, StepMemory, StepRow, StepShape};
use kvist_kernels::select::top_k_forced;

use crate::common::Random;
use crate::device::{Gpu, There};
use crate::gpu::Played;

/// A step that chooses for itself.
pub(crate) const STEP: StepShape = StepShape {
    sequences: 2,
    kv_heads: 2,
    group: 2,
    dim: 64,
    dtype: DType::Bf16,
    q_dtype: DType::Bf16,
    unit_tokens: 16,
    page_tokens: 32,
    cell_units: 4,
    pages_max: 6,
    wanted_max: 4,
    fold: Fold::Max,
    scale: 0.125,
    soft_cap: 0.0,
};
/// First and last units, which are always read.
const KEEP: [usize; 2] = [1, 1];
/// The kernels of [`STEP`] that others do not need.
pub(crate) fn kernels() -> Vec<Played> {
    let score = ScoreSpec { dim: STEP.dim, dtype: STEP.dtype, boxes: true }.macros();
    vec![("score.cu", score.clone(), SCORE.with(score))]
}

/// What a step reads.
struct Data {
    q: Vec<bf16>,
    /// Pages of each KV head of each sequence, keys, then values.
    pages: Vec<bf16>,
    /// Boxes of their units.
    boxes: Vec<bf16>,
}

impl Data {
    /// Small whole numbers: scores are exact, whatever the order.
    fn new(s: &StepShape) -> Data {
        let mut random = Random(9);
        let mut whole = |n: usize| -> Vec<bf16> {
            (0..n).map(|_| bf16::from_f32(random.below(7) as f32 - 3.0)).collect()
        };
        let q = whole(s.rows() * s.group * s.dim);
        let pages = whole(s.rows() * s.pages_max * 2 * s.page_tokens * s.dim);
        let mut boxes = Vec::new();
        for page in pages.chunks(2 * s.page_tokens * s.dim) {
            for unit in page[..s.page_tokens * s.dim].chunks(s.unit_tokens * s.dim) {
                let of = |pick: &dyn Fn(f32, f32) -> f32| -> Vec<bf16> {
                    let column = |d: usize| unit[d..].iter().step_by(s.dim).map(|x| x.to_f32());
                    (0..s.dim).map(|d| bf16::from_f32(column(d).reduce(pick).unwrap())).collect()
                };
                boxes.extend([of(&f32::max), of(&f32::min)].concat());
            }
        }
        Data { q, pages, boxes }
    }

    /// Keys, and values, of a token of a row: of page `row * pages_max + i`.
    fn token(&self, s: &StepShape, row: usize, t: usize) -> [&[bf16]; 2] {
        let page = row * s.pages_max + t / s.page_tokens;
        let at = (page * 2 * s.page_tokens + t % s.page_tokens) * s.dim;
        [at, at + s.page_tokens * s.dim].map(|at| &self.pages[at..at + s.dim])
    }
}

impl Gpu {
    /// A step that chooses for itself, queued and replayed, against the same choice on the CPU. Every third page
    /// lies in another place.
    pub(crate) fn selects(&mut self) {
        let (s, data) = (STEP, Data::new(&STEP));
        let page = 2 * s.page_tokens * s.dim;
        let (pages, cells) = (s.rows() * s.pages_max, s.rows() * s.cells_max());
        let shape = [s.sequences, s.kv_heads * s.group, s.dim];
        let mut there = There::new(&self.device, &self.stream, &data.q, shape);
        let (o, lse2) = (there.kept[1].address(), there.kept[2].address());
        let is_far = |i: usize| i % 3 == 1;
        let part = |far: bool| -> Vec<bf16> {
            let own = data.pages.chunks(page).enumerate().filter(|(i, _)| is_far(*i) == far);
            own.flat_map(|(_, page)| page.iter().copied()).collect()
        };
        let (near, far) = (there.put(&part(false)) as u64, there.put(&part(true)) as u64);
        let memory = StepMemory {
            q: there.kept[0].address(),
            pages: near,
            far: far.wrapping_sub(near) as i64,
            cells: there.put(&data.boxes) as u64,
            o,
            lse2,
            chosen: there.put(&vec![0u32; s.rows() * s.wanted_max]) as u64,
            chosen_n: there.put(&vec![0u32; s.rows()]) as u64,
        };
        let mut step = SelectedStep::new(&self.device, &self.own, s, memory).unwrap();
        let lists = step.lists().unwrap();
        assert_eq!((lists.frames.len(), lists.cells.len()), (pages, cells));
        let frame = |i: usize| {
            let before = (0..i).filter(|&j| is_far(j) == is_far(i)).count() as u32;
            if is_far(i) { before | StepLists::FAR } else { before }
        };
        lists.frames.iter_mut().enumerate().for_each(|(i, to)| *to = frame(i));
        lists.cells.iter_mut().zip(0..).for_each(|(to, i)| *to = i);
        let of = |tokens: &[usize; 2], keep, wanted| -> Vec<StepRow> {
            let row = |&tokens: &usize| vec![StepRow { tokens, keep, wanted }; s.kv_heads];
            tokens.iter().flat_map(row).collect()
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
            let (got, lse) = there.read(&self.own);
            let (o, lse2) = chosen_on_cpu(&data, &tokens, wanted);
            let near = |a: &f32, b: &f32| (a - b).abs() <= 0.02 * b.abs().max(1.0) || a == b;
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
        for (wrong, text) in [
            (StepShape { wanted_max: 0, ..s }, "wanted_max"),
            (StepShape { group: 17, ..s }, "1 to 16"),
            (StepShape { unit_tokens: 8, ..s }, "a multiple of 16"),
            (StepShape { page_tokens: 40, ..s }, "a multiple of the 16 tokens of a unit"),
            (StepShape { fold: Fold::None, ..s }, "a maximum, sum or mean"),
            (StepShape { dtype: DType::F32, ..s }, "64, 80, 96 or 128 of f16 or bf16"),
        ] {
            let told = SelectedStep::new(&self.device, &self.own, wrong, memory).unwrap_err();
            assert!(told.to_string().contains(text), "{told}");
        }
    }
}

/// What [`STEP`] computes: outputs and log-sum-exps.
fn chosen_on_cpu(data: &Data, tokens: &[usize], wanted: usize) -> (Vec<f32>, Vec<f32>) {
    let s = STEP;
    let (mut o, mut lse2) = (Vec::new(), Vec::new());
    let dot = |q: &[bf16], k: &[bf16]| -> f32 {
        q.iter().zip(k).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
    };
    for row in 0..s.rows() {
        let (len, group) = (tokens[row / s.kv_heads], s.group * s.dim);
        let queries: Vec<&[bf16]> = data.q[row * group..][..group].chunks(s.dim).collect();
        let units = len.div_ceil(s.unit_tokens);
        let bound = |unit: usize| {
            let at = row * s.pages_max * s.page_tokens / s.unit_tokens + unit;
            let (most, least) = data.boxes[at * 2 * s.dim..][..2 * s.dim].split_at(s.dim);
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
        top_k_forced(&scores, &forced, wanted, &mut chosen);
        let read = |&u: &u32| {
            let first = u as usize * s.unit_tokens;
            first..(first + s.unit_tokens).min(len)
        };
        let read: Vec<usize> = chosen.iter().flat_map(read).collect();
        for q in queries {
            let scale = s.scale * std::f32::consts::LOG2_E;
            let logits: Vec<f32> =
                read.iter().map(|&t| dot(q, data.token(&s, row, t)[0]) * scale).collect();
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = logits.iter().map(|x| (x - most).exp2()).collect();
            let sum: f32 = weights.iter().sum();
            lse2.push(if read.is_empty() { f32::NEG_INFINITY } else { most + sum.log2() });
            for d in 0..s.dim {
                let each = weights.iter().zip(&read);
                let x: f32 = each.map(|(w, &t)| w * data.token(&s, row, t)[1][d].to_f32()).sum();
                o.push(if read.is_empty() { 0.0 } else { x / sum });
            }
        }
    }
    (o, lse2)
}
