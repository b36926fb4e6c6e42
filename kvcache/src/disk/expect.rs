//! What a reader asks for, and whether a record is that.

use std::ops::Range;

use super::Disk;
use super::read::{Place, reason};
use crate::codec::{Directory, PageSink, Plan, tokens_equal, unsealed};
use crate::format::{Bad, BlockKey, FLAG_SEALED, HEADER_BYTES, Header};
use crate::miss::MissReason;
use crate::seal::TenantKey;

/// What a reader knows of the blocks it asks for, and will accept.
#[derive(Clone, Copy)]
pub(crate) struct Expect<'a> {
    pub(crate) model: [u8; 32],
    /// First half of what stands for the tenant: others' records are not there.
    pub(crate) tenant: [u8; 16],
    pub(crate) plan: &'a Plan,
    /// Opens sealed records.
    pub(crate) seal: Option<&'a TenantKey>,
    /// Most loss that a record's codec may have.
    pub(crate) loss_max: u8,
}

/// A block to read.
pub(crate) struct Want<'a, S> {
    pub(crate) key: BlockKey,
    /// Its token ids, to be compared with those stored.
    pub(crate) tokens: Option<&'a [u32]>,
    /// The pages wanted, in canonical order; all of them is cheaper than many.
    pub(crate) pages: Range<usize>,
    /// Where they go, handed back with the result. Undefined unless that is `Ok`.
    pub(crate) sink: S,
}

impl Expect<'_> {
    /// The header of a record that is what was asked for.
    pub(super) fn header(
        &self,
        disk: &Disk,
        place: &Place,
        tokens: Option<&[u32]>,
        stored: &[u8],
    ) -> Result<Header, MissReason> {
        let header = place.header(disk, stored)?;
        if header.model != self.model {
            return Err(MissReason::ModelMismatch);
        }
        if header.layout != *self.plan.fingerprint() {
            return Err(MissReason::LayoutMismatch);
        }
        // A record in the clear would be taken from anybody who can write the directory.
        let sealed = header.flags & FLAG_SEALED != 0;
        if sealed != self.seal.is_some() && !bug!("seal_not_demanded") {
            return Err(MissReason::Decrypt);
        }
        // The caller allows less loss than this record has: for this caller it is not there.
        if header.loss_class > self.loss_max {
            return Err(MissReason::Absent);
        }
        match tokens.map(|tokens| tokens_equal(stored, &header, tokens)) {
            Some(Some(false)) if !bug!("tokens_not_compared") => Err(MissReason::KeyMismatch),
            _ => Ok(header),
        }
    }
}

/// Decodes a whole record, opening it first if it is sealed.
pub(super) fn whole<S: PageSink>(
    expect: Expect,
    place: &Place,
    want: &mut Want<S>,
    header: &Header,
    stored: &[u8],
) -> Result<(), MissReason> {
    if header.flags & FLAG_SEALED == 0 {
        return decode(expect.plan, want, header, stored).map_err(reason);
    }
    let key = expect.seal.ok_or(MissReason::Decrypt)?;
    let mut opened = stored.to_vec();
    let from = HEADER_BYTES + header.token_bytes();
    let (head, payload) = opened[..header.used_bytes()].split_at_mut(from);
    key.open(&place.segment.seal, header, &head[HEADER_BYTES..], payload).map_err(reason)?;
    let header = unsealed(&opened, header).map_err(reason)?;
    decode(expect.plan, want, &header, &opened).map_err(reason)
}

fn decode<S: PageSink>(
    plan: &Plan,
    want: &mut Want<S>,
    header: &Header,
    record: &[u8],
) -> Result<(), Bad> {
    if want.pages.len() == plan.layout().pages() {
        return plan.decode_block(record, header, &mut want.sink, false);
    }
    let directory = Directory::parse(record, header, plan)?;
    let extent = extent(&directory, &want.pages);
    let stored = record.get(extent.start as usize..extent.end as usize).ok_or(Bad::Short)?;
    pages_of(plan, &directory, want, stored)
}

/// The bytes of neighbouring pages, from the record's first byte.
pub(super) fn extent(directory: &Directory, pages: &Range<usize>) -> Range<u64> {
    if pages.is_empty() {
        return 0..0;
    }
    let (first, last) = (directory.page_range(pages.start), directory.page_range(pages.end - 1));
    u64::from(first.start)..u64::from(last.end)
}

pub(super) fn pages_of<S: PageSink>(
    plan: &Plan,
    directory: &Directory,
    want: &mut Want<S>,
    stored: &[u8],
) -> Result<(), Bad> {
    let base = extent(directory, &want.pages).start as usize;
    for page in want.pages.clone() {
        let range = directory.page_range(page);
        let range = range.start as usize - base..range.end as usize - base;
        let bytes = stored.get(range).ok_or(Bad::Short)?;
        plan.decode_page(directory, page, bytes, want.sink.page(page))?;
    }
    Ok(())
}
