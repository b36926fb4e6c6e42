//! Which tokens of its list a query row reads.

use std::ops::Range;

use super::blocks::{Members, Picked};
use super::engine::Unit;
use super::reach::Reach;
use super::source::Source;
use super::tree::Ancestors;

/// What is read of a list, before the causal mask and the window.
#[derive(Debug)]
pub(super) enum Pick<'a> {
    /// All of it.
    All,
    /// Listed blocks.
    Blocks(Picked<'a>),
    /// Of a draft tree, the query's own node and those above it.
    Ancestors(&'a Ancestors),
}

/// The tokens of the unit that a thread works on.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) reach: Reach,
    /// The unit's lists, if its rows may want different tokens.
    members: Option<Members>,
    /// Which of them each row reads.
    lists: Vec<u8>,
    /// What each of them wants of a tile.
    wanted: Vec<u64>,
    buffers: [Vec<u64>; 2],
}

impl Opened {
    pub(super) fn new() -> Opened {
        let (lists, wanted, buffers) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
        Opened { reach: Reach::new(), members: None, lists, wanted, buffers }
    }

    /// Query heads that want the same tokens; all rows of a unit if there is but one list.
    pub(super) fn sharing(&self) -> Option<usize> {
        self.members.as_ref().map(Members::sharing)
    }

    /// Notes what each list wants of a tile, by the runs.
    fn look(&mut self, tile: usize) {
        let Some(members) = &self.members else { return };
        self.wanted.clear();
        self.wanted.resize(members.len(), 0);
        let mut at = 0;
        for piece in self.reach.pieces(tile) {
            let bits = span(at..at + piece.len);
            let mut who = piece.who;
            while who != 0 {
                self.wanted[who.trailing_zeros() as usize] |= bits;
                who &= who - 1;
            }
            at += piece.len;
        }
    }

    /// Tokens of the tile looked at that a query token's head wants, as bits.
    pub(super) fn wanted(&self, token: usize, head: usize) -> u64 {
        self.members.as_ref().map_or(u64::MAX, |m| self.wanted[m.of(token, head)])
    }

    /// The same for a row of the unit.
    pub(super) fn wanted_by(&self, row: usize) -> u64 {
        self.lists.get(row).map_or(u64::MAX, |&list| self.wanted[usize::from(list)])
    }
}

/// The bits of a range within a tile.
pub(super) fn span(range: Range<usize>) -> u64 {
    let below = |n: usize| if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
    below(range.end) & !below(range.start)
}

impl Pick<'_> {
    /// Query rows and query heads of a unit of about `rows` rows, and the rows of the sequence at
    /// whose multiples it may begin.
    pub(super) fn unit_shape(
        &self,
        rows: usize,
        queries: usize,
        group: usize,
    ) -> (usize, usize, usize) {
        match self {
            Pick::All | Pick::Ancestors(_) => ((rows / group).max(1), group, usize::MAX),
            Pick::Blocks(b) => {
                let (tokens, heads) = b.unit_shape(rows, queries, group);
                (tokens, heads, b.step())
            }
        }
    }

    /// Finds what a unit reads.
    pub(super) fn open(&self, unit: &Unit, source: &Source, opened: &mut Opened) {
        let len = source.len(unit.list);
        opened.members = match self {
            Pick::All => {
                opened.reach.all(len);
                None
            }
            Pick::Blocks(blocks) => {
                let members = blocks.members(unit);
                blocks.reach(unit, &members, len, &mut opened.buffers, &mut opened.reach);
                Some(members).filter(|m| m.len() > 1)
            }
            Pick::Ancestors(ancestors) => {
                opened.reach.all(ancestors.end(unit).min(len));
                Some(Members::each_row(unit))
            }
        };
        opened.lists.clear();
        if let Some(members) = &opened.members {
            let of = |token| unit.heads.clone().map(move |head| members.of(token, head) as u8);
            opened.lists.extend(unit.tokens.clone().flat_map(of));
        }
    }

    /// Notes what each list of the unit wants of a tile.
    pub(super) fn look(&self, tile: usize, opened: &mut Opened) {
        match self {
            Pick::All => {}
            Pick::Blocks(_) => opened.look(tile),
            Pick::Ancestors(ancestors) => {
                let rows = opened.members.as_ref().map_or(0..0, Members::rows);
                opened.wanted.clear();
                opened.wanted.extend(rows.map(|row| ancestors.bits(row, tile)));
            }
        }
    }

    /// Whether tokens of the list are read as they lie.
    pub(super) fn is_all(&self) -> bool {
        matches!(self, Pick::All)
    }
}
