use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::stuck::{pipe, read};
use super::*;

fn ring() -> Option<Ring> {
    let ring = Ring::new();
    if let Err(error) = &ring {
        eprintln!("skipped: no rings here ({error})");
    }
    ring.ok()
}

/// Puts something in the place of the ring's descriptor: entering it fails from now on.
fn break_it(ring: &Ring) {
    let null = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: the descriptor stays the ring's; this handle is never dropped.
    let mut fd = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(ring.io.as_raw_fd()) });
    rustix::io::dup2(&null, &mut fd).unwrap();
}

#[test]
fn a_ring_dropped_with_operations_inside_leaks_their_memory() {
    let Some(mut ring) = ring() else { return };
    let (file, _writer) = pipe();
    let gone = Arc::new(AtomicUsize::new(0));
    ring.push(0, read(&file, 10, &gone));
    ring.submit();
    ring.push(1, read(&file, 10, &gone));
    assert_eq!((ring.in_flight(), ring.bytes(), ring.room()), (2, 20, DEPTH - 2));
    drop(ring);
    assert_eq!(gone.load(Ordering::SeqCst), 0);
}

#[test]
fn a_broken_ring_hands_back_what_the_kernel_never_saw() {
    let Some(mut ring) = ring() else { return };
    let (file, writer) = pipe();
    let gone = Arc::new(AtomicUsize::new(0));
    ring.push(0, read(&file, 10, &gone));
    ring.submit();
    for index in 1..=3 {
        ring.push(index, read(&file, 10, &gone));
    }
    ring.cancel();
    break_it(&ring);
    for index in 1..=3 {
        ring.wait(None);
        let done = ring.reap().unwrap();
        assert_eq!(done.index, index);
        assert!(done.result.unwrap_err().raw_os_error().is_some());
    }
    assert_eq!(ring.in_flight(), 1, "the kernel has it");
    assert!(!ring.is_clean());
    ring.push(4, read(&file, 10, &gone));
    assert_eq!(ring.reap().unwrap().index, 4, "refused at once");
    // What the kernel has goes on.
    ring.wait(Some(Duration::from_millis(1)));
    assert!(ring.reap().is_none());
    rustix::io::write(&writer, b"x").unwrap();
    let done = loop {
        ring.wait(None);
        if let Some(done) = ring.reap() {
            break done;
        }
    };
    assert_eq!((done.index, done.result.unwrap()), (0, 1));
    assert!(!ring.is_clean(), "a broken ring is not used again");
}

#[test]
fn cancelled_means_interrupted() {
    assert_eq!(moved(-Errno::CANCELED.raw_os_error()).unwrap_err().raw_os_error(), Some(4));
    assert_eq!(moved(-5).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(moved(0).unwrap(), 0);
    assert_eq!(moved(i32::MAX).unwrap(), i32::MAX as usize);
}
