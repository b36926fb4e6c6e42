//! The key summaries that a selector scores: which kind, where they live, how they are built.

use std::sync::{Arc, Mutex, PoisonError};

use kvist_kernels::score::CellList;
use kvist_kernels::summary::{self, BoxedSpec, LowBitSpec, UnitKind, UnitSpec};
use kvist_kernels::{DType, Isa};
use kvist_policies::{Method, Refine, Row};

use crate::arena::{Arena, Care, Cell};
use crate::boxes::{self, Boxes};
use crate::budget::Budget;
use crate::coarse::{Coarse, CoarseSpec};
use crate::pages::Head;
use crate::{Error, Geometry};

/// Tokens of a summary cell, whatever the page size.
pub(crate) const TILE: usize = summary::TILE;

/// What a cell holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spec {
    /// One row per unit, kept up to date token by token.
    Units(UnitSpec),
    /// Box and bit planes of 64 finished tokens.
    Boxed(BoxedSpec),
    /// Unit rows, then keys of a few bits, both kept up to date token by token.
    Pruned(UnitSpec, LowBitSpec),
}

impl Spec {
    /// What a selector scores; none if that is not summaries.
    pub(crate) fn of(method: &Method, geometry: &Geometry) -> Result<Option<Spec>, Error> {
        let Geometry { dim_k, dtype, .. } = *geometry;
        let parts = match method {
            Method::Full => return Ok(None),
            Method::Boxed(b) => return Ok(Some(Spec::Boxed(BoxedSpec::new(dim_k, b.planes)?))),
            Method::Parts(parts) => parts,
        };
        let Some((row, tokens)) = parts.rows() else { return Ok(None) };
        let kind = match row {
            Row::Box => UnitKind::Box,
            Row::MeanBox => UnitKind::MeanBox,
            Row::Mean => UnitKind::Mean,
        };
        let units = UnitSpec::new(kind, dim_k, dtype, tokens)?;
        Ok(Some(match parts.refine {
            None => Spec::Units(units),
            Some(Refine::TopP { bits, .. }) => Spec::Pruned(units, LowBitSpec::new(dim_k, bits)?),
        }))
    }

    fn cell_bytes(&self) -> usize {
        match self {
            Spec::Units(u) => u.cell_bytes(),
            Spec::Boxed(b) => b.cell_bytes(),
            Spec::Pruned(u, l) => u.cell_bytes() + l.cell_bytes(),
        }
    }

    /// What stands for it in files: kind, parameter, bytes of a cell. Whoever changes what a cell holds
    /// takes another kind.
    pub(crate) fn code(&self) -> [u32; 3] {
        let rows = |u: &UnitSpec| match u.kind() {
            UnitKind::Box => 1,
            UnitKind::MeanBox => 3,
            UnitKind::Mean => 4,
            UnitKind::Moment2 => 5,
        };
        let (kind, parameter) = match self {
            Spec::Units(u) => (rows(u), u.unit_tokens() as u32),
            Spec::Boxed(b) => (2, b.planes()),
            Spec::Pruned(u, l) => (rows(u) | l.bits() << 8, u.unit_tokens() as u32),
        };
        [kind, parameter, self.cell_bytes() as u32]
    }

    /// The row of a cell in which one of its tokens is; 0 where no row is written by itself.
    fn row(&self, token: usize) -> usize {
        match self {
            Spec::Units(units) => token / units.unit_tokens(),
            Spec::Boxed(_) | Spec::Pruned(..) => 0,
        }
    }

    /// Cells that `len` tokens need.
    pub(crate) fn cells(&self, len: usize) -> usize {
        match self {
            Spec::Units(_) | Spec::Pruned(..) => len.div_ceil(TILE),
            Spec::Boxed(_) => len / TILE,
        }
    }
}

/// Summary cells of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) spec: Spec,
    pub(crate) arena: Arc<Arena>,
    /// What long sequences are searched by first: boxes of 64 boxed cells, boxes of 16-token boxes.
    pub(crate) above: Option<Arc<Arena>>,
}

/// One arena per kind of summary, made when first needed.
#[derive(Debug, Default)]
pub(crate) struct Stores(Mutex<Vec<Store>>);

impl Stores {
    /// The cells of this kind.
    pub(crate) fn of(&self, spec: Spec, budget: &Arc<Budget>) -> Result<Store, Error> {
        let mut stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.iter().find(|s| s.spec == spec) {
            return Ok(store.clone());
        }
        let arena = |bytes| Arena::new(bytes, u32::MAX as usize, budget.clone(), Care::default());
        let above = match spec {
            Spec::Boxed(boxed) => Some(arena(CoarseSpec::new(boxed.dim())?.cell_bytes())?),
            Spec::Units(units) if units.kind() == UnitKind::Box => {
                Some(arena(boxes::cell_bytes(&units))?)
            }
            Spec::Units(_) | Spec::Pruned(..) => None,
        };
        let store = Store { spec, arena: arena(spec.cell_bytes())?, above };
        stores.push(store.clone());
        Ok(store)
    }

    /// Bytes of summary cells in use.
    pub(crate) fn bytes(&self) -> u64 {
        let stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stores.iter().flat_map(Store::arenas).map(|a| (a.used() * a.cell_bytes()) as u64).sum()
    }

    /// Summary cells in use.
    pub(crate) fn cells(&self) -> u64 {
        let stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stores.iter().flat_map(Store::arenas).map(|a| a.used() as u64).sum()
    }
}

impl Store {
    fn arenas(&self) -> impl Iterator<Item = &Arc<Arena>> {
        std::iter::once(&self.arena).chain(&self.above)
    }

    /// Brings the coarse boxes of a head up to its finished tiles.
    pub(crate) fn coarse(&self, head: &Head, coarse: &mut Coarse) -> Result<(), Error> {
        let (Spec::Boxed(spec), Some(arena)) = (&self.spec, &self.above) else { return Ok(()) };
        let (base, bytes) = (self.arena.at(0), self.arena.cell_bytes());
        // SAFETY: the cells are the head's, written when they were made.
        let cells = unsafe { CellList::new(base, bytes, head.cell_ids()) };
        coarse.extend(arena, spec, &cells)
    }

    /// Brings the boxes over a head's first `leaves` 16-token boxes up to those.
    pub(crate) fn boxes(&self, head: &Head, leaves: usize, boxes: &mut Boxes) -> Result<(), Error> {
        let (Spec::Units(spec), Some(arena)) = (&self.spec, &self.above) else { return Ok(()) };
        let cells = head.cell_ids();
        let leaf = |i: usize| {
            let row = i % spec.units() * spec.row_bytes();
            self.arena.at(cells[i / spec.units()]).wrapping_add(row)
        };
        // SAFETY: the cells are the head's, written when they were made; the leaves are whole.
        unsafe { boxes.extend(arena, spec, leaves, leaf) }
    }

    /// Writes what cell `tile` must say once the sequence has `len` tokens, given that it was right
    /// for `had` tokens before. `row` gives the address of a key.
    ///
    /// # Safety
    /// `row(t)` must be readable as a key of `dtype` for every token of the tile below `len`.
    pub(crate) unsafe fn update(
        &self,
        cell: &mut Arc<Cell>,
        dtype: DType,
        tile: usize,
        had: usize,
        len: usize,
        row: impl Fn(usize) -> *const u8,
    ) {
        let (first, last) = (tile * TILE, ((tile + 1) * TILE).min(len));
        let Some(bytes) = cell.bytes_from(self.spec.row(first.max(had) - first)) else {
            unreachable!("a summary cell is copied before it is written, see `Head::grow`");
        };
        match &self.spec {
            Spec::Boxed(spec) => {
                let rows: Vec<*const u8> = (first..last).map(row).collect();
                // SAFETY: 64 readable rows, by the caller (boxed cells are made for whole tiles).
                unsafe { summary::build_boxed_at(Isa::level(), spec, dtype, &rows, bytes) }
            }
            // SAFETY: readable rows, by the caller.
            Spec::Units(spec) => unsafe {
                update_units(spec, bytes, first.max(had), last, first, row)
            },
            Spec::Pruned(units, low) => {
                let (front, back) = bytes.split_at_mut(units.cell_bytes());
                let new = first.max(had)..last;
                let rows: Vec<*const u8> = new.clone().map(&row).collect();
                // SAFETY: readable rows, by the caller.
                unsafe {
                    update_units(units, front, new.start, last, first, row);
                    summary::build_low_bit(low, dtype, new.start - first, &rows, back);
                }
            }
        }
    }
}

/// Brings the unit rows of a tile that begins at token `first` to `last` tokens, given that they were
/// right for those before `from`.
///
/// # Safety
/// `row(t)` must be readable as a key of the spec's dtype for every token of the tile below `last`.
unsafe fn update_units(
    spec: &UnitSpec,
    bytes: &mut [u8],
    from: usize,
    last: usize,
    first: usize,
    row: impl Fn(usize) -> *const u8,
) {
    let unit = spec.unit_tokens();
    let mut at = from / unit * unit;
    while at < last {
        let rows: Vec<*const u8> = (at..(at + unit).min(last)).map(&row).collect();
        // SAFETY: readable rows, by the caller.
        unsafe { summary::update_unit(spec, bytes, (at - first) / unit, 0, &rows) }
        at += unit;
    }
}
