//! Operations in flight: order, time, and memory that is parked.

use std::time::Duration;

use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};
use kvist::vfs::{Access, Batch, Next, Transfer, Vfs};

use crate::{disk, durable_file, op, read};

fn drain(batch: &mut dyn Batch) -> Vec<usize> {
    let mut order = Vec::new();
    loop {
        match batch.next(None) {
            Next::Done(done) => order.push(done.index),
            Next::Empty => return order,
            Next::TimedOut => unreachable!("without a deadline"),
        }
    }
}

#[test]
fn operations_complete_in_an_order_of_the_seed() {
    let run = |seed: u64| {
        let (sim, dir) = disk(seed);
        let file = dir.create("f", Access::Direct).unwrap();
        let ops = (0..8).map(|i| op(&file, Transfer::Write, i * 512, &[i as u8; 512])).collect();
        let mut batch = sim.start(ops);
        assert_eq!(batch.pending(), 8);
        assert_eq!(batch.push(op(&file, Transfer::Write, 8 * 512, &[8; 512])), 8);
        let order = drain(&mut *batch);
        let bytes = sim.bytes("store/f").unwrap();
        assert!(bytes.chunks(512).enumerate().all(|(i, s)| s == [i as u8; 512]));
        order
    };
    let orders: std::collections::BTreeSet<_> = (0..20).map(run).collect();
    assert!(orders.len() > 10 && orders.iter().all(|order| order.len() == 9));
    assert_eq!(run(5), run(5));
}

#[test]
fn a_sync_covers_what_was_handed_back_and_perhaps_more() {
    let mut covered = 0;
    for seed in 0..40 {
        let (sim, dir) = disk(seed);
        let file = durable_file(&*dir, "f", &[0; 512]);
        let data = op(&file, Transfer::Write, 0, &[1; 512]);
        let mut batch = sim.start(vec![data]);
        file.sync_data().unwrap();
        covered += usize::from(sim.images().get(0).bytes("store/f") == Some(vec![1; 512]));
        assert_eq!(drain(&mut *batch), [0]);
        file.sync_data().unwrap();
        assert_eq!(sim.images().get(0).bytes("store/f"), Some(vec![1; 512]));
    }
    assert!(
        (5..35).contains(&covered),
        "{covered}: a sync before the completion must not be relied on"
    );
}

#[test]
fn reads_bring_bytes_after_skip() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[7; 100]);
    let mut wanted = op(&file, Transfer::Read, 90, &[1; 30]);
    wanted.skip = 10;
    let mut batch = sim.start(vec![wanted]);
    let Next::Done(done) = batch.next(Some(Duration::ZERO)) else { panic!("not done") };
    assert_eq!(done.result.unwrap(), 10);
    assert_eq!(*done.buf, *[[1; 10], [7; 10], [1; 10]].as_flattened());
}

#[test]
fn slow_operations_respect_the_deadline() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[7; 512]);
    sim.inject(Fault::Slow, Trigger::nth(1).on(Call::Read));
    let mut batch = sim.start(vec![op(&file, Transfer::Read, 0, &[0; 512])]);
    let start = sim.now();
    let at = |seconds| Some(start + Duration::from_millis(seconds));
    assert!(matches!(batch.next(at(0)), Next::TimedOut));
    assert!(matches!(batch.next(at(1500)), Next::TimedOut));
    assert_eq!(sim.now() - start, Duration::from_millis(1500));
    assert!(matches!(batch.next(at(5000)), Next::Done(_)));
    assert_eq!(sim.now() - start, Duration::from_secs(2), "no longer than needed");
    assert!(matches!(batch.next(None), Next::Empty));
}

#[test]
fn buffers_of_dropped_batches_are_parked_until_the_operation_ends() {
    for seed in 0..20 {
        let (sim, dir) = disk(seed);
        let file = durable_file(&*dir, "f", &[7; 512]);
        sim.inject(Fault::Stuck, Trigger::nth(1).on(Call::Write));
        sim.inject(Fault::Slow, Trigger::nth(1).on(Call::Read));
        let ops = vec![
            op(&file, Transfer::Write, 0, &[8; 512]),
            op(&file, Transfer::Read, 0, &[0; 256]),
            op(&file, Transfer::Write, 512, &[9; 128]),
        ];
        let handles = sim.open_handles();
        drop((sim.start(ops), file));
        // Which of the two writes is stuck is up to the seed.
        let parked = sim.parked_bytes();
        assert!(parked == 256 + 512 || parked == 256 + 128, "{parked}");
        assert_eq!(sim.open_handles(), handles, "an operation holds its file");
        sim.advance(Duration::from_secs(2));
        assert_eq!(sim.parked_bytes(), parked - 256);
        sim.release();
        assert_eq!(sim.parked_bytes(), 0);
        assert_eq!(sim.open_handles(), handles - 1);
        let bytes = sim.bytes("store/f").unwrap();
        assert_eq!(bytes, [vec![8; 512], vec![9; 128]].concat(), "all happen in the end");
    }
}

#[test]
fn a_stuck_operation_times_out_again_and_again_until_released() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[7; 512]);
    sim.inject(Fault::Stuck, Trigger::nth(1).on(Call::Read));
    let mut batch = sim.start(vec![op(&file, Transfer::Read, 0, &[0; 512])]);
    for i in 1..5 {
        assert!(matches!(batch.next(Some(sim.now() + Duration::from_secs(i))), Next::TimedOut));
    }
    assert_eq!((batch.pending(), sim.parked_bytes()), (1, 0));
    sim.release();
    let Next::Done(done) = batch.next(Some(sim.now())) else { panic!("not released") };
    assert_eq!((done.result.unwrap(), &*done.buf), (512, &[7; 512][..]));
}

#[test]
fn errors_and_short_transfers_reach_the_batch() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[7; 512]);
    sim.inject(Fault::ReadIo, Trigger::nth(1));
    let mut batch = sim.start(vec![op(&file, Transfer::Read, 0, &[0; 512])]);
    let Next::Done(done) = batch.next(None) else { panic!() };
    assert!(done.result.is_err() && done.buf.len() == 512, "the buffer comes back");
    sim.inject(Fault::ShortRead, Trigger::nth(1));
    let mut batch = sim.start(vec![op(&file, Transfer::Read, 0, &[0; 512])]);
    let Next::Done(mut done) = batch.next(None) else { panic!() };
    let n = done.result.unwrap();
    assert!(n < 512);
    done.buf[..n].fill(1);
    let rest = kvist::vfs::Op { skip: n, ..kvist::vfs::Op::read(file, n as u64, done.buf) };
    assert_eq!(batch.push(rest), 1);
    let Next::Done(done) = batch.next(None) else { panic!() };
    assert_eq!(done.result.unwrap(), 512 - n);
    assert_eq!(*done.buf, *[vec![1; n], vec![7; 512 - n]].concat());
}

#[test]
fn foreign_files_and_bad_alignment_are_refused() {
    let (sim, dir) = disk(1);
    let direct = dir.create("f", Access::Direct).unwrap();
    let foreign = durable_file(&*disk(2).1, "f", &[7; 512]);
    let ops = vec![
        op(&direct, Transfer::Write, 100, &[0; 512]),
        op(&direct, Transfer::Write, 0, &[0; 100]),
        op(&foreign, Transfer::Read, 0, &[0; 512]),
    ];
    let mut batch = sim.start(ops);
    for _ in 0..3 {
        let Next::Done(done) = batch.next(None) else { panic!() };
        assert!(done.result.is_err());
    }
}

#[test]
fn every_operation_is_a_crash_point() {
    let (sim, dir) = disk(1);
    let file = dir.create("f", Access::Buffered).unwrap();
    dir.sync().unwrap();
    sim.record();
    let mut batch = sim.start((0..5).map(|i| op(&file, Transfer::Write, i, &[1])).collect());
    drain(&mut *batch);
    assert_eq!(sim.points(), 5);
    let log = sim.take_log();
    assert_eq!(log.changes().count(), 6);
    assert_eq!(log.step(3).map(|step| (step.call, &*step.name)), Some((Call::Write, "f")));
}

#[test]
fn several_threads_share_one_disk() {
    let sim = SimVfs::new(1);
    let dir = sim.open_dir("/d".as_ref(), true).unwrap();
    std::thread::scope(|scope| {
        for t in 0..4u8 {
            let (sim, dir) = (sim.clone(), dir.clone());
            scope.spawn(move || {
                let file = dir.create(&format!("f{t}"), Access::Buffered).unwrap();
                for i in 0..50 {
                    let write = op(&file, Transfer::Write, i * 64, &[t; 64]);
                    assert_eq!(drain(&mut *sim.start(vec![write])), [0]);
                }
                file.sync_data().unwrap();
                assert_eq!(read(&*file, 1 << 20), vec![t; 50 * 64]);
            });
        }
    });
    assert_eq!(sim.totals().bytes_written, 4 * 50 * 64);
}
