//! Tiles of keys and values, from a dump or made up.

use kvist_kernels::DType;
use kvist_kernels::entropy::Expw;

use crate::arena::encode;
use crate::quality::dump;
use crate::{Arena, Error, Options, Rng};

/// Shape of made-up data: `[layers, tokens, heads, dim]`.
const MADE_UP: [usize; 4] = [4, 4096, 4, 128];

/// Where tiles come from.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) kv: Vec<Kv>,
    /// Element type of the dump, if it is not f32.
    pub(super) rounded_to: Option<DType>,
}

/// Keys or values, `[layers, tokens, heads, dim]`.
pub(super) struct Kv {
    pub(super) name: &'static str,
    layers: usize,
    tokens: usize,
    heads: usize,
    pub(super) dim: usize,
    values: Vec<f32>,
}

impl Source {
    pub(super) fn open(options: &Options) -> Result<Source, Error> {
        let Some(path) = &options.dump else { return Ok(Source::made_up()) };
        let (name, rows) = dump::rows(path)?;
        let rounded_to = DType::ALL.into_iter().find(|d| d.name() == rows[0].dtype);
        let [k, v] = rows.map(|r| (r.layers, r.tokens, r.kv_heads, r.dim, r.values));
        let kv = [("k", k), ("v", v)].into_iter();
        let kv = kv.map(|(name, (layers, tokens, heads, dim, values))| Kv {
            name,
            layers,
            tokens,
            heads,
            dim,
            values,
        });
        let rounded_to = rounded_to.filter(|&d| d != DType::F32);
        Ok(Source { name, kv: kv.collect(), rounded_to })
    }

    /// Normal numbers, larger in some channels than in others.
    fn made_up() -> Source {
        let [layers, tokens, heads, dim] = MADE_UP;
        let made = |name, seed| {
            let mut rng = Rng::new(seed);
            let size: Vec<f32> = (0..heads * dim).map(|_| (2.0 * rng.normal()).exp2()).collect();
            let rows = layers * tokens;
            let row = |_| size.iter().map(|s| s * rng.normal()).collect::<Vec<f32>>();
            let values = (0..rows).flat_map(row).collect();
            Kv { name, layers, tokens, heads, dim, values }
        };
        let kv = vec![made("k", 1), made("v", 2)];
        Source { name: "made-up normal".to_owned(), kv, rounded_to: None }
    }
}

impl Kv {
    /// Elements of the tile of `tokens` tokens from token `first` on.
    fn tile(&self, layer: usize, first: usize, head: usize, tokens: usize) -> Vec<f32> {
        let row = |token: usize| {
            let at = ((layer * self.tokens + token) * self.heads + head) * self.dim;
            &self.values[at..at + self.dim]
        };
        (first..first + tokens).flat_map(row).copied().collect()
    }

    /// Places of all whole tiles.
    fn places(&self, tokens: usize) -> impl Iterator<Item = [usize; 3]> {
        let (layers, pages, heads) = (self.layers, self.tokens / tokens, self.heads);
        let of_layer = move |layer| {
            (0..pages).flat_map(move |p| (0..heads).map(move |head| [layer, p * tokens, head]))
        };
        (0..layers).flat_map(of_layer)
    }
}

/// Tiles one behind the other.
pub(super) struct Tiles {
    arena: Arena,
    tile: usize,
    count: usize,
}

impl Tiles {
    /// Tiles of about `bytes` bytes, from all layers alike.
    pub(super) fn new(kv: &Kv, plan: &Expw, bytes: usize) -> Result<Tiles, Error> {
        Tiles::mixed(std::slice::from_ref(kv), plan, bytes)
    }

    /// The same of keys and values in turns. All must have the plan's dimension.
    pub(super) fn mixed(kv: &[Kv], plan: &Expw, bytes: usize) -> Result<Tiles, Error> {
        let kv: Vec<&Kv> = kv.iter().filter(|kv| kv.dim == plan.dim()).collect();
        let (tile, tokens) = (plan.decoded_len(), plan.tokens());
        let all = kv[0].places(tokens).count();
        let wanted = (bytes / tile / kv.len()).clamp(1, all);
        let step = all / wanted;
        let mut arena = Arena::new(wanted * kv.len() * tile)?;
        let places = kv[0].places(tokens).step_by(step).take(wanted);
        let parts = places.flat_map(|place| kv.iter().map(move |kv| (kv, place)));
        let room = arena.bytes_mut().chunks_exact_mut(tile);
        for (room, (kv, [layer, first, head])) in room.zip(parts) {
            let values = kv.tile(layer, first, head, tokens);
            room.copy_from_slice(&encode(plan.dtype(), &values));
        }
        Ok(Tiles { arena, tile, count: wanted * kv.len() })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.arena.bytes()[..self.count * self.tile]
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn tile_bytes(&self) -> usize {
        self.tile
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes().chunks_exact(self.tile)
    }
}

/// Bits per value that no code of single values, knowing the channel, can go below: order-0 entropy of
/// sign and exponent per layer, head and channel, plus the mantissa.
pub(super) fn bound_bits(kv: &Kv, dtype: DType) -> f64 {
    let mantissa = match dtype {
        DType::Bf16 => 7,
        DType::F16 => 10,
        DType::F32 => 23,
    };
    let row = kv.heads * kv.dim;
    let mut bits = 0.0;
    for layer in kv.values.chunks_exact(kv.tokens * row) {
        let mut times = vec![0u32; row << 9];
        let word = dtype.size();
        for rows in layer.chunks_exact(row) {
            for (c, bytes) in encode(dtype, rows).chunks_exact(word).enumerate() {
                let bits = match *bytes {
                    [a, b] => u32::from(u16::from_ne_bytes([a, b])),
                    [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
                    _ => 0,
                };
                times[c << 9 | (bits >> mantissa) as usize] += 1;
            }
        }
        bits += times.iter().map(|&n| surprise(n, kv.tokens)).sum::<f64>();
    }
    bits / kv.values.len() as f64 + f64::from(mantissa)
}

/// Bits that a symbol seen `n` times of `all` takes altogether.
fn surprise(n: u32, all: usize) -> f64 {
    if n == 0 { 0.0 } else { f64::from(n) * (all as f64 / f64::from(n)).log2() }
}
