//! What a session's file says of its layers (`docs/formats.md`, "Sessions"). Hostile bytes, although
//! their hash was right: every count is checked before anything is made of it.

#![deny(clippy::indexing_slicing)]

use std::ops::Range;

use crate::cache::Shared;
use crate::codec::{Directory, Plan};
use crate::format::{Bad, BlockKey, take};
use crate::layer::Layer;
use crate::summaries::TILE;

/// A layer's part.
#[derive(Debug, Default)]
pub(super) struct SavedLayer {
    pub(super) len: usize,
    /// Which heads have summaries.
    pub(super) summarised: Vec<bool>,
    /// Where the pages of each stripe are.
    pub(super) directories: Vec<Directory>,
    /// Key norms of sealed pages, `[head][page]`, of the heads with summaries.
    pub(super) norms: Vec<f32>,
    /// Tiles of each record of summaries, one after the other from the first tile on.
    pub(super) chunks: Vec<Range<usize>>,
}

/// What a session is made of. Its records are, layer by layer, stripes and summaries, and at last the
/// pieces of the open rows.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// What the summaries are: [`crate::summaries::Spec::code`], zeros without.
    pub(super) spec: [u32; 3],
    /// Bytes of each piece but the last.
    pub(super) piece: usize,
    /// Bytes of all pieces.
    pub(super) open_bytes: usize,
    pub(super) layers: Vec<SavedLayer>,
}

impl Body {
    /// Records of open rows.
    pub(super) fn pieces(&self) -> usize {
        self.open_bytes.div_ceil(self.piece)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let put = |out: &mut Vec<u8>, n: usize| out.extend((n as u64).to_le_bytes());
        self.spec.iter().for_each(|&n| put(&mut out, n as usize));
        put(&mut out, self.piece);
        put(&mut out, self.open_bytes);
        for layer in &self.layers {
            put(&mut out, layer.len);
            put(&mut out, layer.which());
            put(&mut out, layer.directories.len());
            put(&mut out, layer.chunks.len());
            if layer.which() == SOME {
                out.extend(layer.summarised.iter().map(|&s| u8::from(s)));
            }
            layer.directories.iter().for_each(|d| d.entries(&mut out));
            layer.norms.iter().for_each(|n| out.extend(n.to_le_bytes()));
            layer.chunks.iter().for_each(|c| put(&mut out, c.len()));
        }
        out
    }

    /// # Errors
    /// [`Bad`] if it does not say what a session of this cache's geometry with these records can say.
    pub(super) fn decode(
        mut raw: &[u8],
        keys: &[BlockKey],
        shared: &Shared,
        plan: &Plan,
    ) -> Result<Body, Bad> {
        let raw = &mut raw;
        let [kind, parameter, cell] = [number(raw)?, number(raw)?, number(raw)?];
        let spec = [kind, parameter, cell].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let (piece, open_bytes) = (number(raw)?, number(raw)?);
        let mut body = Body { spec, piece, open_bytes, layers: Vec::new() };
        let (mut left, mut open) = (keys, 0usize);
        for _ in 0..shared.geometry.layers {
            let layer = SavedLayer::decode(raw, &mut left, shared, plan)?;
            open += Layer::open_bytes(shared, layer.len);
            body.layers.push(layer);
        }
        let fits = piece > 0 && open == open_bytes && left.len() == body.pieces();
        if fits && raw.is_empty() { Ok(body) } else { Err(Bad::Field) }
    }
}

/// Which heads of a layer have summaries, as a number: none of them, all, or those that bytes of 0 and 1
/// tell, one for each.
const NONE: usize = 0;
const ALL: usize = 1;
const SOME: usize = 2;

impl SavedLayer {
    /// Heads with summaries.
    pub(super) fn heads(&self) -> usize {
        self.summarised.iter().filter(|&&s| s).count()
    }

    fn which(&self) -> usize {
        match self.heads() {
            0 => NONE,
            n if n == self.summarised.len() => ALL,
            _ => SOME,
        }
    }

    fn decode(
        raw: &mut &[u8],
        keys: &mut &[BlockKey],
        shared: &Shared,
        plan: &Plan,
    ) -> Result<SavedLayer, Bad> {
        let (len, which) = (number(raw)?, number(raw)?);
        let (stripes, chunks) = (number(raw)?, number(raw)?);
        let possible = len <= u32::MAX as usize
            && stripes == Layer::sealed_of(shared, len)
            && which <= SOME
            && stripes <= keys.len()
            && chunks <= keys.len() - stripes;
        if !possible {
            return Err(Bad::Field);
        }
        let heads = shared.geometry.kv_heads;
        let summarised = match which {
            SOME => cut(raw, heads)?.iter().map(flag).collect::<Result<_, _>>()?,
            _ => vec![which == ALL; heads],
        };
        let mut layer = SavedLayer { len, summarised, ..SavedLayer::default() };
        if layer.which() != which {
            return Err(Bad::Field);
        }
        let (of_stripes, rest) = keys.split_at_checked(stripes).ok_or(Bad::Field)?;
        *keys = rest.get(chunks..).ok_or(Bad::Field)?;
        for key in of_stripes {
            let entries = cut(raw, Directory::entries_bytes(plan))?;
            layer.directories.push(Directory::of_entries(entries, key, plan)?);
        }
        let norms = (stripes * layer.heads()).checked_mul(4).ok_or(Bad::Field)?;
        let norms = cut(raw, norms)?.as_chunks::<4>().0.iter();
        layer.norms = norms.map(|n| f32::from_le_bytes(*n)).collect();
        let mut from = 0;
        for _ in 0..chunks {
            let tiles = number(raw)?;
            let to = from + tiles;
            if tiles == 0 || to > len / TILE {
                return Err(Bad::Field);
            }
            layer.chunks.push(from..to);
            from = to;
        }
        if from != if which == NONE { 0 } else { len / TILE } {
            return Err(Bad::Field);
        }
        Ok(layer)
    }
}

/// A number, as far as it is one that can be counted to.
fn number(raw: &mut &[u8]) -> Result<usize, Bad> {
    let n = u64::from_le_bytes(take(raw)?);
    usize::try_from(n).ok().filter(|&n| n <= 1 << 40).ok_or(Bad::Field)
}

fn flag(byte: &u8) -> Result<bool, Bad> {
    if *byte <= 1 { Ok(*byte == 1) } else { Err(Bad::Field) }
}

/// The next `n` bytes.
fn cut<'a>(raw: &mut &'a [u8], n: usize) -> Result<&'a [u8], Bad> {
    let (head, rest) = raw.split_at_checked(n).ok_or(Bad::Short)?;
    *raw = rest;
    Ok(head)
}
