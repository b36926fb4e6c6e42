//! What is derived from the keys of one (layer, KV head) once and scored at every step: clusters, codes,
//! channels, representatives. Made when a query first needs it, never saved; losing it costs time.

use std::ops::Range;
use std::sync::Arc;

use kvist_kernels::cluster::Clusters;
use kvist_kernels::cluster::pq::Codebook;

use crate::budget::Charge;
use crate::live::{Copied, Extent, Ordered};

/// Tokens of a part at most, where what is derived of a token does not depend on others.
pub(crate) const BATCH: usize = 64;

/// Parts of consecutive tokens. Forks share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    parts: Vec<Arc<Part>>,
}

/// What was derived at one time.
#[derive(Debug)]
pub(crate) struct Part {
    /// Positions it speaks of.
    pub(crate) tokens: Range<usize>,
    /// Those of them whose keys are not finite, ascending: nothing is known of them.
    pub(crate) open: Vec<u32>,
    pub(crate) made: Made,
    /// Of clusters, with a lower tier: their tokens' rows.
    pub(crate) ordered: Ordered<Extent>,
    /// Of clusters, where rows are to lie together in host memory: copies of them.
    pub(crate) copied: Arc<Ordered<Copied>>,
    _charge: Charge,
}

/// What was derived.
#[derive(Debug)]
pub(crate) enum Made {
    /// Token 0 is the first of the part.
    Clusters(Clusters),
    /// Cells of 64 tokens from the first of the part on, and their numbers.
    Codes { book: Arc<Codebook>, cells: Vec<u8>, ids: Vec<u32> },
    /// These channels of each key, `[tokens][channels]`, in the keys' type.
    Channels { channels: Arc<[u32]>, rows: Vec<u8> },
    /// A row for each unit, `[units][dim]`.
    Rows(Vec<f32>),
    /// Least cosine of a key with the mean, of each unit.
    Cosines(Vec<f32>),
}

impl Part {
    pub(crate) fn new(tokens: Range<usize>, open: Vec<u32>, made: Made, charge: Charge) -> Part {
        let (ordered, copied) = (Ordered::default(), Arc::default());
        Part { tokens, open, made, ordered, copied, _charge: charge }
    }
}

impl Made {
    /// Bytes of its heap memory.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = match self {
            Made::Clusters(c) => {
                let floats = c.centroids().len() + c.radii().len() + c.value_sums().len();
                4 * (floats + c.offsets().len() + c.order().len() + c.unclustered().len())
            }
            // The codebook is shared by all parts; the first one pays for it with its own codes.
            Made::Codes { book, cells, ids } => {
                4 * book.centroids().len() / Arc::strong_count(book).max(1)
                    + cells.len()
                    + 4 * ids.len()
            }
            Made::Channels { channels, rows } => 4 * channels.len() + rows.len(),
            Made::Rows(rows) | Made::Cosines(rows) => 4 * rows.len(),
        };
        bytes as u64
    }
}

impl Index {
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().map(|part| &**part)
    }

    /// The part that later ones follow in what they decide once.
    pub(crate) fn first(&self) -> Option<&Part> {
        self.parts.first().map(|part| &**part)
    }

    /// Behind the last token it speaks of; `None` if it speaks of none.
    pub(crate) fn end(&self) -> Option<usize> {
        self.parts.last().map(|part| part.tokens.end)
    }

    /// Adds a part; what spoke of its tokens before is forgotten.
    pub(crate) fn push(&mut self, part: Part) {
        self.truncate(part.tokens.start);
        self.parts.push(Arc::new(part));
    }

    /// The last part, unless it is the first.
    pub(crate) fn later(&self) -> Option<&Part> {
        self.parts.get(1..)?.last().map(|part| &**part)
    }

    /// Forgets the parts that speak of tokens from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.parts.retain(|part| part.tokens.end <= len);
    }
}
