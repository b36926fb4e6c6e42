//! Each fault strikes exactly the call it is told to, and does what it says.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger, When};
use kvist::vfs::{Access, Buf, Dir, File, Vfs};

use crate::{disk, durable_file, read};

/// The n-th of four equal calls fails with `kind`, the others do not.
fn only_the_nth(
    fault: Fault,
    kind: ErrorKind,
    call: impl Fn(&dyn Dir, &dyn File, u64) -> std::io::Result<()>,
) {
    for n in 1..=4 {
        let (sim, dir) = disk(n);
        let file = durable_file(&*dir, "f", &[1; 4096]);
        let id = sim.inject(fault, Trigger::nth(n));
        for i in 1..=4 {
            let found = call(&*dir, &*file, i).map_err(|e| e.kind());
            assert_eq!(
                found,
                if i == n { Err(kind) } else { Ok(()) },
                "{fault:?}, call {i}, n {n}"
            );
        }
        assert_eq!((sim.matched(id), sim.fired(id)), (4, 1));
    }
}

fn write(file: &dyn File, i: u64) -> std::io::Result<()> {
    file.write_at(&[2; 8], 8 * i).map(|n| assert_eq!(n, 8))
}

fn read_some(file: &dyn File) -> std::io::Result<()> {
    file.read_at(&mut [0; 8], 0).map(|n| assert_eq!(n, 8))
}

#[test]
fn mere_errors_strike_the_nth_call() {
    let io = std::io::Error::from_raw_os_error(5).kind();
    let many = std::io::Error::from_raw_os_error(24).kind();
    only_the_nth(Fault::WriteNoSpace, ErrorKind::StorageFull, |_, f, i| write(f, i));
    only_the_nth(Fault::WriteNoSpace, ErrorKind::StorageFull, |_, f, i| f.allocate(i));
    only_the_nth(Fault::WriteIo, io, |_, f, i| f.set_len(i));
    only_the_nth(Fault::WriteTooBig, ErrorKind::FileTooLarge, |_, f, i| write(f, i));
    only_the_nth(Fault::WriteIo, io, |_, f, i| write(f, i));
    only_the_nth(Fault::ReadIo, io, |_, f, _| read_some(f));
    only_the_nth(Fault::SyncIo, io, |_, f, _| f.sync_data());
    only_the_nth(Fault::DirSyncIo, io, |d, _, _| d.sync());
    only_the_nth(Fault::Interrupted, ErrorKind::Interrupted, |_, f, _| read_some(f));
    only_the_nth(Fault::Interrupted, ErrorKind::Interrupted, |_, f, i| write(f, i));
    only_the_nth(Fault::WouldBlock, ErrorKind::WouldBlock, |_, f, i| write(f, i));
    only_the_nth(Fault::ReadOnly, ErrorKind::ReadOnlyFilesystem, |_, f, i| write(f, i));
    only_the_nth(Fault::Gone, ErrorKind::StaleNetworkFileHandle, |_, f, _| read_some(f));
    let create = |d: &dyn Dir, i: u64| d.create(&format!("g{i}"), Access::Buffered).map(drop);
    only_the_nth(Fault::CreateQuota, ErrorKind::QuotaExceeded, |d, _, i| create(d, i));
    only_the_nth(Fault::ReadOnly, ErrorKind::ReadOnlyFilesystem, |d, _, i| create(d, i));
    let open = |d: &dyn Dir| d.open("f", Access::Buffered).map(drop);
    only_the_nth(Fault::Denied, ErrorKind::PermissionDenied, |d, _, _| open(d));
    only_the_nth(Fault::TooManyFiles, many, |d, _, _| open(d));
    only_the_nth(Fault::Gone, ErrorKind::NotFound, |d, _, _| open(d));
    only_the_nth(Fault::Stuck, io, |d, _, _| d.list().map(drop));
}

#[test]
fn short_transfers_move_a_part() {
    let (sim, dir) = disk(3);
    let file = durable_file(&*dir, "f", &[1; 4096]);
    sim.inject(Fault::ShortRead, Trigger::nth(2));
    assert_eq!(read(&*file, 4096).len(), 4096);
    assert_eq!(
        file.read_at(&mut [0; 1], 0).unwrap(),
        1,
        "one byte cannot be cut, and does not count"
    );
    let short = read(&*file, 4096).len();
    assert!((1..4096).contains(&short));
    sim.inject(Fault::ShortWrite, Trigger::nth(1));
    let n = file.write_at(&[9; 4096], 0).unwrap();
    assert!((1..4096).contains(&n));
    assert_eq!(read(&*file, 4096), [vec![9; n], vec![1; 4096 - n]].concat());
    sim.inject(Fault::WriteZero, Trigger::nth(1));
    assert_eq!(file.write_at(&[9; 4096], 0).unwrap(), 0);
    assert_eq!(file.write_at(&[9; 4096], 0).unwrap(), 4096);
}

#[test]
fn a_short_transfer_of_a_direct_file_stays_aligned() {
    let (sim, dir) = disk(3);
    let file = dir.create("f", Access::Direct).unwrap();
    let data = Buf::alloc(8192).unwrap();
    sim.inject(Fault::ShortWrite, Trigger::from(1));
    for _ in 0..50 {
        let n = file.write_at(&data, 0).unwrap();
        assert!(n.is_multiple_of(512) && n > 0 && n < 8192, "{n}");
    }
    assert_eq!(file.write_at(&data[..512], 0).unwrap(), 512);
    let misaligned = file.write_at(&data[512..1024], 0).unwrap_err();
    assert_eq!(misaligned.kind(), ErrorKind::InvalidInput);
    assert!(file.write_at(&data[..100], 0).is_err() && file.write_at(&data, 100).is_err());
}

#[test]
fn a_failed_sync_loses_data_for_good() {
    let (mut seen, mut half) = (0, 0);
    for seed in 0..40 {
        let (sim, dir) = disk(seed);
        let file = durable_file(&*dir, "f", &[1; 1024]);
        file.write_at(&[2; 512], 0).unwrap();
        file.write_at(&[2; 512], 512).unwrap();
        sim.inject(Fault::SyncIo, Trigger::nth(1));
        assert!(file.sync_data().is_err());
        file.sync_data().expect("the lie");
        let images = sim.images();
        assert_eq!(images.count(), 1, "nothing is pending any more");
        let left = images.get(0).bytes("store/f").unwrap();
        let kept = [vec![2; 512], vec![1; 512]].concat();
        assert!(left == [1; 1024] || left == kept, "none or half");
        half += usize::from(left == kept);
        let read = read(&*file, 1024);
        assert!(read == left || read == [2; 1024]);
        seen += usize::from(read == [2; 1024]);
        file.write_at(&[3; 512], 0).unwrap();
        file.sync_data().unwrap();
        let left = sim.images().get(0).bytes("store/f").unwrap();
        assert_eq!(left, [vec![3; 512], vec![1; 512]].concat(), "later writes do get there");
    }
    assert!((5..35).contains(&seen) && (5..35).contains(&half), "{seen}, {half}");
}

#[test]
fn a_failed_directory_sync_may_lose_names() {
    let mut lost = 0;
    for seed in 0..40 {
        let (sim, dir) = disk(seed);
        let file = dir.create("f", Access::Buffered).unwrap();
        file.sync_data().unwrap();
        sim.inject(Fault::DirSyncIo, Trigger::nth(1));
        assert!(dir.sync().is_err());
        dir.sync().unwrap();
        assert!(sim.bytes("store/f").is_some());
        lost += usize::from(sim.images().get(0).bytes("store/f").is_none());
    }
    assert!((5..35).contains(&lost), "{lost}");
}

#[test]
fn data_faults_change_what_is_read_or_kept() {
    let old = vec![1; 4096];
    let new = vec![2; 4096];
    for seed in 0..50 {
        let (sim, dir) = disk(seed);
        let file = durable_file(&*dir, "f", &old);
        file.write_at(&new, 0).unwrap();
        file.sync_data().unwrap();

        sim.inject(Fault::BitFlip, Trigger::nth(2));
        assert_eq!(read(&*file, 4096), new);
        let flipped = read(&*file, 4096);
        let bits: u32 = flipped.iter().zip(&new).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(bits, 1);
        assert_eq!(read(&*file, 4096), new, "only on the way");

        sim.inject(Fault::StaleRead, Trigger::nth(1));
        let stale = read(&*file, 4096);
        assert!(stale != new && stale.chunks(512).all(|s| s == [1; 512] || s == [2; 512]));

        sim.inject(Fault::LostWrite, Trigger::nth(1));
        assert_eq!(file.write_at(&[3; 1024], 3584).unwrap(), 1024);
        assert_eq!(read(&*file, 8192), [new.clone(), vec![0; 512]].concat());

        sim.inject(Fault::Misdirected, Trigger::nth(1));
        assert_eq!(file.write_at(&[4; 512], 1024).unwrap(), 512);
        let bytes = read(&*file, 1 << 20);
        let at = bytes.iter().position(|&b| b == 4).unwrap();
        assert!(at != 1024 && at.is_multiple_of(512));

        sim.inject(Fault::Truncated, Trigger::nth(1));
        let cut = read(&*file, 4096).len();
        assert!(cut < 4096 && file.len().unwrap() == cut as u64);
        assert_eq!(sim.images().get(0).bytes("store/f").map(|b| b.len()), Some(cut), "for good");
    }
}

#[test]
fn slow_and_stuck_calls_take_virtual_time() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[1; 64]);
    let before = sim.now();
    sim.inject(Fault::Slow, Trigger::nth(1).on(Call::SyncData));
    file.sync_data().unwrap();
    assert_eq!(sim.now() - before, Duration::from_secs(2));
    sim.inject(Fault::Stuck, Trigger::nth(1).on(Call::SyncData));
    assert!(file.sync_data().is_err());
    assert_eq!(sim.now() - before, Duration::from_secs(3602));
}

#[test]
fn a_stuck_call_can_block_its_thread_until_released() {
    let (sim, dir) = disk(1);
    let file = durable_file(&*dir, "f", &[1; 64]);
    sim.block_when_stuck(true);
    let stuck = sim.inject(Fault::Stuck, Trigger::nth(1).on(Call::SyncData));
    let thread = std::thread::spawn(move || file.sync_data());
    while sim.fired(stuck) == 0 {
        std::thread::yield_now();
    }
    assert!(!thread.is_finished());
    assert_eq!(dir.list().unwrap().len(), 1, "others go on");
    sim.release();
    thread.join().unwrap().unwrap();
}

#[test]
fn memory_can_be_refused() {
    let (sim, _dir) = disk(1);
    sim.inject(Fault::NoMemory, Trigger::nth(2));
    let take = || Buf::alloc(10).is_some();
    let watch = sim.watch_memory();
    assert_eq!([take(), take(), take()], [true, false, true]);
    sim.inject(Fault::NoMemory, Trigger::from(1));
    assert!(!take() && std::thread::spawn(take).join().unwrap(), "only this thread");
    drop(watch);
    assert!(take());
    assert_eq!(sim.totals().calls(Call::Alloc), 4);
    sim.heal();
    sim.inject(Fault::NoMemory, Trigger::nth(1).on(Call::OpenDir));
    let refused = sim.open_dir("/".as_ref(), false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutOfMemory);
}

#[test]
fn triggers_choose_by_name_call_count_and_chance() {
    let (sim, dir) = disk(1);
    let files: Vec<Arc<dyn File>> =
        ["seg-1", "meta"].iter().map(|name| durable_file(&*dir, name, &[1; 64])).collect();
    let counted = sim.inject(Fault::WriteIo, Trigger::new(When::Never));
    let named = sim.inject(Fault::WriteNoSpace, Trigger::from(2).named("seg-").on(Call::Write));
    for round in 1..=4 {
        let failed = files.iter().map(|f| f.write_at(&[1], 0).is_err()).collect::<Vec<_>>();
        assert_eq!(failed, [round >= 2, false]);
    }
    assert_eq!((sim.matched(counted), sim.fired(counted)), (8, 0));
    assert_eq!((sim.matched(named), sim.fired(named)), (4, 3));
    sim.remove(named);
    let often = sim.inject(Fault::WriteIo, Trigger::chance(0.25));
    let failed = (0..1000).filter(|_| files[0].write_at(&[1], 0).is_err()).count();
    assert!((200..300).contains(&failed), "{failed}");
    assert_eq!(sim.fired(often), failed as u64);
    sim.heal();
    assert!(files[0].write_at(&[1], 0).is_ok());
}

#[test]
#[should_panic(expected = "means nothing")]
fn a_fault_of_data_cannot_strike_a_call_without_data() {
    SimVfs::new(1).inject(Fault::BitFlip, Trigger::nth(1).on(Call::List));
}

#[test]
fn there_are_24_kinds_and_each_strikes_something() {
    let distinct: std::collections::HashSet<_> = Fault::ALL.iter().collect();
    assert_eq!(distinct.len(), 24);
    assert!(Fault::ALL.iter().all(|fault| !fault.calls().is_empty()));
}
