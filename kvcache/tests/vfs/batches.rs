//! Batches: contents, sizes, deadlines, drops, threads.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use kvist::vfs::{Access, Next};

use super::*;

const PAGE: usize = 4096;

/// Disjoint ranges of `0..len` in steps of `unit`, in a shuffled order.
fn disjoint(rng: &mut Rng, len: usize, unit: usize, count: usize) -> Vec<Range<usize>> {
    let mut cuts: Vec<usize> = (0..2 * count).map(|_| rng.below(len / unit + 1) * unit).collect();
    cuts.sort_unstable();
    let mut ranges: Vec<_> = cuts.chunks(2).map(|c| c[0]..c[1]).filter(|r| !r.is_empty()).collect();
    for i in (1..ranges.len()).rev() {
        ranges.swap(i, rng.below(i + 1));
    }
    ranges
}

fn against_a_model(vfs: &Arc<dyn Vfs>, dir: &Arc<dyn Dir>, access: Access) {
    const LEN: usize = 1 << 20;
    let file = dir.create("model", access).unwrap();
    let mut model = noise(LEN, 5);
    kvist::vfs::write_all_at(&*file, &run(vfs, vec![write(&file, 0, &model)])[0], 0).unwrap();
    // Memory is skipped by whole pages where the file is direct.
    let (unit, skip) = if file.alignment() == 1 { (1, 77) } else { (PAGE, PAGE) };
    let mut rng = Rng(11);
    for round in 0..40 {
        let count = 1 + rng.below(90);
        let mut ops = Vec::new();
        for range in disjoint(&mut rng, LEN, unit, count) {
            let mut buf = Buf::alloc(skip + range.len()).unwrap();
            buf[skip..].copy_from_slice(&noise(range.len(), round * 100 + range.start as u64));
            model[range.clone()].copy_from_slice(&buf[skip..]);
            ops.push(transfer(&file, Transfer::Write, range.start, buf, skip));
        }
        run(vfs, ops);
        let ranges = disjoint(&mut rng, LEN, unit, count);
        let ops = ranges.iter().map(|range| {
            let mut buf = Buf::alloc(skip + range.len()).unwrap();
            buf.fill(0xEE);
            transfer(&file, Transfer::Read, range.start, buf, skip)
        });
        for (buf, range) in run(vfs, ops.collect()).iter().zip(&ranges) {
            assert!(buf[..skip].iter().all(|&b| b == 0xEE), "skipped bytes are left alone");
            assert!(buf[skip..] == model[range.clone()], "{range:?} in round {round}");
        }
    }
    drop(file);
    let file = dir.open("model", Access::Buffered).unwrap();
    assert_eq!(run(vfs, vec![read(&file, 0, LEN)])[0][..], model);
}

#[test]
fn random_transfers_agree_with_a_model() {
    for vfs in engines() {
        for access in [Access::Direct, Access::Buffered] {
            let scratch = Scratch::new();
            against_a_model(&vfs, &scratch.dir(&vfs), access);
        }
    }
}

/// Memory that an operation's bytes are scattered over: cut at random places, every other piece an insert.
fn scattered(rng: &mut Rng, bytes: &[u8], unit: usize) -> (Buf, Vec<Insert>) {
    let mut cuts: Vec<usize> =
        (0..rng.below(9)).map(|_| rng.below(bytes.len() / unit + 1) * unit).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let (mut own, mut inserts) = (Vec::new(), Vec::new());
    for (i, cut) in cuts.windows(2).enumerate() {
        let part = &bytes[cut[0]..cut[1]];
        if i % 2 == 0 {
            own.extend_from_slice(part);
        } else {
            let mut buf = Buf::alloc(part.len()).unwrap();
            buf.copy_from_slice(part);
            inserts.push(Insert { at: own.len(), buf });
        }
    }
    let mut buf = Buf::alloc(own.len()).unwrap();
    buf.copy_from_slice(&own);
    (buf, inserts)
}

fn gathered(buf: &Buf, inserts: &[Insert]) -> Vec<u8> {
    let (mut bytes, mut from) = (Vec::new(), 0);
    for Insert { at, buf: insert } in inserts {
        bytes.extend_from_slice(&buf[from..*at]);
        bytes.extend_from_slice(insert);
        from = *at;
    }
    bytes.extend_from_slice(&buf[from..]);
    bytes
}

/// Runs one operation to its end; its memory.
fn run_one(vfs: &Arc<dyn Vfs>, op: Op) -> (Buf, Vec<Insert>) {
    match Whole::start(vfs, vec![op]).next(None) {
        Outcome::Done { result: Ok(()), buf, inserts, .. } => (buf, inserts),
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_may_be_scattered() {
    const LEN: usize = 1 << 18;
    for vfs in engines() {
        for access in [Access::Direct, Access::Buffered] {
            let scratch = Scratch::new();
            let file = scratch.dir(&vfs).create("scattered", access).unwrap();
            if !file.gathers() {
                eprintln!("no inserts here");
                continue;
            }
            let (unit, mut rng) = (file.alignment(), Rng(7));
            for round in 0..60 {
                let at = rng.below(64) * unit;
                let bytes = noise((1 + rng.below(LEN / unit)) * unit, round);
                let (buf, inserts) = scattered(&mut rng, &bytes, unit);
                let op = Op { inserts, ..write(&file, at, &[]) };
                run_one(&vfs, Op { buf, ..op });
                let (mut buf, mut inserts) = scattered(&mut rng, &vec![0xEE; bytes.len()], unit);
                buf.fill(0xEE);
                inserts.iter_mut().for_each(|i| i.buf.fill(0xEE));
                let op = Op { inserts, ..transfer(&file, Transfer::Read, at, buf, 0) };
                let (buf, inserts) = run_one(&vfs, op);
                assert!(gathered(&buf, &inserts) == bytes, "round {round}");
            }
        }
    }
}

#[test]
fn a_memory_file_system_serves_direct_files_too() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        eprintln!("skipped: no /dev/shm here");
        return;
    }
    for vfs in engines() {
        let scratch = Scratch::below(shm);
        against_a_model(&vfs, &scratch.dir(&vfs), Access::Direct);
    }
}

#[test]
fn batches_of_every_size_hand_back_each_operation_once() {
    for vfs in engines() {
        let scratch = Scratch::new();
        let file = scratch.dir(&vfs).create("data", Access::Direct).unwrap();
        let data = noise(512 * PAGE, 3);
        run(&vfs, vec![write(&file, 0, &data)]);
        for size in [0, 1, 2, 63, 64, 65, 128, 500] {
            let ops = (0..size).map(|i| read(&file, i * PAGE, PAGE)).collect();
            let mut batch = vfs.start(ops);
            let mut seen = vec![false; size];
            for left in (0..size).rev() {
                let Next::Done(done) = batch.next(None) else { panic!("{size}: too few") };
                assert_eq!(done.result.unwrap(), PAGE);
                assert!(done.buf[..] == data[done.index * PAGE..][..PAGE]);
                assert!(!std::mem::replace(&mut seen[done.index], true));
                assert_eq!(batch.pending(), left);
            }
            assert!(matches!(batch.next(None), Next::Empty));
            // An ended batch takes more.
            assert_eq!(batch.push(read(&file, 0, PAGE)), size);
            assert!(matches!(batch.next(None), Next::Done(done) if done.index == size));
        }
    }
}

#[test]
fn pushing_while_others_are_in_flight() {
    for vfs in engines() {
        let scratch = Scratch::new();
        let file = scratch.dir(&vfs).create("data", Access::Buffered).unwrap();
        let data = noise(300 * 64, 3);
        run(&vfs, vec![write(&file, 0, &data)]);
        let mut batch = vfs.start((0..10).map(|i| read(&file, i * 64, 64)).collect());
        let mut pushed = 10;
        let mut seen = 0;
        while let Next::Done(done) = batch.next(None) {
            seen += 1;
            assert!(done.buf[..] == data[done.index * 64..][..64]);
            for _ in 0..2.min(300 - pushed) {
                assert_eq!(batch.push(read(&file, pushed * 64, 64)), pushed);
                pushed += 1;
            }
        }
        assert_eq!((seen, pushed), (300, 300));
    }
}

#[test]
fn a_transfer_past_the_end_is_short_and_bad_ones_are_refused() {
    for vfs in engines() {
        let scratch = Scratch::new();
        let dir = scratch.dir(&vfs);
        let file = dir.create("data", Access::Buffered).unwrap();
        run(&vfs, vec![write(&file, 0, &[9; 1000])]);
        let reader = dir.open("data", Access::Buffered).unwrap();
        let ops = vec![
            read(&file, 900, 200),
            read(&file, 1000, 10),
            transfer(&file, Transfer::Read, 0, Buf::alloc(10).unwrap(), 10),
            transfer(&file, Transfer::Read, 0, Buf::alloc(10).unwrap(), 11),
            transfer(&file, Transfer::Read, usize::MAX, Buf::alloc(10).unwrap(), 0),
            transfer(&file, Transfer::Read, i64::MAX as usize - 3, Buf::alloc(10).unwrap(), 0),
            write(&reader, 0, &[1]),
        ];
        let mut results: Vec<Option<io::Result<usize>>> = ops.iter().map(|_| None).collect();
        let mut batch = vfs.start(ops);
        while let Next::Done(done) = batch.next(None) {
            results[done.index] = Some(done.result);
        }
        let results: Vec<_> = results
            .into_iter()
            .map(|r| {
                r.unwrap().map_err(|e| (e.kind() == io::ErrorKind::InvalidInput, e.raw_os_error()))
            })
            .collect();
        let invalid = Err((true, None));
        assert_eq!(results[..3], [Ok(100), Ok(0), Ok(0)]);
        assert_eq!(results[3..6], [invalid, invalid, invalid]);
        assert_eq!(results[6], Err((false, Some(rustix::io::Errno::BADF.raw_os_error()))));
    }
}

/// A file that takes a while: more bytes than a disk delivers between two calls.
const BULK: usize = 128 << 20;
const PART: usize = 2 << 20;

fn bulk(vfs: &Arc<dyn Vfs>, scratch: &Scratch) -> Arc<dyn File> {
    let file = scratch.dir(vfs).create("bulk", Access::Direct).unwrap();
    let part = noise(PART, 1);
    run(vfs, (0..BULK / PART).map(|i| write(&file, i * PART, &part)).collect());
    file
}

#[test]
fn a_deadline_ends_the_wait_and_not_the_operations() {
    for vfs in engines() {
        let scratch = Scratch::new();
        let file = bulk(&vfs, &scratch);
        let count = BULK / PART;
        // A thread that was not running for a while finds everything done.
        let early = (0..100).any(|_| {
            let mut batch = vfs.start((0..count).map(|i| read(&file, i * PART, PART)).collect());
            let (mut early, mut done) = (0, 0);
            while done < count {
                let soon = vfs.now() + Duration::from_micros(200);
                match batch.next(if done % 2 == 0 { Some(Duration::ZERO) } else { Some(soon) }) {
                    Next::Done(_) => done += 1,
                    Next::TimedOut => early += 1,
                    Next::Empty => panic!("operations were lost"),
                }
            }
            assert!(matches!(batch.next(Some(Duration::ZERO)), Next::Empty));
            early > 0
        });
        assert!(early, "{}: {count} reads finished within no time", vfs.name());
    }
}

/// Counts its drops.
struct Owner {
    _memory: Mutex<Buf>,
    drops: Arc<AtomicUsize>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.drops.fetch_add(1, Ordering::SeqCst);
    }
}

fn counted(len: usize, drops: &Arc<AtomicUsize>) -> Buf {
    let mut memory = Buf::alloc(len).unwrap();
    let ptr = memory.as_mut_ptr();
    let owner = Owner { _memory: Mutex::new(memory), drops: Arc::clone(drops) };
    // SAFETY: the owner holds the memory and lends it to nobody else.
    unsafe { Buf::from_raw(ptr, len, Box::new(owner)) }
}

#[test]
fn dropped_batches_park_their_memory_until_the_kernel_is_done() {
    for vfs in engines() {
        let scratch = Scratch::new();
        let file = bulk(&vfs, &scratch);
        let drops = Arc::new(AtomicUsize::new(0));
        let count = BULK / PART;
        for round in 1..=3 {
            let op = |i| transfer(&file, Transfer::Read, i * PART, counted(PART, &drops), 0);
            let mut batch = vfs.start((0..count).map(op).collect());
            if round == 2 {
                assert!(matches!(batch.next(None), Next::Done(_)));
            }
            drop(batch);
            // Bytes leave the count after their memory is free, never before.
            let parked = vfs.parked_bytes() as usize / PART;
            assert!(drops.load(Ordering::SeqCst) + parked >= (round - 1) * count);
            eventually("all let go", || vfs.parked_bytes() == 0);
            // What ended while the batch was dropped is freed by whoever ended it.
            eventually("all is free", || drops.load(Ordering::SeqCst) == round * count);
        }
        // The file system goes on as before.
        assert_eq!(run(&vfs, vec![read(&file, 0, PART)])[0][..], noise(PART, 1));
    }
}

#[test]
fn a_file_system_dropped_with_parked_work_waits_for_it() {
    for engine in [Engine::Threads, Engine::Uring] {
        let Ok(vfs) = OsVfs::new(engine) else { continue };
        let vfs: Arc<dyn Vfs> = Arc::new(vfs);
        let scratch = Scratch::new();
        let file = bulk(&vfs, &scratch);
        let drops = Arc::new(AtomicUsize::new(0));
        let op = |i| transfer(&file, Transfer::Read, i * PART, counted(PART, &drops), 0);
        drop(vfs.start((0..BULK / PART).map(op).collect()));
        drop(vfs);
        assert_eq!(drops.load(Ordering::SeqCst), BULK / PART);
    }
}

#[test]
fn batches_may_outlive_their_file_system_and_their_thread() {
    for vfs in engines() {
        let scratch = Scratch::new();
        let file = bulk(&vfs, &scratch);
        // io_uring cancels what an ended thread submitted: that must look like an interruption.
        let starter = std::thread::spawn({
            let file = Arc::clone(&file);
            move || {
                let ops = (0..BULK / PART).map(|i| read(&file, i * PART, PART)).collect();
                Whole::start(&vfs, ops)
            }
        });
        let mut whole = starter.join().unwrap();
        let part = noise(PART, 1);
        for _ in 0..BULK / PART {
            let Outcome::Done { result: Ok(()), buf, .. } = whole.next(None) else { panic!() };
            assert!(buf[..] == part);
        }
    }
}

#[test]
fn many_threads_at_once() {
    for vfs in engines() {
        let scratch = Scratch::new();
        let file = scratch.dir(&vfs).create("data", Access::Direct).unwrap();
        let data = noise(1 << 22, 9);
        run(&vfs, vec![write(&file, 0, &data)]);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (vfs, file, data) = (&vfs, &file, &data);
                scope.spawn(move || {
                    let mut rng = Rng(77 + thread);
                    for round in 0..40 {
                        let at: Vec<_> =
                            (0..1 + rng.below(100)).map(|_| rng.below(1000) * PAGE).collect();
                        let ops = at.iter().map(|&at| read(file, at, 3 * PAGE)).collect();
                        if round % 5 == 4 {
                            drop(vfs.start(ops));
                            continue;
                        }
                        for (buf, &at) in run(vfs, ops).iter().zip(&at) {
                            assert!(buf[..] == data[at..at + 3 * PAGE]);
                        }
                    }
                });
            }
        });
        eventually("all let go", || vfs.parked_bytes() == 0);
    }
}
