//! The keys and values of a part's tokens, in the order of its clusters.

use std::sync::Arc;

use kvist_kernels::cluster::Clusters;
use parking_lot::Mutex;

use super::clustered::{Batch, Clustered, STRIPE_PAGES};
use super::stripe::Stripe;
use super::table::PageKey;
use crate::budget::Charge;
use crate::{Error, MissReason};

/// Bytes that the tier below keeps in memory of a page that it stores: two entries of a directory.
const PAGE_ENTRY_BYTES: usize = 2 * 40;

/// Pages of clusters, in the order of these: a page has tokens of one cluster. Dropping it forgets them,
/// near and below.
#[derive(Debug)]
pub(crate) struct Extent {
    stripes: Vec<Arc<Stripe>>,
    /// First page of each cluster, and the end of the last.
    first: Vec<u32>,
    page_tokens: usize,
    _charge: Charge,
}

/// Rows of tokens, packed, one after the other: `[tokens][dim_k]` and `[tokens][dim_v]`.
pub(crate) struct TokenRows<'a> {
    pub(crate) k: &'a [u8],
    pub(crate) v: &'a [u8],
    /// Bytes of a key and of a value.
    pub(crate) row_bytes: [usize; 2],
}

impl TokenRows<'_> {
    fn of(&self, token: u32) -> (&[u8], &[u8]) {
        let ([k, v], token) = (self.row_bytes, token as usize);
        (&self.k[token * k..][..k], &self.v[token * v..][..v])
    }

    /// Writes the rows of these tokens to a page of `page_tokens`: keys, then values. The rest stays as it is.
    pub(super) fn write(&self, tokens: &[u32], page_tokens: usize, page: &mut [u8]) {
        let [key, value] = self.row_bytes;
        let (k, v) = page.split_at_mut(page_tokens * key);
        let to = k.chunks_exact_mut(key).zip(v.chunks_exact_mut(value));
        for (&token, (k, v)) in tokens.iter().zip(to) {
            let (key, value) = self.of(token);
            k.copy_from_slice(key);
            v.copy_from_slice(value);
        }
    }
}

impl Extent {
    /// Stores the rows of tokens, the first of which is the clusters' token 0. `room` calls what takes
    /// memory, and makes room for it. The inner result says why they could not be stored.
    pub(crate) fn store(
        clustered: &Clustered,
        at: (usize, usize),
        clusters: &Clusters,
        rows: &TokenRows,
        room: impl Fn(&mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error>,
    ) -> Result<Result<Extent, MissReason>, Error> {
        let page_tokens = clustered.page_tokens();
        let (mut first, mut pages) = (vec![0], Vec::new());
        for cluster in 0..clusters.len() {
            pages.extend(clusters.members(cluster).chunks(page_tokens));
            first.push(pages.len() as u32);
        }
        let mut charge = clustered.charge();
        let bytes = 4 * first.len() + pages.len() * PAGE_ENTRY_BYTES;
        room(&mut || charge.grow_to(bytes as u64))?;
        let mut stripes = Vec::with_capacity(pages.len().div_ceil(STRIPE_PAGES));
        for pages in pages.chunks(clustered.batch_stripes() * STRIPE_PAGES) {
            let (n, mut batch) = (pages.len().div_ceil(STRIPE_PAGES), Batch::default());
            room(&mut || clustered.batch(n).map(|taken| batch = taken))?;
            for page in 0..n * STRIPE_PAGES {
                let tokens = pages.get(page).copied().unwrap_or_default();
                let bytes = batch.page(page);
                bytes.fill(0);
                rows.write(tokens, page_tokens, bytes);
            }
            match clustered.store(at, batch) {
                Ok(stored) => stripes.extend(stored),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(Extent { stripes, first, page_tokens, _charge: charge }))
    }

    /// The pages of the first `tokens` members of a cluster, and how many of them each has.
    pub(crate) fn pages(
        &self,
        cluster: usize,
        tokens: usize,
    ) -> impl Iterator<Item = (PageKey, usize)> + '_ {
        let first = self.first[cluster] as usize;
        let of = move |i: usize| {
            let of_page = (tokens - i * self.page_tokens).min(self.page_tokens);
            (self.page(first + i), of_page)
        };
        (0..tokens.div_ceil(self.page_tokens)).map(of)
    }

    fn page(&self, page: usize) -> PageKey {
        self.stripes[page / STRIPE_PAGES].page(page % STRIPE_PAGES)
    }

    /// Drops what is in host memory of it and is not in use.
    pub(crate) fn leave(&self, clustered: &Clustered) -> Result<(), Error> {
        clustered.tier().demote(&self.stripes).map(drop)
    }

    /// Whether some page of it cannot be had any more.
    fn is_lost(&self, clustered: &Clustered) -> bool {
        let pages = self.first.last().map_or(0, |&end| end as usize);
        let keys: Vec<PageKey> = (0..pages).map(|page| self.page(page)).collect();
        clustered.tier().any_lost(&keys)
    }
}

/// Rows of a part in the order of clusters, if it has such.
#[derive(Debug)]
pub(crate) struct Ordered<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Untried,
    There(Arc<T>),
    /// There was no place for them, they had to go, or could not be read back: pages are read instead from
    /// then on.
    GivenUp,
}

impl<T> Default for Ordered<T> {
    fn default() -> Ordered<T> {
        Ordered(Mutex::new(State::Untried))
    }
}

impl<T> Ordered<T> {
    /// Whether nobody has tried to make them.
    pub(crate) fn is_untried(&self) -> bool {
        matches!(*self.0.lock(), State::Untried)
    }

    pub(crate) fn get(&self) -> Option<Arc<T>> {
        match &*self.0.lock() {
            State::There(rows) => Some(rows.clone()),
            State::Untried | State::GivenUp => None,
        }
    }

    /// What came of making them.
    pub(crate) fn set(&self, made: Result<T, MissReason>) {
        let new = made.map_or(State::GivenUp, |rows| State::There(Arc::new(rows)));
        let old = std::mem::replace(&mut *self.0.lock(), new);
        // Forgotten without the lock.
        drop(old);
    }
}

impl Ordered<Extent> {
    /// Gives the extent up if some of it is lost; whether it was.
    pub(crate) fn give_up_lost(&self, clustered: &Clustered) -> bool {
        let lost = self.get().is_some_and(|extent| extent.is_lost(clustered));
        if lost {
            self.set(Err(MissReason::Gone));
        }
        lost
    }
}
