//! Settings of a cache.

use std::sync::Arc;
use std::time::Duration;

use kvist_kernels::Executor;
use kvist_policies::{Profile, Select};

use super::{Cache, Shared};
use crate::arena::{Arena, CELL_OVERHEAD, Care};
use crate::budget::Budget;
use crate::codec::DiskCodec;
#[cfg(feature = "cuda")]
use crate::device::DeviceTier;
use crate::disk::{Disk, DiskOptions};
use crate::format::MODEL_MAX;
use crate::lend::Lenders;
use crate::live::{self, Below, Clustered, Copies, Shelf, Tier};
use crate::selector::{For, Selector};
use crate::stats::Counters;
use crate::summaries::{Store, Stores, TILE};
use crate::vfs::{self, Vfs};
use crate::{Error, Geometry};

/// Host tier where nothing is said.
const HOST_BYTES_DEFAULT: u64 = 1 << 30;

/// Settings of a [`Cache`], each with a default.
#[derive(Clone, Debug)]
pub struct Builder {
    geometry: Geometry,
    host_bytes: u64,
    prefault: bool,
    select: Select,
    profile: Option<Arc<Profile>>,
    dense_layers: Vec<usize>,
    threads: Option<usize>,
    exec: Option<Executor>,
    below: Option<Arc<dyn Below>>,
    live: live::Options,
    disk: Option<DiskOptions>,
    disk_codec: DiskCodec,
    vfs: Option<Arc<dyn Vfs>>,
    model: Vec<u8>,
    #[cfg(feature = "cuda")]
    device: Option<crate::DeviceOptions>,
    cluster_order: bool,
}

impl Builder {
    pub(super) fn new(geometry: Geometry) -> Builder {
        Builder {
            geometry,
            host_bytes: HOST_BYTES_DEFAULT,
            prefault: false,
            select: Select::Full,
            profile: None,
            dense_layers: Vec::new(),
            threads: None,
            exec: None,
            below: None,
            disk: None,
            disk_codec: DiskCodec::default(),
            vfs: None,
            model: Vec::new(),
            live: live::Options::default(),
            #[cfg(feature = "cuda")]
            device: None,
            cluster_order: false,
        }
    }

    /// Bytes of host memory for pages, summaries and tables: a hard limit. Default 1 GiB.
    #[must_use]
    pub fn host_bytes(mut self, bytes: u64) -> Builder {
        self.host_bytes = bytes;
        self
    }

    /// Touches the memory of the whole host budget when the cache is made, and keeps it: no append
    /// waits for the system to hand out a page. Default no: memory is touched when it is first used,
    /// and goes back when nobody uses it.
    #[must_use]
    pub fn prefault(mut self, on: bool) -> Builder {
        self.prefault = on;
        self
    }

    /// The selector of new sequences. Default [`Select::Full`].
    #[must_use]
    pub fn select(mut self, select: Select) -> Builder {
        self.select = select;
        self
    }

    /// How each KV head of new sequences is read: densely, as a stream, or by the selector with its own share
    /// of the budget. Default: all alike.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Builder {
        self.profile = Some(Arc::new(profile));
        self
    }

    /// Layers that always attend densely and keep no summaries. Default none.
    #[must_use]
    pub fn dense_layers(mut self, layers: &[usize]) -> Builder {
        self.dense_layers = layers.to_vec();
        self
    }

    /// Threads that kernels may use. Default: all cores.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Builder {
        self.threads = Some(threads);
        self
    }

    /// Runs kernels on the caller's own pool instead.
    #[must_use]
    pub fn executor(mut self, exec: Executor) -> Builder {
        self.exec = Some(exec);
        self
    }

    /// Whether pages that a layer will probably select are read before they are asked for. Default
    /// yes. Only with a lower tier.
    #[must_use]
    pub fn prefetch(mut self, on: bool) -> Builder {
        self.live.prefetch = on;
        self
    }

    /// Whether finished pages are written below before their frames are needed, on a thread named
    /// `kvist-demote`. Default yes; without, who needs a frame writes. Only with a lower tier.
    #[must_use]
    pub fn write_ahead(mut self, on: bool) -> Builder {
        self.live.write_ahead = on;
        self
    }

    /// Whether selectors pick whole pages even from sequences that are all in host memory, so that
    /// what is selected never depends on what is there. Default no: such sequences are selected from
    /// token by token. Only with a lower tier. Selectors over clusters pick none in any case.
    #[must_use]
    pub fn whole_pages(mut self, on: bool) -> Builder {
        self.live.whole_pages = on;
        self
    }

    /// Whether keys and values of clustered tokens (`clusterkv`, `retroinfer`) are held a second time, in pages
    /// in the order of clusters, so that a cluster is one contiguous read. Default no. Copies are made where the
    /// budget has room for them when clusters are made, and are the first to go when it is needed for anything
    /// else; tokens are read from where they were appended then. Results are the same up to rounding. Of no
    /// account with a lower tier, where clusters are stored in any case.
    #[must_use]
    pub fn cluster_order(mut self, on: bool) -> Builder {
        self.cluster_order = on;
        self
    }

    /// Reads from below that take longer are [`MissReason::Timeout`](crate::MissReason). Default 10 s.
    #[must_use]
    pub fn read_deadline(mut self, deadline: Duration) -> Builder {
        self.live.deadline = deadline;
        self
    }

    /// Keeps on disk what the host budget does not hold. Nothing of a sequence is lost when the disk
    /// is full: appending is refused then.
    #[must_use]
    pub fn disk(mut self, options: DiskOptions) -> Builder {
        self.disk = Some(options);
        self
    }

    /// How pages are stored on disk: a [`Codec`](crate::Codec), or the one that is back sooner. Default
    /// [`Codec::lossless`](crate::Codec::lossless).
    #[must_use]
    pub fn disk_codec(mut self, codec: impl Into<DiskCodec>) -> Builder {
        self.disk_codec = codec.into();
        self
    }

    /// What tells this model's weights from all others, 1 to 256 bytes: a hash of them, or a name and
    /// revision that the caller vouches for. Sessions are saved for it, and opened only for it.
    #[must_use]
    pub fn model(mut self, identity: impl AsRef<[u8]>) -> Builder {
        self.model = identity.as_ref().to_vec();
        self
    }

    /// The file system that the disk tier uses. Default: the operating system's.
    #[must_use]
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> Builder {
        self.vfs = Some(vfs);
        self
    }

    /// A GPU that keeps copies of pages and attends to them. Default none.
    #[cfg(feature = "cuda")]
    #[must_use]
    pub fn device(mut self, options: crate::DeviceOptions) -> Builder {
        self.device = Some(options);
        self
    }

    /// Keeps what the host budget does not hold in this tier.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn below(mut self, below: Arc<dyn Below>) -> Builder {
        self.below = Some(below);
        self
    }

    /// Makes the cache. Memory is reserved now and touched when used.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Layer`] or [`Error::Select`] for impossible settings, or a profile of
    /// another model or geometry,
    /// [`Error::OverBudget`] if not even a page fits, [`Error::System`] if the system refuses.
    pub fn build(self) -> Result<Cache, Error> {
        self.geometry.validate()?;
        if self.model.len() > MODEL_MAX {
            let expected = format!("at most {MODEL_MAX} bytes");
            return Err(Error::setting("model", expected, self.model.len()));
        }
        let layers = self.geometry.layers;
        let mut dense_layers = vec![false; layers];
        for layer in self.dense_layers {
            *dense_layers.get_mut(layer).ok_or(Error::Layer { layer, layers })? = true;
        }
        let page = self.geometry.page_bytes();
        let needed = page as u64 + CELL_OVERHEAD;
        if self.host_bytes < needed {
            let (free, budget) = (self.host_bytes, self.host_bytes);
            return Err(Error::OverBudget { needed, free, budget });
        }
        let budget = Arc::new(Budget::new(self.host_bytes));
        let stores = Stores::default();
        let to = For {
            geometry: &self.geometry,
            dense_layers: &dense_layers,
            model: &self.model,
            budget: &budget,
            tiered: self.disk.is_some() || self.below.is_some(),
        };
        let selector = Selector::new(&self.select, self.profile.as_ref(), &stores, &to)?;
        let exec = match (self.exec, self.threads) {
            (Some(exec), _) => exec,
            (None, threads) => {
                let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
                Executor::with_threads(threads.unwrap_or_else(all))?
            }
        };
        let most = u32::MAX as usize / self.geometry.page_tokens;
        let care = Care { stays: self.prefault, ..Care::default() };
        let pages = Arena::new(page, most, budget.clone(), care)?;
        let touched = match self.prefault {
            true => touch(&pages, selector.store.as_ref(), &self.geometry, budget.limit())?,
            false => 0,
        };
        #[cfg(feature = "cuda")]
        let device = {
            let open = |options: &crate::DeviceOptions| {
                let method = self.select.method();
                let chosen = |store| Some((store, crate::attend::device_choice(&method, store)?));
                let summaries = selector.store.as_ref().and_then(chosen);
                DeviceTier::open(options, &self.geometry, (&pages, touched), summaries, &budget)
            };
            self.device.as_ref().map(open).transpose()?
        };
        #[cfg(not(feature = "cuda"))]
        let _ = touched;
        let tier =
            |below| Tier::new(below, self.live, &self.geometry, pages.clone(), budget.clone());
        let open =
            |options| open_shelf(self.vfs, options, &self.geometry, self.disk_codec, &self.model);
        let shelf = match self.below {
            None => self.disk.map(open).transpose()?,
            Some(_) => None,
        };
        shelf.iter().filter(|_| self.prefault).for_each(|shelf| shelf.disk().prefault());
        let of_clusters = live::clustered_geometry(&self.geometry);
        let clusters_below: Option<Arc<dyn Below>> = match (&self.below, &shelf) {
            (Some(below), _) => Some(below.clone()),
            (None, Some(shelf)) => Some(Arc::new(shelf.of_clusters(&of_clusters)?)),
            (None, None) => None,
        };
        let copies = (self.cluster_order && clusters_below.is_none())
            .then(|| Copies::new(pages.clone(), budget.clone(), self.geometry.page_tokens));
        let clustered = |below| Clustered::new(below, self.live, of_clusters, budget.clone());
        let clustered = clusters_below.map(clustered).transpose()?;
        let below = self.below.or(shelf.clone().map(|shelf| shelf as Arc<dyn Below>));
        let tier = below.map(tier).transpose()?;
        let tier = tier.zip(clustered).map(|(tier, clustered)| tier.with_clustered(clustered));
        let shared = Shared {
            pages,
            tier,
            #[cfg(feature = "cuda")]
            device,
            copies,
            lenders: Lenders::default(),
            shelf,
            model: self.model,
            geometry: self.geometry,
            dense_layers,
            budget,
            stores,
            selector,
            exec,
            counters: Counters::default(),
        };
        Ok(Cache { shared: Arc::new(shared) })
    }
}

/// Touches the memory of a budget: for pages and their summaries in the proportion in which tokens
/// need them. Returns the bytes of pages.
fn touch(
    pages: &Arena,
    store: Option<&Store>,
    geometry: &Geometry,
    budget: u64,
) -> Result<u64, Error> {
    let all = (pages.cells() * pages.cell_bytes()) as u64;
    let Some(store) = store else { return pages.touch(budget).map(|()| all.min(budget)) };
    let page = pages.cell_bytes() as f64 / geometry.page_tokens as f64;
    let summary = store.arena.cell_bytes() as f64 / TILE as f64;
    let of_pages = (budget as f64 * page / (page + summary)) as u64;
    pages.touch(of_pages)?;
    store.arena.touch(budget - of_pages)?;
    Ok(all.min(of_pages))
}

/// The disk tier for the pages of sequences.
fn open_shelf(
    vfs: Option<Arc<dyn Vfs>>,
    options: DiskOptions,
    geometry: &Geometry,
    codec: DiskCodec,
    model: &[u8],
) -> Result<Arc<Shelf>, Error> {
    if options.is_sealed() {
        let expected = "a prefix store; pages of sequences are not sealed";
        return Err(Error::setting("seal", expected, "a cache"));
    }
    let disk = Arc::new(Disk::open(vfs::or_default(vfs)?, options)?);
    Ok(Arc::new(Shelf::new(disk, geometry, codec, model)?))
}
