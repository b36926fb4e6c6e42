//! What the system says a cache occupies, in a process that does nothing else.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use half::bf16;
use kvist::{Boxed, Cache, DType, Geometry, Quest, Select, Tensor3};

/// Bytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// Bytes of memory that the cache takes for what it says it takes.
fn fill(select: &Select, tokens: usize) -> (u64, u64) {
    let (heads, dim) = (4, 128);
    let before = resident();
    let geometry = Geometry::new(1, 4 * heads, heads, dim, DType::Bf16);
    let cache = Cache::builder(geometry)
        .host_bytes(1 << 30)
        .select(select.clone())
        .threads(1)
        .build()
        .unwrap();
    let mut s = cache.sequence();
    let rows = vec![bf16::from_f32(0.5); 64 * heads * dim];
    let rows = Tensor3::contiguous(&rows, [64, heads, dim]).unwrap();
    for _ in 0..tokens / 64 {
        s.append(0, &rows, &rows).unwrap();
    }
    (resident() - before, cache.stats().used_bytes)
}

#[test]
fn memory_in_use_is_what_the_cache_says_and_little_more() {
    // Each arena may hold one huge page more than it needs, and the heap is not only ours.
    let slack = 6 << 20;
    let boxed = Select::Boxed(Boxed::with_budget(512));
    for select in [Select::Full, Select::Quest(Quest::default()), boxed] {
        let (grown, said) = fill(&select, 32768);
        assert!(said > 64 << 20);
        let most = said + said / 20 + slack;
        assert!(grown <= most, "{grown} bytes in memory for {said}, {select:?}");
        assert!(grown + slack >= said, "{grown} bytes in memory for {said}, {select:?}");
    }
}
