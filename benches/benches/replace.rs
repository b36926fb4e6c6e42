//! Orders of replacement: a use of a block that is there, or one leaving for another.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvist::policies::replace::{Arrival, Order, Replace, Uses};
use kvist_bench::Rng;

/// Blocks there is room for, and uses of a round.
const ROOM: u32 = 100_000;
const USES: usize = 10_000;
/// Blocks that a request uses: half of them are there.
const REQUEST: usize = 16;

fn orders(c: &mut Criterion) {
    let mut group = c.benchmark_group("replace");
    // Half of the uses are an eviction and an insertion.
    group.throughput(Throughput::Elements(3 * USES as u64 / 2));
    for replace in Replace::ALL {
        let mut order = Order::new(replace, ROOM as usize);
        for block in 0..ROOM {
            order.insert(block, &Arrival { key: u64::from(block), ..Arrival::default() });
        }
        let (mut rng, mut next) = (Rng::new(7), u64::from(ROOM));
        let mut keys: Vec<u64> = (0..next).collect();
        let mut request = Vec::with_capacity(REQUEST);
        group.bench_function(replace.name(), |b| {
            b.iter(|| {
                for _ in 0..USES / REQUEST {
                    // Some are used much more than others.
                    let u = f64::from(rng.unit());
                    let first = (u * u * f64::from(ROOM - REQUEST as u32)) as usize;
                    let there = first..first + REQUEST / 2;
                    request.clear();
                    request.extend_from_slice(&keys[there.clone()]);
                    request.extend(next..next + REQUEST as u64 / 2);
                    order.request(&Uses::all(&request));
                    there.rev().for_each(|block| order.touch(block as u32));
                    for &key in request[REQUEST / 2..].iter().rev() {
                        let left = order.evict(0, |_| true).unwrap_or(0);
                        order.insert(left, &Arrival { key, ..Arrival::default() });
                        keys[left as usize] = key;
                    }
                    next += REQUEST as u64 / 2;
                }
                black_box(order.len())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, orders);
criterion_main!(benches);
