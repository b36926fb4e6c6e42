//! One layer of a sequence. Forks share whole layers; who writes first makes a copy of the tables.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::Error;
use crate::arena::Cell;
use crate::budget::Charge;
use crate::cache::Shared;
use crate::live::{Lease, Stripe, Tier};
use crate::pages::{CELL_ENTRY, Head, New, PAGE_ENTRY, Room};
use crate::selector::Selector;
use crate::summaries::{Store, TILE};

mod saved;

pub(crate) use saved::Chunk;

/// Tokens above which an append is spread over threads.
const PARALLEL_TOKENS: usize = 64;
/// Entries by which tables grow at least.
const GROWTH: usize = 16;

/// The pages of one layer.
#[derive(Debug)]
pub(crate) struct Layer {
    number: usize,
    /// Finished pages of all heads, which may leave host memory. Only with a lower tier; they end
    /// where the last tile does that is summarised for good, so that only open pages are ever
    /// written or summarised.
    pub(crate) sealed: Vec<Arc<Stripe>>,
    pub(crate) heads: Vec<Head>,
    pub(crate) len: usize,
    /// What the tables cost.
    charge: Charge,
    /// Entries the tables of a head have room for.
    pages: usize,
    cells: usize,
    /// Records that hold finished summaries, once it was saved or opened.
    chunks: parking_lot::Mutex<Vec<Chunk>>,
}

/// A cut that can no longer fail.
pub(crate) enum Cut {
    /// Of a layer held alone.
    InPlace(Fresh),
    /// A cut copy of a shared layer.
    Copy(Arc<Layer>),
}

/// What a cut writes to.
pub(crate) struct Fresh {
    /// Summary cells for the heads that share their cut one.
    cells: Vec<Option<Arc<Cell>>>,
    /// Copies, by head, of the sealed pages that are open from now on.
    pages: Vec<Vec<Arc<Cell>>>,
}

/// Room for somewhat more than `n` entries, so that tables rarely move.
fn roomy(n: usize) -> usize {
    if n == 0 { 0 } else { (n + n / 8).next_multiple_of(GROWTH) }
}

impl Layer {
    /// An empty layer; `summarised` says which of its heads are.
    pub(crate) fn new(shared: &Shared, number: usize, summarised: &[bool]) -> Layer {
        let heads = summarised.iter().map(|&summarised| Head::new(summarised)).collect();
        let charge = Charge::none(shared.budget.clone());
        let (sealed, chunks) = (Vec::new(), parking_lot::Mutex::default());
        Layer { number, sealed, heads, len: 0, charge, pages: 0, cells: 0, chunks }
    }

    /// Bytes of its tables.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.charge.bytes()
    }

    /// Which heads keep summaries: those that are read whole or as a stream do not.
    pub(crate) fn summarised(&self) -> Vec<bool> {
        self.heads.iter().map(Head::summarised).collect()
    }

    /// The heads that keep summaries.
    pub(crate) fn summarised_heads(&self) -> impl Iterator<Item = &Head> {
        self.heads.iter().filter(|head| head.summarised())
    }

    /// The summary store that this layer uses.
    fn store<'a>(&self, selector: &'a Selector) -> Option<&'a Store> {
        selector.store.as_ref().filter(|_| self.summarised_heads().next().is_some())
    }

    /// Pages of a head, and summary cells of those that have any.
    fn counts(&self) -> (usize, usize) {
        let cells = self.heads.iter().map(|head| head.counts().1).max().unwrap_or(0);
        (self.pages(), cells)
    }

    /// Makes the tables hold this many entries.
    fn reserve(&mut self, pages: usize, cells: usize) -> Result<(), Error> {
        if pages <= self.pages && cells <= self.cells {
            return Ok(());
        }
        let pages = if pages > self.pages { roomy(pages) } else { self.pages };
        let cells = if cells > self.cells { roomy(cells) } else { self.cells };
        let own = |head: &Head| if head.summarised() { cells } else { 0 };
        let each = |head: &Head| size_of::<Head>() + pages * PAGE_ENTRY + own(head) * CELL_ENTRY;
        let bytes = size_of::<Layer>() + self.heads.iter().map(each).sum::<usize>();
        self.charge.grow_to(bytes as u64)?;
        for head in &mut self.heads {
            head.reserve(pages, own(head));
        }
        (self.pages, self.cells) = (pages, cells);
        Ok(())
    }

    /// A layer with the same first `pages` pages and `cells` summary cells.
    fn copied(
        &self,
        shared: &Shared,
        summarised: &[bool],
        pages: usize,
        cells: usize,
    ) -> Result<Layer, Error> {
        let mut copy = Layer::new(shared, self.number, summarised);
        copy.reserve(pages, cells)?;
        copy.sealed.extend_from_slice(&self.sealed[..self.sealed.len().min(pages)]);
        for (to, from) in copy.heads.iter_mut().zip(&self.heads) {
            to.copy_lists(from, pages, cells);
        }
        copy.len = self.len;
        // Records hold the summaries of all heads that had some.
        if summarised == self.summarised() {
            let whole = self.chunks().into_iter().filter(|c| c.tiles.end <= cells);
            copy.chunks.get_mut().extend(whole);
        }
        Ok(copy)
    }

    /// Appends to a layer that may be shared. Unchanged if that fails.
    pub(crate) fn append(
        this: &mut Arc<Layer>,
        shared: &Shared,
        selector: &Selector,
        new: New,
    ) -> Result<(), Error> {
        if let Some(own) = Arc::get_mut(this) {
            return own.grow(shared, selector, new);
        }
        let (pages, cells) = this.counts();
        let mut copy = this.copied(shared, &this.summarised(), pages, cells)?;
        copy.grow(shared, selector, new)?;
        *this = Arc::new(copy);
        Ok(())
    }

    /// What is new needs this, taken for every head or for none.
    fn rooms(&self, shared: &Shared, store: Option<&Store>, new: New) -> Result<Vec<Room>, Error> {
        let (len, page) = (self.len, shared.geometry.page_tokens);
        let (tokens, partial) = (new.tokens(page), !len.is_multiple_of(page));
        let room = |(i, head): (usize, &Head)| -> Result<Room, Error> {
            let (pages, cells) = head.counts();
            let (page_shared, cell_shared) = head.shares_last();
            let copy_page = partial && page_shared;
            let more = (len + tokens).div_ceil(page) - pages + usize::from(copy_page);
            let pages = match new {
                New::Rows(..) => shared.pages.take(more)?,
                New::Page(cells) => vec![cells[i].clone()],
            };
            let mut room = Room { pages, copy_page, ..Room::default() };
            if let Some(store) = head.store(store) {
                room.copy_cell = cell_shared && cells * TILE > len;
                let new = store.spec.cells(len + tokens) - cells + usize::from(room.copy_cell);
                room.cells = store.arena.take(new)?;
            }
            Ok(room)
        };
        self.heads.iter().enumerate().map(room).collect()
    }

    fn grow(&mut self, shared: &Shared, selector: &Selector, new: New) -> Result<(), Error> {
        let page = shared.geometry.page_tokens;
        let (len, tokens) = (self.len, new.tokens(page));
        let store = self.store(selector);
        let rooms = self.rooms(shared, store, new)?;
        let pages = (len + tokens).div_ceil(page);
        let done = sealable(len + tokens, page) - self.sealed.len();
        let charges = shared.tier.as_ref().map_or(Ok(Vec::new()), |tier| tier.charges(done))?;
        self.reserve(pages, store.map_or(0, |s| s.spec.cells(len + tokens)))?;
        let grow = |i: usize, head: &mut Head, room: Room| {
            let store = head.store(store);
            head.grow(room, len, new, i, &shared.geometry, store);
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
        if let Some(tier) = &shared.tier {
            self.seal(tier, charges, page, selector);
        }
        Ok(())
    }

    /// Seals the first open pages, as many as there are charges.
    fn seal(&mut self, tier: &Tier, charges: Vec<Charge>, page: usize, selector: &Selector) {
        let (had, n) = (self.sealed.len(), charges.len());
        let keep = selector.keep(self.number);
        let (sinks, recent) = (keep.sinks.div_ceil(page), keep.recent.div_ceil(page));
        let kept = |i: usize| i < sinks || i + recent >= had + n;
        // What was recent before and is not now.
        let left = had.saturating_sub(recent)..had;
        left.filter(|&i| !kept(i)).for_each(|i| self.sealed[i].keep(false));
        let mut heads: Vec<_> = self.heads.iter_mut().map(|h| h.seal(n)).collect();
        for (i, charge) in charges.into_iter().enumerate() {
            let cells = heads.iter_mut().filter_map(Iterator::next).collect();
            let at = (self.number, had + i);
            self.sealed.push(tier.seal(at, cells, kept(had + i), charge));
        }
    }

    /// The cells of a full page, one per head: near, and as they are for as long as they are held.
    pub(crate) fn hold(&self, shared: &Shared, page: usize) -> Result<Vec<Arc<Cell>>, Error> {
        match (&shared.tier, self.sealed.get(page)) {
            (Some(tier), Some(stripe)) => tier.hold(stripe),
            _ => Ok(self.heads.iter().map(|head| head.cell(page)).collect()),
        }
    }

    /// Pages of a head.
    pub(crate) fn pages(&self) -> usize {
        self.heads.first().map_or(0, |head| head.counts().0)
    }

    /// A number for a run's pages, and how many layers hold them.
    pub(crate) fn holders(&self, page: usize) -> (usize, usize) {
        match (self.sealed.get(page), self.heads.first()) {
            (Some(stripe), _) => (Arc::as_ptr(stripe).addr(), Arc::strong_count(stripe)),
            // Less the one just made.
            (None, Some(head)) => {
                let cell = head.cell(page);
                (Arc::as_ptr(&cell).addr(), Arc::strong_count(&cell) - 1)
            }
            (None, None) => (0, 0),
        }
    }

    /// Whether a full page is the other layer's too, and so are all before it.
    pub(crate) fn same_page(&self, other: &Layer, page: usize) -> bool {
        match (self.sealed.get(page), other.sealed.get(page)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => {
                let mut heads = self.heads.iter().zip(&other.heads);
                heads.all(|(a, b)| Arc::ptr_eq(&a.cell(page), &b.cell(page)))
            }
            // Sealed meanwhile.
            _ => false,
        }
    }

    /// Lets go of what lies behind the first `pages` pages, as far as that takes no memory; not if
    /// somebody else holds this layer.
    pub(crate) fn shrink(
        this: &mut Arc<Layer>,
        shared: &Shared,
        selector: &Selector,
        pages: usize,
    ) {
        let page = shared.geometry.page_tokens;
        // Where a page and a tile end, nothing is copied.
        let both = page << TILE.trailing_zeros().saturating_sub(page.trailing_zeros());
        let len = (pages * page).next_multiple_of(both);
        let Some(own) = Arc::get_mut(this).filter(|own| own.len > len) else { return };
        if let Ok(fresh) = own.fresh(shared, own.store(selector), len, false) {
            own.cut(shared, selector, len, fresh);
        }
    }

    /// Frames of the open pages by head.
    pub(crate) fn open_ids(&self) -> Vec<&[u32]> {
        self.heads.iter().map(Head::ids).collect()
    }

    /// Prepares forgetting the tokens from `len` on: takes what that needs.
    pub(crate) fn plan_cut(
        this: &mut Arc<Layer>,
        shared: &Shared,
        selector: &Selector,
        len: usize,
    ) -> Result<Cut, Error> {
        let store = this.store(selector);
        if Arc::get_mut(this).is_some() {
            return Ok(Cut::InPlace(this.fresh(shared, store, len, false)?));
        }
        let pages = len.div_ceil(shared.geometry.page_tokens);
        let cells = store.map_or(0, |s| s.spec.cells(len));
        let fresh = this.fresh(shared, store, len, true)?;
        let mut copy = this.copied(shared, &this.summarised(), pages, cells)?;
        copy.cut(shared, selector, len, fresh);
        Ok(Cut::Copy(Arc::new(copy)))
    }

    /// What cutting this layer (or a copy of it) at `len` writes to.
    fn fresh(
        &self,
        shared: &Shared,
        store: Option<&Store>,
        len: usize,
        copied: bool,
    ) -> Result<Fresh, Error> {
        let of_head = |head: &Head| {
            let Some(store) = head.store(store) else { return Ok(None) };
            let cut = store.spec.cells(len) * TILE > len;
            match cut && (copied || head.cut_is_shared(len, store)) {
                true => Ok(store.arena.take(1)?.pop()),
                false => Ok(None),
            }
        };
        let cells = self.heads.iter().map(of_head).collect::<Result<_, Error>>()?;
        let page = shared.geometry.page_tokens;
        let sealed = self.sealed.len();
        let open = sealable(len, page).min(sealed)..len.div_ceil(page).min(sealed);
        let pages = match &shared.tier {
            Some(tier) if !open.is_empty() => tier.copies(&self.sealed[open], &shared.pages)?,
            _ => Vec::new(),
        };
        Ok(Fresh { cells, pages })
    }

    fn cut(&mut self, shared: &Shared, selector: &Selector, len: usize, fresh: Fresh) {
        let store = self.store(selector);
        let first = sealable(len, shared.geometry.page_tokens);
        if first < self.sealed.len() {
            let pages = fresh.pages.into_iter().chain(std::iter::repeat_with(Vec::new));
            self.heads.iter_mut().zip(pages).for_each(|(head, pages)| head.open(first, pages));
            self.sealed.truncate(first);
        }
        for (head, fresh) in self.heads.iter_mut().zip(fresh.cells) {
            let store = head.store(store);
            head.cut(len, &shared.geometry, store, fresh);
        }
        self.chunks.get_mut().retain(|c| c.tiles.end * TILE <= len);
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

    /// The same pages with the summaries of another selector; `same` says that they are of the same kind.
    pub(crate) fn with_selector(
        &self,
        shared: &Shared,
        selector: &Selector,
        same: bool,
    ) -> Result<Layer, Error> {
        let (pages, cells) = self.counts();
        let wanted = selector.summarised(self.number);
        let has = |(head, wanted): (&Head, &bool)| !wanted || head.summarised();
        if same && self.heads.iter().zip(&wanted).all(has) {
            return self.copied(shared, &wanted, pages, cells);
        }
        let mut layer = self.copied(shared, &wanted, pages, 0)?;
        let store = layer.store(selector);
        let cells = store.map_or(0, |s| s.spec.cells(self.len));
        layer.reserve(pages, cells)?;
        let Some(store) = store else { return Ok(layer) };
        for head in layer.heads.iter_mut().filter(|head| head.summarised()) {
            head.replace_cells(store.arena.take(cells)?);
        }
        layer.resummarise(shared, store)?;
        Ok(layer)
    }

    /// Builds all summaries from the keys.
    fn resummarise(&mut self, shared: &Shared, store: &Store) -> Result<(), Error> {
        let (page, tiles) = (shared.geometry.page_tokens, self.len.div_ceil(TILE));
        let norms = self.summarised_heads().any(|h| !h.has_norms());
        // As many tiles at once as take a small part of the frames.
        let pages_of = |tiles: usize| (tiles * TILE).div_ceil(page) * self.heads.len();
        let step = match shared.tier {
            Some(_) => (shared.pages.cells() / 8 / pages_of(1)).max(1),
            None => tiles.max(1),
        };
        for from in (0..tiles).step_by(step) {
            let tiles = from..(from + step).min(tiles);
            let pages = from * TILE / page..(tiles.end * TILE).min(self.len).div_ceil(page);
            let (_lease, frames) = self.bring(shared, pages.clone())?;
            self.resummarise_tiles(shared, store, tiles, (pages.start, &frames), norms);
        }
        Ok(())
    }

    /// Brings some pages near, all at once, and pins them; their frames by head.
    pub(crate) fn bring<'a>(
        &self,
        shared: &'a Shared,
        pages: Range<usize>,
    ) -> Result<(Option<Lease<'a>>, Vec<Vec<u32>>), Error> {
        let sealed = self.sealed.len();
        let far = &self.sealed[pages.start.min(sealed)..pages.end.min(sealed)];
        let (mut lease, mut ids) = (None, Vec::new());
        if let (Some(tier), false) = (&shared.tier, far.is_empty()) {
            let heads = 0..self.heads.len();
            let keys: Vec<_> = heads.flat_map(|h| far.iter().map(move |s| s.page(h))).collect();
            let (pinned, frames) = tier.bring(&keys)?;
            (lease, ids) = (Some(pinned), frames);
        }
        let open = pages.start.max(sealed) - sealed..pages.end.max(sealed) - sealed;
        let of_head = |(h, head): (usize, &Head)| {
            let far = &ids[h * far.len()..(h + 1) * far.len()];
            [far, &head.ids()[open.clone()]].concat()
        };
        let frames = self.heads.iter().enumerate().map(of_head).collect();
        Ok((lease, frames))
    }

    /// Builds the summaries of some tiles, whose pages from `first` on lie in these frames.
    fn resummarise_tiles(
        &mut self,
        shared: &Shared,
        store: &Store,
        tiles: Range<usize>,
        (first, frames): (usize, &[Vec<u32>]),
        norms: bool,
    ) {
        let (len, g) = (self.len, &shared.geometry);
        let row_bytes = g.dim_k * g.dtype.size();
        let work: Vec<_> = self.heads.iter_mut().map(|head| Mutex::new(Some(head))).collect();
        shared.exec.run(work.len(), |i| {
            let row = |t: usize| {
                let frame = frames[i][t / g.page_tokens - first];
                shared.pages.at(frame).wrapping_add(t % g.page_tokens * row_bytes)
            };
            let head = work[i].lock().ok().and_then(|mut head| head.take());
            if let Some(head) = head.filter(|head| head.summarised()) {
                // SAFETY: rows below `len` were written; their pages are open, or leased by the caller.
                unsafe { head.resummarise(tiles.clone(), len, norms, g, store, row) }
            }
        });
    }
}

/// Pages that can be sealed of a layer with `len` tokens: those of finished tiles.
fn sealable(len: usize, page_tokens: usize) -> usize {
    len / TILE * TILE / page_tokens
}
