//! Plain bytes as records: what sessions keep beside pages.

use super::Disk;
use super::read::{Place, reason, reason_of_error};
use super::spans::{SpanNext, SpanReads};
use crate::Error;
use crate::codec::{Codec, Directory, Kind, PageSource, Plan};
use crate::format::{AttentionKind, BlockDType, BlockLayout};
use crate::format::{BlockKey, SECTOR};
use crate::miss::MissReason;

/// Rows of a page, at most.
const ROWS_MAX: usize = 4096;

/// How a run of bytes is laid out as a block: rows of a sector, the last one filled up with zeros.
#[derive(Debug)]
pub(crate) struct BlobPlan {
    plan: Plan,
    len: usize,
}

/// Bytes that were padded to the block's length.
pub(crate) struct Padded<'a> {
    bytes: &'a [u8],
    page: usize,
}

impl PageSource for Padded<'_> {
    fn page(&self, index: usize) -> (&[u8], &[u8]) {
        (&self.bytes[index * self.page..][..self.page], &[])
    }
}

impl BlobPlan {
    /// # Errors
    /// [`Error::Setting`] if it would be larger than any record.
    pub(crate) fn new(len: usize) -> Result<BlobPlan, Error> {
        let rows = len.div_ceil(SECTOR).max(1);
        let pages = rows.div_ceil(ROWS_MAX);
        let layout = BlockLayout {
            dim_v: 0,
            attention: AttentionKind::Latent,
            ..BlockLayout::new(
                BlockDType::U8,
                rows.div_ceil(pages) as u32,
                1,
                pages as u32,
                SECTOR as u32,
            )
        };
        Ok(BlobPlan { plan: Plan::new(&layout, &Codec::raw())?, len })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Fills the bytes up, to be stored.
    pub(crate) fn pad<'a>(&self, bytes: &'a mut Vec<u8>) -> Padded<'a> {
        bytes.resize(self.plan.layout().bytes(), 0);
        Padded { bytes, page: self.plan.layout().page_bytes() }
    }

    /// Checks a record and finds its bytes.
    fn bytes<'a>(&self, disk: &Disk, place: &Place, raw: &'a [u8]) -> Result<&'a [u8], MissReason> {
        let header = place.header(disk, raw)?;
        if header.layout != *self.plan.fingerprint() {
            return Err(MissReason::LayoutMismatch);
        }
        let directory = Directory::parse(raw, &header, &self.plan).map_err(reason)?;
        let pages = self.plan.layout().pages();
        let mut found = 0..0;
        for page in 0..pages {
            // Raw sections of whole sectors lie back to back.
            let range = directory.page_range(page);
            let range = range.start as usize..range.end as usize;
            if page > 0 && range.start != found.end {
                return Err(MissReason::Checksum);
            }
            let stored = raw.get(range.clone()).ok_or(MissReason::Torn)?;
            directory.section(page, Kind::K).check(directory.seed(), stored).map_err(reason)?;
            found = if page == 0 { range } else { found.start..range.end };
        }
        raw.get(found).and_then(|bytes| bytes.get(..self.len)).ok_or(MissReason::Torn)
    }
}

impl Disk {
    /// Reads blobs, in any order, and hands each to `take`.
    ///
    /// # Errors
    /// The first one that cannot be had, and why.
    pub(crate) fn read_blobs(
        &self,
        blobs: &[(BlockKey, BlobPlan)],
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<(), (usize, MissReason)> {
        let refused = |reason| (0, reason);
        self.check_readable().map_err(refused)?;
        let mut places = Vec::with_capacity(blobs.len());
        for (i, (key, _)) in blobs.iter().enumerate() {
            places.push(self.find(key).ok_or((i, MissReason::Gone))?);
        }
        let span = |(i, place): (usize, &Place)| place.span(0..place.entry.bytes(), i);
        let mut reads = SpanReads::start(self, places.iter().enumerate().map(span).collect());
        let outcome = loop {
            let run = match reads.next(Some(self.deadline())) {
                SpanNext::Done(run) => run,
                SpanNext::TimedOut => {
                    self.health.lock().stuck(self.vfs.now());
                    break Err((0, MissReason::Timeout));
                }
                SpanNext::Empty => break Ok(()),
            };
            let mut look = |i: usize, range| {
                let stored: Result<&[u8], MissReason> = match (&run.result, &run.buf) {
                    (Ok(()), Some(buf)) => Ok(&buf[range]),
                    (Err(e), _) => Err(reason_of_error(e)),
                    _ => Err(MissReason::Busy),
                };
                let (_, plan) = &blobs[i];
                let bytes = stored.and_then(|raw| plan.bytes(self, &places[i], raw));
                bytes.map(|bytes| take(i, bytes)).map_err(|reason| {
                    self.failed(&places[i], reason);
                    (i, reason)
                })
            };
            let looked = run.parts.iter().try_for_each(|part| look(part.tag, part.range.clone()));
            run.buf.into_iter().for_each(|buf| self.reuse(buf));
            if looked.is_err() {
                break looked;
            }
        };
        self.count_read(reads.read_bytes());
        outcome
    }
}
