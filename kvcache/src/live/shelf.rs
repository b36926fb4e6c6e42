//! The disk tier as live sequences see it: stripes are records that only this process needs, until a
//! session is saved that needs them too.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::below::{Below, Held, PageIn, PageNext, PageReads, Stored, StripeOut};
use super::pace::Pace;
use crate::arena::Cell;
use crate::codec::{Codec, Directory, DiskCodec, PageSource, Plan};
use crate::disk::{
    BlobPlan, Disk, Into, LIVE, NewRecord, Part, Place, Refused, RunDone, Span, SpanNext,
    SpanReads, reason, reason_of_error,
};
use crate::format::{BlockKey, BlockLayout};
use crate::vfs::Buf;
use crate::{Error, Geometry, MissReason};

/// Stripes as records of a directory.
pub(crate) struct Shelf {
    disk: Arc<Disk>,
    plan: Arc<Plan>,
    /// Where stripes may also be stored as they are.
    dynamic: Option<Dynamic>,
    model: [u8; 32],
    /// Tells this cache's stripes from those of others and of former runs.
    uid: [u8; 16],
    next: AtomicU64,
}

/// Stripes as they are, and what tells when that is better.
struct Dynamic {
    raw: Plan,
    pace: Arc<Pace>,
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("disk", &self.disk.usage()).finish_non_exhaustive()
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.disk.finish_segments();
        self.disk.remove_empty();
    }
}

/// A record that stays while this lives.
#[derive(Debug)]
pub(crate) struct Kept {
    disk: Arc<Disk>,
    key: BlockKey,
}

impl Kept {
    pub(crate) fn key(&self) -> BlockKey {
        self.key
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.disk.release(&self.key);
    }
}

/// A stripe on the shelf.
#[derive(Debug)]
pub(crate) struct OnShelf {
    kept: Kept,
    directory: Directory,
}

impl OnShelf {
    pub(crate) fn of(stored: &dyn Stored) -> Option<&OnShelf> {
        stored.as_any().downcast_ref()
    }

    pub(crate) fn key(&self) -> BlockKey {
        self.kept.key
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The read of a page; straight into its place if it is stored as it is, which is given back
    /// otherwise.
    fn span(&self, place: &Place, head: usize, tag: usize, into: Buf) -> (Span, Option<Buf>) {
        let range = self.directory.page_range(head);
        let mut span = place.span(u64::from(range.start)..u64::from(range.end), tag);
        let into = Into { from: span.bytes.start, buf: into };
        let plain = self.directory.is_plain(head) && range.len() == into.buf.len();
        if !plain || !into.suits(&place.segment) {
            return (span, Some(into.buf));
        }
        span.into = Some(into);
        (span, None)
    }
}

impl Stored for OnShelf {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The pages of a stripe, one per KV head.
struct Pages<'a> {
    stripe: &'a StripeOut,
    k: usize,
}

impl PageSource for Pages<'_> {
    fn page(&self, index: usize) -> (&[u8], &[u8]) {
        self.stripe.pages[index].split_at(self.k)
    }

    fn cell(&self, index: usize) -> Option<&Arc<Cell>> {
        self.stripe.pages.get(index).map(Held::cell)
    }
}

impl Shelf {
    /// A shelf for the stripes of one cache, whose records name this model.
    pub(crate) fn new(
        disk: Arc<Disk>,
        geometry: &Geometry,
        codec: DiskCodec,
        model: &[u8],
    ) -> Result<Shelf, Error> {
        let layout = BlockLayout { layers: 0..1, ..BlockLayout::of(geometry) };
        let mut uid = [0; 16];
        let what = "random bytes for a cache";
        let refused = |e: getrandom::Error| Error::System { what, reason: e.to_string() };
        getrandom::fill(&mut uid).map_err(refused)?;
        let (codec, dynamic) = match codec {
            DiskCodec::Fixed(codec) => (codec, None),
            DiskCodec::Dynamic => {
                let raw = Plan::new(&layout, &Codec::raw())?;
                (Codec::lossless(), Some(Dynamic { raw, pace: Arc::default() }))
            }
        };
        let plan = Arc::new(Plan::new(&layout, &codec)?);
        let model = if model.is_empty() { [0; 32] } else { *blake3::hash(model).as_bytes() };
        Ok(Shelf { disk, plan, dynamic, model, uid, next: AtomicU64::new(0) })
    }

    /// A shelf in the same directory for stripes of pages of clusters, which are read in place: as they are.
    pub(crate) fn of_clusters(&self, geometry: &Geometry) -> Result<Shelf, Error> {
        let mut shelf = Shelf::new(self.disk.clone(), geometry, Codec::raw().into(), &[])?;
        shelf.model = self.model;
        Ok(shelf)
    }

    pub(crate) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A record that the caller holds already: the handle takes over.
    pub(crate) fn adopt(&self, key: BlockKey) -> Kept {
        Kept { disk: self.disk.clone(), key }
    }

    /// A stripe that the caller holds already.
    pub(crate) fn adopt_stripe(&self, kept: Kept, directory: Directory) -> Arc<dyn Stored> {
        Arc::new(OnShelf { kept, directory })
    }

    /// Stores plain bytes, each run as a record. They need not survive a crash yet.
    ///
    /// # Errors
    /// Why one was not stored; then none is kept.
    pub(crate) fn write_blobs(&self, mut blobs: Vec<Vec<u8>>) -> Result<Vec<Kept>, Error> {
        let plans: Vec<BlobPlan> =
            blobs.iter().map(|b| BlobPlan::new(b.len())).collect::<Result<_, _>>()?;
        let pages: Vec<_> = plans.iter().zip(&mut blobs).map(|(p, b)| p.pad(b)).collect();
        let keys: Vec<BlockKey> = pages.iter().map(|_| self.key()).collect();
        let directories: Vec<OnceLock<Directory>> = keys.iter().map(|_| OnceLock::new()).collect();
        let mut records = Vec::with_capacity(keys.len());
        for (i, pages) in pages.iter().enumerate() {
            let (plan, directory) = (plans[i].plan(), &directories[i]);
            records.push(self.record(keys[i], plan, pages, 0, directory));
        }
        let results = self.disk.commit(&records);
        let kept =
            |(key, result): (BlockKey, Result<(), Refused>)| result.map(|()| self.adopt(key));
        // Those that were stored are dropped again if one was not.
        let kept: Vec<Result<Kept, Refused>> = keys.into_iter().zip(results).map(kept).collect();
        let kept: Result<Vec<Kept>, Refused> = kept.into_iter().collect();
        kept.map_err(|refused| Error::Demote { pages: 0, reason: reason_of(refused) })
    }

    fn record<'a>(
        &self,
        key: BlockKey,
        plan: &'a Plan,
        pages: &'a dyn PageSource,
        num_tokens: u32,
        directory: &'a OnceLock<Directory>,
    ) -> NewRecord<'a> {
        NewRecord {
            key,
            model: self.model,
            tenant: LIVE,
            seal: None,
            tokens: None,
            num_tokens,
            plan,
            pages,
            live: Some(directory),
        }
    }

    /// How each of some stripes is stored.
    fn plans(&self, stripes: usize) -> Vec<&Plan> {
        let Some(Dynamic { raw, pace }) = &self.dynamic else { return vec![&*self.plan; stripes] };
        let chosen = pace.choose(stripes, self.plan.layout().bytes() as u64);
        chosen.iter().map(|&compressed| if compressed { &*self.plan } else { raw }).collect()
    }

    /// Learns how much a stripe that was stored has shrunk.
    fn stored(&self, plan: &Plan, directory: &Directory) {
        let compressed = std::ptr::eq(plan, &*self.plan);
        let Some(Dynamic { pace, .. }) = self.dynamic.as_ref().filter(|_| compressed) else {
            return;
        };
        let layout = plan.layout();
        let bytes = |page: usize| directory.page_range(page).len() as u64;
        let stored = (0..layout.pages()).map(bytes).sum();
        pace.compressed(layout.bytes() as u64, stored);
    }

    /// A key that no other stripe has.
    fn key(&self) -> BlockKey {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut hash = blake3::Hasher::new_derive_key("kvist 2026 live stripe v1");
        hash.update(&self.uid).update(&number.to_le_bytes());
        BlockKey(*hash.finalize().as_bytes())
    }
}

fn reason_of(refused: Refused) -> MissReason {
    match refused {
        Refused::Timeout => MissReason::Timeout,
        Refused::Full | Refused::Throttled => MissReason::Busy,
        _ => MissReason::Io,
    }
}

impl Below for Shelf {
    fn write(&self, stripes: &[StripeOut]) -> Vec<Result<Arc<dyn Stored>, MissReason>> {
        let k = self.plan.layout().k_bytes();
        let keys: Vec<BlockKey> = stripes.iter().map(|_| self.key()).collect();
        let sources: Vec<Pages> = stripes.iter().map(|stripe| Pages { stripe, k }).collect();
        let directories: Vec<OnceLock<Directory>> =
            stripes.iter().map(|_| OnceLock::new()).collect();
        let plans = self.plans(stripes.len());
        let mut records = Vec::with_capacity(stripes.len());
        for (i, pages) in sources.iter().enumerate() {
            let tokens = self.plan.layout().block_tokens;
            records.push(self.record(keys[i], plans[i], pages, tokens, &directories[i]));
        }
        let results = self.disk.commit(&records);
        drop(records);
        let mut stored: Vec<Result<Arc<dyn Stored>, MissReason>> = Vec::with_capacity(keys.len());
        for (((result, key), plan), (stripe, directory)) in
            results.into_iter().zip(keys).zip(plans).zip(stripes.iter().zip(directories))
        {
            let directory = directory.into_inner().ok_or(MissReason::Io);
            stored.push(match result.map_err(reason_of).and(directory) {
                Ok(directory) => {
                    self.stored(plan, &directory);
                    Ok(self.adopt_stripe(self.adopt(key), directory))
                }
                Err(reason) => {
                    let StripeOut { layer, page, .. } = stripe;
                    tracing::debug!(layer, page, "stays in memory: {reason}");
                    Err(reason)
                }
            });
        }
        stored
    }

    fn read(&self, wants: Vec<PageIn>) -> Box<dyn PageReads> {
        let mut spans = Vec::with_capacity(wants.len());
        let mut waiting = Vec::with_capacity(wants.len());
        let mut failed = VecDeque::new();
        let stuck = self.disk.is_stuck();
        for (index, PageIn { stripe, head, into }) in wants.into_iter().enumerate() {
            let on_shelf = OnShelf::of(&*stripe);
            let place = on_shelf.filter(|_| !stuck).and_then(|s| self.disk.find(&s.key()));
            match (on_shelf, place) {
                (Some(on_shelf), Some(place)) => {
                    let (span, into) = on_shelf.span(&place, head, index, into);
                    spans.push(span);
                    waiting.push(Some(Waiting { stripe, head, into, place }));
                }
                _ => {
                    let why = if stuck { MissReason::Degraded } else { MissReason::Gone };
                    failed.push_back((index, Err(why), into));
                    waiting.push(None);
                }
            }
        }
        let spans = SpanReads::start(self.disk.clone(), spans);
        let (plan, disk) = (self.plan.clone(), self.disk.clone());
        let pace = self.dynamic.as_ref().map(|dynamic| dynamic.pace.clone());
        let waited = Duration::ZERO;
        let mut reads = ShelfReads { plan, disk, pace, waited, spans, waiting, ready: failed };
        reads.submit();
        Box::new(reads)
    }

    fn position(&self, stripe: &dyn Stored) -> u64 {
        let place = OnShelf::of(stripe).and_then(|on_shelf| self.disk.find(&on_shelf.key()));
        place.map_or(0, |p| u64::from(p.entry.segment) << 32 | u64::from(p.entry.position))
    }

    fn now(&self) -> Duration {
        self.disk.now()
    }
}

/// A page on its way.
struct Waiting {
    stripe: Arc<dyn Stored>,
    head: usize,
    /// Unless the page comes straight to its place.
    into: Option<Buf>,
    place: Place,
}

/// Pages on their way.
struct ShelfReads {
    disk: Arc<Disk>,
    plan: Arc<Plan>,
    /// Where what reads cost is to be known.
    pace: Option<Arc<Pace>>,
    /// How long somebody waited for them.
    waited: Duration,
    spans: SpanReads<Arc<Disk>>,
    waiting: Vec<Option<Waiting>>,
    ready: VecDeque<(usize, Result<(), MissReason>, Buf)>,
}

impl ShelfReads {
    /// Gives the reads to the system, which hears of them only when somebody looks: it works at them
    /// while the caller computes.
    fn submit(&mut self) {
        if let SpanNext::Done(run) = self.spans.next(Some(Duration::ZERO)) {
            self.arrived(run);
        }
    }

    fn arrived(&mut self, run: RunDone) {
        let RunDone { parts, result, buf, .. } = run;
        for Part { tag: index, range, into: placed, .. } in parts {
            let Some(waiting) = self.waiting[index].take() else { continue };
            let Waiting { stripe, head, into, place } = waiting;
            let direct = placed.is_some();
            let Some(mut into) = placed.or(into) else { continue };
            let outcome = match (&result, &buf) {
                (Ok(()), Some(_)) if direct => self.check(&*stripe, head, &into),
                (Ok(()), Some(buf)) => self.decode(&*stripe, head, &buf[range], &mut into),
                (Err(e), _) => Err(reason_of_error(e)),
                (Ok(()), None) => Err(MissReason::Busy),
            };
            if let Err(reason) = outcome {
                self.disk.failed(&place, reason);
            }
            self.ready.push_back((index, outcome, into));
        }
        if let Some(buf) = buf {
            self.disk.reuse(buf);
        }
    }

    /// Checks a page that came straight to its place.
    fn check(&self, stripe: &dyn Stored, head: usize, page: &[u8]) -> Result<(), MissReason> {
        let on_shelf = OnShelf::of(stripe).ok_or(MissReason::Gone)?;
        on_shelf.directory.check_page(head, page).map_err(reason)
    }

    fn decode(
        &self,
        stripe: &dyn Stored,
        head: usize,
        stored: &[u8],
        into: &mut Buf,
    ) -> Result<(), MissReason> {
        let on_shelf = OnShelf::of(stripe).ok_or(MissReason::Gone)?;
        let (since, bytes) = (Instant::now(), into.len() as u64);
        let tiles = into.split_at_mut(self.plan.layout().k_bytes());
        let decoded = self.plan.decode_page(&on_shelf.directory, head, stored, tiles);
        if let Some(pace) = self.pace.as_ref().filter(|_| !on_shelf.directory.is_plain(head)) {
            pace.decoded(bytes, since.elapsed());
        }
        decoded.map_err(reason)
    }
}

impl PageReads for ShelfReads {
    fn next(&mut self, deadline: Option<Duration>) -> PageNext {
        loop {
            if let Some((index, result, buf)) = self.ready.pop_front() {
                return PageNext::Done { index, result, buf };
            }
            let since = self.disk.now();
            let next = self.spans.next(deadline);
            self.waited += self.disk.now().saturating_sub(since);
            match next {
                SpanNext::Done(run) => self.arrived(run),
                SpanNext::TimedOut => return PageNext::TimedOut,
                SpanNext::Empty => return PageNext::Empty,
            }
        }
    }

    #[cfg(test)]
    fn pending(&self) -> usize {
        self.ready.len() + self.waiting.iter().flatten().count()
    }
}

impl Drop for ShelfReads {
    fn drop(&mut self) {
        self.disk.count_read(self.spans.read_bytes());
        if let Some(pace) = &self.pace {
            pace.arrived(self.spans.read_bytes(), self.waited);
        }
    }
}
