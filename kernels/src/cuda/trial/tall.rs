//! Trials of attention of many rows, and of draft trees.

use bytemuck::Pod;

use super::{Memory, Results, Trial, TrialError, Upload, lists};
use crate::attend::{BlockLists, DraftKeys, Listed, Params, Queries, Trees};
use crate::cuda::attention::{FEW_ROWS, HOPPER};
use crate::cuda::params::{
    AttendParams, MergePartsParams, Part, PrefillParams, TreeParams, type_code,
};
use crate::cuda::work::{PrefillSpec, TreeSpec, TreeWork, Work, describe_prefill, describe_tree};
use crate::cuda::{ATTEND_PREFILL, ATTEND_PREFILL_HOPPER, ATTEND_TREE, Device, Stream};
use crate::{DType, KvPool, PageLists};

impl Trial {
    /// Attention of many rows over pages, or over listed blocks of them, with `wgmma` if that is wanted and GPU,
    /// dimension and type have it; otherwise as [`Trial::new`].
    ///
    /// # Errors
    /// As [`Trial::new`].
    pub fn prefill<T: Pod>(
        device: &Device,
        stream: &Stream,
        (queries, pages, params): (&Queries, (&KvPool, &PageLists), &Params),
        (blocks, wgmma): (Option<&BlockLists>, bool),
        memory: Memory<T>,
    ) -> Result<Trial, TrialError> {
        let (mut up, results) = (Upload::new(device, stream), Results::new(device, queries)?);
        up.prefill((queries, pages, params), (blocks, wgmma), memory, &results)?;
        Ok(up.finish(results))
    }

    /// Verification of draft trees: attention over the context, among the nodes, and the merge of both.
    /// `nodes` is the memory behind their keys and values; otherwise as [`Trial::new`].
    ///
    /// # Errors
    /// As [`Trial::new`].
    pub fn tree<T: Pod>(
        device: &Device,
        stream: &Stream,
        (queries, context, params): (&Queries, &Listed, &Params),
        (trees, keys): (&Trees, &DraftKeys),
        (memory, nodes): (Memory<T>, (&[T], &[T])),
    ) -> Result<Trial, TrialError> {
        let mut up = Upload::new(device, stream);
        let parts = [Results::new(device, queries)?, Results::new(device, queries)?];
        let above = &Params { causal: false, ..*params };
        let [rows, heads, dim] = queries.q.shape();
        let group = heads / context.check(queries, above)?;
        let many = |w: &[u32]| (w[1] - w[0]) as usize * group > FEW_ROWS;
        match context {
            Listed::Pages(pool, pages) if queries.indptr.windows(2).any(many) => {
                up.prefill((queries, (pool, pages), above), (None, false), memory, &parts[0])?;
            }
            _ => up.attend((queries, context, above), memory, false, &parts[0])?,
        }
        let memory = Memory { q: memory.q, k: nodes.0, v: nodes.1 };
        let cut = keys.with(queries, |nodes| {
            let described =
                parts[1].described(|out| describe_tree(queries, trees, nodes, params, out))?;
            let work = TreeWork::new(queries, trees, nodes, params, described.0.rows())?;
            Ok((described, work))
        })?;
        up.tree(cut, memory, &parts[1])?;
        let results = Results::new(device, queries)?;
        let strides = [(heads * dim) as i64, dim as i64];
        let part = |r: &Results| {
            let (o, lse2) = (r.o.address(), r.lse2.address());
            Part { o, lse2, row: strides[0], head: strides[1] }
        };
        let merge = MergePartsParams {
            parts: up.put(&parts.each_ref().map(part))?,
            o: results.o.address(),
            lse2: results.lse2.address(),
            o_row: strides[0],
            o_head: strides[1],
            parts_n: 2,
            rows: rows as u32,
            heads: heads as u32,
            dim: dim as u32,
            part_type: type_code(DType::F32),
            o_type: type_code(DType::F32),
        };
        up.merge("merge_parts", rows * heads, merge)?;
        up.kept.extend(parts.into_iter().flat_map(|r| [r.o, r.lse2]));
        Ok(up.finish(results))
    }
}

impl Upload<'_> {
    fn prefill<T: Pod>(
        &mut self,
        (queries, pages, params): (&Queries, (&KvPool, &PageLists), &Params),
        (blocks, wgmma): (Option<&BlockLists>, bool),
        memory: Memory<T>,
        results: &Results,
    ) -> Result<(), TrialError> {
        let (spec, p) =
            results.described(|out| describe_prefill(queries, pages, blocks, params, out))?;
        let wgmma = wgmma && spec.has_wgmma() && self.device.info().arch == HOPPER;
        let spec = PrefillSpec { wgmma, ..spec };
        let kernel = if wgmma { &ATTEND_PREFILL_HOPPER } else { &ATTEND_PREFILL };
        let (shared, threads) = (spec.shared_bytes(), spec.threads());
        let kernel = (kernel, spec.macros());
        let (function, workers) = self.function(kernel, "attend_prefill", (threads, shared))?;
        let listed = Listed::Pages(pages.0, pages.1);
        let (work, picked) = match blocks {
            Some(b) => Work::of_blocks(queries, pages, b, params, spec.rows(), workers)?,
            None => (Work::new(queries, &listed, params, spec.rows(), workers)?, Vec::new()),
        };
        let call = self.tensors(memory, results.told(p.call))?;
        let call = lists(self, queries, &listed, params, call)?;
        let p = PrefillParams {
            call: self.work(&work, (spec.rows(), spec.dim), call)?,
            blocks: self.put_some(blocks.map(|b| b.blocks))?,
            picked: self.put(&picked)?,
            ..p
        };
        self.program.push(function, (work.workers.len() - 1, threads, shared), p);
        self.merge("merge_units", work.units.len() * spec.rows(), spec.merge_of(&p, &work))?;
        Ok(())
    }

    fn tree<T: Pod>(
        &mut self,
        ((spec, p), work): ((TreeSpec, TreeParams), TreeWork),
        memory: Memory<T>,
        results: &Results,
    ) -> Result<(), TrialError> {
        let (kernel, shared) = ((&ATTEND_TREE, spec.macros()), spec.shared_bytes());
        let (function, _) = self.function(kernel, "attend_tree", (128, shared))?;
        let call = self.tensors(memory, results.told(p.call))?;
        let call = AttendParams {
            units: self.put(&work.units)?,
            indptr: self.put(&work.indptr)?,
            items: self.put(&work.slots)?,
            ..call
        };
        let p = TreeParams { call, ancestors: self.put(&work.ancestors)? };
        self.program.push(function, (work.units.len(), 128, shared), p);
        Ok(())
    }
}
