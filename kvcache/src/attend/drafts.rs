//! Verification of draft trees: nodes that are not appended, behind everything that is.

use kvist_kernels::attend::{self, DraftKeys, Listed, Out, Params, Queries, Trees};
use kvist_kernels::{SlotLists, Tensor3, Tensor3Mut};

use super::{AttendInfo, AttendOptions, Call};
use crate::{Cache, Error, Sequence};

/// Draft trees, one for each sequence of a call, and what a layer makes of their nodes.
///
/// A draft of one continuation is a chain: [`Trees::chains`].
#[derive(Clone, Copy, Debug)]
pub struct Drafts<'a> {
    /// Who follows whom; the rows of a sequence's tree are those of its queries.
    pub trees: &'a Trees,
    /// Keys of the nodes, `[nodes, kv_heads, dim_k]` of the cache's dtype, with the position encoding of
    /// where each stands: the sequence's length plus its depth.
    pub k: Tensor3<'a>,
    /// Values of the nodes, `[nodes, kv_heads, dim_v]` of the cache's dtype.
    pub v: Tensor3<'a>,
}

impl Sequence {
    /// Attends with the nodes of a draft tree, of which nothing is appended: `q` is `[nodes, q_heads,
    /// dim_k]`, `out` `[nodes, q_heads, dim_v]`, any dtypes. A node sees every token of the sequence,
    /// whatever its selector, the nodes above it, and itself: as if the path to it had been appended and
    /// attended densely.
    ///
    /// All options hold. With a window a node sees as much as at its place behind the sequence. What is
    /// reported as read, tokens and bytes, is what was read of the sequence; `lse2` is over all that a
    /// node sees.
    ///
    /// Once a path is accepted ([`Trees::path`]), append the keys and values of its nodes.
    ///
    /// Source: LongSpec (arXiv 2502.17421, hybrid tree attention).
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Shape`], [`Error::DType`], [`Error::Setting`] for impossible options,
    /// [`Error::Count`] if there is not one tree. With a lower tier, [`Error::Missing`] if a page cannot be
    /// read, and [`Error::OverBudget`] if no frame can be had for one. `out` is unchanged then.
    pub fn attend_tree(
        &self,
        layer: usize,
        q: &Tensor3,
        drafts: &Drafts,
        options: &AttendOptions,
        out: &mut Tensor3Mut,
    ) -> Result<AttendInfo, Error> {
        let mut infos = self.cache.attend_trees(layer, q, &[self], drafts, options, out)?;
        Ok(infos.pop().unwrap_or_default())
    }
}

impl Cache {
    /// [`Sequence::attend_tree`] for several sequences in one call: sequence `i` owns the rows of tree `i`.
    /// Neighbouring sequences that share leading pages read those once, so several trees over one context
    /// cost as much as one.
    ///
    /// # Errors
    /// As [`Sequence::attend_tree`], [`Error::Count`] if there is not one tree for each sequence, and
    /// [`Error::ForeignSequence`] if a sequence belongs to another cache. `out` is unchanged then.
    pub fn attend_trees(
        &self,
        layer: usize,
        q: &Tensor3,
        sequences: &[&Sequence],
        drafts: &Drafts,
        options: &AttendOptions,
        out: &mut Tensor3Mut,
    ) -> Result<Vec<AttendInfo>, Error> {
        let (trees, found) = (drafts.trees, drafts.trees.indptr().len() - 1);
        if found != sequences.len() {
            let expected = sequences.len();
            return Err(Error::Count { what: "trees of the sequences", expected, found });
        }
        let queries: Vec<usize> =
            trees.indptr().windows(2).map(|w| (w[1] - w[0]) as usize).collect();
        let call = self.check_call(layer, q, sequences, &queries, options)?;
        self.check_heads("out", out.shape(), q.shape()[0], self.geometry().dim_v)?;
        self.check_nodes(q.shape()[0], drafts)?;
        let depths = trees.depths();
        let call = Call { depths: Some(&depths), ..call };

        let shape = out.shape();
        let mut context = vec![0f32; shape.iter().product()];
        let mut view = Tensor3Mut::contiguous(&mut context, shape)?;
        let mut infos = call.attend(q, sequences, &queries, &mut view)?;
        let lse: Vec<f32> = infos.iter().flat_map(|info| &info.lse2).copied().collect();
        let (own, own_lse) = call.nodes(q, sequences, drafts, shape)?;
        let parts = [
            (Tensor3::contiguous(&context, shape)?, &lse[..]),
            (Tensor3::contiguous(&own, shape)?, &own_lse[..]),
        ];
        let mut lse = vec![0f32; lse.len()];
        attend::merge(&parts, &mut Out { o: out.rows_mut(0, shape[0]), lse2: Some(&mut lse) })?;
        let mut rest = &lse[..];
        for info in &mut infos {
            let own;
            (own, rest) = rest.split_at(info.lse2.len());
            info.lse2.copy_from_slice(own);
        }
        call.count(sequences, &queries, &infos);
        Ok(infos)
    }

    fn check_nodes(&self, nodes: usize, drafts: &Drafts) -> Result<(), Error> {
        self.check_rows(&drafts.k, &drafts.v)?;
        let found = drafts.k.shape();
        if found[0] != nodes {
            let [_, heads, dim] = found;
            let expected = format!("[{nodes} nodes, {heads} KV heads, {dim}]");
            return Err(Error::Shape { what: "keys", expected, found });
        }
        Ok(())
    }
}

impl Call<'_> {
    /// Attention of the nodes among themselves, and its log-sum-exps.
    fn nodes(
        &self,
        q: &Tensor3,
        sequences: &[&Sequence],
        drafts: &Drafts,
        shape: [usize; 3],
    ) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let [rows, heads, _] = shape;
        let mut own = (vec![0f32; shape.iter().product()], vec![0f32; rows * heads]);
        if rows == 0 {
            return Ok(own);
        }
        // The context is attended by who knows where its pages are, and the sink logits with it.
        let none = vec![0u32; sequences.len() * self.cache.geometry().kv_heads + 1];
        let nothing = SlotLists { indptr: &none, slots: &[], positions: Some(&[]), per_head: true };
        let params = Params { sinks: None, ..self.params() };
        let positions = vec![0u32; rows];
        let queries = Queries { q: *q, indptr: drafts.trees.indptr(), positions: Some(&positions) };
        let keys = DraftKeys::Rows { k: drafts.k, v: drafts.v };
        let mut to = Out { o: Tensor3Mut::contiguous(&mut own.0, shape)?, lse2: Some(&mut own.1) };
        let (pool, exec) = (self.cache.pool()?, &self.cache.shared.exec);
        let context = Listed::Slots(&pool, &nothing);
        attend::tree(&queries, &context, drafts.trees, &keys, &params, exec, &mut to)?;
        Ok(own)
    }
}
