//! A decode loop: append one token per layer and step, attend with a budget and with a certificate.
//!
//! `cargo run --release -p kvist-examples --bin decode`

use kvist::{AttendOptions, Boxed, Cache, DType, Error, Geometry, Select, Tensor3, Tensor3Mut};

const LAYERS: usize = 4;
const Q_HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 64;

/// Stands in for a model's projections: numbers that differ from token to token.
fn rows(tokens: usize, heads: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    (0..tokens * heads * DIM).map(number).collect()
}

fn main() -> Result<(), Error> {
    let cache = Cache::builder(Geometry::new(LAYERS, Q_HEADS, KV_HEADS, DIM, DType::F32))
        .host_bytes(64 << 20)
        .select(Select::Boxed(Boxed::with_budget(512)))
        .build()?;
    let mut sequence = cache.sequence();
    // Prefill: any number of tokens at once.
    for layer in 0..LAYERS {
        let (k, v) = (rows(4000, KV_HEADS, layer), rows(4000, KV_HEADS, layer + 10));
        let shape = [4000, KV_HEADS, DIM];
        sequence.append(
            layer,
            &Tensor3::contiguous(&k, shape)?,
            &Tensor3::contiguous(&v, shape)?,
        )?;
    }
    // A fork shares the pages and reads by another rule.
    let mut certified = sequence.fork_with(&Select::Boxed(Boxed::with_max_missed_mass(0.05)))?;
    for step in 0..4 {
        for (name, s) in [("budget 512", &mut sequence), ("missed <= 0.05", &mut certified)] {
            let mut read = 0;
            for layer in 0..LAYERS {
                let (k, v) = (rows(1, KV_HEADS, 99 + step), rows(1, KV_HEADS, 199 + step));
                let shape = [1, KV_HEADS, DIM];
                s.append(
                    layer,
                    &Tensor3::contiguous(&k, shape)?,
                    &Tensor3::contiguous(&v, shape)?,
                )?;
                let (q, mut out) = (rows(1, Q_HEADS, 299 + step), vec![0f32; Q_HEADS * DIM]);
                let info = s.attend(
                    layer,
                    &Tensor3::contiguous(&q, [1, Q_HEADS, DIM])?,
                    &AttendOptions::default(),
                    &mut Tensor3Mut::contiguous(&mut out, [1, Q_HEADS, DIM])?,
                )?;
                read += info.tokens_read.iter().sum::<u32>();
            }
            let mean = f64::from(read) / (LAYERS * KV_HEADS) as f64;
            println!("step {step}, {name}: {mean:.0} of {} tokens read per KV head", s.len());
        }
    }
    let stats = cache.stats();
    println!("{} of {} bytes used", stats.used_bytes, stats.budget_bytes);
    Ok(())
}
