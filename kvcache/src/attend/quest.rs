//! Quest: units ranked by the upper bound of their key box, the last unit always read.

use kvist_kernels::score::{self, UnitQuery};
use kvist_kernels::{Isa, select};
use kvist_policies::Quest;

use super::certify::{Certificate, Unread};
use super::head::{Choice, Scratch, Work, sized};
use crate::Error;
use crate::summaries::Spec;

pub(super) fn choose(work: &Work, quest: &Quest) -> Result<Choice, Error> {
    let Spec::Units(spec) = work.store.spec else {
        unreachable!("a sequence's store is made for its selector")
    };
    let (unit, units) = (quest.unit_tokens, work.len.div_ceil(quest.unit_tokens));
    let last = units - 1;
    let query =
        UnitQuery::new(Isa::level(), spec, work.q, work.group, work.call.params.scale, false);
    let cells = work.cells();
    let stored = cells.len() * spec.units();
    let mut choice = Choice::default();
    Scratch::with(|scratch| {
        let estimates = sized(&mut scratch.estimates, work.group * stored);
        score::units(&query, &cells, estimates);
        let weights = sized(&mut scratch.weights, stored);
        select::fold_max(estimates, stored, weights);
        select::top_k(&weights[..last], quest.budget / unit - 1, &mut scratch.chosen);
        let tokens = |&u: &u32| u * unit as u32..(u + 1) * unit as u32;
        choice.positions.extend(scratch.chosen.iter().flat_map(tokens));
    });
    choice.positions.extend((last * unit) as u32..work.len as u32);
    choice.bytes.summary = (units * 2 * spec.dim() * spec.dtype().size()) as u64;
    if work.call.options.bound {
        choice.bound = Some(prove(work, &query, unit, &choice.positions)?);
    }
    Ok(choice)
}

/// Bounds what is missed: each unread unit holds at most its tokens times its box's bound.
fn prove(
    work: &Work,
    query: &UnitQuery,
    unit: usize,
    positions: &[u32],
) -> Result<Vec<f32>, Error> {
    let Spec::Units(spec) = work.store.spec else {
        unreachable!("a sequence's store is made for its selector")
    };
    let cells = work.cells();
    let stored = cells.len() * spec.units();
    let mut upper = vec![0f32; work.group * stored];
    score::units_upper(query, &cells, &mut upper);
    if work.call.params.soft_cap > 0.0 {
        work.cap(&mut upper);
    }
    let mut read = vec![false; stored];
    positions.iter().for_each(|&p| read[p as usize / unit] = true);
    let certificate = Certificate::of_read(work, positions)?;
    let units = work.len.div_ceil(unit);
    Ok(certificate.bounds(|head| {
        let unread = (0..units).filter(|&u| !read[u]);
        unread
            .map(|u| Unread {
                upper: f64::from(upper[head * stored + u]),
                tokens: unit.min(work.len - u * unit) as f64,
            })
            .collect()
    }))
}
