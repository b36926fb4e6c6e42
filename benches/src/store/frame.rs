//! The rows of `kvist bench store`.

use super::case::{Case, Op, Plan, Tier, size_name};
use super::limits::{Limits, alone};
use super::measure::{Data, measure};
use super::own::Own;
use super::peers::Peers;
use super::place::Place;
use super::recovery;
use super::subject::Subject;
use crate::floor::ReadPlan;
use crate::options::StoreOp;
use crate::{Error, Line, Options, Params, Sample, Sink};

const NAME: &str = "store";
const SIZES: [usize; 4] = [64 << 10, 256 << 10, 2 << 20, 8 << 20];

/// Most reads of a repeat without a store.
const RAW_READS: usize = 2048;

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let place = Place::new(options)?;
    let plan = Plan::new(options, place.path().to_owned());
    let sizes = options.size.as_deref().unwrap_or(&SIZES);
    check(sizes, &plan)?;
    let mut data = Data::new(&plan)?;
    let mut limits = Limits::new(&plan, &mut data, place.no_disk.is_none())?;
    match &place.no_disk {
        Some(why) => sink.note(&format!("disk rows left out: {why}")),
        None => sink.note(&format!("disk: {} ({})", plan.dir.display(), limits.engine())),
    }
    let mut subject = Own::new(&plan);
    let mut peers = Peers::start(options, &place, sink)?;
    let wanted = |op: StoreOp| options.op.as_ref().is_none_or(|ops| ops.contains(&op));
    if place.no_disk.is_none() && wanted(StoreOp::RawRead) {
        raw(&plan, &mut limits, &mut data, sink)?;
    }
    for case in sizes.iter().flat_map(|&size| Case::of_size(size)) {
        if (case.op.tier() == Tier::Disk && place.no_disk.is_some())
            || !wanted(StoreOp::Case(case.op))
        {
            continue;
        }
        let rows = one(&case, &plan, &mut subject, &mut limits, &mut data)?;
        let theirs = peers.measure(&case, &plan, &mut data, sink);
        push(&case, &plan, rows, theirs, sink);
    }
    match place.no_disk {
        None if wanted(StoreOp::Open) => recovery::run(place.path(), options, sink),
        _ => Ok(()),
    }
}

fn check(sizes: &[usize], plan: &Plan) -> Result<(), Error> {
    let fits = |s: &&usize| !(s.is_multiple_of(4096) && plan.bytes.is_multiple_of(**s));
    match sizes.iter().find(fits) {
        None => Ok(()),
        Some(size) => Err(Error::BadValue {
            flag: "size".to_owned(),
            expected: format!("multiples of 4k that divide {}", size_name(plan.bytes)),
            found: size.to_string(),
        }),
    }
}

/// Bare reads of small pieces: what a partial read of a block can hope for.
fn raw(plan: &Plan, limits: &mut Limits, data: &mut Data, sink: &mut Sink) -> Result<(), Error> {
    for block in [16 << 10, 32 << 10, 64 << 10, 2 << 20] {
        for flight in [1, 32] {
            let bytes = plan.bytes.min(RAW_READS * block);
            let call = if flight == 1 { 1 } else { usize::MAX };
            let read = ReadPlan { block, piece: block, flight, call };
            let mut pass = limits.read(&[read], bytes, data)?;
            let sample = alone(plan.how(), data, &mut pass)?;
            let params = Params::new().with("op", "raw-read").with("size", size_name(block));
            let params = params.with("tier", "disk").with("flight", flight).with("peer", "limit");
            sink.push(line(params, bytes, ("MB/s", 1e6), &sample));
        }
    }
    Ok(())
}

/// Limits by name (the first is that of kvist's row), and kvist's own figure.
struct Rows {
    limits: Vec<(&'static str, Sample)>,
    own: Option<Sample>,
}

fn one(
    case: &Case,
    plan: &Plan,
    subject: &mut dyn Subject,
    limits: &mut Limits,
    data: &mut Data,
) -> Result<Rows, Error> {
    let (verified, plain) = match case.op {
        Op::HostPut => (true, "limit: memcpy"),
        Op::HostGet => (false, "limit: memcpy"),
        Op::DiskPut | Op::DiskGet => (false, "limit: O_DIRECT"),
    };
    let mut pass = limits.pass(case, verified, plan, data)?;
    let (first, own) = if subject.can(case) {
        let (floor, sample) = measure(subject, case, plan, data, &mut pass)?;
        (floor, Some(sample))
    } else {
        (alone(plan.how(), data, &mut pass)?, None)
    };
    drop(pass);
    let mut found = vec![(if verified { "limit: memcpy + xxh3" } else { plain }, first)];
    if verified {
        let mut pass = limits.pass(case, false, plan, data)?;
        found.push((plain, alone(plan.how(), data, &mut pass)?));
    }
    if case.op == Op::DiskGet && case.batch > 1 {
        let plans = ReadPlan::batched(case.size, case.batch);
        let mut pass = limits.read(&plans, case.bytes(plan), data)?;
        let sample = alone(plan.how(), data, &mut pass)?;
        found.push(("limit: O_DIRECT, call by call", sample));
    }
    Ok(Rows { limits: found, own })
}

/// With kvist's figure: one row per peer with the ratio. Without: each figure in a row of its own.
fn push(case: &Case, plan: &Plan, rows: Rows, theirs: Vec<(String, Sample)>, sink: &mut Sink) {
    let (unit, bytes) = (case.unit(), case.bytes(plan));
    let rate = |sample: &Sample| bytes as f64 / sample.median / unit.1;
    if let Some(own) = &rows.own {
        let line = line(case.params(), bytes, unit, own).floor(rate(&rows.limits[0].1));
        let mut columns = Params::new();
        for (name, sample) in &rows.limits[1..] {
            columns = columns.with(name, rate(sample));
        }
        let line = line.columns(columns);
        if theirs.is_empty() {
            sink.push(line.clone());
        }
        for (name, sample) in theirs {
            sink.push(line.clone().peer(name, rate(&sample)));
        }
        return;
    }
    // Peers make no checksum of what is put: their limit is the last, the plain one.
    let floor = rows.limits.last().map(|(_, sample)| rate(sample));
    for (name, sample) in &rows.limits {
        sink.push(line(case.params().with("peer", *name), bytes, unit, sample));
    }
    for (name, sample) in theirs {
        let row = line(case.params().with("peer", name), bytes, unit, &sample);
        sink.push(floor.into_iter().fold(row, Line::floor));
    }
}

fn line(params: Params, bytes: usize, unit: (&'static str, f64), sample: &Sample) -> Line {
    let rate = |seconds: f64| bytes as f64 / seconds / unit.1;
    Line::new(NAME, params, rate(sample.median), unit.0)
        .repeated(sample.repeats, sample.spread)
        .best(rate(sample.best))
}
