//! Clusters of sequences whose pages are not all near: the same tokens are read as of others, clusters from
//! where their rows lie together, and what is in none of these from pages.

use std::sync::Arc;

use kvist_kernels::rows::QueryRows;
use kvist_kernels::{SlotLists, attend};
use kvist_policies::Parts;
use parking_lot::Mutex;

use super::begin::Begun;
use super::clusters;
use super::flights::Flights;
use super::head::{Estimate, Work};
use super::order::Sources;
use super::paged::Stream;
use super::pages::Pages;
use super::sparse::with_work;
use crate::Error;
use crate::index::Part;
use crate::live::{Clustered, Extent, PageKey};

/// What a query group reads that picked clusters.
pub(super) struct Gathered {
    /// All of it, ascending.
    pub(super) positions: Vec<u32>,
    /// What is read from pages, ascending.
    pub(super) paged: Vec<u32>,
    /// What stands for other clusters.
    pub(super) estimate: Option<Estimate>,
    /// Pages of clusters, and how many tokens of each are read.
    pages: Vec<(PageKey, usize)>,
    /// Those that have them, so that they stay.
    _extents: Vec<Arc<Extent>>,
    /// Where the missed mass is to be bounded.
    seen: Option<Mutex<Seen>>,
}

/// What was seen of the keys that are read.
struct Seen {
    query: QueryRows,
    /// Raw logits, by head of the group.
    logits: Vec<Vec<f32>>,
    /// The largest norm.
    norm: f32,
}

/// A page of a cluster, or its first tokens.
#[derive(Clone, Copy)]
struct Row {
    list: u32,
    tokens: u32,
    frame: u32,
}

/// Picks clusters; the pages of all other tokens that are read are to be brought near.
pub(super) fn choose(work: &Work, parts: &Parts) -> Pages {
    let choice = clusters::choose(work, parts);
    let of_part = |part: &Part| part.ordered.get();
    let Sources { clusters, paged } = Sources::of(&choice, &work.index, of_part);
    let pages = clusters
        .iter()
        .flat_map(|(extent, picked)| picked.iter().flat_map(|m| extent.pages(m.cluster, m.tokens)));
    let (pages, extents) = (pages.collect(), clusters.iter().map(|(e, _)| e.clone()).collect());
    let mut chosen: Vec<u32> = paged.iter().map(|p| p / work.page_tokens() as u32).collect();
    chosen.dedup();
    let seen = work.call.options.bound.then(|| {
        let (query, logits) = (work.exact_query(true), vec![Vec::new(); work.group]);
        Mutex::new(Seen { query, logits, norm: 0.0 })
    });
    let (positions, estimate) = (choice.positions, choice.estimate);
    let gathered = Gathered { positions, paged, estimate, pages, _extents: extents, seen };
    let summary_bytes = choice.bytes.summary;
    Pages { chosen, summary_bytes, gathered: Some(gathered), ..Pages::default() }
}

impl Gathered {
    /// Whether it notes keys that are read: where the missed mass is to be bounded.
    pub(super) fn sees(&self) -> bool {
        self.seen.is_some()
    }

    /// Pages of clusters that are read.
    pub(super) fn keys(&self) -> impl Iterator<Item = PageKey> + '_ {
        self.pages.iter().map(|(key, _)| *key)
    }

    /// Notes keys that are read.
    ///
    /// # Safety
    /// Every row must be readable as a key.
    pub(super) unsafe fn see(&self, work: &Work, rows: &[*const u8]) {
        let Some(mut seen) = self.seen.as_ref().map(Mutex::lock) else { return };
        // SAFETY: the caller's promise.
        let (logits, norm) = unsafe { (work.logits_at(&seen.query, rows), work.norm_at(rows)) };
        let of_head = logits.chunks(rows.len().max(1));
        seen.logits.iter_mut().zip(of_head).for_each(|(all, new)| all.extend_from_slice(new));
        seen.norm = seen.norm.max(norm);
    }

    /// The proven bound by head, once all that is read was seen.
    pub(super) fn bounds(&self, work: &Work) -> Option<Vec<f32>> {
        let seen = self.seen.as_ref()?.lock();
        let logits = seen.logits.concat();
        Some(clusters::bounds(work, &self.positions, &logits, seen.norm))
    }
}

impl<'a> Stream<'a> {
    /// Reads what was begun, and clusters.
    pub(super) fn read_both(&mut self, begun: Vec<Begun<'a>>) -> Result<(), Error> {
        let wanted = |(list, gathered): (usize, &Option<Gathered>)| {
            let pages = gathered.iter().flat_map(|g| &g.pages);
            let row = move |&(key, tokens): &(PageKey, usize)| {
                (key, Row { list: list as u32, tokens: tokens as u32, frame: 0 })
            };
            pages.map(row).collect::<Vec<_>>()
        };
        let wanted: Vec<(PageKey, Row)> =
            self.gathered.iter().enumerate().flat_map(wanted).collect();
        let clustered = self.call.clustered(self.run).filter(|_| !wanted.is_empty());
        let Some(clustered) = clustered else { return self.read(begun) };
        // Whoever waits for frames of pages may not hold others: only what is near is read meanwhile.
        let (now, then) = match begun.iter().all(Begun::is_near) {
            true => (None, Some(begun)),
            false => (Some(begun), None),
        };
        now.map_or(Ok(()), |begun| self.read(begun))?;
        let tier = clustered.tier();
        tier.poll();
        let (all, rows): (Vec<PageKey>, Vec<Row>) = wanted.into_iter().unzip();
        let (held, frames) = tier.lease(&all)?;
        let (mut near, mut missing, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for ((key, row), frame) in all.into_iter().zip(rows).zip(frames) {
            match frame {
                Some(frame) => near.push(Row { frame, ..row }),
                None => {
                    missing.push(row);
                    keys.push(key);
                }
            }
        }
        tier.claim(keys.len());
        let mut flights = Flights::new(tier, &keys, keys.len().max(1));
        flights.start()?;
        then.map_or(Ok(()), |begun| self.read(begun))?;
        self.rows(clustered, &near)?;
        drop(held);
        while let Some((range, lease)) = flights.pop()? {
            let frames = tier.wait(&keys[range.clone()], self.deadline)?;
            let rows = &mut missing[range];
            rows.iter_mut().zip(frames).for_each(|(row, frame)| row.frame = frame);
            self.rows(clustered, rows)?;
            drop(lease);
        }
        Ok(())
    }

    /// Attends to pages of clusters that are near and adds the result to the sum.
    fn rows(&mut self, clustered: &Clustered, rows: &[Row]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let g = self.call.cache.geometry();
        let row_bytes = g.dim_k * g.dtype.size();
        let keys = |list: usize| {
            let mine = rows.iter().filter(|row| row.list as usize == list);
            let keys = mine.flat_map(|row| {
                let first = clustered.at(row.frame);
                (0..row.tokens as usize).map(move |t| first.wrapping_add(t * row_bytes))
            });
            keys.collect()
        };
        // SAFETY: tokens in pages that the caller has leased.
        unsafe { self.tally(keys) }
        let (mut indptr, mut slots, mut at) = (vec![0], Vec::new(), 0);
        for list in 0..self.lists() {
            for row in rows[at..].iter().take_while(|row| row.list == list) {
                let first = row.frame * clustered.page_tokens() as u32;
                slots.extend(first..first + row.tokens);
                at += 1;
            }
            indptr.push(slots.len() as u32);
        }
        let (indptr, slots) = (&indptr[..], &slots[..]);
        let lists = SlotLists { indptr, slots, positions: None, per_head: true };
        let pool = clustered.pool()?;
        let exec = &self.call.cache.shared.exec;
        let part = self.kernel(self.call.params, |queries, params, out| {
            Ok(attend::slots(queries, &pool, &lists, params, exec, out)?)
        })?;
        self.add(part)
    }

    /// The bound of a list that picked clusters.
    pub(super) fn bounds_of(&self, list: usize, gathered: &Gathered) -> Option<Vec<f32>> {
        with_work(self.call, self.run, self.q, list, |work| gathered.bounds(work))
    }
}
