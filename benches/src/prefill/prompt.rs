//! One layer's prompt: queries, keys and values in bf16.

use half::bf16;
use kvist::prefill::Lists;
use kvist_kernels::attend::{self, Listed, Out, Params, Queries};
use kvist_kernels::{Executor, KvLayout, KvPool, PageLists, Tensor3, Tensor3Mut};

use crate::data::PAGE_TOKENS;
use crate::quality::dump::Dump;
use crate::{Error, Rng, Shape};

/// Queries and keys of one sequence; the queries are the last of the keys.
pub(super) struct Prompt {
    pub(super) shape: Shape,
    pub(super) queries: usize,
    pub(super) keys: usize,
    dim_v: usize,
    scale: f32,
    soft_cap: f32,
    /// `[queries, q_heads, head_dim]`
    q: Vec<bf16>,
    /// Pages `[frames, kv_heads, PAGE_TOKENS, dim]`.
    k: Vec<bf16>,
    v: Vec<bf16>,
    frames: Vec<u32>,
    positions: Vec<u32>,
}

/// Output `[queries, q_heads, dim_v]` and base-2 log-sum-exp `[queries, q_heads]`.
#[derive(Default)]
pub(super) struct Attended {
    pub(super) o: Vec<f32>,
    pub(super) lse2: Vec<f32>,
}

impl Prompt {
    /// Random numbers: attention is nearly flat.
    pub(super) fn random(shape: Shape, tokens: usize) -> Prompt {
        let Shape { q_heads, kv_heads, head_dim } = shape;
        let mut rng = Rng::new(31);
        // A stretch of random numbers over and over, each time from another place.
        let pattern: Vec<bf16> = rng.normals(1 << 18).into_iter().map(bf16::from_f32).collect();
        let mut fill = |len: usize| {
            let mut x = Vec::with_capacity(len + pattern.len());
            while x.len() < len {
                x.extend_from_slice(&pattern[rng.below(pattern.len() / 2)..]);
            }
            x.truncate(len);
            x
        };
        let pages = tokens.div_ceil(PAGE_TOKENS);
        let kv = pages * PAGE_TOKENS * kv_heads * head_dim;
        let (q, k, v) = (fill(tokens * q_heads * head_dim), fill(kv), fill(kv));
        let scale = 1.0 / (head_dim as f32).sqrt();
        Prompt::new(shape, head_dim, (tokens, tokens), (scale, 0.0), (q, k, v))
    }

    /// A layer of a dump.
    pub(super) fn of(dump: &Dump, layer: usize) -> Prompt {
        let Dump { q_heads, kv_heads, dim_k, dim_v, .. } = *dump;
        let pages = dump.tokens.div_ceil(PAGE_TOKENS);
        let paged = |dim: usize, row: &dyn Fn(usize, usize) -> Vec<bf16>| {
            let mut out = vec![bf16::ZERO; pages * kv_heads * PAGE_TOKENS * dim];
            for t in 0..dump.tokens {
                for h in 0..kv_heads {
                    let at = (t / PAGE_TOKENS * kv_heads + h) * PAGE_TOKENS + t % PAGE_TOKENS;
                    out[at * dim..(at + 1) * dim].copy_from_slice(&row(t, h));
                }
            }
            out
        };
        let k = paged(dim_k, &|t, h| dump.key(layer, t, h).to_vec());
        let v = paged(dim_v, &|t, h| dump.value(layer, t, h).to_vec());
        let steps = (0..dump.queries).flat_map(|step| dump.query(layer, step));
        let q = steps.map(|&x| bf16::from_f32(x)).collect();
        let shape = Shape { q_heads, kv_heads, head_dim: dim_k };
        let numbers = (dump.scale, dump.soft_cap);
        Prompt::new(shape, dim_v, (dump.queries, dump.tokens), numbers, (q, k, v))
    }

    fn new(
        shape: Shape,
        dim_v: usize,
        (queries, keys): (usize, usize),
        (scale, soft_cap): (f32, f32),
        (q, k, v): (Vec<bf16>, Vec<bf16>, Vec<bf16>),
    ) -> Prompt {
        let frames = (0..keys.div_ceil(PAGE_TOKENS) as u32).collect();
        let positions = ((keys - queries) as u32..keys as u32).collect();
        Prompt { shape, queries, keys, dim_v, scale, soft_cap, q, k, v, frames, positions }
    }

    /// Calls with the last `queries` queries and all keys.
    pub(super) fn with<R>(
        &self,
        queries: usize,
        f: impl FnOnce(&Queries, &Listed, &Params) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let Shape { q_heads, kv_heads, head_dim } = self.shape;
        let q = Tensor3::contiguous(&self.q, [self.queries, q_heads, head_dim])?;
        let first = self.queries - queries;
        let queries = Queries {
            q: q.rows(first, self.queries),
            indptr: &[0, queries as u32],
            positions: Some(&self.positions[first..]),
        };
        let layout = KvLayout::hnd(PAGE_TOKENS, kv_heads, head_dim, self.dim_v);
        let pool = KvPool::new(&self.k, &self.v, layout, self.frames.len())?;
        let pages = PageLists {
            indptr: &[0, self.frames.len() as u32],
            frames: &self.frames,
            lens: &[self.keys as u32],
            first_pos: None,
            per_head: false,
        };
        let params = Params { causal: true, soft_cap: self.soft_cap, ..Params::new(self.scale) };
        f(&queries, &Listed::Pages(&pool, &pages), &params)
    }

    /// Attention over all keys, or over lists.
    pub(super) fn attend(
        &self,
        lists: Option<&Lists>,
        exec: &Executor,
        out: &mut Attended,
    ) -> Result<(), Error> {
        let rows = self.queries * self.shape.q_heads;
        out.o.resize(rows * self.dim_v, 0.0);
        out.lse2.resize(rows, 0.0);
        self.with(self.queries, |queries, keys, params| {
            let Listed::Pages(pool, pages) = keys else { return Ok(()) };
            let shape = [self.queries, self.shape.q_heads, self.dim_v];
            let o = Tensor3Mut::contiguous(&mut out.o, shape)?;
            let mut out = Out { o, lse2: Some(&mut out.lse2) };
            match lists {
                None => attend::prefill(queries, pool, pages, params, exec, &mut out)?,
                Some(l) => attend::blocks(queries, pool, pages, &l.view(), params, exec, &mut out)?,
            }
            Ok(())
        })
    }
}
