//! Payload to pages. Whatever a check refuses has not been used; what was written to a tile before
//! a check failed must not be shown to anyone.

#![deny(clippy::indexing_slicing)]

use super::check::{check_padding, check_stored};
use super::directory::Section;
use super::profile::Entropy;
use super::{Directory, Kind, PageSink, Plan, Stream, hash};
use crate::format::{Bad, FLAG_SEALED, FLAG_TOKENS, HEADER_BYTES, Header, SECTOR};

impl Plan {
    /// Checks and decodes one section of a block with this seed. `stored` are its bytes, `tile` is as
    /// long as the layout says.
    ///
    /// # Errors
    /// [`Bad`]; the tile's content is undefined then.
    pub(super) fn decode_section(
        &self,
        section: &Section,
        seed: u64,
        stored: &[u8],
        tile: &mut [u8],
    ) -> Result<(), Bad> {
        section.check(seed, stored)?;
        let kind = section.kind;
        assert_eq!(tile.len(), self.tile(kind).bytes, "bytes of a {kind:?} tile");
        match (section.stages.entropy, self.tile(kind).expw) {
            (Entropy::Raw, _) => tile.copy_from_slice(stored),
            (Entropy::Expw, Some(expw)) => {
                expw.decode(self.isa, stored, tile).map_err(|_| Bad::Field)?;
            }
            (Entropy::Expw, None) => return Err(Bad::Unsupported),
        }
        Ok(())
    }

    /// Checks and decodes one page. `stored` are the bytes of [`Directory::page_range`].
    ///
    /// # Errors
    /// [`Bad`]; the tiles' content is undefined then.
    pub(crate) fn decode_page(
        &self,
        directory: &Directory,
        page: usize,
        stored: &[u8],
        (k, v): (&mut [u8], &mut [u8]),
    ) -> Result<(), Bad> {
        let from = directory.page_range(page).start;
        for &kind in self.kinds() {
            let section = directory.section(page, kind);
            let range = section.range();
            let range = (range.start - from) as usize..(range.end - from) as usize;
            let stored = stored.get(range).ok_or(Bad::Short)?;
            let tile = if kind == Kind::K { &mut *k } else { &mut *v };
            self.decode_section(section, directory.seed(), stored, tile)?;
        }
        Ok(())
    }

    /// Checks and decodes a whole record, the checksum of the decoded block included. If `strict`,
    /// `record` must reach to the end of its last sector, and padding must be zeros.
    ///
    /// # Errors
    /// [`Bad`]; what the sink has taken must not be used then.
    pub(crate) fn decode_block(
        &self,
        record: &[u8],
        header: &Header,
        sink: &mut dyn PageSink,
        strict: bool,
    ) -> Result<(), Bad> {
        let directory = Directory::parse(record, header, self)?;
        check_around(record, header, directory.sections(), strict)?;
        let mut stream = Stream::new(directory, header, strict);
        stream.feed(self, record, sink)?;
        stream.finish()
    }
}

/// [`check_stored`] for those who need not know where a record is wrong.
///
/// # Errors
/// [`Bad`] says which check failed.
pub(crate) fn verify_stored(record: &[u8], header: &Header, strict: bool) -> Result<(), Bad> {
    check_stored(record, header, strict).map_err(|flaw| flaw.bad)
}

/// The header that a sealed record would have if it were not, once its payload was decrypted.
///
/// # Errors
/// [`Bad`] if there is no directory.
pub(crate) fn unsealed(record: &[u8], header: &Header) -> Result<Header, Bad> {
    let mut open = Header { flags: header.flags & !FLAG_SEALED, ..*header };
    let end = Directory::end(record, &open)?;
    let prefix = record.get(HEADER_BYTES..end).ok_or(Bad::Short)?;
    open.payload_hash = hash::prefix(header.key.seed(), prefix);
    Ok(open)
}

/// Whether the record holds these token ids; `None` if it holds none. Says nothing of damage:
/// [`Directory::parse`] does.
pub(crate) fn tokens_equal(record: &[u8], header: &Header, tokens: &[u32]) -> Option<bool> {
    if header.flags & FLAG_TOKENS == 0 {
        return None;
    }
    let stored = record.get(HEADER_BYTES..HEADER_BYTES + header.token_bytes());
    let (stored, _) = stored.unwrap_or_default().as_chunks::<4>();
    Some(stored.iter().map(|raw| u32::from_le_bytes(*raw)).eq(tokens.iter().copied()))
}

/// Checks what is around the sections: the record is all there, and, if `strict`, what is between
/// sections and behind the last is zeros.
fn check_around(
    record: &[u8],
    header: &Header,
    sections: &[Section],
    strict: bool,
) -> Result<(), Bad> {
    let (used, padded) = (header.used_bytes(), header.sectors() as usize * SECTOR);
    if record.len() < if strict { padded } else { used } {
        return Err(Bad::Short);
    }
    if strict {
        check_padding(record, header, sections).map_err(|flaw| flaw.bad)?;
    }
    Ok(())
}
