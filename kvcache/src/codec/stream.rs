//! A record that is decoded while it arrives, front to back.

#![deny(clippy::indexing_slicing)]

use super::{Directory, Kind, PageSink, Plan, hash};
use crate::format::{Bad, Header};

/// Decodes a block from the pieces of its record. A section that two pieces share is put together
/// first; all others are decoded from where they arrived.
pub(crate) struct Stream {
    directory: Directory,
    decoded_hash: u64,
    /// Bytes of the record that arrived.
    at: usize,
    /// The next section in the directory.
    next: usize,
    /// The first part of it, if it is cut.
    carry: Vec<u8>,
    /// Of the block, where sections do not say all.
    decoded: Option<hash::Decoded>,
}

impl Stream {
    /// Of a record whose directory was read. `strict` also compares the checksum of the block where
    /// all tiles are stored as they are, and the sections' say all.
    pub(crate) fn new(directory: Directory, header: &Header, strict: bool) -> Stream {
        let raw = directory.sections().iter().all(|s| s.stages.is_raw());
        Stream {
            directory,
            decoded_hash: header.decoded_hash,
            at: 0,
            next: 0,
            carry: Vec::new(),
            decoded: (strict || !raw).then(hash::Decoded::new),
        }
    }

    /// Takes the next bytes of the record, from its first on.
    ///
    /// # Errors
    /// [`Bad`]; what the sink has taken must not be used then.
    pub(crate) fn feed(
        &mut self,
        plan: &Plan,
        bytes: &[u8],
        sink: &mut dyn PageSink,
    ) -> Result<(), Bad> {
        let (start, end) = (self.at, self.at + bytes.len());
        while let Some(section) = self.directory.sections().get(self.next) {
            let range = section.offset as usize..section.range().end as usize;
            let here = range.start.clamp(start, end) - start..range.end.min(end).max(start) - start;
            let here = bytes.get(here).ok_or(Bad::Short)?;
            if range.end > end {
                self.carry.extend_from_slice(here);
                break;
            }
            let mut carry = std::mem::take(&mut self.carry);
            let stored = match carry.is_empty() {
                true => here,
                false => {
                    carry.extend_from_slice(here);
                    &carry
                }
            };
            self.section(plan, stored, sink)?;
            self.next += 1;
        }
        self.at = end;
        Ok(())
    }

    /// Checks and decodes the next section.
    fn section(&mut self, plan: &Plan, stored: &[u8], sink: &mut dyn PageSink) -> Result<(), Bad> {
        let section = self.directory.sections().get(self.next).ok_or(Bad::Field)?;
        if section.kind == Kind::Side {
            return section.check(self.directory.seed(), stored);
        }
        let page =
            usize::from(section.layer) * plan.layout().num_heads() + usize::from(section.head);
        let (k, v) = sink.page(page);
        let tile = if section.kind == Kind::K { k } else { v };
        plan.decode_section(section, self.directory.seed(), stored, tile)?;
        self.decoded.iter_mut().for_each(|hash| hash.update(tile));
        Ok(())
    }

    /// Whether all sections have arrived, and the block is right.
    ///
    /// # Errors
    /// [`Bad::Short`], [`Bad::Checksum`].
    pub(crate) fn finish(self) -> Result<(), Bad> {
        if self.next < self.directory.sections().len() {
            return Err(Bad::Short);
        }
        let right = self.decoded.is_none_or(|hash| hash.finish() == self.decoded_hash);
        if right || bug!("section_not_checked") { Ok(()) } else { Err(Bad::Checksum) }
    }
}
