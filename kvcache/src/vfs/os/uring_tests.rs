use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::stuck::{Gate, eventually, pipe, read};
use super::super::{Engine, OsVfs};
use super::*;
use crate::vfs::{File, Vfs};

fn vfs() -> Option<OsVfs> {
    let vfs = OsVfs::new(Engine::Uring);
    if let Err(error) = &vfs {
        eprintln!("skipped: no rings here ({error})");
    }
    vfs.ok()
}

fn soon(vfs: &OsVfs) -> Option<Duration> {
    Some(vfs.now() + Duration::from_millis(5))
}

#[test]
fn a_wait_ends_at_its_deadline_and_the_read_goes_on() {
    let Some(vfs) = vfs() else { return };
    let (file, writer) = pipe();
    let gone = Arc::default();
    let mut batch = vfs.start(vec![read(&file, 10, &gone)]);
    for _ in 0..3 {
        let deadline = soon(&vfs);
        assert!(matches!(batch.next(deadline), Next::TimedOut));
        assert!(Some(vfs.now()) >= deadline);
        assert!(matches!(batch.next(Some(Duration::ZERO)), Next::TimedOut));
    }
    rustix::io::write(&writer, b"ten bytes!").unwrap();
    let Next::Done(done) = batch.next(None) else { panic!() };
    assert_eq!((done.result.unwrap(), &done.buf[..]), (10, &b"ten bytes!"[..]));
    assert!(matches!(batch.next(None), Next::Empty));
}

#[test]
fn operations_finish_in_any_order_and_the_rest_of_a_long_list_waits_for_room() {
    let Some(vfs) = vfs() else { return };
    let pipes: Vec<_> = (0..150).map(|_| pipe()).collect();
    let gone = Arc::default();
    let mut batch = vfs.start(pipes.iter().map(|(file, _)| read(file, 1, &gone)).collect());
    assert!(matches!(batch.next(soon(&vfs)), Next::TimedOut));
    for (_, writer) in pipes.iter().rev() {
        rustix::io::write(writer, b"x").unwrap();
    }
    let mut order = Vec::new();
    while let Next::Done(done) = batch.next(None) {
        assert_eq!(done.result.unwrap(), 1);
        order.push(done.index);
    }
    assert!(!order.is_sorted());
    order.sort_unstable();
    assert_eq!(order, Vec::from_iter(0..150));
}

#[test]
fn a_dropped_batch_is_cancelled_and_its_memory_freed_once() {
    let Some(vfs) = vfs() else { return };
    let (file, _writer) = pipe();
    let gone = Arc::new(AtomicUsize::new(0));
    for round in 1..=20 {
        drop(vfs.start((0..100).map(|_| read(&file, 1000, &gone)).collect()));
        // Nothing will ever arrive: only cancellation ends these.
        eventually("cancelled", || vfs.parked_bytes() == 0);
        assert_eq!(gone.load(Ordering::SeqCst), round * 100);
    }
}

#[test]
fn an_ended_thread_interrupts_what_it_submitted() {
    let Some(vfs) = vfs() else { return };
    let (file, writer) = pipe();
    let gone = Arc::default();
    let mut batch = std::thread::scope(|scope| {
        scope.spawn(|| vfs.start(vec![read(&file, 10, &gone)])).join().unwrap()
    });
    rustix::io::write(&writer, b"ten bytes!").unwrap();
    let Next::Done(done) = batch.next(None) else { panic!() };
    // The kernel says `ECANCELED` for a poll whose thread is gone. It may learn not to.
    match done.result {
        Ok(n) => assert_eq!(n, 10),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::Interrupted),
    }
}

#[test]
fn another_file_systems_file_is_refused() {
    let Some(vfs) = vfs() else { return };
    let file: Arc<dyn File> = Arc::new(Gate::default());
    let gone = Arc::default();
    let mut batch = vfs.start(vec![read(&file, 10, &gone), read(&file, 10, &gone)]);
    for left in [1, 0] {
        let Next::Done(done) = batch.next(None) else { panic!() };
        assert_eq!(done.result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(batch.pending(), left);
    }
    assert!(matches!(batch.next(None), Next::Empty));
}

#[test]
fn idle_rings_are_used_again() {
    let Some(vfs) = vfs() else { return };
    let super::super::Running::Uring(uring) = &vfs.engine else { unreachable!() };
    let (file, writer) = pipe();
    let gone = Arc::default();
    for _ in 0..50 {
        rustix::io::write(&writer, b"x").unwrap();
        let mut batch = vfs.start(vec![read(&file, 1, &gone)]);
        assert!(matches!(batch.next(None), Next::Done(_)));
        assert_eq!(uring.idle.lock().len(), 1, "back before the batch is dropped");
    }
}
