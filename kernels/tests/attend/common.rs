//! Cases, their data, and the comparison with the oracle.

use kvist_kernels::attend::{self, Out, Params, Queries};
use kvist_kernels::reference::{self, Attended};
use kvist_kernels::{
    DType, Element, Executor, Isa, KvLayout, KvPool, PageLists, SlotLists, Tensor3, Tensor3Mut,
};

/// Deterministic numbers, roughly normal.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum();
        (sum - 2.0) * 1.7
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) dim_k: usize,
    pub(crate) dim_v: usize,
    pub(crate) page: usize,
    pub(crate) kv_heads: usize,
    pub(crate) group: usize,
    /// Tokens of each sequence.
    pub(crate) lens: Vec<usize>,
    /// Query tokens of each sequence.
    pub(crate) queries: Vec<usize>,
    /// Elements between the rows of a frame that belong to nobody.
    pub(crate) padding: usize,
    /// Position of the first token of every list.
    pub(crate) first_pos: usize,
    pub(crate) hnd: bool,
    pub(crate) per_head: bool,
    pub(crate) slots: bool,
    pub(crate) causal: bool,
    pub(crate) window: u32,
    pub(crate) soft_cap: f32,
    pub(crate) sinks: bool,
}

pub(crate) struct Built<T> {
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
    pub(crate) q: Vec<T>,
    pub(crate) layout: KvLayout,
    pub(crate) frames: usize,
    pub(crate) indptr: Vec<u32>,
    pub(crate) list: Vec<u32>,
    pub(crate) lens: Vec<u32>,
    pub(crate) first_pos: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) slot_positions: Vec<u32>,
    pub(crate) q_indptr: Vec<u32>,
    pub(crate) sinks: Vec<f32>,
}

/// Rows of one dtype next to each other or, with padding, in the rows of a wider pool.
fn layout(case: &Case, heads: usize) -> KvLayout {
    let make = if case.hnd { KvLayout::hnd } else { KvLayout::nhd };
    let (dim_k, dim_v) = (case.dim_k, case.dim_v);
    KvLayout { dim_k, dim_v, ..make(case.page, heads, dim_k + case.padding, dim_v + case.padding) }
}

/// Random frames in random order, with NaN in every token no list reads.
pub(crate) fn build<T: Element>(case: &Case) -> Built<T> {
    let mut random = Random(case.seed);
    let heads_in_frame = if case.per_head { 1 } else { case.kv_heads };
    let lists = case.lens.len() * if case.per_head { case.kv_heads } else { 1 };
    let heads_per_sequence = lists / case.lens.len().max(1);
    let list_lens: Vec<usize> =
        (0..lists).map(|i| case.lens[i / heads_per_sequence.max(1)]).collect();
    let pages: usize = list_lens.iter().map(|n| n.div_ceil(case.page)).sum();
    let frames = pages + 3;
    let mut order: Vec<usize> = (0..frames).collect();
    for i in (1..frames).rev() {
        order.swap(i, random.below(i + 1));
    }
    let layout = layout(case, heads_in_frame);
    let nan = T::from_f32(f32::NAN);
    let mut k = vec![nan; frames * layout.k_strides[0] as usize];
    let mut v = vec![nan; frames * layout.v_strides[0] as usize];
    let mut built = (vec![0u32], Vec::new(), Vec::new());
    let mut used = 0;
    for &len in &list_lens {
        let own = &order[used..used + len.div_ceil(case.page)];
        used += own.len();
        for t in 0..len {
            let (frame, offset) = (own[t / case.page], t % case.page);
            for h in 0..heads_in_frame {
                let at = |s: [i64; 3]| {
                    frame * s[0] as usize + h * s[1] as usize + offset * s[2] as usize
                };
                let (ka, va) = (at(layout.k_strides), at(layout.v_strides));
                k[ka..ka + case.dim_k].fill_with(|| T::from_f32(random.normal()));
                v[va..va + case.dim_v].fill_with(|| T::from_f32(random.normal()));
            }
            let keep = !case.slots || random.below(3) > 0;
            if case.slots && keep {
                built.1.push((frame * case.page + offset) as u32);
                built.2.push((case.first_pos + t) as u32);
            }
        }
        if !case.slots {
            built.1.extend(own.iter().map(|&f| f as u32));
        }
        built.0.push(built.1.len() as u32);
    }
    let rows: usize = case.queries.iter().sum();
    let q_heads = case.kv_heads * case.group;
    let q = (0..rows * q_heads * case.dim_k).map(|_| T::from_f32(2.0 * random.normal())).collect();
    let mut q_indptr = vec![0u32];
    let mut positions = Vec::new();
    for (&n, &len) in case.queries.iter().zip(&case.lens) {
        q_indptr.push(q_indptr[q_indptr.len() - 1] + n as u32);
        positions.extend((0..n).map(|i| (case.first_pos + (len + i).saturating_sub(n)) as u32));
    }
    let sinks = (0..q_heads).map(|_| random.normal()).collect();
    Built {
        k,
        v,
        q,
        layout,
        frames,
        indptr: built.0,
        list: built.1,
        slot_positions: built.2,
        lens: list_lens.iter().map(|&n| n as u32).collect(),
        first_pos: vec![case.first_pos as u32; list_lens.len()],
        positions,
        q_indptr,
        sinks,
    }
}

pub(crate) fn params<'a, T>(case: &Case, built: &'a Built<T>) -> Params<'a> {
    Params {
        scale: 1.0 / (case.dim_k as f32).sqrt(),
        soft_cap: case.soft_cap,
        window: case.window,
        causal: case.causal,
        sinks: case.sinks.then_some(&built.sinks[..]),
        precise: false,
    }
}

pub(crate) fn oracle<T: Element>(case: &Case, b: &Built<T>) -> Attended {
    run_with(case, b, |queries, pool, pages, slots, params| {
        let tokens = match slots {
            Some(s) => reference::slot_tokens(pool, s),
            None => reference::page_tokens(pool, pages),
        };
        reference::attend(queries, pool, &tokens, case.per_head, params)
    })
}

pub(crate) fn run_with<T: Element, R>(
    case: &Case,
    b: &Built<T>,
    f: impl FnOnce(&Queries, &KvPool, &PageLists, Option<&SlotLists>, &Params) -> R,
) -> R {
    let rows = case.queries.iter().sum();
    let shape = [rows, case.kv_heads * case.group, case.dim_k];
    let q = Tensor3::contiguous(&b.q, shape).unwrap();
    let queries = Queries { q, indptr: &b.q_indptr, positions: Some(&b.positions) };
    let pool = KvPool::new(&b.k, &b.v, b.layout, b.frames).unwrap();
    let pages = PageLists {
        indptr: &b.indptr,
        frames: &b.list,
        lens: &b.lens,
        first_pos: Some(&b.first_pos),
        per_head: case.per_head,
    };
    let slots = SlotLists {
        indptr: &b.indptr,
        slots: &b.list,
        positions: Some(&b.slot_positions),
        per_head: case.per_head,
    };
    f(&queries, &pool, &pages, case.slots.then_some(&slots), &params(case, b))
}

pub(crate) fn kernel<T: Element>(
    case: &Case,
    b: &Built<T>,
    isa: Isa,
    exec: &Executor,
) -> (Vec<f32>, Vec<f32>) {
    let rows: usize = case.queries.iter().sum();
    let q_heads = case.kv_heads * case.group;
    let mut o = vec![f32::NAN; rows * q_heads * case.dim_v];
    let mut lse = vec![f32::NAN; rows * q_heads];
    run_with(case, b, |queries, pool, pages, slots, params| {
        let view = Tensor3Mut::contiguous(&mut o, [rows, q_heads, case.dim_v]).unwrap();
        let mut out = Out { o: view, lse2: Some(&mut lse) };
        match slots {
            Some(s) => attend::slots_at(isa, queries, pool, s, params, exec, &mut out),
            None => attend::pages_at(isa, queries, pool, pages, params, exec, &mut out),
        }
        .unwrap();
    });
    (o, lse)
}

/// Compares every level with the oracle.
pub(crate) fn check<T: Element>(case: &Case) {
    check_built(case, &build::<T>(case));
}

/// [`check`] of data that were changed after they were built.
pub(crate) fn check_built<T: Element>(case: &Case, built: &Built<T>) {
    let want = oracle(case, built);
    for isa in Isa::available() {
        let got = kernel(case, built, isa, &Executor::inline());
        check_rows(case, T::DTYPE, isa, &got, &want);
    }
}

/// Compares one level's output and log-sum-exp with the oracle's.
pub(crate) fn check_rows(
    case: &Case,
    dtype: DType,
    isa: Isa,
    got: &(Vec<f32>, Vec<f32>),
    want: &Attended,
) {
    // Of the row's norm: a little above what f32 sums and a rounding of 16-bit queries cost.
    let (tol_o, tol_lse) = if dtype == DType::F32 { (2e-5, 1e-4) } else { (6e-3, 2e-2) };
    let rows = got.0.chunks(case.dim_v).zip(want.o.chunks(case.dim_v));
    for (row, (got, want)) in rows.enumerate() {
        let same = got.iter().zip(want).all(|(&a, &b)| b.is_finite() || same_special(a, b));
        assert!(same, "{isa:?} {dtype} row {row}: {got:?} {want:?}, {case:?}");
        let finite = || got.iter().zip(want).filter(|(_, want)| want.is_finite());
        let norm: f64 = finite().map(|(_, x)| x * x).sum::<f64>().sqrt();
        let error: f64 = finite().map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
        assert!(
            error <= tol_o * norm.max(0.3),
            "{isa:?} {dtype} row {row}: {error} of {norm}, {case:?}"
        );
    }
    for (row, (&got, &want)) in got.1.iter().zip(&want.lse2).enumerate() {
        let near = (f64::from(got) - want).abs() < tol_lse + 1e-6 * want.abs();
        let same = near || same_special(got, want);
        assert!(same, "{isa:?} {dtype} lse {row}: {got} != {want}, {case:?}");
    }
}

/// Both NaN, or the same infinity.
fn same_special(got: f32, want: f64) -> bool {
    if want.is_nan() { got.is_nan() } else { want.is_infinite() && f64::from(got) == want }
}

pub(crate) fn base() -> Case {
    Case {
        seed: 1,
        dim_k: 64,
        dim_v: 64,
        page: 64,
        padding: 0,
        first_pos: 0,
        kv_heads: 2,
        group: 3,
        lens: vec![130],
        queries: vec![1],
        hnd: true,
        per_head: true,
        slots: false,
        causal: false,
        window: 0,
        soft_cap: 0.0,
        sinks: false,
    }
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}
