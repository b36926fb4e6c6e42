//! One layer of a sequence. Forks share whole layers; who writes first makes a copy of the tables.

use std::sync::{Arc, Mutex};

use kvist_kernels::Tensor3;

use crate::Error;
use crate::arena::Cell;
use crate::budget::Charge;
use crate::cache::Shared;
use crate::pages::{CELL_ENTRY, Head, PAGE_ENTRY, Room};
use crate::summaries::{Selector, Store, TILE};

/// Tokens above which an append is spread over threads.
const PARALLEL_TOKENS: usize = 64;
/// Entries by which tables grow at least.
const GROWTH: usize = 16;

/// The pages of one layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) heads: Vec<Head>,
    pub(crate) len: usize,
    /// Whether this layer keeps summaries (dense layers do not).
    pub(crate) summarised: bool,
    /// What the tables cost.
    charge: Charge,
    /// Entries the tables of a head have room for.
    pages: usize,
    cells: usize,
}

/// A cut that can no longer fail.
pub(crate) enum Cut {
    /// Of a layer held alone: fresh cells for the heads that share their cut one.
    InPlace(Vec<Option<Arc<Cell>>>),
    /// A cut copy of a shared layer.
    Copy(Arc<Layer>),
}

/// Room for somewhat more than `n` entries, so that tables rarely move.
fn roomy(n: usize) -> usize {
    if n == 0 { 0 } else { (n + n / 8).next_multiple_of(GROWTH) }
}

impl Layer {
    pub(crate) fn new(shared: &Shared, summarised: bool) -> Layer {
        let heads = (0..shared.geometry.kv_heads).map(|_| Head::default()).collect();
        let charge = Charge::none(shared.budget.clone());
        Layer { heads, len: 0, summarised, charge, pages: 0, cells: 0 }
    }

    /// Bytes of its tables.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.charge.bytes()
    }

    /// The summary store that this layer uses.
    fn store<'a>(&self, selector: &'a Selector) -> Option<&'a Store> {
        selector.store.as_ref().filter(|_| self.summarised)
    }

    /// Makes the tables hold this many entries.
    fn reserve(&mut self, pages: usize, cells: usize) -> Result<(), Error> {
        if pages <= self.pages && cells <= self.cells {
            return Ok(());
        }
        let pages = if pages > self.pages { roomy(pages) } else { self.pages };
        let cells = if cells > self.cells { roomy(cells) } else { self.cells };
        let each = size_of::<Head>() + pages * PAGE_ENTRY + cells * CELL_ENTRY;
        let bytes = size_of::<Layer>() + self.heads.len() * each;
        self.charge.grow_to(bytes as u64)?;
        self.heads.iter_mut().for_each(|h| h.reserve(pages, cells));
        (self.pages, self.cells) = (pages, cells);
        Ok(())
    }

    /// A layer with the same first `pages` pages and `cells` summary cells.
    fn copied(
        &self,
        shared: &Shared,
        summarised: bool,
        pages: usize,
        cells: usize,
    ) -> Result<Layer, Error> {
        let mut copy = Layer::new(shared, summarised);
        copy.reserve(pages, cells)?;
        for (to, from) in copy.heads.iter_mut().zip(&self.heads) {
            to.copy_lists(from, pages, cells, self.summarised && summarised);
        }
        copy.len = self.len;
        Ok(copy)
    }

    /// Appends rows to a layer that may be shared. Unchanged if that fails.
    pub(crate) fn append(
        this: &mut Arc<Layer>,
        shared: &Shared,
        selector: &Selector,
        k: &Tensor3,
        v: &Tensor3,
    ) -> Result<(), Error> {
        if let Some(own) = Arc::get_mut(this) {
            return own.grow(shared, selector, k, v);
        }
        let (pages, cells) = this.heads.first().map_or((0, 0), Head::counts);
        let mut copy = this.copied(shared, this.summarised, pages, cells)?;
        copy.grow(shared, selector, k, v)?;
        *this = Arc::new(copy);
        Ok(())
    }

    /// What `tokens` more tokens need, taken for every head or for none.
    fn rooms(
        &self,
        shared: &Shared,
        store: Option<&Store>,
        tokens: usize,
    ) -> Result<Vec<Room>, Error> {
        let (len, page) = (self.len, shared.geometry.page_tokens);
        let partial = !len.is_multiple_of(page);
        let room = |head: &Head| -> Result<Room, Error> {
            let (pages, cells) = head.counts();
            let (page_shared, cell_shared) = head.shares_last();
            let copy_page = partial && page_shared;
            let new = (len + tokens).div_ceil(page) - pages + usize::from(copy_page);
            let mut room = Room { pages: shared.pages.take(new)?, copy_page, ..Room::default() };
            if let Some(store) = store {
                room.copy_cell = cell_shared && cells * TILE > len;
                let new = store.spec.cells(len + tokens) - cells + usize::from(room.copy_cell);
                room.cells = store.arena.take(new)?;
            }
            Ok(room)
        };
        self.heads.iter().map(room).collect()
    }

    fn grow(
        &mut self,
        shared: &Shared,
        selector: &Selector,
        k: &Tensor3,
        v: &Tensor3,
    ) -> Result<(), Error> {
        let (len, tokens) = (self.len, k.shape()[0]);
        let store = self.store(selector);
        let rooms = self.rooms(shared, store, tokens)?;
        let pages = (len + tokens).div_ceil(shared.geometry.page_tokens);
        self.reserve(pages, store.map_or(0, |s| s.spec.cells(len + tokens)))?;
        let grow = |i: usize, head: &mut Head, room: Room| {
            head.grow(room, len, (k, v), i, &shared.geometry, store);
        };
        let work = self.heads.iter_mut().zip(rooms);
        if tokens < PARALLEL_TOKENS {
            work.enumerate().for_each(|(i, (head, room))| grow(i, head, room));
        } else {
            let work: Vec<_> = work.map(|pair| Mutex::new(Some(pair))).collect();
            shared.exec.run(work.len(), |i| {
                if let Some((head, room)) = work[i].lock().ok().and_then(|mut pair| pair.take()) {
                    grow(i, head, room);
                }
            });
        }
        self.len += tokens;
        Ok(())
    }

    /// Prepares forgetting the tokens from `len` on: takes what that needs.
    pub(crate) fn plan_cut(
        this: &mut Arc<Layer>,
        shared: &Shared,
        selector: &Selector,
        len: usize,
    ) -> Result<Cut, Error> {
        let store = this.store(selector);
        let fresh = |layer: &Layer, shared: bool| -> Result<Vec<Option<Arc<Cell>>>, Error> {
            let of_head = |head: &Head| {
                let Some(store) = store else { return Ok(None) };
                let cut = store.spec.cells(len) * TILE > len;
                match cut && (shared || head.cut_is_shared(len, store)) {
                    true => Ok(store.arena.take(1)?.pop()),
                    false => Ok(None),
                }
            };
            layer.heads.iter().map(of_head).collect()
        };
        if Arc::get_mut(this).is_some() {
            return Ok(Cut::InPlace(fresh(this, false)?));
        }
        let pages = len.div_ceil(shared.geometry.page_tokens);
        let cells = store.map_or(0, |s| s.spec.cells(len));
        let cells_fresh = fresh(this, true)?;
        let mut copy = this.copied(shared, this.summarised, pages, cells)?;
        copy.cut(shared, selector, len, cells_fresh);
        Ok(Cut::Copy(Arc::new(copy)))
    }

    fn cut(
        &mut self,
        shared: &Shared,
        selector: &Selector,
        len: usize,
        fresh: Vec<Option<Arc<Cell>>>,
    ) {
        let store = self.store(selector);
        for (head, fresh) in self.heads.iter_mut().zip(fresh) {
            head.cut(len, &shared.geometry, store, fresh);
        }
        self.len = len;
    }

    /// Carries a planned cut out.
    pub(crate) fn apply(
        this: &mut Arc<Layer>,
        shared: &Shared,
        selector: &Selector,
        len: usize,
        cut: Cut,
    ) {
        match (cut, Arc::get_mut(this)) {
            (Cut::Copy(copy), _) => *this = copy,
            (Cut::InPlace(fresh), Some(own)) => own.cut(shared, selector, len, fresh),
            (Cut::InPlace(_), None) => unreachable!("a layer held alone stays so while borrowed"),
        }
    }

    /// The same pages with summaries of another selector.
    pub(crate) fn with_selector(
        &self,
        shared: &Shared,
        selector: &Selector,
        summarised: bool,
    ) -> Result<Layer, Error> {
        let pages = self.heads.first().map_or(0, |h| h.counts().0);
        let store = selector.store.as_ref().filter(|_| summarised);
        let cells = store.map_or(0, |s| s.spec.cells(self.len));
        let mut layer = self.copied(shared, summarised, pages, 0)?;
        layer.reserve(pages, cells)?;
        let Some(store) = store else { return Ok(layer) };
        let fresh: Vec<Vec<Arc<Cell>>> =
            layer.heads.iter().map(|_| store.arena.take(cells)).collect::<Result<_, _>>()?;
        let work: Vec<_> =
            layer.heads.iter_mut().zip(fresh).map(|pair| Mutex::new(Some(pair))).collect();
        shared.exec.run(work.len(), |i| {
            if let Some((head, cells)) = work[i].lock().ok().and_then(|mut pair| pair.take()) {
                head.resummarise(cells, self.len, &shared.geometry, store);
            }
        });
        drop(work);
        Ok(layer)
    }
}
