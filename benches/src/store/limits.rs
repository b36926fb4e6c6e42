//! The limit of each case, measured over the caller's own memory and a file of the same directory.

use crate::floor::{DiskFile, ReadPlan, WriteSync};
use crate::floor::{best_copy, copy_hash_seconds, copy_seconds, gather_seconds};
use crate::timing::repeat_result;
use crate::{Error, Repeats, Rng, Sample};

use super::case::{Case, Op, Plan};
use super::case::{Durable, GROUP};
use super::measure::Data;

/// Measures limits. The fastest way is picked once per case, then repeated.
pub(super) struct Limits {
    disk: Option<DiskFile>,
}

/// One pass of a limit.
pub(super) type Pass<'a> = Box<dyn FnMut(&mut Data) -> Result<f64, Error> + 'a>;

/// Pieces of a copy with a checksum: both fit the second-level cache many times.
const PIECES: [usize; 2] = [16 << 10, 32 << 10];

impl Limits {
    /// Without a disk for a place in memory.
    pub(super) fn new(plan: &Plan, data: &mut Data, disk: bool) -> Result<Limits, Error> {
        let bytes = data.from.bytes_mut();
        let disk = disk.then(|| DiskFile::create(&plan.dir, bytes)).transpose()?;
        Ok(Limits { disk })
    }

    /// What keeps the disk busy.
    pub(super) fn engine(&self) -> &'static str {
        self.disk.as_ref().map_or("none", DiskFile::engine)
    }

    /// The limit of a case, for as many bytes as the case moves. `verified`: of a store that makes a checksum of what is put.
    pub(super) fn pass(
        &mut self,
        case: &Case,
        verified: bool,
        plan: &Plan,
        data: &mut Data,
    ) -> Result<Pass<'_>, Error> {
        let (size, bytes) = (case.size, case.bytes(plan));
        match case.op {
            Op::HostPut if verified => {
                let piece = best_piece(size, data);
                Ok(Box::new(move |d| {
                    Ok(copy_hash_seconds(piece, d.from.bytes(), d.into.bytes_mut(), size))
                }))
            }
            Op::HostGet => {
                let how = best_copy(data.from.bytes(), data.into.bytes_mut(), size);
                let order = case.order(plan);
                Ok(Box::new(move |d| {
                    let (from, into) = (d.from.bytes(), d.into.bytes_mut());
                    Ok(gather_seconds(how, from, into, size, &order))
                }))
            }
            Op::HostPut => {
                let how = best_copy(data.from.bytes(), data.into.bytes_mut(), size);
                Ok(Box::new(move |d| {
                    Ok(copy_seconds(how, d.from.bytes(), d.into.bytes_mut(), size))
                }))
            }
            Op::DiskPut => {
                let sync = match case.durable {
                    Durable::No => WriteSync::Never,
                    Durable::End => WriteSync::End,
                    Durable::Group => WriteSync::Every(GROUP),
                };
                let (disk, dir) = (self.disk()?, plan.dir.clone());
                Ok(Box::new(move |d| disk.append(&dir, &mut d.from.bytes_mut()[..bytes], sync)))
            }
            Op::DiskGet => {
                let plans = match case.batch {
                    1 => ReadPlan::serial(size),
                    _ => ReadPlan::batched(size, usize::MAX),
                };
                self.read(&plans, bytes, data)
            }
        }
    }

    /// The fastest of these ways to read.
    pub(super) fn read(
        &mut self,
        plans: &[ReadPlan],
        bytes: usize,
        data: &mut Data,
    ) -> Result<Pass<'_>, Error> {
        let disk = self.disk()?;
        let mut best = (f64::INFINITY, plans[0]);
        let order = Rng::new(5).permutation(bytes / plans[0].block);
        for &plan in plans.iter().filter(|_| plans.len() > 1) {
            let some = &order[..order.len().div_ceil(4)];
            for _ in 0..2 {
                let seconds = disk.read(data.into.bytes_mut(), plan, some)?;
                best = if seconds < best.0 { (seconds, plan) } else { best };
            }
        }
        Ok(Box::new(move |d| disk.read(d.into.bytes_mut(), best.1, &order)))
    }

    fn disk(&mut self) -> Result<&mut DiskFile, Error> {
        self.disk.as_mut().ok_or_else(|| Error::subject("disk", "none here"))
    }
}

/// Repeats a limit alone.
pub(super) fn alone(how: Repeats, data: &mut Data, pass: &mut Pass<'_>) -> Result<Sample, Error> {
    repeat_result(how, || pass(data))
}

fn best_piece(size: usize, data: &mut Data) -> usize {
    let mut seconds = |piece| {
        let pass = |_| copy_hash_seconds(piece, data.from.bytes(), data.into.bytes_mut(), size);
        (0..3).map(pass).fold(f64::INFINITY, f64::min)
    };
    let timed = PIECES.map(|piece| (seconds(piece), piece));
    timed.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(PIECES[0], |best| best.1)
}
