//! Attention of draft trees: speculative decoding verifies many continuations in one step.
//!
//! The context is attended without a mask by all nodes and heads of a group at once; the tree's own
//! keys are masked by ancestors; the two are merged by log-sum-exp. Source: LongSpec (arXiv
//! 2502.17421, hybrid tree attention).

use super::engine::{Job, Unit};
use super::pick::Pick;
use super::{Listed, Out, Params, Queries, check_out, merge};
use crate::{Error, Executor, Isa, KvPool, SlotLists, Tensor3, Tensor3Mut};

/// Parent of a node that continues the context itself.
pub const ROOT: u32 = u32::MAX;

/// Draft trees, one per sequence, checked once and good for every layer.
///
/// A chain (each node the child of the one before) is the ordinary case of a draft of one
/// continuation, as in MagicDec (arXiv 2408.11049).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trees {
    indptr: Vec<u32>,
    parents: Vec<u32>,
}

/// Keys and values of the trees' nodes.
#[derive(Clone, Copy, Debug)]
pub enum DraftKeys<'a> {
    /// Lists of every sequence's nodes, in their order.
    Listed(Listed<'a>),
    /// Row `r` of `k` `[rows, kv_heads, dim_k]` and `v` `[rows, kv_heads, dim_v]`, of one dtype, is
    /// the node of query row `r`.
    Rows {
        /// Keys.
        k: Tensor3<'a>,
        /// Values.
        v: Tensor3<'a>,
    },
}

/// One bit for each (node, ancestor or the node itself), nodes numbered within their tree.
#[derive(Debug)]
pub(super) struct Ancestors {
    /// First row of each row's tree.
    first: Vec<u32>,
    /// Words of a row.
    words: usize,
    bits: Vec<u64>,
}

impl Trees {
    /// Trees over the query rows `indptr[b]..indptr[b + 1]` of each sequence. `parents[r]` is the
    /// parent of row `r`, counted from the first row of its sequence, or [`ROOT`]; parents come
    /// before their children.
    ///
    /// # Errors
    /// [`Error::Shape`] if the offsets do not fit, [`Error::Range`] naming a node whose parent does
    /// not come before it (so that there are no cycles).
    pub fn new(indptr: &[u32], parents: &[u32]) -> Result<Trees, Error> {
        let sequences = indptr.len().saturating_sub(1);
        crate::lists::check_indptr("tree indptr", indptr, sequences, parents.len())?;
        for w in indptr.windows(2) {
            let nodes = parents[w[0] as usize..w[1] as usize].iter().enumerate();
            for (i, &parent) in nodes {
                if parent != ROOT && parent as usize >= i {
                    let expected = format!("a node before node {i} of its tree, or ROOT");
                    return Err(Error::range("tree parent", expected, parent));
                }
            }
        }
        Ok(Trees { indptr: indptr.to_vec(), parents: parents.to_vec() })
    }

    /// A chain for every sequence.
    ///
    /// # Errors
    /// As [`Trees::new`].
    pub fn chains(indptr: &[u32]) -> Result<Trees, Error> {
        let chain = |w: &[u32]| (0..w[1].saturating_sub(w[0])).map(|i| i.wrapping_sub(1));
        let parents: Vec<u32> = indptr.windows(2).flat_map(chain).collect();
        Trees::new(indptr, &parents)
    }

    /// First row of each tree, and the number of rows.
    #[must_use]
    pub fn indptr(&self) -> &[u32] {
        &self.indptr
    }

    /// Nodes above each row's node; 0 for roots.
    #[must_use]
    pub fn depths(&self) -> Vec<u32> {
        let mut depths = vec![0u32; self.parents.len()];
        for w in self.indptr.windows(2) {
            let first = w[0] as usize;
            for row in first..w[1] as usize {
                depths[row] = match self.parents[row] {
                    ROOT => 0,
                    parent => depths[first + parent as usize] + 1,
                };
            }
        }
        depths
    }

    /// Parents of a sequence's nodes.
    ///
    /// # Panics
    /// If there is no such sequence.
    #[must_use]
    pub fn parents(&self, sequence: usize) -> &[u32] {
        &self.parents[self.indptr[sequence] as usize..self.indptr[sequence + 1] as usize]
    }

    /// The nodes from a root down to `node`, that one included.
    ///
    /// # Errors
    /// [`Error::Range`] if there is no such sequence or node.
    pub fn path(&self, sequence: usize, node: u32) -> Result<Vec<u32>, Error> {
        let parents = self.tree(sequence)?;
        if node as usize >= parents.len() {
            return Err(Error::range("tree node", format!("0..{}", parents.len()), node));
        }
        let mut path = vec![node];
        let mut at = parents[node as usize];
        while at != ROOT {
            path.push(at);
            at = parents[at as usize];
        }
        path.reverse();
        Ok(path)
    }

    /// Which rows to keep, and where, once the nodes of `path` are accepted: `(from, to)` of every
    /// node whose key and value must move, counted from the sequence's first node. Done in this
    /// order the moves overwrite nothing that is still to be moved; node `path[i]` ends at `i`.
    ///
    /// # Errors
    /// [`Error::Range`] if the nodes are not a path from a root downwards.
    pub fn moves(&self, sequence: usize, path: &[u32]) -> Result<Vec<(u32, u32)>, Error> {
        let parents = self.tree(sequence)?;
        let mut above = ROOT;
        for &node in path {
            if parents.get(node as usize) != Some(&above) {
                let expected = match above {
                    ROOT => "a root".to_owned(),
                    above => format!("a child of node {above}"),
                };
                return Err(Error::range("tree path", expected, node));
            }
            above = node;
        }
        let places = path.iter().copied().zip(0..);
        Ok(places.filter(|(from, to)| from != to).collect())
    }

    fn tree(&self, sequence: usize) -> Result<&[u32], Error> {
        let sequences = self.indptr.len() - 1;
        if sequence >= sequences {
            return Err(Error::range("sequence", format!("0..{sequences}"), sequence));
        }
        Ok(self.parents(sequence))
    }

    /// How nodes are attended to among themselves: ancestors take the place of mask and window, and sink logits
    /// are part of the context's sum.
    pub(crate) fn params<'a>(params: &Params<'a>) -> Params<'a> {
        Params { causal: false, window: 0, sinks: None, ..*params }
    }

    /// Checks that every query row has a node, and every list the nodes of its tree; returns the number of KV
    /// heads.
    pub(crate) fn check(
        &self,
        queries: &Queries,
        nodes: &Listed,
        params: &Params,
    ) -> Result<usize, Error> {
        if self.indptr != queries.indptr {
            let (want, found) = (format!("{:?}", queries.indptr), format!("{:?}", self.indptr));
            return Err(Error::shape("trees", want, found));
        }
        let kv_heads = nodes.check(queries, &Trees::params(params))?;
        check_nodes(nodes, self, kv_heads)?;
        Ok(kv_heads)
    }

    /// What each row sees of its tree, one word each, as [`Trees::ancestors`].
    #[cfg(feature = "cuda")]
    pub(crate) fn bits(&self, window: u32) -> Result<Vec<u64>, Error> {
        let most = self.indptr.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        if most > 64 {
            return Err(Error::range("nodes of a tree on the device", "64 at most", most));
        }
        Ok(self.ancestors(window).bits)
    }

    /// Ancestor bits; with a window only the node itself and the `window - 1` nodes above it.
    fn ancestors(&self, window: u32) -> Ancestors {
        let trees = || self.indptr.windows(2).map(|w| (w[0], (w[1] - w[0]) as usize));
        let words = trees().map(|t| t.1.div_ceil(64)).max().unwrap_or(0);
        let mut bits = vec![0u64; self.parents.len() * words];
        let nearest = if window == 0 { usize::MAX } else { window as usize };
        for (first, nodes) in trees() {
            for i in 0..nodes {
                let row = &mut bits[(first as usize + i) * words..][..words];
                let above =
                    |&n: &u32| Some(self.parents[(first + n) as usize]).filter(|&p| p != ROOT);
                for n in std::iter::successors(Some(i as u32), above).take(nearest) {
                    row[n as usize / 64] |= 1 << (n % 64);
                }
            }
        }
        let first = trees().flat_map(|(first, nodes)| std::iter::repeat_n(first, nodes)).collect();
        Ancestors { first, words, bits }
    }
}

impl Ancestors {
    /// What a query row sees of a tile of its tree's nodes.
    pub(super) fn bits(&self, row: usize, tile: usize) -> u64 {
        self.bits[row * self.words + tile]
    }

    /// Nodes of the tree up to the unit's last: nobody sees one behind itself.
    pub(super) fn end(&self, unit: &Unit) -> usize {
        unit.tokens.end - self.first[unit.tokens.start] as usize
    }
}

/// Attention of the nodes of draft trees: each sees its sequence's whole context, the nodes above it
/// and itself.
///
/// All context tokens lie before the trees: [`Params::causal`] changes nothing. With
/// [`Params::window`] a node at depth `n` sees the `window - 1` nodes above it and, by
/// [`Queries::positions`], the rest of its window of the context. Keys of the context are read once
/// for 64 rows (nodes times heads of a group).
///
/// # Errors
/// [`Error`] if shapes, lists, trees or parameters do not fit; nothing is written then.
pub fn tree(
    queries: &Queries,
    context: &Listed,
    trees: &Trees,
    keys: &DraftKeys,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    tree_at(Isa::level(), queries, context, trees, keys, params, exec, out)
}

/// [`tree`] at a given instruction-set level (lowered to what the CPU has).
///
/// # Errors
/// As [`tree`].
#[expect(clippy::too_many_arguments, reason = "`tree` with a level")]
pub fn tree_at(
    isa: Isa,
    queries: &Queries,
    context: &Listed,
    trees: &Trees,
    keys: &DraftKeys,
    params: &Params,
    exec: &Executor,
    out: &mut Out,
) -> Result<(), Error> {
    let context_params = Params { causal: false, ..*params };
    let kv_heads = context.check_for(queries, &context_params, out)?;
    keys.with(queries, |own| {
        let own_heads = trees.check(queries, own, params)?;
        if own_heads != kv_heads {
            return Err(Error::shape("KV heads of the trees", kv_heads, own_heads));
        }
        check_out(queries, own.source().0, out)?;
        let [n, heads, dim] = out.o.shape();
        let mut parts = [(); 2].map(|()| (vec![0f32; n * heads * dim], vec![0f32; n * heads]));
        let ancestors = trees.ancestors(params.window);
        let calls = [
            (context, context_params, Pick::All),
            (own, Trees::params(params), Pick::Ancestors(&ancestors)),
        ];
        for ((o, lse), (listed, params, pick)) in parts.iter_mut().zip(&calls) {
            let o = Tensor3Mut::contiguous(o, [n, heads, dim])?;
            let (pool, source) = listed.source();
            let job = Job::new(isa, queries, pool, &source, pick, params);
            job.run(exec, &mut Out { o, lse2: Some(lse) });
        }
        let [context, own] = &parts;
        let view = |o| Tensor3::contiguous(o, [n, heads, dim]);
        merge(&[(view(&context.0)?, &context.1), (view(&own.0)?, &own.1)], out)
    })
}

impl DraftKeys<'_> {
    /// Calls `f` with the nodes as lists.
    pub(crate) fn with<R>(
        &self,
        queries: &Queries,
        f: impl FnOnce(&Listed) -> Result<R, Error>,
    ) -> Result<R, Error> {
        match self {
            DraftKeys::Listed(listed) => f(listed),
            DraftKeys::Rows { k, v } => {
                let pool = rows_pool(queries, k, v)?;
                let slots: Vec<u32> = (0..queries.q.shape()[0] as u32).collect();
                let indptr = queries.indptr;
                let rows = SlotLists { indptr, slots: &slots, positions: None, per_head: false };
                f(&Listed::Slots(&pool, &rows))
            }
        }
    }
}

/// The rows of two tensors, a node each, as the tokens of one frame.
fn rows_pool<'a>(queries: &Queries, k: &Tensor3<'a>, v: &Tensor3<'a>) -> Result<KvPool<'a>, Error> {
    let (want, found) = (queries.q.shape()[0], k.shape()[0]);
    if found != want {
        return Err(Error::shape("rows of the trees", want, found));
    }
    KvPool::from_rows(k, v)
}

/// Every list holds the nodes of its tree.
fn check_nodes(own: &Listed, trees: &Trees, kv_heads: usize) -> Result<(), Error> {
    let (_, source) = own.source();
    for (sequence, w) in trees.indptr.windows(2).enumerate() {
        for head in 0..kv_heads {
            let len = source.len(source.list(sequence, head, kv_heads));
            if len != (w[1] - w[0]) as usize {
                let want = format!("{} nodes of sequence {sequence}", w[1] - w[0]);
                return Err(Error::shape("keys of a tree", want, len));
            }
        }
    }
    Ok(())
}
