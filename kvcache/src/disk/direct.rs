//! Blocks that are stored as they are come from disk to their place at once; only what stands in front
//! of them goes through a buffer.

use super::read::{Place, reason};
use super::spans::{Into, Span};
use crate::codec::{Directory, PageSink, Plan};
use crate::format::{Bad, FLAG_SEALED, FLAG_TOKENS, Header};
use crate::miss::MissReason;
use crate::vfs::Buf;

/// Bytes of a piece: one is checked while the next is read.
const PIECE: usize = 1 << 20;

/// A block on its way to its place, in one piece or several.
pub(super) struct Direct {
    /// Bytes of the record in front of the block.
    prefix: usize,
    directory: Option<Directory>,
    hash: u64,
    /// Pieces that came before the directory: the first page of each.
    early: Vec<(usize, Buf)>,
    /// Pieces that have not come.
    left: usize,
}

impl Direct {
    /// The reads of a whole block, if it is stored as it is and its sink has a place for it.
    pub(super) fn start(
        plan: &Plan,
        place: &Place,
        tag: usize,
        sink: &mut impl PageSink,
    ) -> Option<(Direct, Vec<Span>)> {
        let (entry, len) = (&place.entry, plan.layout().bytes());
        let tokens = if entry.flags & FLAG_TOKENS == 0 { 0 } else { entry.tokens as usize };
        let prefix = plan.plain_prefix(tokens);
        let plain = plan.is_plain(entry.codec) && entry.bytes() == (prefix + len) as u64;
        if !plain || entry.flags & FLAG_SEALED != 0 {
            return None;
        }
        let page = plan.layout().page_bytes();
        let piece = if len <= PIECE { len } else { PIECE / page * page };
        let mut spans = Vec::new();
        for from in (0..len).step_by(piece.max(page)) {
            let bytes = from..len.min(from + piece.max(page));
            let record = (prefix + bytes.start) as u64..(prefix + bytes.end) as u64;
            let start = if from == 0 { 0 } else { record.start };
            let mut span = place.span(start..record.end, tag);
            let at = span.bytes.end - bytes.len() as u64;
            let into = Into { from: at, buf: sink.lend(bytes)? };
            if !into.suits(&place.segment) {
                return None;
            }
            span.into = Some(into);
            spans.push(span);
        }
        let left = spans.len();
        Some((Direct { prefix, directory: None, hash: 0, early: Vec::new(), left }, spans))
    }

    /// Takes a piece: what was read from byte `at` of the record, and the rest of it, which is in its
    /// place. `head` checks the header. `true` if the block is complete, and right.
    pub(super) fn arrived(
        &mut self,
        plan: &Plan,
        at: u64,
        (stored, placed): (&[u8], Buf),
        head: impl FnOnce(&[u8]) -> Result<Header, MissReason>,
    ) -> Result<bool, MissReason> {
        let mut first = 0;
        if at == 0 {
            let header = head(stored)?;
            let parsed = Directory::parse(stored, &header, plan);
            // One that is longer than the layout's is not what was written.
            let longer = |bad| if bad == Bad::Short { Bad::Checksum } else { bad };
            self.directory = Some(parsed.map_err(|bad| reason(longer(bad)))?);
            self.hash = header.decoded_hash;
        } else {
            first = (at as usize - self.prefix) / plan.layout().page_bytes();
        }
        self.left -= 1;
        self.early.push((first, placed));
        if let Some(directory) = &self.directory {
            for (first, placed) in self.early.drain(..) {
                check(plan, directory, self.prefix, first, &placed).map_err(reason)?;
            }
        }
        Ok(self.left == 0)
    }

    /// Checksum of the block, as its header tells.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

/// Checks neighbouring pages of a block that is stored as it is.
fn check(
    plan: &Plan,
    directory: &Directory,
    prefix: usize,
    first: usize,
    placed: &[u8],
) -> Result<(), Bad> {
    let page_bytes = plan.layout().page_bytes();
    for (page, bytes) in (first..).zip(placed.chunks_exact(page_bytes)) {
        let here = directory.page_range(page).start as usize == prefix + page * page_bytes;
        if !here || !directory.is_plain(page) {
            return Err(Bad::Field);
        }
        directory.check_page(page, bytes)?;
    }
    Ok(())
}
