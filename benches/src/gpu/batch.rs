//! A batch of sequences in pages, in host memory.

use kvist_kernels::attend::{Listed, Params, Queries};
use kvist_kernels::cuda::{Device, Memory, Stream, Trial, TrialError};
use kvist_kernels::{Element, KvLayout, KvPool, PageLists, Tensor3};

use crate::{Rng, Shape};

/// Elements that are drawn; longer tensors repeat them.
const DRAWN: usize = 1 << 20;

/// One decoding query for each sequence, and its tokens.
pub(super) struct Batch<T> {
    shape: Shape,
    page: usize,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    indptr: Vec<u32>,
    frames: Vec<u32>,
    lens: Vec<u32>,
    q_indptr: Vec<u32>,
}

impl<T: Element> Batch<T> {
    /// Sequences of these lengths, their pages anywhere in a pool without gaps.
    pub(super) fn new(shape: Shape, page: usize, lens: &[usize], seed: u64) -> Batch<T> {
        let mut rng = Rng::new(seed);
        let pages: usize = lens.iter().map(|len| len.div_ceil(page)).sum();
        let mut numbers = |n: usize| -> Vec<T> {
            let drawn: Vec<T> = rng.normals(n.min(DRAWN)).into_iter().map(T::from_f32).collect();
            drawn.iter().copied().cycle().take(n).collect()
        };
        let rows = pages.max(1) * page * shape.kv_heads * shape.head_dim;
        let q = numbers(lens.len() * shape.q_heads * shape.head_dim);
        let (k, v) = (numbers(rows), numbers(rows));
        let frames = Rng::new(seed + 1).permutation(pages);
        let offsets = |each: &dyn Fn(usize) -> usize| -> Vec<u32> {
            let mut at = 0;
            let ends = lens.iter().map(|&len| {
                at += each(len);
                at as u32
            });
            [0].into_iter().chain(ends).collect()
        };
        Batch {
            shape,
            page,
            indptr: offsets(&|len| len.div_ceil(page)),
            q_indptr: offsets(&|_| 1),
            lens: lens.iter().map(|&len| len as u32).collect(),
            q,
            k,
            v,
            frames,
        }
    }

    /// Bytes of K and V that the queries read.
    pub(super) fn bytes(&self) -> usize {
        let tokens: usize = self.lens.iter().map(|&len| len as usize).sum();
        2 * tokens * self.shape.kv_heads * self.shape.head_dim * size_of::<T>()
    }

    /// Calls `f` with the views of a call.
    pub(super) fn with<R>(
        &self,
        f: impl FnOnce(&Queries, &KvPool, &PageLists, &Params) -> R,
    ) -> Result<R, kvist_kernels::Error> {
        let Shape { q_heads, kv_heads, head_dim } = self.shape;
        let q = Tensor3::contiguous(&self.q, [self.lens.len(), q_heads, head_dim])?;
        let queries = Queries { q, indptr: &self.q_indptr, positions: None };
        let layout = KvLayout::hnd(self.page, kv_heads, head_dim, head_dim);
        let frames = self.k.len() / (self.page * kv_heads * head_dim);
        let pool = KvPool::new(&self.k, &self.v, layout, frames)?;
        let lists = PageLists {
            indptr: &self.indptr,
            frames: &self.frames,
            lens: &self.lens,
            first_pos: None,
            per_head: false,
        };
        Ok(f(&queries, &pool, &lists, &Params::new(1.0 / (head_dim as f32).sqrt())))
    }

    /// The same on a GPU.
    pub(super) fn trial(&self, device: &Device, stream: &Stream) -> Result<Trial, TrialError> {
        let memory = Memory { q: &self.q, k: &self.k, v: &self.v };
        self.with(|queries, pool, lists, params| {
            let listed = Listed::Pages(pool, lists);
            Trial::new(device, stream, (queries, &listed, params), memory, false)
        })?
    }
}

/// Calls a function of the element type that a dtype names.
macro_rules! of_type {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F32 => $function::<f32>($($argument),*),
            DType::F16 => $function::<f16>($($argument),*),
            DType::Bf16 => $function::<bf16>($($argument),*),
        }
    };
}
pub(super) use of_type;
