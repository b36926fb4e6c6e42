//! Two caches, a sequence with its twin, and links that break.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::{fmt, io};

use half::bf16;

use super::super::{Arrived, Destination, Link, Served, Stream, local};
use crate::vfs::sim::SimVfs;
use crate::{
    AttendOptions, Boxed, Builder, Cache, DType, DiskOptions, Error, Geometry, Select, Sequence,
    Tensor3, Tensor3Mut,
};

pub(super) const LAYERS: usize = 2;
const HEADS: usize = 2;
const GROUP: usize = 2;
const DIM: usize = 16;
const ROW: usize = HEADS * DIM;

/// How the two sides are made.
#[derive(Clone)]
pub(super) struct Scene {
    pub(super) select: Select,
    pub(super) page_tokens: usize,
    /// Which sides have a disk.
    pub(super) disk: [bool; 2],
    pub(super) host_bytes: [u64; 2],
}

impl Default for Scene {
    fn default() -> Scene {
        let select = Select::Boxed(Boxed { sinks: 4, recent: 16, ..Boxed::with_budget(128) });
        Scene { select, page_tokens: 64, disk: [false; 2], host_bytes: [4 << 20; 2] }
    }
}

impl Scene {
    pub(super) fn builder(&self, side: usize) -> Builder {
        let geometry = Geometry::new(LAYERS, HEADS * GROUP, HEADS, DIM, DType::Bf16);
        let builder = Cache::builder(Geometry { page_tokens: self.page_tokens, ..geometry })
            .host_bytes(self.host_bytes[side])
            .select(self.select.clone())
            .threads(1)
            .whole_pages(true)
            .prefetch(false)
            .model("weights");
        if !self.disk[side] {
            return builder;
        }
        let disk = DiskOptions::new("/store", 64 << 20).segment_bytes(256 << 10);
        builder.write_ahead(false).disk(disk).vfs(Arc::new(SimVfs::new(7).process()))
    }

    pub(super) fn cache(&self, side: usize) -> Cache {
        self.builder(side).build().unwrap()
    }

    /// A cache for a twin of a sequence that ends on this side: all in memory.
    pub(super) fn roomy(&self, side: usize) -> Cache {
        Scene { host_bytes: [16 << 20; 2], ..self.clone() }.cache(side)
    }
}

/// Numbers that follow from a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Appends tokens of some content to a layer.
fn append_layer(s: &mut Sequence, layer: usize, seed: u64, n: usize) -> Result<(), Error> {
    let mut random = Random(seed ^ (layer as u64) << 32);
    let mut rows = || -> Vec<bf16> {
        (0..n * ROW).map(|_| bf16::from_f32(random.below(4001) as f32 / 1000.0 - 2.0)).collect()
    };
    let (k, v) = (rows(), rows());
    let view = |x| Tensor3::contiguous(x, [n, HEADS, DIM]).unwrap();
    s.append(layer, &view(&k[..]), &view(&v[..]))
}

/// What happens to a sequence, and to its twin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Script {
    Append(usize),
    /// Only to the first layer: between two steps of a model.
    AppendFirst(usize),
    /// Forgets all but so many thousandths.
    Truncate(usize),
    /// A fork that goes its own way, and is dropped.
    Fork,
    /// All finished pages leave.
    Offload,
}

impl Script {
    pub(super) fn random(random: &mut Random) -> Script {
        match random.below(9) {
            0..4 => Script::Append(1 + random.below(150)),
            4 => Script::Append(1),
            5 => Script::AppendFirst(1 + random.below(20)),
            6 => Script::Truncate(random.below(1001)),
            7 => Script::Fork,
            _ => Script::Offload,
        }
    }

    pub(super) fn play(self, s: &mut Sequence, seed: u64) {
        match self {
            Script::Append(n) => {
                (0..LAYERS).for_each(|layer| append_layer(s, layer, seed, n).unwrap());
            }
            Script::AppendFirst(n) => append_layer(s, 0, seed, n).unwrap(),
            Script::Truncate(share) => {
                let len = s.len() * share / 1000;
                s.truncate(len).unwrap();
            }
            Script::Fork => {
                let mut fork = s.fork();
                fork.truncate(fork.len() / 2).unwrap();
                Script::Append(70).play(&mut fork, !seed);
            }
            Script::Offload => drop(s.offload().unwrap()),
        }
    }
}

/// All rows of a sequence, and what queries see.
#[derive(Clone, PartialEq)]
pub(super) struct Seen(Vec<Vec<f32>>);

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |x: &Vec<f32>| {
            (x.len(), blake3::hash(bytemuck::cast_slice(x)).to_hex()[..6].to_owned())
        };
        f.debug_list().entries(self.0.iter().map(sum)).finish()
    }
}

/// What is seen of a sequence once all of it is near.
pub(super) fn seen(s: &Sequence) -> Seen {
    s.restore().unwrap();
    let mut all = Vec::new();
    for layer in 0..LAYERS {
        let len = s.layer_len(layer).unwrap();
        let (mut k, mut v) = (vec![0f32; len * ROW], vec![0f32; len * ROW]);
        s.read(layer, 0, &mut k, &mut v).unwrap();
        all.extend([k, v]);
        for query in 0..if len > 0 { 3 } else { 0 } {
            let mut random = Random(query << 40 | layer as u64);
            let width = HEADS * GROUP * DIM;
            let q: Vec<f32> =
                (0..width).map(|_| random.below(4001) as f32 / 1000.0 - 2.0).collect();
            let (mut out, shape) = (vec![f32::NAN; width], [1, HEADS * GROUP, DIM]);
            let mut view = Tensor3Mut::contiguous(&mut out, shape).unwrap();
            let q = Tensor3::contiguous(&q, shape).unwrap();
            let info = s.attend(layer, &q, &AttendOptions::default(), &mut view).unwrap();
            all.push(out);
            all.push(info.tokens_read.iter().map(|&n| n as f32).collect());
        }
    }
    Seen(all)
}

/// What a link is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Local,
    Socket,
}

/// A link that breaks.
pub(super) struct Breaking {
    link: Option<Box<dyn Link + Send>>,
    pub(super) calls: Arc<AtomicUsize>,
    /// The call that fails.
    at: usize,
    /// Whether that call does its work nevertheless.
    after: bool,
}

impl Breaking {
    fn call(&mut self, what: impl FnOnce(&mut dyn Link) -> io::Result<()>) -> io::Result<()> {
        let fails = self.calls.fetch_add(1, Ordering::Relaxed) == self.at;
        let link = self.link.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        if !fails {
            return what(&mut **link);
        }
        if self.after {
            let _ = what(&mut **link);
        }
        // The other side sees that it is gone.
        self.link = None;
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

impl Link for Breaking {
    fn send(&mut self, message: &mut Vec<u8>) -> io::Result<()> {
        self.call(|link| link.send(message))
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.call(|link| link.receive(into))
    }
}

/// Where a link breaks: at which call of which end, before or after it did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Break {
    pub(super) side: usize,
    pub(super) at: usize,
    pub(super) after: bool,
}

impl Way {
    /// The two ends, of which one breaks.
    pub(super) fn ends(self, how: Option<Break>) -> [Breaking; 2] {
        let ends: [Box<dyn Link + Send>; 2] = match self {
            Way::Local => {
                let (a, b) = local();
                [Box::new(a), Box::new(b)]
            }
            Way::Socket => {
                let (a, b) = UnixStream::pair().unwrap();
                [a, b].map(|s| {
                    Box::new(Stream::new(s.try_clone().unwrap(), s)) as Box<dyn Link + Send>
                })
            }
        };
        let mut side = 0;
        ends.map(|link| {
            let at = how.filter(|how| how.side == side).map_or(usize::MAX, |how| how.at);
            side += 1;
            let after = how.is_some_and(|how| how.after);
            Breaking { link: Some(link), calls: Arc::default(), at, after }
        })
    }
}

/// Serves a link until it is closed or broken; what arrived.
pub(super) fn serving(
    destination: &Destination,
    mut link: Breaking,
) -> JoinHandle<(Vec<Arrived>, Result<(), Error>)> {
    let destination = destination.clone();
    std::thread::spawn(move || {
        let mut arrived = Vec::new();
        loop {
            match destination.serve(&mut link) {
                Ok(Served::Arrived(one)) => arrived.push(one),
                Ok(Served::Closed) => return (arrived, Ok(())),
                Ok(_) => {}
                Err(e) => return (arrived, Err(e)),
            }
        }
    })
}
