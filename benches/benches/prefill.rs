//! Prefill: a chunk of queries over lists of blocks, a tree of draft tokens, and the scores that lists
//! are made from.

use criterion::{Criterion, Throughput};
use kvist_bench::{Frames, KvData, Rng, Shape};
use kvist_kernels::attend::{
    self, BlockLists, DraftKeys, Listed, Out, Params, Queries, ROOT, Trees,
};
use kvist_kernels::score::prefill::{Blocks, Pool, blocks, lines};
use kvist_kernels::{DType, Executor, PageLists, Tensor3, Tensor3Mut};

const SHAPE: Shape = Shape { q_heads: 32, kv_heads: 8, head_dim: 128 };
const CONTEXT: usize = 4096;
/// Query tokens of a chunk, the last of the context.
const CHUNK: usize = 256;
/// Tokens of a key block.
const BLOCK: usize = 64;
/// One key block of so many is listed.
const SPARSITY: usize = 10;
/// Nodes of a draft tree: each has two children.
const NODES: usize = 16;
/// Queries whose attention is summed.
const LAST: usize = 64;

/// Queries, keys and room for output.
struct Chunk {
    rows: usize,
    q: Vec<f32>,
    o: Vec<f32>,
    data: KvData,
}

impl Chunk {
    fn new(rows: usize) -> Chunk {
        let q = Rng::new(3).normals(rows * SHAPE.q_heads * SHAPE.head_dim);
        let data = KvData::random(SHAPE, CONTEXT, DType::Bf16).expect("memory for one context");
        Chunk { rows, o: vec![0.0; q.len()], q, data }
    }

    /// Calls with the queries of one sequence, at the end of its context.
    fn run(&mut self, kernel: impl FnOnce(&Queries, &Listed, &Params, &mut Out)) {
        let shape = [self.rows, SHAPE.q_heads, SHAPE.head_dim];
        let positions: Vec<u32> = (CONTEXT - self.rows..CONTEXT).map(|p| p as u32).collect();
        let q = Tensor3::contiguous(&self.q, shape).expect("whole rows");
        let indptr = [0, self.rows as u32];
        let queries = Queries { q, indptr: &indptr, positions: Some(&positions) };
        let o = Tensor3Mut::contiguous(&mut self.o, shape).expect("whole rows");
        let (pool, lists) =
            (self.data.pool().expect("a pool"), self.data.lists(Frames::Contiguous));
        let pages: PageLists = lists[0].view();
        let params = Params::new(1.0 / (SHAPE.head_dim as f32).sqrt());
        let params = Params { causal: true, ..params };
        kernel(&queries, &Listed::Pages(&pool, &pages), &params, &mut Out { o, lse2: None });
    }
}

/// Random lists: one for each head and block of `query_block` queries, ascending.
fn lists(heads: usize, query_block: usize) -> (Vec<u32>, Vec<u32>) {
    let mut rng = Rng::new(9);
    let all = CONTEXT / BLOCK;
    let (mut indptr, mut ids) = (vec![0], Vec::new());
    for _ in 0..heads * CHUNK.div_ceil(query_block) {
        ids.extend(rng.choose(all, all / SPARSITY));
        indptr.push(ids.len() as u32);
    }
    (indptr, ids)
}

fn attend_blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("attend blocks");
    group.sample_size(10);
    group.throughput(Throughput::Elements(CHUNK as u64));
    let mut chunk = Chunk::new(CHUNK);
    for (name, query_block, per_query_head) in [
        ("lists of 64 queries and a head", 64, true),
        ("lists of 64 queries and a group", 64, false),
        ("lists of a query and a group", 1, false),
    ] {
        let heads = if per_query_head { SHAPE.q_heads } else { SHAPE.kv_heads };
        let (indptr, ids) = lists(heads, query_block);
        let lists = BlockLists {
            query_block,
            key_block: BLOCK,
            indptr: &indptr,
            blocks: &ids,
            per_query_head,
            columns: None,
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                chunk.run(|queries, keys, params, out| {
                    let Listed::Pages(pool, pages) = keys else { return };
                    let exec = Executor::inline();
                    attend::blocks(queries, pool, pages, &lists, params, &exec, out)
                        .expect("blocks of the pages");
                });
            });
        });
    }
}

fn attend_tree(c: &mut Criterion) {
    let mut group = c.benchmark_group("attend tree");
    let mut chunk = Chunk::new(NODES);
    let parents: Vec<u32> =
        (0..NODES as u32).map(|i| if i == 0 { ROOT } else { (i - 1) / 2 }).collect();
    let trees = Trees::new(&[0, NODES as u32], &parents).expect("parents come first");
    let rows = NODES * SHAPE.kv_heads * SHAPE.head_dim;
    let own: Vec<half::bf16> =
        Rng::new(6).normals(rows).into_iter().map(half::bf16::from_f32).collect();
    let shape = [NODES, SHAPE.kv_heads, SHAPE.head_dim];
    let k = Tensor3::contiguous(&own, shape).expect("whole rows");
    group.throughput(Throughput::Bytes(chunk.data.layer_bytes() as u64));
    group.bench_function("16 nodes", |b| {
        b.iter(|| {
            chunk.run(|queries, context, params, out| {
                let keys = DraftKeys::Rows { k, v: k };
                attend::tree(queries, context, &trees, &keys, params, &Executor::inline(), out)
                    .expect("a node per row");
            });
        });
    });
}

fn scores(c: &mut Criterion) {
    let mut group = c.benchmark_group("score prefill");
    group.sample_size(10);
    let mut chunk = Chunk::new(LAST);
    let mut sums = vec![0f32; SHAPE.q_heads * CONTEXT];
    let mut diagonals = sums.clone();
    group.bench_function("lines of 64 queries", |b| {
        b.iter(|| {
            chunk.run(|queries, keys, params, _| {
                lines(queries, keys, params, &Executor::inline(), &mut sums, &mut diagonals)
                    .expect("room for every key");
            });
        });
    });
    for (name, pool) in [("largest of blocks", Pool::Max), ("mass of blocks", Pool::Mass)] {
        let grid = Blocks { query_block: BLOCK, key_block: BLOCK, pool };
        let mut out = vec![0f32; SHAPE.q_heads * CONTEXT / BLOCK];
        group.bench_function(name, |b| {
            b.iter(|| {
                chunk.run(|queries, keys, params, _| {
                    blocks(queries, keys, params, &grid, &Executor::inline(), &mut out)
                        .expect("room for every block");
                });
            });
        });
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    attend_blocks(&mut c);
    attend_tree(&mut c);
    scores(&mut c);
    c.final_summary();
}
