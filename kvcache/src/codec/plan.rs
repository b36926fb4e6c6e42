//! What encoding and decoding need to know of a layout and a codec, worked out once.

use kvist_kernels::Isa;

use super::directory::{ENTRY_BYTES, HEAD_BYTES};
use super::{Codec, Expw, Kind};
use crate::Error;
use crate::format::{BlockLayout, HEADER_BYTES, Limits, SECTOR};

/// Coded sections start at multiples of this: a cache line, and the widest vector register.
pub(super) const CODED_ALIGN: usize = 64;
/// Raw sections start at multiples of a sector, so that direct I/O can land in a frame.
pub(super) const RAW_ALIGN: usize = SECTOR;

/// A layout and a codec, ready to encode and decode. Decoding does not depend on the codec: sections
/// name their stages.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(super) layout: BlockLayout,
    pub(super) fingerprint: [u8; 32],
    pub(super) codec: Codec,
    pub(super) isa: Isa,
    k: Tile,
    v: Tile,
}

/// K or V tile of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) bytes: usize,
    /// `None` for types without exponents.
    pub(super) expw: Option<Expw>,
}

impl Tile {
    fn new(layout: &BlockLayout, dim: u32) -> Result<Tile, Error> {
        let tokens = layout.block_tokens as usize;
        let bytes = tokens * dim as usize * layout.dtype.size();
        let expw = match layout.dtype.kernel() {
            Some(dtype) if bytes > 0 => Some(Expw::new(dtype, tokens, dim as usize)?),
            _ => None,
        };
        Ok(Tile { bytes, expw })
    }

    /// Most bytes that a section of it takes, gap in front included; a multiple of a sector.
    fn room(&self) -> u64 {
        let coded = self.expw.map_or(0, |e| e.max_encoded());
        coded.max(self.bytes).next_multiple_of(RAW_ALIGN) as u64
    }
}

impl Plan {
    /// # Errors
    /// [`Error::Setting`] for an impossible layout, or one whose records are above the hard limit.
    pub(crate) fn new(layout: &BlockLayout, codec: &Codec) -> Result<Plan, Error> {
        layout.validate()?;
        let counts = [("layers", layout.num_layers()), ("kv_heads", layout.num_heads())];
        for (setting, count) in counts {
            // The directory counts them in 16 bits, and one value stands for all heads.
            if count >= usize::from(u16::MAX) {
                return Err(Error::setting(setting, "below 65535 in a block", count));
            }
        }
        let plan = Plan {
            layout: layout.clone(),
            fingerprint: layout.fingerprint(),
            codec: *codec,
            isa: Isa::level(),
            k: Tile::new(layout, layout.dim_k)?,
            v: Tile::new(layout, layout.dim_v)?,
        };
        let record = plan.bound(layout.block_tokens as usize);
        let most = u64::from(Limits::RECORD_BYTES_HARD);
        if record > most {
            let expected = format!("at most {most} bytes a record");
            return Err(Error::setting("block layout", expected, record));
        }
        Ok(plan)
    }

    /// The layout.
    pub(crate) fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// The codec.
    pub(crate) fn codec(&self) -> &Codec {
        &self.codec
    }

    /// [`BlockLayout::fingerprint`], which is not free.
    pub(crate) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Most bytes that a record with that many token ids takes: header, token ids, directory,
    /// sections and padding; a multiple of a sector.
    pub(crate) fn max_encoded(&self, tokens: usize) -> usize {
        self.bound(tokens) as usize
    }

    /// Bytes from a record's start to the end of its directory: what to read before any section.
    /// A directory with side sections is longer; [`super::Directory::end`] knows.
    pub(crate) fn prefix_bytes(&self, tokens: usize) -> usize {
        HEADER_BYTES + tokens * 4 + HEAD_BYTES + self.sections() * ENTRY_BYTES
    }

    /// Whether a record of the codec is a prefix and then the block in canonical order, as it is.
    pub(crate) fn is_plain(&self, codec: u16) -> bool {
        let plain = |&kind: &Kind| self.tile(kind).bytes.is_multiple_of(RAW_ALIGN);
        codec == Codec::raw().id() && self.kinds().iter().all(plain)
    }

    /// Bytes in front of the block's in a record of such a plan.
    pub(crate) fn plain_prefix(&self, tokens: usize) -> usize {
        self.prefix_bytes(tokens).next_multiple_of(RAW_ALIGN)
    }

    /// Sections of a block: one per page and kind.
    pub(super) fn sections(&self) -> usize {
        self.layout.pages() * self.kinds().len()
    }

    /// Kinds of sections that every page has.
    pub(super) fn kinds(&self) -> &'static [Kind] {
        if self.v.bytes > 0 { &[Kind::K, Kind::V] } else { &[Kind::K] }
    }

    pub(super) fn tile(&self, kind: Kind) -> &Tile {
        if kind == Kind::K { &self.k } else { &self.v }
    }

    /// Every section starts at most one sector border behind the end of the one before; summed in
    /// 64 bits, since tiny pages in large numbers take far more than their bytes.
    fn bound(&self, tokens: usize) -> u64 {
        let prefix = self.prefix_bytes(tokens).next_multiple_of(RAW_ALIGN) as u64;
        prefix + self.layout.pages() as u64 * (self.k.room() + self.v.room())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BlockDType;

    #[test]
    fn a_layout_whose_record_would_be_too_large_is_refused() {
        let tiny_pages = BlockLayout::new(BlockDType::U8, 1, 60_000, 100, 1);
        tiny_pages.validate().unwrap();
        let text = Plan::new(&tiny_pages, &Codec::raw()).unwrap_err().to_string();
        assert!(text.contains("bytes a record"), "{text}");
        let many = BlockLayout::new(BlockDType::U8, 1, 65_535, 1, 1);
        let text = Plan::new(&many, &Codec::raw()).unwrap_err().to_string();
        assert!(text.contains("layers"), "{text}");
    }
}
