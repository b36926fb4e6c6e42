//! A decode step that chooses what it reads on the GPU, against the same choice on the CPU.

use half::bf16;
use kvist_kernels::DType;
use kvist_kernels::cuda::work::ScoreSpec;
use kvist_kernels::cuda::{
    Kernel, Macros, PLAN, SCORE, SELECT, SelectedStep, StepMemory, StepShape,
};
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
    page_tokens: 16,
    pages_max: 12,
    pages: 4,
    keep: [1, 1],
    scale: 0.125,
};
/// The kernels of [`STEP`] that others do not need.
pub(crate) fn kernels() -> Vec<Played> {
    let score = ScoreSpec { dim: STEP.dim, dtype: STEP.dtype, boxes: true }.macros();
    let plain =
        |source, kernel: &'static Kernel| (source, Macros::new(), kernel.with(Macros::new()));
    vec![
        ("score.cu", score.clone(), SCORE.with(score)),
        plain("plan.cu", &PLAN),
        plain("select.cu", &SELECT),
    ]
}

impl Gpu {
    /// A step that chooses for itself, queued and replayed, against the same choice on the CPU.
    pub(crate) fn selects(&mut self) {
        let s = STEP;
        let (heads, q_heads) = (s.kv_heads, s.kv_heads * s.group);
        let frames = s.sequences * s.pages_max;
        let mut random = Random(9);
        // Small whole numbers: scores are exact, whatever the order.
        let mut whole = |n: usize| -> Vec<bf16> {
            (0..n).map(|_| bf16::from_f32(random.below(7) as f32 - 3.0)).collect()
        };
        let q = whole(s.sequences * q_heads * s.dim);
        let k = whole(frames * heads * s.page_tokens * s.dim);
        let v = whole(k.len());
        let mut boxes = Vec::new();
        for page in k.chunks(s.page_tokens * s.dim) {
            let of = |pick: &dyn Fn(f32, f32) -> f32| -> Vec<bf16> {
                let column = |d: usize| page[d..].iter().step_by(s.dim).map(|x| x.to_f32());
                (0..s.dim).map(|d| bf16::from_f32(column(d).reduce(pick).unwrap())).collect()
            };
            boxes.extend([of(&f32::max), of(&f32::min)].concat());
        }
        let order: Vec<u32> = (0..frames as u32).rev().collect();
        let shape = [s.sequences, q_heads, s.dim];
        let mut there = There::new(&self.device, &self.stream, &q, shape);
        let (o, lse2) = (there.kept[1].address(), there.kept[2].address());
        let memory = StepMemory {
            q: there.kept[0].address(),
            k: there.put(&k) as u64,
            v: there.put(&v) as u64,
            boxes: there.put(&boxes) as u64,
            frames: there.put(&order) as u64,
            o,
            lse2,
        };
        let mut step = SelectedStep::new(&self.device, &self.own, s, memory).unwrap();
        step.set_lens(&[0, 0]).unwrap();
        // SAFETY: the step and its memory outlive the graph's replays.
        let mut graph = self.own.capture(|| unsafe { step.queue(&self.own) }).unwrap();
        for (i, tokens) in [[190, 40], [192, 1], [0, 64], [100, 17]].into_iter().enumerate() {
            step.set_lens(&tokens).unwrap();
            // SAFETY: as above.
            let queued =
                unsafe { if i % 2 == 0 { graph.launch(&self.own) } else { step.queue(&self.own) } };
            queued.unwrap();
            step.queued(&self.own).unwrap();
            let (got, lse) = there.read(&self.own);
            let (o, lse2) = chosen_on_cpu(&q, &k, &v, &boxes, &order, &tokens);
            let near = |a: &f32, b: &f32| (a - b).abs() <= 0.02 * b.abs().max(1.0) || a == b;
            assert!(
                lse.iter().zip(&lse2).all(|(a, b)| near(a, b)),
                "{tokens:?}: {lse:?}, {lse2:?}"
            );
            assert!(got.iter().zip(&o).all(|(a, b)| near(a, b)), "{tokens:?}");
        }
        for wrong in [&[1][..], &[0, 12 * 16 + 1]] {
            let text = step.set_lens(wrong).unwrap_err().to_string();
            assert!(text.contains("expected 2 sequences of up to 192 tokens"), "{text}");
        }
        for (wrong, text) in [
            (StepShape { pages: 1, ..s }, "at least the 2 that are kept"),
            (StepShape { group: 17, ..s }, "1 to 16"),
            (StepShape { page_tokens: 8, ..s }, "a multiple of 16"),
            (StepShape { dtype: DType::F32, ..s }, "64, 80, 96 or 128 of f16 or bf16"),
        ] {
            let told = SelectedStep::new(&self.device, &self.own, wrong, memory).unwrap_err();
            assert!(told.to_string().contains(text), "{told}");
        }
    }
}

/// What [`STEP`] computes: outputs and log-sum-exps.
fn chosen_on_cpu(
    q: &[bf16],
    k: &[bf16],
    v: &[bf16],
    boxes: &[bf16],
    order: &[u32],
    tokens: &[usize],
) -> (Vec<f32>, Vec<f32>) {
    let s = STEP;
    let (page, q_heads) = (s.page_tokens * s.dim, s.kv_heads * s.group);
    let (mut o, mut lse2) = (Vec::new(), Vec::new());
    for (sequence, &len) in tokens.iter().enumerate() {
        for head in 0..s.kv_heads {
            let queries: Vec<&[bf16]> = (0..s.group)
                .map(|g| &q[(sequence * q_heads + head * s.group + g) * s.dim..][..s.dim])
                .collect();
            let pages = len.div_ceil(s.page_tokens);
            let at = |p: usize| order[sequence * s.pages_max + p] as usize * s.kv_heads + head;
            let bound = |p: usize| {
                let (most, least) = boxes[at(p) * 2 * s.dim..][..2 * s.dim].split_at(s.dim);
                let of = |q: &[bf16]| -> f32 {
                    let each = q.iter().zip(most).zip(least);
                    each.map(|((q, a), b)| (q.to_f32() * a.to_f32()).max(q.to_f32() * b.to_f32()))
                        .sum()
                };
                queries.iter().map(|q| of(q)).fold(f32::NEG_INFINITY, f32::max)
            };
            let scores: Vec<f32> = (0..pages).map(bound).collect();
            let [first, last] = s.keep.map(|n| n.min(pages));
            let last = (pages - last).max(first);
            let forced = [0..first as u32, last as u32..pages as u32];
            let mut chosen = Vec::new();
            top_k_forced(&scores, &forced, s.pages, &mut chosen);
            let read = chosen.iter().flat_map(|&p| {
                let first = p as usize * s.page_tokens;
                (0..s.page_tokens.min(len - first)).map(move |t| (p as usize, t))
            });
            let read: Vec<(usize, usize)> = read.collect();
            for q in queries {
                let row = |of: &[bf16], (p, t): (usize, usize)| -> Vec<f32> {
                    let row = &of[at(p) * page + t * s.dim..][..s.dim];
                    row.iter().map(|x| x.to_f32()).collect()
                };
                let logit = |&token: &(usize, usize)| {
                    let key = row(k, token);
                    let dot: f32 = q.iter().zip(key).map(|(a, b)| a.to_f32() * b).sum();
                    f64::from(dot * s.scale)
                };
                let weights: Vec<f64> = read.iter().map(|token| logit(token).exp()).collect();
                let sum: f64 = weights.iter().sum();
                lse2.push(sum.log2() as f32);
                let mut out = vec![0f64; s.dim];
                for (token, weight) in read.iter().zip(&weights) {
                    let value = row(v, *token);
                    out.iter_mut().zip(value).for_each(|(o, v)| *o += weight / sum * f64::from(v));
                }
                o.extend(out.iter().map(|&x| x as f32));
            }
        }
    }
    (o, lse2)
}
