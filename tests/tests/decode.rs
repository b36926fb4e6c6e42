//! A decode loop over several layers, selectors and element types, against dense f64 attention.

use half::{bf16, f16};
use kvist::kernels::Element;
use kvist::{AttendOptions, Boxed, Cache, Geometry, Quest, Select, Tensor3, Tensor3Mut};

const LAYERS: usize = 3;
const KV_HEADS: usize = 2;
const GROUP: usize = 4;
const DIM: usize = 80;
const PROMPT: usize = 700;
const STEPS: usize = 70;

/// Numbers with a few strong directions per head, so that attention concentrates.
fn number(i: usize, seed: usize) -> f32 {
    let mut x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ ((seed as u64) << 17));
    x ^= x >> 29;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 32;
    ((x >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.0
}

fn rows<T: Element>(tokens: usize, heads: usize, seed: usize) -> Vec<T> {
    (0..tokens * heads * DIM).map(|i| T::from_f32(number(i, seed))).collect()
}

/// Dense attention of one query head in f64.
fn dense<T: Element>(q: &[f32], k: &[T], v: &[T], head: usize) -> Vec<f64> {
    let row = |x: &[T], t: usize| {
        let at = (t * KV_HEADS + head / GROUP) * DIM;
        x[at..at + DIM].iter().map(|x| f64::from(x.to_f32())).collect::<Vec<_>>()
    };
    let tokens = k.len() / (KV_HEADS * DIM);
    let q = &q[head * DIM..(head + 1) * DIM];
    let logit = |t: usize| -> f64 {
        let dot: f64 = row(k, t).iter().zip(q).map(|(a, &b)| a * f64::from(b)).sum();
        dot / (DIM as f64).sqrt()
    };
    let logits: Vec<f64> = (0..tokens).map(logit).collect();
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = weight.iter().sum();
    let mut out = vec![0.0; DIM];
    for (t, w) in weight.iter().enumerate() {
        out.iter_mut().zip(row(v, t)).for_each(|(o, x)| *o += w / sum * x);
    }
    out
}

/// Largest relative error of an output over the loop.
fn run<T: Element>(select: Select) -> f64 {
    let geometry = Geometry::new(LAYERS, KV_HEADS * GROUP, KV_HEADS, DIM, T::DTYPE);
    let cache = Cache::builder(geometry)
        .host_bytes(64 << 20)
        .select(select)
        .dense_layers(&[0])
        .threads(2)
        .build()
        .expect("valid settings");
    let mut sequence = cache.sequence();
    let (mut k, mut v) = (vec![Vec::<T>::new(); LAYERS], vec![Vec::<T>::new(); LAYERS]);
    let mut worst = 0.0f64;
    for step in 0..=STEPS {
        let tokens = if step == 0 { PROMPT } else { 1 };
        for layer in 0..LAYERS {
            let (new_k, new_v) = (
                rows::<T>(tokens, KV_HEADS, 100 * layer + step),
                rows::<T>(tokens, KV_HEADS, 7 + 100 * layer + step),
            );
            let shape = [tokens, KV_HEADS, DIM];
            let view = |x| Tensor3::contiguous(x, shape).expect("whole rows");
            sequence.append(layer, &view(&new_k), &view(&new_v)).expect("room");
            k[layer].extend(&new_k);
            v[layer].extend(&new_v);
            let q: Vec<f32> = rows(1, KV_HEADS * GROUP, 31 + step);
            let mut out = vec![0f32; q.len()];
            let shape = [1, KV_HEADS * GROUP, DIM];
            let mut to = Tensor3Mut::contiguous(&mut out, shape).expect("whole rows");
            let query = Tensor3::contiguous(&q, shape).expect("whole rows");
            sequence.attend(layer, &query, &AttendOptions::default(), &mut to).expect("attends");
            if step % 10 == 0 {
                worst = worst.max(error(&out, &q, &k[layer], &v[layer]));
            }
        }
    }
    worst
}

fn error<T: Element>(out: &[f32], q: &[f32], k: &[T], v: &[T]) -> f64 {
    let one = |(head, got): (usize, &[f32])| {
        let want = dense(q, k, v, head);
        let norm: f64 = want.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off: f64 = got.iter().zip(&want).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
        off.sqrt() / norm
    };
    out.chunks(DIM).enumerate().map(one).fold(0.0, f64::max)
}

#[test]
fn full_attention_is_dense_for_every_dtype() {
    assert!(run::<f32>(Select::Full) < 1e-4);
    assert!(run::<f16>(Select::Full) < 2e-2);
    assert!(run::<bf16>(Select::Full) < 5e-2);
}

#[test]
fn a_budget_of_everything_is_dense_for_every_selector() {
    let budget = PROMPT + STEPS + 1;
    assert!(run::<f32>(Select::Boxed(Boxed::with_budget(budget))) < 1e-4);
    assert!(run::<f32>(Select::Quest(Quest { budget, unit_tokens: 16 })) < 1e-4);
}

#[test]
fn boxed_errs_less_than_quest_at_half_the_tokens() {
    let boxed = run::<f32>(Select::Boxed(Boxed::with_budget(384)));
    let quest = run::<f32>(Select::Quest(Quest { budget: 384, unit_tokens: 16 }));
    assert!(boxed < quest, "boxed {boxed}, quest {quest}");
}
