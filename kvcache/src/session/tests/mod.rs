//! Sessions over a simulated disk: what was saved is what is opened, whatever happens in between.

mod crash;
mod faults;
mod full;
mod reads;
mod refused;
mod round;

use half::{bf16, f16};

use crate::vfs::sim::SimVfs;
use crate::{
    AttendInfo, AttendOptions, Boxed, Builder, Cache, DType, DiskOptions, Error, Geometry, Profile,
    Quest, Select, Sequence, Tensor3, Tensor3Mut,
};

const LAYERS: usize = 2;
const HEADS: usize = 2;
const GROUP: usize = 2;
const DIM: usize = 16;

/// How a cache is made.
#[derive(Clone)]
struct Setup {
    select: Select,
    profile: Option<Profile>,
    dtype: DType,
    page_tokens: usize,
    host_bytes: u64,
    /// Bytes of a segment, and the disk's budget in segments.
    segment: u64,
    segments: u64,
    dense: Vec<usize>,
    model: &'static str,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            select: boxed(),
            profile: None,
            dtype: DType::Bf16,
            page_tokens: 64,
            host_bytes: 4 << 20,
            segment: 256 << 10,
            segments: 40,
            dense: Vec::new(),
            model: "weights 1",
        }
    }
}

fn boxed() -> Select {
    Select::Boxed(Boxed { sinks: 4, recent: 16, ..Boxed::with_budget(128) })
}

fn selects() -> [Select; 4] {
    let proven = Boxed { sinks: 4, recent: 16, ..Boxed::with_max_missed_mass(0.3) };
    let quest = Quest { budget: 128, unit_tokens: 16 };
    [Select::Full, Select::Quest(quest), boxed(), Select::Boxed(proven)]
}

impl Setup {
    fn geometry(&self) -> Geometry {
        let geometry = Geometry::new(LAYERS, HEADS * GROUP, HEADS, DIM, self.dtype);
        Geometry { page_tokens: self.page_tokens, ..geometry }
    }

    fn builder(&self, sim: &SimVfs) -> Builder {
        let disk = DiskOptions::new("/store", self.segments * self.segment);
        let disk = disk.segment_bytes(self.segment);
        let builder = Cache::builder(self.geometry());
        let builder = match &self.profile {
            Some(profile) => builder.profile(profile.clone()),
            None => builder,
        };
        builder
            .host_bytes(self.host_bytes)
            .select(self.select.clone())
            .dense_layers(&self.dense)
            .threads(1)
            .whole_pages(true)
            .write_ahead(false)
            .prefetch(false)
            .disk(disk)
            .vfs(std::sync::Arc::new(sim.process()))
            .model(self.model)
    }

    /// A process that has the directory open.
    fn open(&self, sim: &SimVfs) -> Cache {
        self.builder(sim).build().unwrap()
    }
}

/// A number of token `t` that depends on everything: content `seed`, layer, place in the row.
fn value(seed: u64, layer: usize, t: usize, i: usize) -> f32 {
    let mut z = seed ^ (layer as u64) << 56 ^ (t as u64) << 24 ^ i as u64;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 2.0
}

/// Rows of tokens from `from` on; values are those of keys further on.
fn rows(seed: u64, layer: usize, from: usize, n: usize, values: bool) -> Vec<f32> {
    let row = HEADS * DIM;
    let shift = if values { 1 << 20 } else { 0 };
    let of = |t: usize| (0..row).map(move |i| bf16::from_f32(value(seed, layer, t, i + shift)));
    (from..from + n).flat_map(of).map(bf16::to_f32).collect()
}

/// Appends the tokens `from..from + n` of content `seed` to a layer.
fn append_layer(
    s: &mut Sequence,
    seed: u64,
    layer: usize,
    from: usize,
    n: usize,
) -> Result<(), Error> {
    let (k, v) = (rows(seed, layer, from, n, false), rows(seed, layer, from, n, true));
    let shape = [n, HEADS, DIM];
    macro_rules! append {
        ($t:ty) => {{
            let narrow = |x: &[f32]| x.iter().map(|&x| <$t>::from_f32(x)).collect::<Vec<_>>();
            let (k, v) = (narrow(&k), narrow(&v));
            let view = |x| Tensor3::contiguous(x, shape).unwrap();
            s.append(layer, &view(&k[..]), &view(&v[..]))
        }};
    }
    match s.cache().geometry().dtype {
        DType::Bf16 => append!(bf16),
        DType::F16 => append!(f16),
        DType::F32 => {
            let view = |x| Tensor3::contiguous(x, shape).unwrap();
            s.append(layer, &view(&k[..]), &view(&v[..]))
        }
    }
}

fn append(s: &mut Sequence, seed: u64, n: usize) -> Result<(), Error> {
    let from = s.len();
    (0..LAYERS).try_for_each(|layer| append_layer(s, seed, layer, from, n))
}

/// A sequence of `n` tokens of content `seed`.
fn filled(cache: &Cache, seed: u64, n: usize) -> Sequence {
    let mut s = cache.sequence();
    let mut left = n;
    while left > 0 {
        let n = left.min(100);
        append(&mut s, seed, n).unwrap();
        left -= n;
    }
    s
}

/// Whether the sequence is the first `n` tokens of content `seed`, bit by bit.
fn holds(s: &Sequence, seed: u64, n: usize) -> Result<bool, Error> {
    let row = HEADS * DIM;
    let (mut k, mut v) = (vec![0f32; n * row], vec![0f32; n * row]);
    let mut same = s.len() == n;
    for layer in 0..LAYERS {
        if s.layer_len(layer)? != n {
            return Ok(false);
        }
        s.read(layer, 0, &mut k, &mut v)?;
        same &= k == rows(seed, layer, 0, n, false) && v == rows(seed, layer, 0, n, true);
    }
    Ok(same)
}

fn attend(s: &Sequence, layer: usize, seed: u64) -> Result<(Vec<f32>, AttendInfo), Error> {
    let width = HEADS * GROUP * DIM;
    let q: Vec<f32> = (0..width).map(|i| 2.0 * value(seed, layer, 7, i)).collect();
    let mut out = vec![f32::NAN; width];
    let shape = [1, HEADS * GROUP, DIM];
    let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
    let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
    let info = s.attend(layer, &Tensor3::contiguous(&q, shape).unwrap(), &options, &mut view)?;
    Ok((out, info))
}

/// What several queries see, to be compared bit by bit.
fn seen(s: &Sequence) -> Vec<(Vec<f32>, AttendInfo)> {
    (0..LAYERS).flat_map(|layer| (0..4).map(move |q| attend(s, layer, q).unwrap())).collect()
}

/// The same of a sequence whose pages are all below, save the open ones.
fn seen_from_below(s: &Sequence) -> Vec<(Vec<f32>, AttendInfo)> {
    let seen_now = |layer: usize, q: u64| {
        s.offload().unwrap();
        attend(s, layer, q).unwrap()
    };
    (0..LAYERS).flat_map(|layer| (0..4).map(move |q| seen_now(layer, q))).collect()
}
