//! Which tokens a query reads: ragged lists of pages or of single slots.

use crate::{Error, KvPool};

/// Ragged page lists. List `i` is `frames[indptr[i]..indptr[i + 1]]`, ascending by position.
///
/// There is one list per sequence, or one per (sequence, KV head) when `per_head` is set
/// (list index `sequence * kv_heads + head`).
#[derive(Clone, Copy, Debug)]
pub struct PageLists<'a> {
    /// Offsets into `frames`, one more than there are lists.
    pub indptr: &'a [u32],
    /// Frame numbers.
    pub frames: &'a [u32],
    /// Tokens of each list: all its pages are full but the last.
    pub lens: &'a [u32],
    /// Absolute position of each list's first token (pages of a list are consecutive).
    /// `None` means 0 for all.
    pub first_pos: Option<&'a [u32]>,
    /// One list per (sequence, KV head).
    pub per_head: bool,
}

/// Ragged token lists: slots `frame * page_tokens + offset`, ascending by position.
#[derive(Clone, Copy, Debug)]
pub struct SlotLists<'a> {
    /// Offsets into `slots`, one more than there are lists.
    pub indptr: &'a [u32],
    /// Slot numbers.
    pub slots: &'a [u32],
    /// Absolute position of each slot; needed for causal masks and windows only.
    pub positions: Option<&'a [u32]>,
    /// One list per (sequence, KV head).
    pub per_head: bool,
}

pub(crate) fn check_indptr(
    what: &'static str,
    indptr: &[u32],
    lists: usize,
    nnz: usize,
) -> Result<(), Error> {
    if indptr.len() != lists + 1 {
        return Err(Error::shape(what, format!("{} offsets", lists + 1), indptr.len()));
    }
    if indptr[0] != 0 || indptr.windows(2).any(|w| w[0] > w[1]) {
        return Err(Error::range(what, "offsets that start at 0 and never fall", "others"));
    }
    if indptr[lists] as usize != nnz {
        return Err(Error::shape(what, format!("last offset {nnz}"), indptr[lists]));
    }
    Ok(())
}

/// Checks that numbers rise and stay below `end`.
pub(crate) fn ascending(what: &'static str, ids: &[u32], end: usize) -> Result<(), Error> {
    if let Some(w) = ids.windows(2).find(|w| w[0] >= w[1]) {
        let found = format!("{} before {}", w[0], w[1]);
        return Err(Error::range(what, "strictly ascending numbers", found));
    }
    match ids.last() {
        Some(&last) if last as usize >= end => Err(Error::range(what, format!("0..{end}"), last)),
        _ => Ok(()),
    }
}

impl PageLists<'_> {
    /// Checks every offset, frame number and length against the pool.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Range`] naming the list that does not fit.
    pub fn check(&self, pool: &KvPool, sequences: usize, kv_heads: usize) -> Result<(), Error> {
        let lists = if self.per_head { sequences * kv_heads } else { sequences };
        check_indptr("page lists indptr", self.indptr, lists, self.frames.len())?;
        if self.lens.len() != lists {
            return Err(Error::shape("page lists lens", lists, self.lens.len()));
        }
        if let Some(first) = self.first_pos
            && first.len() != lists
        {
            return Err(Error::shape("page lists first_pos", lists, first.len()));
        }
        if let Some(bad) = self.frames.iter().find(|&&f| f as usize >= pool.frames()) {
            return Err(Error::range("frame", format!("0..{}", pool.frames()), bad));
        }
        let page = pool.layout().page_tokens;
        for (w, &len) in self.indptr.windows(2).zip(self.lens) {
            let pages = (w[1] - w[0]) as usize;
            if (len as usize).div_ceil(page) != pages {
                return Err(Error::shape(
                    "page list",
                    format!("{} pages for {len} tokens", (len as usize).div_ceil(page)),
                    pages,
                ));
            }
        }
        Ok(())
    }
}

impl SlotLists<'_> {
    /// Checks every offset and slot number against the pool.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Range`] naming what does not fit.
    pub fn check(&self, pool: &KvPool, sequences: usize, kv_heads: usize) -> Result<(), Error> {
        let lists = if self.per_head { sequences * kv_heads } else { sequences };
        check_indptr("slot lists indptr", self.indptr, lists, self.slots.len())?;
        if let Some(p) = self.positions
            && p.len() != self.slots.len()
        {
            return Err(Error::shape("slot positions", self.slots.len(), p.len()));
        }
        let slots = pool.frames() * pool.layout().page_tokens;
        match self.slots.iter().find(|&&s| s as usize >= slots) {
            Some(bad) => Err(Error::range("slot", format!("0..{slots}"), bad)),
            None => Ok(()),
        }
    }
}
