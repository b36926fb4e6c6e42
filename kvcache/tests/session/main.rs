//! Saved sessions in real directories and real processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod kill;
mod speed;

use std::path::{Path, PathBuf};

use half::bf16;
use kvist::{Boxed, Builder, Cache, DType, DiskOptions, Geometry, Select, Sequence, Tensor3};

const HEADS: usize = 2;
const ROW: usize = HEADS * 32;

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let root =
            std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = root.join(format!("kvist-session-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn builder(path: &Path, host_bytes: u64, disk_bytes: u64) -> Builder {
    let boxed = Boxed { sinks: 16, recent: 64, ..Boxed::with_budget(512) };
    Cache::builder(Geometry::new(2, 2 * HEADS, HEADS, 32, DType::Bf16))
        .host_bytes(host_bytes)
        .select(Select::Boxed(boxed))
        .threads(1)
        .disk(DiskOptions::new(path, disk_bytes))
        .model("weights")
}

/// Keys and values of a token follow from its position and the content's number.
fn rows(content: usize, from: usize, n: usize) -> Vec<bf16> {
    let number = |i: usize| {
        let x = (i as u64 ^ (content as u64) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        bf16::from_f32(((x >> 40) as f32 / (1u64 << 23) as f32) - 1.0)
    };
    (from * ROW..(from + n) * ROW).map(number).collect()
}

fn append(s: &mut Sequence, content: usize, n: usize) {
    let data = rows(content, s.len(), n);
    let view = Tensor3::contiguous(&data, [n, HEADS, 32]).unwrap();
    (0..2).for_each(|layer| s.append(layer, &view, &view).unwrap());
}

fn check(s: &Sequence, content: usize) {
    let (mut k, mut v) = (vec![0f32; s.len() * ROW], vec![0f32; s.len() * ROW]);
    let want: Vec<f32> = rows(content, 0, s.len()).into_iter().map(bf16::to_f32).collect();
    for layer in 0..2 {
        s.read(layer, 0, &mut k, &mut v).unwrap();
        assert!(k == want && v == want, "layer {layer} is another");
    }
}
