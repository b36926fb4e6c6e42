//! Orders of replacement: a use of a block that is there, or one leaving for another.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvist::policies::replace::{Arrival, Order, Replace};
use kvist_bench::Rng;

/// Blocks there is room for, and operations of a round.
const ROOM: u32 = 100_000;
const OPERATIONS: usize = 10_000;

fn orders(c: &mut Criterion) {
    let mut group = c.benchmark_group("replace");
    group.throughput(Throughput::Elements(OPERATIONS as u64));
    for replace in Replace::ALL {
        let mut order = Order::new(replace, ROOM as usize);
        for block in 0..ROOM {
            order.insert(block, &Arrival { key: u64::from(block), ..Arrival::default() });
        }
        let (mut rng, mut next) = (Rng::new(7), u64::from(ROOM));
        group.bench_function(replace.name(), |b| {
            b.iter(|| {
                for _ in 0..OPERATIONS / 2 {
                    // Some are used much more than others.
                    let u = f64::from(rng.unit());
                    order.touch((u * u * f64::from(ROOM)) as u32);
                    let left = order.evict(0, |_| true).unwrap_or(0);
                    order.insert(left, &Arrival { key: next, ..Arrival::default() });
                    next += 1;
                }
                black_box(order.len())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, orders);
criterion_main!(benches);
