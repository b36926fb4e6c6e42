//! One way to measure every store that is written in Rust; `python/store_peers.py` does the same.

use std::path::Path;
use std::time::Instant;

use kvist_kernels::DType;

use crate::timing::time;
use crate::{Arena, Error, Sample};

use super::case::{Case, Durable, GROUP, Op, Plan};
use super::subject::Subject;

/// The caller's memory: what it puts, and where it wants what it gets.
pub struct Data {
    /// Random numbers, as a model's keys and values.
    pub from: Arena,
    /// As large.
    pub into: Arena,
}

impl Data {
    /// Memory for one repeat.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has not that much.
    pub fn new(plan: &Plan) -> Result<Data, Error> {
        let from = Arena::random(plan.bytes, DType::Bf16, 11)?;
        let into = Arena::random(plan.bytes, DType::Bf16, 12)?;
        Ok(Data { from, into })
    }
}

/// Seconds of a repeat of the limit; it may use the caller's memory.
pub type Floor<'a> = &'a mut dyn FnMut(&mut Data) -> Result<f64, Error>;

/// Times repeats of `case`, and of the limit between them; their samples, limit first. Before
/// that, the store proves once that it returns what it was given.
///
/// # Errors
/// What the store says, or that it returned something else than was put.
pub fn measure(
    subject: &mut dyn Subject,
    case: &Case,
    plan: &Plan,
    data: &mut Data,
    floor: Floor<'_>,
) -> Result<(Sample, Sample), Error> {
    let blocks = case.bytes(plan) / case.size;
    let order: Vec<u64> = case.order(plan).into_iter().map(u64::from).collect();
    subject.clear(case.size)?;
    fill(subject, case, data, blocks)?;
    subject.settle(true)?;
    verify(subject, case, data, &order)?;
    let (how, since) = (plan.how(), Instant::now());
    let (mut floors, mut times) = (vec![floor(data)?], Vec::new());
    while times.is_empty() || !how.done(times.len(), since) {
        times.push(one(subject, case, plan, data, &order)?);
        floors.push(floor(data)?);
    }
    Ok((Sample::of(floors), Sample::of(times)))
}

/// Seconds of one repeat.
fn one(
    subject: &mut dyn Subject,
    case: &Case,
    plan: &Plan,
    data: &mut Data,
    order: &[u64],
) -> Result<f64, Error> {
    match case.op {
        Op::HostPut => subject.clear(case.size)?,
        Op::DiskPut => {
            subject.clear(case.size)?;
            quiet(&plan.dir)?;
        }
        Op::HostGet => {}
        Op::DiskGet => subject.chill()?,
    }
    let mut done = Ok(());
    let seconds = time(|| {
        done = match case.op {
            Op::HostPut => fill(subject, case, data, order.len()),
            Op::DiskPut => fill(subject, case, data, order.len())
                .and_then(|()| subject.settle(case.durable != Durable::No)),
            Op::HostGet | Op::DiskGet => fetch(subject, case, data, order),
        };
    });
    done.map(|()| seconds)
}

fn fill(subject: &mut dyn Subject, case: &Case, data: &Data, blocks: usize) -> Result<(), Error> {
    let mut waiting = 0;
    for (key, block) in data.from.bytes().chunks_exact(case.size).take(blocks).enumerate() {
        subject.put(case.op.tier(), key as u64, block)?;
        waiting += case.size;
        if case.durable == Durable::Group && waiting >= GROUP {
            subject.settle(true)?;
            waiting = 0;
        }
    }
    Ok(())
}

/// The blocks in this order; they arrive side by side.
fn fetch(
    subject: &mut dyn Subject,
    case: &Case,
    data: &mut Data,
    order: &[u64],
) -> Result<(), Error> {
    let batch = case.batch * case.size;
    let into = data.into.bytes_mut()[..order.len() * case.size].chunks_mut(batch);
    for (keys, into) in order.chunks(case.batch).zip(into) {
        subject.get(case.op.tier(), keys, into)?;
    }
    Ok(())
}

fn verify(
    subject: &mut dyn Subject,
    case: &Case,
    data: &mut Data,
    order: &[u64],
) -> Result<(), Error> {
    if case.op.tier() == super::Tier::Disk {
        subject.chill()?;
    }
    fetch(subject, case, data, order)?;
    let (from, into) = (data.from.bytes(), data.into.bytes());
    for (&key, got) in order.iter().zip(into.chunks_exact(case.size)) {
        let at = key as usize * case.size;
        if from[at..at + case.size] != *got {
            return Err(Error::subject(subject.name(), "returned other bytes than were put"));
        }
    }
    Ok(())
}

/// Waits until the system has written what earlier repeats left behind.
fn quiet(dir: &Path) -> Result<(), Error> {
    let sync = || -> std::io::Result<()> {
        let dir = std::fs::File::open(dir)?;
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&dir)?;
        #[cfg(not(target_os = "linux"))]
        dir.sync_all()?;
        Ok(())
    };
    sync().map_err(Error::io(format!("syncing {}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::super::subject::PlainMemory;
    use super::*;

    fn plan() -> Plan {
        let dir = std::env::temp_dir();
        Plan { bytes: 4 << 20, dir, repeats: Some(2), least: 1, seconds: 0.1 }
    }

    #[test]
    fn every_case_is_timed_with_its_limit() {
        let mut data = Data::new(&plan()).unwrap();
        for case in Case::of_size(256 << 10) {
            let mut store = PlainMemory::default();
            let floor: Floor<'_> = &mut |_| Ok(0.5);
            let (limit, own) = measure(&mut store, &case, &plan(), &mut data, floor).unwrap();
            assert_eq!((limit.median, limit.repeats, own.repeats), (0.5, 3, 2), "{case:?}");
            assert!(own.median > 0.0);
        }
    }

    #[test]
    fn a_store_that_returns_other_bytes_has_no_figure() {
        let mut store = PlainMemory::default();
        store.wrong = true;
        let mut data = Data::new(&plan()).unwrap();
        let case = Case::of_size(64 << 10)[1];
        let result = measure(&mut store, &case, &plan(), &mut data, &mut |_| Ok(1.0));
        assert!(result.unwrap_err().to_string().contains("other bytes"));
    }
}
