//! A batch of sequences in pages, in host memory.

use kvist_kernels::attend::{Listed, Params, Queries};
use kvist_kernels::cuda::{Device, Memory, Stream, Trial, TrialError};
use kvist_kernels::{Element, KvLayout, KvPool, PageLists, Tensor3};

use crate::{Rng, Shape};

/// Elements that are drawn; longer tensors repeat them.
const DRAWN: usize = 1 << 20;

/// The last query rows of each sequence, and its tokens.
pub(super) struct Batch<T> {
    pub(super) shape: Shape,
    page: usize,
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    indptr: Vec<u32>,
    frames: Vec<u32>,
    lens: Vec<u32>,
    pub(super) q_indptr: Vec<u32>,
    /// Of each row, where there is a causal mask.
    positions: Option<Vec<u32>>,
}

impl<T: Element> Batch<T> {
    /// One decoding query for each sequence of these lengths, their pages anywhere in a pool without gaps.
    pub(super) fn new(shape: Shape, page: usize, lens: &[usize], seed: u64) -> Batch<T> {
        Batch::tall(shape, page, lens, &vec![1; lens.len()], seed)
    }

    /// So many query rows for each sequence.
    pub(super) fn tall(
        shape: Shape,
        page: usize,
        lens: &[usize],
        queries: &[usize],
        seed: u64,
    ) -> Batch<T> {
        let mut rng = Rng::new(seed);
        let pages: usize = lens.iter().map(|len| len.div_ceil(page)).sum();
        let mut numbers = |n: usize| -> Vec<T> {
            let drawn: Vec<T> = rng.normals(n.min(DRAWN)).into_iter().map(T::from_f32).collect();
            drawn.iter().copied().cycle().take(n).collect()
        };
        let rows = pages.max(1) * page * shape.kv_heads * shape.head_dim;
        let q = numbers(queries.iter().sum::<usize>() * shape.q_heads * shape.head_dim);
        let (k, v) = (numbers(rows), numbers(rows));
        let frames = Rng::new(seed + 1).permutation(pages);
        let offsets = |sizes: &mut dyn Iterator<Item = usize>| -> Vec<u32> {
            let mut at = 0;
            let ends = sizes.map(|n| {
                at += n;
                at as u32
            });
            [0].into_iter().chain(ends).collect()
        };
        Batch {
            shape,
            page,
            indptr: offsets(&mut lens.iter().map(|len| len.div_ceil(page))),
            q_indptr: offsets(&mut queries.iter().copied()),
            lens: lens.iter().map(|&len| len as u32).collect(),
            q,
            k,
            v,
            frames,
            positions: None,
        }
    }

    /// With a causal mask: the rows are the last of their sequences.
    pub(super) fn causal(mut self) -> Batch<T> {
        let sequences = self.q_indptr.windows(2).zip(&self.lens);
        let rows = sequences.flat_map(|(w, &len)| {
            let n = w[1] - w[0];
            (0..n).map(move |i| (len + i).saturating_sub(n))
        });
        self.positions = Some(rows.collect());
        self
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
        let rows = self.q.len() / (q_heads * head_dim);
        let q = Tensor3::contiguous(&self.q, [rows, q_heads, head_dim])?;
        let positions = self.positions.as_deref();
        let queries = Queries { q, indptr: &self.q_indptr, positions };
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
        let params = Params::new(1.0 / (head_dim as f32).sqrt());
        Ok(f(&queries, &pool, &lists, &Params { causal: positions.is_some(), ..params }))
    }

    /// What is behind the views.
    pub(super) fn memory(&self) -> Memory<'_, T> {
        Memory { q: &self.q, k: &self.k, v: &self.v }
    }

    /// The same on a GPU.
    pub(super) fn trial(&self, device: &Device, stream: &Stream) -> Result<Trial, TrialError> {
        let memory = self.memory();
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
