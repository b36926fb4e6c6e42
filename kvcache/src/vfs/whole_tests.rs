use std::any::Any;
use std::collections::VecDeque;

use parking_lot::Mutex;

use super::super::{Dir, Stat};
use super::*;

/// What the scripted file does to one transfer.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Moves at most so many bytes.
    Upto(usize),
    Fail(i32),
}

const EINTR: i32 = 4;
const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const FULL: Act = Act::Upto(usize::MAX);

/// A file that plays a script, then does as it is told.
#[derive(Debug)]
struct Scripted {
    align: usize,
    script: Mutex<VecDeque<Act>>,
    /// What it does when the script is over.
    then: Act,
    bytes: Mutex<Vec<u8>>,
    /// Offset and length of every transfer asked for.
    asked: Mutex<Vec<(u64, usize)>>,
}

fn scripted(align: usize, len: usize, script: &[Act], then: Act) -> Arc<Scripted> {
    Arc::new(Scripted {
        align,
        script: Mutex::new(script.iter().copied().collect()),
        then,
        bytes: Mutex::new((0..len).map(|i| (i * 7 + i / 251) as u8).collect()),
        asked: Mutex::new(Vec::new()),
    })
}

impl Scripted {
    fn turn(&self, offset: u64, len: usize) -> io::Result<usize> {
        self.asked.lock().push((offset, len));
        match self.script.lock().pop_front().unwrap_or(self.then) {
            Act::Upto(n) => Ok(n.min(len)),
            Act::Fail(code) => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

impl File for Scripted {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.lock();
        let there = bytes.get(offset as usize..).unwrap_or(&[]);
        let n = self.turn(offset, out.len())?.min(there.len());
        out[..n].copy_from_slice(&there[..n]);
        Ok(n)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let n = self.turn(offset, data.len())?;
        let (at, mut bytes) = (offset as usize, self.bytes.lock());
        let end = bytes.len().max(at + n);
        bytes.resize(end, 0);
        bytes[at..at + n].copy_from_slice(&data[..n]);
        Ok(n)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn alignment(&self) -> usize {
        self.align
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(Stat { uid: 0, mode: 0o600, mine: true })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Runs an operation when it is asked for; last in, first out. Every look takes a millisecond.
#[derive(Debug, Default)]
struct Mock {
    clock: Arc<Mutex<Duration>>,
}

#[derive(Debug)]
struct MockBatch {
    clock: Arc<Mutex<Duration>>,
    ops: Vec<(usize, Op)>,
    issued: usize,
}

impl Vfs for Mock {
    fn open_dir(&self, _: &std::path::Path, _: bool) -> io::Result<Arc<dyn Dir>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn start(&self, ops: Vec<Op>) -> Box<dyn Batch> {
        let issued = ops.len();
        let ops = ops.into_iter().enumerate().collect();
        Box::new(MockBatch { clock: Arc::clone(&self.clock), ops, issued })
    }

    fn now(&self) -> Duration {
        *self.clock.lock()
    }

    fn parked_bytes(&self) -> u64 {
        0
    }

    fn name(&self) -> &'static str {
        "mock"
    }
}

impl Batch for MockBatch {
    fn push(&mut self, op: Op) -> usize {
        self.ops.push((self.issued, op));
        self.issued += 1;
        self.issued - 1
    }

    fn next(&mut self, deadline: Option<Duration>) -> Next {
        let mut now = self.clock.lock();
        *now += Duration::from_millis(1);
        let Some((index, mut op)) = self.ops.pop() else { return Next::Empty };
        if deadline.is_some_and(|d| *now > d) {
            self.ops.push((index, op));
            return Next::TimedOut;
        }
        let result = match op.transfer {
            Transfer::Read => op.file.read_at(&mut op.buf[op.skip..], op.offset),
            Transfer::Write => op.file.write_at(&op.buf[op.skip..], op.offset),
        };
        Next::Done(Done { index, result, buf: op.buf, inserts: op.inserts })
    }

    fn pending(&self) -> usize {
        self.ops.len()
    }
}

fn op(file: &Arc<Scripted>, transfer: Transfer, offset: u64, len: usize, skip: usize) -> Op {
    let mut buf = Buf::alloc(len).unwrap();
    buf.fill(0xEE);
    let file = Arc::clone(file) as Arc<dyn File>;
    Op { transfer, skip, ..Op::read(file, offset, buf) }
}

fn run(ops: Vec<Op>) -> Vec<(io::Result<()>, Buf)> {
    let vfs: Arc<dyn Vfs> = Arc::new(Mock::default());
    let count = ops.len();
    let mut whole = Whole::start(&vfs, ops);
    let mut out: Vec<Option<(io::Result<()>, Buf)>> = (0..count).map(|_| None).collect();
    for left in (0..count).rev() {
        let Outcome::Done { index, result, buf, .. } = whole.next(None) else {
            panic!("ended early")
        };
        assert!(out[index].replace((result, buf)).is_none(), "handed back twice");
        assert_eq!(whole.pending(), left);
    }
    assert!(matches!(whole.next(None), Outcome::Empty));
    out.into_iter().map(Option::unwrap).collect()
}

fn kind(result: &io::Result<()>) -> io::ErrorKind {
    result.as_ref().unwrap_err().kind()
}

#[test]
fn short_and_interrupted_reads_are_continued() {
    let script = [Act::Upto(10), Act::Fail(EINTR), Act::Upto(1), Act::Fail(EAGAIN), Act::Upto(500)];
    let file = scripted(1, 5000, &script, FULL);
    let got = run(vec![op(&file, Transfer::Read, 100, 3000, 8)]);
    got[0].0.as_ref().unwrap();
    assert_eq!(got[0].1[8..], file.bytes.lock()[100..3092]);
    assert_eq!(got[0].1[..8], [0xEE; 8]);
    let asked = [(100, 2992), (110, 2982), (110, 2982), (111, 2981), (111, 2981), (611, 2481)];
    assert_eq!(*file.asked.lock(), asked);
}

#[test]
fn short_writes_are_continued() {
    let file = scripted(1, 0, &[Act::Upto(3), Act::Fail(EINTR), Act::Upto(7)], FULL);
    let got = run(vec![op(&file, Transfer::Write, 5, 100, 0)]);
    got[0].0.as_ref().unwrap();
    assert_eq!(file.bytes.lock()[5..], [0xEE; 100]);
}

#[test]
fn each_operation_has_its_own_end() {
    let good = scripted(1, 4096, &[Act::Upto(1)], FULL);
    let bad = scripted(1, 4096, &[Act::Upto(9)], Act::Fail(EIO));
    let full = scripted(1, 0, &[Act::Upto(9)], Act::Upto(0));
    let short = scripted(1, 50, &[], FULL);
    let got = run(vec![
        op(&good, Transfer::Read, 0, 4096, 0),
        op(&bad, Transfer::Read, 0, 4096, 0),
        op(&full, Transfer::Write, 0, 64, 0),
        op(&short, Transfer::Read, 40, 11, 0),
        op(&good, Transfer::Read, 0, 0, 0),
    ]);
    assert!(got[0].0.is_ok() && got[4].0.is_ok());
    assert_eq!(got[1].0.as_ref().unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(kind(&got[2].0), io::ErrorKind::WriteZero);
    assert_eq!(kind(&got[3].0), io::ErrorKind::UnexpectedEof);
    assert_eq!(got[1].1.len(), 4096, "the memory comes back with an error too");
}

#[test]
fn direct_transfers_continue_at_aligned_offsets() {
    let file = scripted(512, 1 << 16, &[Act::Upto(100), Act::Upto(5000), Act::Upto(8191)], FULL);
    let got = run(vec![op(&file, Transfer::Read, 4096, 16384, 0)]);
    got[0].0.as_ref().unwrap();
    assert_eq!(got[0].1[..], file.bytes.lock()[4096..20480]);
    let asked = [(4096, 16384), (4096, 16384), (8192, 12288), (12288, 8192)];
    assert_eq!(*file.asked.lock(), asked);
}

#[test]
fn a_direct_read_ends_at_an_unaligned_end_of_file() {
    let file = scripted(4096, 4096 + 100, &[], FULL);
    let got = run(vec![op(&file, Transfer::Read, 0, 8192, 0)]);
    assert_eq!(kind(&got[0].0), io::ErrorKind::UnexpectedEof);
    assert!(file.asked.lock().len() <= 1 + STUCK as usize);
}

#[test]
fn endless_refusals_end() {
    for code in [EINTR, EAGAIN] {
        let file = scripted(1, 64, &[], Act::Fail(code));
        let got = run(vec![op(&file, Transfer::Read, 0, 64, 0)]);
        assert_eq!(got[0].0.as_ref().unwrap_err().raw_os_error(), Some(code));
        assert_eq!(file.asked.lock().len(), 1 + REPEATS as usize);
    }
}

#[test]
fn progress_forgives_earlier_refusals() {
    let mut script = Vec::new();
    for _ in 0..3 {
        script.extend(vec![Act::Fail(EINTR); REPEATS as usize]);
        script.push(Act::Upto(1));
    }
    let file = scripted(1, 64, &script, FULL);
    run(vec![op(&file, Transfer::Read, 0, 64, 0)])[0].0.as_ref().unwrap();
}

#[test]
fn refusals_respect_the_deadline() {
    let vfs: Arc<dyn Vfs> = Arc::new(Mock::default());
    let file = scripted(1, 64, &vec![Act::Fail(EINTR); 200], FULL);
    let mut whole = Whole::start(&vfs, vec![op(&file, Transfer::Read, 0, 64, 0)]);
    let deadline = Duration::from_millis(50);
    assert!(matches!(whole.next(Some(deadline)), Outcome::TimedOut));
    assert!(matches!(whole.next(Some(deadline)), Outcome::TimedOut));
    assert_eq!(whole.pending(), 1);
    let Outcome::Done { index: 0, result: Ok(()), .. } = whole.next(None) else {
        panic!("goes on after a deadline")
    };
}

#[test]
fn the_blocking_helpers_follow_the_same_rule() {
    let script = [Act::Fail(EINTR), Act::Upto(3), Act::Fail(EAGAIN), Act::Upto(20)];
    let file = scripted(1, 100, &script, FULL);
    let mut out = [0; 60];
    read_exact_at(&*file, &mut out, 30).unwrap();
    assert_eq!(out[..], file.bytes.lock()[30..90]);
    assert_eq!(kind(&read_exact_at(&*file, &mut out, 41)), io::ErrorKind::UnexpectedEof);
    read_exact_at(&*file, &mut [], 1000).unwrap();

    let file = scripted(1, 0, &script, FULL);
    write_all_at(&*file, &[7; 60], 2).unwrap();
    assert_eq!(file.bytes.lock()[2..], [7; 60]);
    let file = scripted(1, 0, &[], Act::Upto(0));
    assert_eq!(kind(&write_all_at(&*file, &[7; 60], 2)), io::ErrorKind::WriteZero);
    let file = scripted(1, 0, &[Act::Upto(1)], Act::Fail(EIO));
    assert_eq!(write_all_at(&*file, &[7; 60], 2).unwrap_err().raw_os_error(), Some(EIO));
}
