//! Keys, values and queries of a long sequence: random, with the statistics of a real dump if one is
//! given.

use kvist::{
    AttendInfo, AttendOptions, Boxed, Builder, Cache, Executor, Geometry, Select, Sequence,
};
use kvist_kernels::{DType, Tensor3, Tensor3Mut};

use crate::quality::dump::{Rows, rows};
use crate::{Error, Options, Rng, Shape, Sink};

/// Tokens appended at once while filling.
const CHUNK: usize = 1024;
/// Layers of the model.
const LAYERS: usize = 4;

/// Mean and deviation of every channel, and how much of a token's deviation the next one keeps.
struct Channels {
    form: [usize; 3],
    moments: Vec<(f32, f32)>,
    memory: f32,
}

/// What real keys and values are like.
pub(super) struct Statistics([Channels; 2]);

impl Statistics {
    /// Of the dump that the options name, else of numbers from a normal distribution.
    pub(super) fn new(options: &Options, sink: &mut Sink) -> Result<Statistics, Error> {
        let Some(path) = &options.dump else {
            sink.note("keys and values: normal numbers (give --dump for a model's statistics)");
            let normal = || Channels { form: [1, 1, 1], moments: vec![(0.0, 1.0)], memory: 0.0 };
            return Ok(Statistics([normal(), normal()]));
        };
        let (model, kv) = rows(path)?;
        sink.note(&format!("keys and values: random, channels as those of {model}"));
        Ok(Statistics(kv.map(|rows| Channels::of(&rows))))
    }
}

impl Channels {
    fn of(rows: &Rows) -> Channels {
        let (width, tokens) = (rows.kv_heads * rows.dim, rows.tokens);
        let mut moments = Vec::with_capacity(rows.layers * width);
        let (mut kept, mut all) = (0f64, 0f64);
        for layer in rows.values.chunks_exact(tokens * width) {
            for channel in 0..width {
                let of = || layer[channel..].iter().step_by(width).map(|&x| f64::from(x));
                let mean = of().sum::<f64>() / tokens as f64;
                let square = of().map(|x| (x - mean).powi(2)).sum::<f64>();
                let next = of().zip(of().skip(1)).map(|(a, b)| (a - mean) * (b - mean));
                (kept, all) = (kept + next.sum::<f64>(), all + square);
                moments.push((mean as f32, (square / tokens as f64).sqrt() as f32));
            }
        }
        let memory = if all > 0.0 { (kept / all).clamp(0.0, 0.99) as f32 } else { 0.0 };
        Channels { form: [rows.layers, rows.kv_heads, rows.dim], moments, memory }
    }

    fn at(&self, layer: usize, head: usize, dim: usize) -> (f32, f32) {
        let [layers, heads, dims] = self.form;
        self.moments[((layer % layers) * heads + head % heads) * dims + dim % dims]
    }
}

/// A sequence to be made.
pub(super) struct Scene<'a> {
    pub(super) shape: Shape,
    pub(super) context: usize,
    statistics: &'a Statistics,
}

/// Rows of one layer that go on and on.
struct Stream<'a> {
    rng: Rng,
    channels: &'a Channels,
    layer: usize,
    state: Vec<f32>,
}

impl Stream<'_> {
    fn next(&mut self, tokens: usize, shape: Shape) -> Vec<u8> {
        let (memory, fresh) = (self.channels.memory, (1.0 - self.channels.memory.powi(2)).sqrt());
        let mut values = Vec::with_capacity(tokens * self.state.len());
        for _ in 0..tokens {
            for (i, state) in self.state.iter_mut().enumerate() {
                *state = memory * *state + fresh * self.rng.normal();
                let (head, dim) = (i / shape.head_dim, i % shape.head_dim);
                let (mean, deviation) = self.channels.at(self.layer, head, dim);
                values.push(mean + deviation * *state);
            }
        }
        crate::arena::encode(DType::Bf16, &values)
    }
}

impl<'a> Scene<'a> {
    pub(super) fn new(shape: Shape, context: usize, statistics: &'a Statistics) -> Scene<'a> {
        Scene { shape, context, statistics }
    }

    pub(super) fn geometry(&self) -> Geometry {
        let Shape { q_heads, kv_heads, head_dim } = self.shape;
        Geometry::new(LAYERS, q_heads, kv_heads, head_dim, DType::Bf16)
    }

    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> u64 {
        (LAYERS * self.context * self.shape.kv_heads * self.geometry().token_bytes()) as u64
    }

    /// Bytes of their summaries, tables and handles, with some to spare.
    pub(super) fn beside(&self) -> u64 {
        self.bytes() / 6 + (16 << 20)
    }

    /// A cache that selects an eighth of the tokens, in whole pages.
    pub(super) fn cache(&self, host: u64) -> Result<Builder, Error> {
        let select = Select::Boxed(Boxed::with_budget(self.context / 8));
        let builder =
            Cache::builder(self.geometry()).model("bench").host_bytes(host).select(select);
        Ok(builder.prefault(true).whole_pages(true).executor(Executor::with_threads(1)?))
    }

    /// Appends the whole context.
    pub(super) fn fill(&self, sequence: &mut Sequence) -> Result<(), Error> {
        for layer in 0..LAYERS {
            let [mut k, mut v] = [0, 1].map(|kind| Stream {
                rng: Rng::new((layer * 2 + kind) as u64 + 31),
                channels: &self.statistics.0[kind],
                layer,
                state: vec![0.0; self.shape.kv_heads * self.shape.head_dim],
            });
            let mut left = self.context;
            while left > 0 {
                let n = left.min(CHUNK);
                let (k, v) = (k.next(n, self.shape), v.next(n, self.shape));
                sequence.append(layer, &self.rows(&k, n), &self.rows(&v, n))?;
                left -= n;
            }
        }
        Ok(())
    }

    fn rows<'b>(&self, numbers: &'b [u8], tokens: usize) -> Tensor3<'b> {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let strides = [(kv_heads * head_dim) as i64, head_dim as i64];
        let form = [tokens, kv_heads, head_dim];
        // SAFETY: the buffer holds exactly these elements and outlives the view.
        unsafe { Tensor3::from_raw(numbers.as_ptr(), DType::Bf16, form, strides) }
    }
}

/// Queries of a decode, token after token.
pub(super) struct Queries {
    rng: Rng,
    /// How much of a query the next token's keeps.
    memory: f32,
    state: Vec<Vec<f32>>,
    form: [usize; 3],
}

impl Queries {
    pub(super) fn new(shape: Shape, memory: f32) -> Queries {
        let form = [1, shape.q_heads, shape.head_dim];
        let mut rng = Rng::new(77);
        let state = (0..LAYERS).map(|_| rng.normals(shape.q_heads * shape.head_dim)).collect();
        Queries { rng, memory, state, form }
    }

    /// Attends with the next token in every layer; what it read, and the last layer's output.
    pub(super) fn step(
        &mut self,
        sequence: &Sequence,
    ) -> Result<(Vec<AttendInfo>, Vec<f32>), Error> {
        let fresh = (1.0 - self.memory.powi(2)).sqrt();
        let mut out = vec![0f32; self.form[1] * self.form[2]];
        let mut infos = Vec::with_capacity(LAYERS);
        for (layer, state) in self.state.iter_mut().enumerate() {
            state.iter_mut().for_each(|x| *x = self.memory * *x + fresh * self.rng.normal());
            let q = Tensor3::contiguous(state, self.form)?;
            let mut o = Tensor3Mut::contiguous(&mut out, self.form)?;
            infos.push(sequence.attend(layer, &q, &AttendOptions::default(), &mut o)?);
        }
        Ok((infos, out))
    }
}
