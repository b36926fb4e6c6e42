//! A commit: records that become durable together, one `fdatasync` per segment. It may be given more
//! while the first of them are being written.

use std::collections::HashSet;
use std::ops::DerefMut;

use super::Disk;
use super::append::{Append, FOOTER_REST, Put, refused_by};
use super::item::{Item, NewRecord};
use super::turn::Taken;
use super::write::{Open, Refused, Writer};
use crate::format::{BlockKey, HEAD_BYTES};

/// New segments that may fill up with what had to move there before an item counts as too much.
const TRIES: usize = 3;

/// Items on their way into segments.
struct Run<'a, W> {
    disk: &'a Disk,
    writer: W,
    /// The segment that is being filled, and how many items it took.
    current: Option<(Append<'a>, usize)>,
    /// Why nothing more of this owner is taken.
    refused: Option<([u8; 16], Refused)>,
    /// Segments in a row that took nothing.
    idle: usize,
}

/// A commit under way. Dropped unfinished, what it was given may be lost.
pub(crate) struct Commit<'a> {
    run: Result<Run<'a, Taken<'a, Writer>>, Refused>,
    disk: &'a Disk,
    seen: HashSet<BlockKey>,
    results: Vec<Result<(), Refused>>,
}

impl Disk {
    /// Begins a commit. Others wait until it is finished.
    pub(crate) fn begin(&self) -> Commit<'_> {
        let refused = self.health.lock().refuses_writes(self.vfs.now()).map(refused_by);
        let taken = match refused {
            Some(refused) => Err(refused),
            None => self.writer.take(self.options.deadline).ok_or(Refused::Timeout),
        };
        let run = taken.map(|writer| Run::new(self, writer));
        Commit { run, disk: self, seen: HashSet::new(), results: Vec::new() }
    }

    /// Stores records, in order; each is readable, and survives any crash, when its result is `Ok`.
    pub(crate) fn commit(&self, records: &[NewRecord]) -> Vec<Result<(), Refused>> {
        let mut commit = self.begin();
        commit.add(records);
        commit.finish()
    }

    /// Appends items, in new segments whenever one is full or fails.
    pub(super) fn append(
        &self,
        writer: &mut Writer,
        items: &[(usize, Item)],
        results: &mut [Result<(), Refused>],
    ) {
        let mut run = Run::new(self, writer);
        run.put_all(items, results);
        run.close(results);
    }

    /// Fills one segment; how many items have their result, why it ended, and whether it is well.
    pub(super) fn fill(
        &self,
        writer: &mut Writer,
        open: &mut Open,
        items: &[(usize, Item)],
        results: &mut [Result<(), Refused>],
    ) -> (usize, Put, bool) {
        let mut append = Append::new(self, open.take(), expected(items));
        let (taken, put) = append.put_all(items, &mut writer.sequence, results);
        let (filled, ok) = append.finish(results);
        *open = filled;
        (taken, put, ok)
    }

    fn possible(&self, item: &Item) -> bool {
        let most = self.options.limits.record_bytes_max as usize;
        let room = self.options.segment_bytes - HEAD_BYTES as u64 - FOOTER_REST - 4096;
        item.decoded() <= most && item.need() <= most && item.need() as u64 <= room
    }
}

impl Commit<'_> {
    /// Takes more records; their results follow those of the earlier ones.
    pub(crate) fn add(&mut self, records: &[NewRecord]) {
        let first = self.results.len();
        self.results.resize(first + records.len(), Ok(()));
        match &mut self.run {
            Err(refused) => self.results[first..].fill(Err(*refused)),
            Ok(_) => {
                let items = self.wanted(records, first);
                if let Ok(run) = &mut self.run {
                    run.put_all(&items, &mut self.results);
                }
            }
        }
    }

    /// The records that are to be written, sealed ones of a tenant together; the others get their
    /// answer.
    fn wanted<'r>(&mut self, records: &'r [NewRecord<'r>], first: usize) -> Vec<(usize, Item<'r>)> {
        let state = self.disk.state.lock();
        let mut items = Vec::with_capacity(records.len());
        for (index, record) in (first..).zip(records) {
            let item = Item::New(record);
            if state.closed {
                self.results[index] = Err(Refused::Closed);
            } else if !self.disk.possible(&item) {
                self.results[index] = Err(Refused::TooLarge);
            } else if state.index.get(&record.key).is_some() || !self.seen.insert(record.key) {
                self.results[index] = Err(Refused::AlreadyPresent);
            } else {
                items.push((index, item));
            }
        }
        items.sort_by_key(|(_, item)| item.owner().0);
        items
    }

    /// Sends what was taken on its way and waits until a part of it is written; `false` if nothing is
    /// on its way.
    pub(crate) fn advance(&mut self) -> bool {
        let current = self.run.as_mut().ok().and_then(|run| run.current.as_mut());
        current.is_some_and(|(append, _)| append.advance())
    }

    /// Makes everything durable, then visible; what became of each record.
    pub(crate) fn finish(mut self) -> Vec<Result<(), Refused>> {
        if let Ok(run) = &mut self.run {
            run.close(&mut self.results);
        }
        self.results
    }
}

impl<'a, W: DerefMut<Target = Writer>> Run<'a, W> {
    fn new(disk: &'a Disk, writer: W) -> Run<'a, W> {
        Run { disk, writer, current: None, refused: None, idle: 0 }
    }

    fn put_all(&mut self, items: &[(usize, Item)], results: &mut [Result<(), Refused>]) {
        let mut rest = items;
        while let Some((_, first)) = rest.first() {
            let owner = first.owner().0;
            let of_owner = rest.iter().take_while(|(_, item)| item.owner().0 == owner).count();
            let (group, others) = rest.split_at(of_owner);
            rest = match self.put_some(owner, group, results) {
                Ok(taken) => &rest[taken..],
                Err(refused) => {
                    group.iter().for_each(|(index, _)| results[*index] = Err(refused));
                    others
                }
            };
        }
    }

    /// Puts items of one owner into one segment; how many have their result.
    fn put_some(
        &mut self,
        owner: [u8; 16],
        items: &[(usize, Item)],
        results: &mut [Result<(), Refused>],
    ) -> Result<usize, Refused> {
        if let Some((_, refused)) = self.refused.filter(|(of, _)| *of == owner) {
            return Err(refused);
        }
        if self.current.as_ref().is_some_and(|(append, _)| append.owner() != owner) {
            self.close(results);
        }
        if self.current.is_none() {
            let open = self.disk.open_segment(&mut self.writer, &items[0].1);
            let open = open.inspect_err(|refused| self.refused = Some((owner, *refused)))?;
            self.current = Some((Append::new(self.disk, open, expected(items)), 0));
        }
        let Some((append, took)) = &mut self.current else { return Err(Refused::Io) };
        let (taken, put) = append.put_all(items, &mut self.writer.sequence, results);
        *took += taken;
        self.idle = if *took == 0 { self.idle + 1 } else { 0 };
        match put {
            Put::Taken => {}
            Put::Failed => self.close(results),
            Put::SegmentFull => self.close_full(results),
        }
        if self.idle > TRIES {
            self.refused = Some((owner, Refused::Full));
            return Err(Refused::Full);
        }
        Ok(taken)
    }

    /// Makes what the open segment took durable and visible; others may append to it later.
    fn close(&mut self, results: &mut [Result<(), Refused>]) {
        if let Some(open) = self.finish(results) {
            self.writer.open.push(open);
        }
    }

    /// [`Run::close`] of a segment that is full.
    fn close_full(&mut self, results: &mut [Result<(), Refused>]) {
        if let Some(open) = self.finish(results) {
            self.disk.finish(open);
        }
    }

    /// The open segment, if it is well. A failed one keeps what was acknowledged before, and gets
    /// nothing more.
    fn finish(&mut self, results: &mut [Result<(), Refused>]) -> Option<Open> {
        let (append, _) = self.current.take()?;
        let (open, ok) = append.finish(results);
        (ok || bug!("poisoned_reused")).then_some(open)
    }
}

/// Bytes that items take, at most.
fn expected(items: &[(usize, Item)]) -> usize {
    items.iter().map(|(_, item)| item.need()).sum()
}
