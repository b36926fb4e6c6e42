//! The kernels of many rows, of listed blocks and of draft trees against f64.

use kvist_kernels::attend::{BlockLists, DraftKeys, Listed, ROOT, Trees};
use kvist_kernels::cuda::{Trial, TrialError};
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{Element, KvPool, Tensor3};

use super::Gpu;
use super::batch::Batch;
use super::check::judge;
use crate::{Error, Options, Rng, Shape, Sink};

/// Query rows of each sequence; a tree has 64 nodes at most.
const QUERIES: [usize; 5] = [1, 3, 17, 33, 64];
/// Tokens of the longest sequence at most: every row is computed in f64, too.
const LONGEST: usize = 700;
/// Rows and tokens of listed blocks.
const BLOCKS: (usize, usize) = (16, 32);

/// A row for each of them; how many are wrong.
pub(super) fn tall<T: Element>(
    gpu: &Gpu,
    shape: Shape,
    page: usize,
    options: &Options,
    sink: &mut Sink,
) -> Result<usize, Error> {
    let long = options.context.as_ref().and_then(|c| c.first().copied()).unwrap_or(LONGEST);
    let lens = [0, 1, page - 1, page + 1, long.min(LONGEST)];
    let batch = Batch::<T>::tall(shape, page, &lens, &QUERIES, 43);
    let (trial, want) = blocks(gpu, &batch, &lens)?;
    let mut wrong = told::<T>(gpu, "blocks", shape, page, trial, &want, sink)?;
    let (trial, want) = trees(gpu, &batch)?;
    wrong += told::<T>(gpu, "tree", shape, page, trial, &want, sink)?;
    let batch = batch.causal();
    let (trial, want) = prefill(gpu, &batch, false)?;
    wrong += told::<T>(gpu, "prefill", shape, page, trial, &want, sink)?;
    // The same again where there is no wgmma.
    let (trial, want) = prefill(gpu, &batch, true)?;
    Ok(wrong + told::<T>(gpu, "prefill, wgmma", shape, page, trial, &want, sink)?)
}

type Pair = (Trial, Attended);

fn told<T: Element>(
    gpu: &Gpu,
    kernel: &str,
    shape: Shape,
    page: usize,
    mut trial: Trial,
    want: &Attended,
    sink: &mut Sink,
) -> Result<usize, Error> {
    trial.poison().and_then(|()| trial.launch()).map_err(TrialError::from)?;
    let (o, lse) = trial.read().map_err(TrialError::from)?;
    Ok(judge::<T>(gpu, kernel, shape, page, (&o, &lse), want, sink))
}

/// The last rows of each sequence over all before them.
fn prefill<T: Element>(gpu: &Gpu, batch: &Batch<T>, wgmma: bool) -> Result<Pair, Error> {
    Ok(batch.with(|queries, pool, lists, params| {
        let tokens = reference::page_tokens(pool, lists);
        let want = reference::attend(queries, pool, &tokens, lists.per_head, params);
        let call = (queries, (pool, lists), params);
        Trial::prefill(&gpu.device, &gpu.stream, call, (None, wgmma), batch.memory())
            .map(|t| (t, want))
    })??)
}

/// Half of the blocks, chosen at random for each query head.
fn blocks<T: Element>(gpu: &Gpu, batch: &Batch<T>, lens: &[usize]) -> Result<Pair, Error> {
    let (mut rng, mut indptr, mut ids) = (Rng::new(44), vec![0u32], Vec::new());
    for (&len, &rows) in lens.iter().zip(&QUERIES) {
        for _ in 0..batch.shape.q_heads * rows.div_ceil(BLOCKS.0) {
            let n = len.div_ceil(BLOCKS.1);
            let mut chosen = rng.permutation(n);
            chosen.truncate(n.div_ceil(2));
            chosen.sort_unstable();
            ids.extend(chosen);
            indptr.push(ids.len() as u32);
        }
    }
    let (query_block, key_block) = BLOCKS;
    let (indptr, blocks) = (&indptr[..], &ids[..]);
    let blocks =
        BlockLists { query_block, key_block, indptr, blocks, per_query_head: true, columns: None };
    Ok(batch.with(|queries, pool, lists, params| {
        let want = reference::attend_blocks(queries, pool, lists, &blocks, params);
        let (call, memory) = ((queries, (pool, lists), params), batch.memory());
        Trial::prefill(&gpu.device, &gpu.stream, call, (Some(&blocks), true), memory)
            .map(|t| (t, want))
    })??)
}

/// Trees whose nodes follow any before them.
fn trees<T: Element>(gpu: &Gpu, batch: &Batch<T>) -> Result<Pair, Error> {
    let Shape { kv_heads, head_dim, .. } = batch.shape;
    let mut rng = Rng::new(45);
    let parents: Vec<u32> = QUERIES
        .iter()
        .flat_map(|&n| (0..n as u32).map(|i| if i == 0 { ROOT } else { i / 2 }).collect::<Vec<_>>())
        .collect();
    let shape = [parents.len(), kv_heads, head_dim];
    let mut numbers =
        || -> Vec<T> { rng.normals(shape.iter().product()).into_iter().map(T::from_f32).collect() };
    let (k, v) = (numbers(), numbers());
    let (keys, values) = (Tensor3::contiguous(&k, shape)?, Tensor3::contiguous(&v, shape)?);
    let trees = Trees::new(&batch.q_indptr, &parents)?;
    let nodes = KvPool::from_rows(&keys, &values)?;
    let of = |w: &[u32]| (w[0]..w[1]).map(|i| (0, i as usize, 0)).collect();
    let own: Vec<Vec<(usize, usize, u32)>> = batch.q_indptr.windows(2).map(of).collect();
    Ok(batch.with(|queries, pool, lists, params| {
        let tokens = reference::page_tokens(pool, lists);
        let context = (pool, &tokens[..], lists.per_head);
        let want =
            reference::attend_tree(queries, context, (&nodes, &own, false), &parents, params);
        let call = (queries, &Listed::Pages(pool, lists), params);
        let keys = DraftKeys::Rows { k: keys, v: values };
        let memory = (batch.memory(), (&k[..], &v[..]));
        Trial::tree(&gpu.device, &gpu.stream, call, (&trees, &keys), memory).map(|t| (t, want))
    })??)
}
