//! Draft views: what a selector chose for good, as a value that other sequences can read by.

use std::sync::Arc;

use kvist_policies::{Method, Reuse};
use serde::{Deserialize, Serialize};

use crate::memory::Last;
use crate::selector::Reads;
use crate::{Error, Sequence};

/// Version of the written form.
const VERSION: u32 = 1;

/// What the heads of a sequence read from some length on, chosen by a selector that chooses once (`snapkv`,
/// `magicdec`): the view that drafts are made with (MagicDec, arXiv 2408.11049).
///
/// A small value: serde writes it (`docs/formats.md`), and what is read is checked. It says nothing of the
/// tokens it was made for; a sequence of other tokens drafts badly with it, which a dense verification
/// finds out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct View {
    len: u32,
    heads: Vec<Vec<Option<HeadView>>>,
}

/// What one KV head reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadView {
    /// All tokens from this position on, and what is appended later.
    pub from: u32,
    /// Positions read besides, ascending, all below `from`.
    pub positions: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kvist_view: u32,
    len: u32,
    heads: Vec<Vec<Option<HeadView>>>,
}

impl From<View> for Written {
    fn from(view: View) -> Written {
        Written { kvist_view: VERSION, len: view.len, heads: view.heads }
    }
}

impl TryFrom<Written> for View {
    type Error = Error;

    fn try_from(written: Written) -> Result<View, Error> {
        if written.kvist_view != VERSION {
            return Err(Error::setting("kvist_view", VERSION, written.kvist_view));
        }
        View::new(written.len, written.heads)
    }
}

impl View {
    /// A view of `heads` `[layers][kv_heads]`, for sequences of at least `len` tokens. Heads without a view
    /// go by their own selector.
    ///
    /// # Errors
    /// [`Error::Setting`] if layers differ in heads, positions do not ascend or are not below `from`, or
    /// `from` is behind `len`.
    pub fn new(len: u32, heads: Vec<Vec<Option<HeadView>>>) -> Result<View, Error> {
        let wide = heads.first().map_or(0, Vec::len);
        for (layer, row) in heads.iter().enumerate() {
            let at = |what: &str| format!("{what} in layer {layer}");
            if row.len() != wide {
                let expected = at(&format!("of {wide} KV heads, as in layer 0,"));
                return Err(Error::setting("view", expected, row.len()));
            }
            for head in row.iter().flatten() {
                if head.from > len {
                    let expected = at(&format!("from at most {len}, its length,"));
                    return Err(Error::setting("view", expected, head.from));
                }
                let bounds = head.positions.iter().chain([&head.from]);
                let mut pairs = head.positions.iter().zip(bounds.skip(1));
                if let Some((a, b)) = pairs.find(|(a, b)| a >= b) {
                    let expected = at(&format!("of ascending positions below {}", head.from));
                    return Err(Error::setting("view", expected, format!("{a} before {b}")));
                }
            }
        }
        Ok(View { len, heads })
    }

    /// Tokens that a sequence must have to read by it: those of the prompt it was made of.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the length of a sequence")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// What each head reads, `[layers][kv_heads]`.
    #[must_use]
    pub fn heads(&self) -> &[Vec<Option<HeadView>>] {
        &self.heads
    }
}

/// Whether a head chooses once and for good.
fn chooses_once(reads: &Arc<Reads>) -> bool {
    matches!(&reads.method, Method::Parts(parts) if parts.reuse == Reuse::Prompt)
}

impl Sequence {
    /// What the selector of this sequence chose for good; none before the first single query after the
    /// prompt, and for selectors that choose anew.
    #[must_use]
    pub fn view(&self) -> Option<View> {
        let mut len = 0;
        let of_layer = |layer: usize| -> Vec<Option<HeadView>> {
            let memory = self.memories.of(layer);
            let mut of_head = |(head, reads): (usize, &Arc<Reads>)| {
                let last = memory.last.get(head)?.as_ref().filter(|_| chooses_once(reads))?;
                len = len.max(last.len as u32);
                Some(HeadView { from: last.from as u32, positions: last.chosen.clone() })
            };
            self.selector.layer(layer).iter().enumerate().map(&mut of_head).collect()
        };
        let heads: Vec<Vec<_>> = (0..self.layers.len()).map(of_layer).collect();
        heads.iter().flatten().any(Option::is_some).then_some(View { len, heads })
    }

    /// Reads by a view, until several queries come at once (another prompt) or the sequence is cut to less
    /// than its length. Its heads read what it says, whatever the selector's budget; heads without a view
    /// choose for themselves. A sequence that is no longer than its selector's budget is read whole.
    ///
    /// # Errors
    /// [`Error::Setting`] if the view has other numbers of layers or KV heads, or one for a head that does
    /// not choose once; [`Error::Length`] if the sequence has fewer tokens. Nothing changes then.
    pub fn set_view(&mut self, view: &View) -> Result<(), Error> {
        self.check_view(view)?;
        let last = |head: &Option<HeadView>| {
            let HeadView { from, positions } = head.clone()?;
            let (from, len) = (from as usize, view.len as usize);
            Some(Last { q: Vec::new(), chosen: positions, from, len, steps: 1, used: len })
        };
        for (layer, heads) in view.heads.iter().enumerate() {
            self.memories.of(layer).last = heads.iter().map(last).collect();
        }
        Ok(())
    }

    fn check_view(&self, view: &View) -> Result<(), Error> {
        let g = self.cache.geometry();
        let shape = |layers: usize, heads: usize| format!("of {layers} layers, {heads} KV heads");
        let found = (view.heads.len(), view.heads.first().map_or(0, Vec::len));
        if found != (g.layers, g.kv_heads) {
            let expected = shape(g.layers, g.kv_heads);
            return Err(Error::setting("view", expected, shape(found.0, found.1)));
        }
        for (layer, heads) in view.heads.iter().enumerate() {
            let (len, found) = (self.layers[layer].len, view.len as usize);
            if len < found && heads.iter().any(Option::is_some) {
                return Err(Error::Length { what: "view", layer, len, found });
            }
            let mut each = heads.iter().zip(self.selector.layer(layer));
            if each.any(|(head, reads)| head.is_some() && !chooses_once(reads)) {
                let expected = "for layers that choose once, as with select snapkv or magicdec";
                let found = format!("layer {layer} of select {:?}", self.selector.select.name());
                return Err(Error::setting("view", expected, found));
            }
        }
        Ok(())
    }
}
