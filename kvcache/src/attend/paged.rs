//! Attention of sequences whose pages are not all near: over the pages that are, while the others
//! come, then over those, merged by LSE.
//!
//! Parts are merged in a fixed order: what was near, then the missing pages, group of heads by group. So
//! the result depends on which pages were near at first, within rounding, and never on when others
//! arrived.

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use kvist_kernels::{Tensor3, Tensor3Mut};
use kvist_policies::Method;

use super::begin::{Begun, Coming, Groups};
use super::flights::Flights;
use super::gathered::Gathered;
use super::head::Work;
use super::pages::{self, Pages};
use super::parts::Part;
use super::proof::Proof;
use super::sparse::{each_head, votes, with_work};
use super::{AttendInfo, BytesRead, Call, Run};
use crate::live::{PageKey, Tier};
use crate::{Error, MissReason};

/// Bytes of a run when a whole sequence passes through.
const SCAN_BYTES: usize = 4 << 20;

/// A page to attend to.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// Sequence times KV heads, plus head.
    pub(super) list: u32,
    pub(super) page: u32,
    pub(super) frame: u32,
}

/// Attention of one run in parts.
pub(super) struct Stream<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) run: &'a Run<'a>,
    pub(super) tier: &'a Tier,
    pub(super) q: &'a Tensor3<'a>,
    /// Whether all pages pass through once, so that few frames will do.
    pub(super) scan: bool,
    pub(super) deadline: Duration,
    pub(super) sum: Option<Part>,
    pub(super) spare: [Part; 2],
    /// Per (sequence, KV head), where the missed mass is to be bounded.
    proofs: Vec<Mutex<Option<Proof>>>,
    /// Per (sequence, KV head), where clusters were picked.
    pub(super) gathered: Vec<Option<Gathered>>,
}

pub(super) fn attend(
    call: &Call,
    run: &Run,
    tier: &Tier,
    sparse: bool,
    q: &Tensor3,
    out: &mut Tensor3Mut,
) -> Result<Vec<AttendInfo>, Error> {
    loop {
        match once(call, run, tier, sparse, q, out) {
            // Pages have all that clusters have.
            Err(Error::Missing { .. }) if call.give_up_lost(run) => {}
            done => return done,
        }
    }
}

fn once(
    call: &Call,
    run: &Run,
    tier: &Tier,
    sparse: bool,
    q: &Tensor3,
    out: &mut Tensor3Mut,
) -> Result<Vec<AttendInfo>, Error> {
    tier.poll();
    if sparse {
        // It may take long, and is no part of the time that reads have.
        call.derive(run, q)?;
        call.grow_trees(run)?;
    }
    let spare = [Part::default(), Part::default()];
    let proofs = Vec::new();
    let (scan, deadline) = (!sparse, tier.deadline());
    let gathered = Vec::new();
    let mut stream =
        Stream { call, run, tier, q, scan, deadline, sum: None, spare, proofs, gathered };
    let heads = call.cache.geometry().kv_heads;
    if !sparse {
        let of_sequence = |i| std::iter::repeat_n(call.seen_pages(run, i), heads);
        let lists: Vec<Vec<u32>> = (0..run.sequences.len()).flat_map(of_sequence).collect();
        let begun = stream.begin(lists.into_iter().enumerate().collect())?;
        stream.read(vec![begun])?;
        let lse = stream.finish(out)?;
        return Ok(call.infos(run, &lse, 0));
    }
    let votes = votes(call, run, q)?;
    let groups = Groups::new(run.sequences.len() * heads);
    let mut choices = each_head(call, run, q, |list, work, method| {
        let pages = pages::choose(work, method, votes[list / heads].as_ref())?;
        groups.chose(&stream, list, &pages.chosen);
        Ok(pages)
    })?;
    let begun = groups.begun(&stream)?;
    stream.proofs = choices.iter_mut().map(|c| Mutex::new(c.proof.take())).collect();
    stream.gathered = choices.iter_mut().map(|c| c.gathered.take()).collect();
    stream.read_both(begun)?;
    stream.prove(&mut choices)?;
    let lse = stream.finish(out)?;
    let infos = stream.infos(&choices, &lse);
    call.predict(run, tier, choices);
    tier.catch_up();
    Ok(infos)
}

impl Call<'_> {
    /// Pages that some query of sequence `i` may see.
    fn seen_pages(&self, run: &Run, i: usize) -> Vec<u32> {
        let len = run.sequences[i].layers[self.layer].len;
        let page = self.cache.geometry().page_tokens;
        let first = match self.options.window {
            0 => 0,
            w => (run.stands(self, i).start + 1).saturating_sub(w),
        };
        let end = if run.queries[i] == 0 { 0 } else { len.div_ceil(page) };
        ((first / page).min(end) as u32..end as u32).collect()
    }
}

impl<'a> Stream<'a> {
    pub(super) fn layer_of(&self, list: u32) -> &crate::layer::Layer {
        let heads = self.call.cache.geometry().kv_heads;
        &self.run.sequences[list as usize / heads].layers[self.call.layer]
    }

    pub(super) fn tokens_of(&self, item: &Item) -> Range<usize> {
        let page = self.call.cache.geometry().page_tokens;
        let first = item.page as usize * page;
        first..(first + page).min(self.layer_of(item.list).len)
    }

    /// What is read of a list that picked clusters.
    pub(super) fn gathered(&self, list: u32) -> Option<&Gathered> {
        self.gathered.get(list as usize)?.as_ref()
    }

    /// Positions of a page that are read.
    pub(super) fn tokens_read(&self, item: &Item) -> Vec<u32> {
        let tokens = self.tokens_of(item);
        let Some(gathered) = self.gathered(item.list) else {
            return tokens.map(|t| t as u32).collect();
        };
        let before = |end: usize| gathered.paged.partition_point(|&p| (p as usize) < end);
        gathered.paged[before(tokens.start)..before(tokens.end)].to_vec()
    }

    /// Attends to what is near while what is missing comes, then to that.
    pub(super) fn read(&mut self, mut begun: Vec<Begun<'a>>) -> Result<(), Error> {
        let tier = self.tier;
        let rest = begun.iter_mut().flat_map(Begun::split_rest);
        let (mut items, keys): (Vec<Item>, Vec<PageKey>) = rest.unzip();
        let most = match self.scan {
            true => tier.frames_for(SCAN_BYTES),
            false => keys.len().max(1),
        };
        let mut flights = Flights::new(tier, &keys, most);
        if self.scan {
            flights.start()?;
        }
        let near: Vec<Item> = begun.iter_mut().flat_map(|b| std::mem::take(&mut b.near)).collect();
        if self.sum.is_none() || !near.is_empty() {
            self.part(&near)?;
        }
        let coming: Vec<_> = begun.into_iter().map(Begun::into_coming).collect();
        // Few frames make many small rounds: better to write something first.
        if !self.scan && flights.waiting() > 0 {
            tier.make_room(tier.bytes_of(flights.waiting()), false);
            flights.start()?;
        }
        self.arrive(coming)?;
        while let Some((range, lease)) = flights.pop()? {
            let frames = tier.wait(&keys[range.clone()], self.deadline)?;
            flights.start()?;
            items[range.clone()].iter_mut().zip(frames).for_each(|(i, f)| i.frame = f);
            self.part(&items[range.clone()])?;
            drop(lease);
            if self.scan {
                tier.pass(&keys[range]);
            }
        }
        Ok(())
    }

    /// Attends to pages that were sent for, group by group.
    fn arrive(&mut self, coming: Vec<Coming>) -> Result<(), Error> {
        let mut coming = coming.into_iter().filter(|c| !c.keys.is_empty());
        while let Some(Coming { mut items, keys, lease }) = coming.next() {
            let frames = match self.tier.wait(&keys, self.deadline) {
                Ok(frames) => frames,
                Err(lost) => {
                    if lost.reason == MissReason::Timeout {
                        // It is too late for the others, too: nobody shall find them in flight.
                        coming.for_each(|c| drop(self.tier.wait(&c.keys, self.deadline)));
                    }
                    return Err(lost.into());
                }
            };
            items.iter_mut().zip(frames).for_each(|(i, f)| i.frame = f);
            self.part(&items)?;
            drop(lease);
        }
        Ok(())
    }

    /// Counts the true masses of pages that are being read, where a bound is wanted.
    pub(super) fn tally_pages(&self, items: &[Item]) {
        let g = self.call.cache.geometry();
        let (arena, row_bytes) = (&self.call.cache.shared.pages, g.dim_k * g.dtype.size());
        let keys = |list: usize| {
            let mine = items.iter().filter(|i| i.list as usize == list);
            let rows = mine.flat_map(|i| {
                let first = arena.at(i.frame);
                let at = move |t: u32| t as usize % g.page_tokens * row_bytes;
                self.tokens_read(i).into_iter().map(move |t| first.wrapping_add(at(t)))
            });
            rows.collect()
        };
        // SAFETY: tokens of the sequence in pages that are open, or leased by the caller.
        unsafe { self.tally(keys) }
    }

    /// Counts the true masses of keys that are being read, where a bound is wanted.
    ///
    /// # Safety
    /// Every row that `keys` gives for a list must be readable as a key.
    pub(super) unsafe fn tally(&self, keys: impl Fn(usize) -> Vec<*const u8> + Sync) {
        if !self.call.options.bound && self.proofs.is_empty() {
            return;
        }
        self.call.cache.shared.exec.run(self.lists() as usize, |list| {
            let mut proof = self.proofs.get(list).and_then(|proof| proof.lock().ok());
            let proof = proof.as_mut().and_then(|proof| proof.as_mut());
            let gathered = self.gathered(list as u32).filter(|gathered| gathered.sees());
            if proof.is_none() && gathered.is_none() {
                return;
            }
            let keys = keys(list);
            let see = |work: &Work| {
                // SAFETY: the caller's promise.
                proof.into_iter().for_each(|proof| unsafe { proof.add(work, &keys) });
                // SAFETY: the same.
                gathered.into_iter().for_each(|gathered| unsafe { gathered.see(work, &keys) });
            };
            with_work(self.call, self.run, self.q, list, see);
        });
    }

    /// Reads more pages until the missed mass is proven to be small, where that is wanted.
    fn prove(&mut self, choices: &mut [Pages]) -> Result<(), Error> {
        let heads = self.call.cache.geometry().kv_heads;
        loop {
            let more = |(list, proof): (usize, &Mutex<Option<Proof>>)| {
                let sequence = self.run.sequences[list / heads];
                let reads = &sequence.selector.layer(self.call.layer)[list % heads];
                let eps = match &reads.method {
                    Method::Boxed(boxed) => boxed.max_missed_mass,
                    Method::Full | Method::Parts(_) => None,
                };
                let mut proof = proof.lock().ok()?;
                Some(proof.as_mut()?.more(f64::from(eps?)))
            };
            let more = self.proofs.iter().enumerate().map(more).map(Option::unwrap_or_default);
            let more: Vec<Vec<u32>> = more.collect();
            if more.iter().all(Vec::is_empty) {
                return Ok(());
            }
            self.tier.poll();
            let begun = self.begin(more.iter().cloned().enumerate().collect())?;
            self.read(vec![begun])?;
            for (choice, more) in choices.iter_mut().zip(more) {
                choice.chosen.extend(more);
                choice.chosen.sort_unstable();
            }
        }
    }

    fn infos(&self, choices: &[Pages], lse: &[f32]) -> Vec<AttendInfo> {
        let g = self.call.cache.geometry();
        let positions = |(list, choice): (usize, &Pages)| -> Vec<u32> {
            if let Some(gathered) = self.gathered(list as u32) {
                return gathered.positions.clone();
            }
            let tokens = |&page: &u32| self.tokens_of(&Item { list: list as u32, page, frame: 0 });
            choice.chosen.iter().flat_map(tokens).map(|t| t as u32).collect()
        };
        let bound = |list: usize| {
            let (sequence, head) = (self.run.sequences[list / g.kv_heads], list % g.kv_heads);
            let len = sequence.layers[self.call.layer].len;
            if let Some(gathered) = self.gathered(list as u32) {
                return self.bounds_of(list, gathered);
            }
            match sequence.selector.method(self.call.layer, head, len) {
                Method::Full => Some(vec![0.0; g.group()]),
                _ => Some(self.proofs[list].lock().ok()?.as_ref()?.bounds()),
            }
        };
        let of_sequence = |(i, choices): (usize, &[Pages])| {
            let lists = i * g.kv_heads..(i + 1) * g.kv_heads;
            let read: Vec<Vec<u32>> = lists.clone().zip(choices).map(positions).collect();
            let tokens: usize = read.iter().map(Vec::len).sum();
            let bounds: Option<Vec<Vec<f32>>> = lists.map(bound).collect();
            AttendInfo {
                lse2: lse[i * g.q_heads..(i + 1) * g.q_heads].to_vec(),
                tokens_read: read.iter().map(|p| p.len() as u32).collect(),
                missed_mass_bound: bounds.map(|b| b.concat()),
                selected: self.call.options.selected.then_some(read),
                bytes: BytesRead {
                    summary: choices.iter().map(|c| c.summary_bytes).sum(),
                    keys: 0,
                    kv: (tokens * g.token_bytes()) as u64,
                },
            }
        };
        choices.chunks(g.kv_heads).enumerate().map(of_sequence).collect()
    }
}
