//! foyer as a peer of `kvist bench store`: its memory cache, and its block engine on disk with
//! `O_DIRECT`, through io_uring or through threads.
//!
//! Set up in foyer's favour: blocks are put straight onto the disk and loaded straight from it,
//! past its memory cache and its admission; no compression; large buffers; files
//! that keep their space between repeats, and clean regions at hand; the allocator of its own
//! benchmark.
//!
//! Its io_uring engine keeps one core busy even when it has nothing to do, and for the life of the
//! process: a process measures one case, so that no other figure suffers.

use std::fs::File;
use std::path::{Path, PathBuf};

use foyer::{
    BlockEngineConfig, Cache, CacheBuilder, DeviceBuilder, FsDeviceBuilder, HybridCache,
    HybridCacheBuilder, IoEngineConfig, Load, PsyncIoEngineConfig, RecoverMode, Spawner,
    UringIoEngineConfig,
};
use kvist_bench::Error;
use kvist_bench::store::{Case, Subject, Tier, serve};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The version that Cargo.toml asks for.
const VERSION: &str = "0.22.6";
/// Room in memory: far more than a repeat needs, because each shard has its own share.
const MEMORY: usize = 4 << 30;
/// Room on disk.
const DISK: usize = 1 << 30;
/// Regions that it keeps clean: more than a repeat fills.
const CLEAN: usize = 8;
/// foyer's unit of eviction and largest entry.
const REGION: usize = 64 << 20;
/// Buffers of its flusher. What does not fit is dropped silently, so we wait before that.
const BUFFER: usize = 128 << 20;
const WAIT: usize = 64 << 20;

type Hybrid = HybridCache<u64, Vec<u8>>;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    Memory,
    IoUring,
    Threads,
}

struct Foyer {
    engine: Engine,
    runtime: Runtime,
    memory: Cache<u64, Vec<u8>>,
    disk: Option<Hybrid>,
    dir: PathBuf,
    waiting: usize,
}

impl Foyer {
    fn new(dir: PathBuf, engine: Engine) -> Result<Foyer, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|e| failed("its runtime", e))?;
        let weigh = |_: &u64, block: &Vec<u8>| block.len();
        let memory = CacheBuilder::new(MEMORY).with_weighter(weigh).build();
        let mut foyer = Foyer { engine, runtime, memory, disk: None, dir, waiting: 0 };
        if engine != Engine::Memory {
            foyer.disk = Some(foyer.open().map_err(|e| failed("opening", e))?);
        }
        Ok(foyer)
    }

    /// An empty cache.
    fn open(&self) -> foyer::Result<Hybrid> {
        let device = FsDeviceBuilder::new(&self.dir).with_capacity(DISK).with_direct(true);
        let engine = BlockEngineConfig::new(device.build()?)
            .with_block_size(REGION)
            .with_clean_block_threshold(CLEAN)
            .with_buffer_pool_size(BUFFER)
            .with_submit_queue_size_threshold(2 * BUFFER);
        let io: Box<dyn IoEngineConfig> = match self.engine {
            Engine::IoUring => UringIoEngineConfig::new().boxed(),
            Engine::Memory | Engine::Threads => PsyncIoEngineConfig::new().boxed(),
        };
        let built = HybridCacheBuilder::new()
            .memory(1 << 20)
            .with_weighter(|_: &u64, block: &Vec<u8>| block.len())
            .storage()
            .with_io_engine_config(io)
            .with_engine_config(engine)
            .with_recover_mode(RecoverMode::None)
            .with_spawner(Spawner::from(self.runtime.handle().clone()));
        self.runtime.block_on(built.build())
    }

    fn disk(&self) -> Result<&Hybrid, Error> {
        self.disk.as_ref().ok_or_else(|| failed("its disk", "not open"))
    }

    fn wait(&mut self) -> Result<(), Error> {
        self.waiting = 0;
        if let Some(disk) = &self.disk {
            self.runtime.block_on(disk.storage().wait());
        }
        Ok(())
    }
}

fn failed(what: &str, problem: impl ToString) -> Error {
    Error::subject("foyer", format!("{what}: {}", problem.to_string()))
}

impl Subject for Foyer {
    fn name(&self) -> String {
        match self.engine {
            Engine::Memory => format!("foyer {VERSION}"),
            Engine::IoUring => format!("foyer {VERSION}, io_uring"),
            Engine::Threads => format!("foyer {VERSION}, psync"),
        }
    }

    fn can(&self, case: &Case) -> bool {
        (case.op.tier() == Tier::Host) == (self.engine == Engine::Memory)
    }

    fn clear(&mut self, _: usize) -> Result<(), Error> {
        self.memory.clear();
        if let Some(disk) = &self.disk {
            let emptied = self.runtime.block_on(disk.storage().destroy());
            emptied.map_err(|e| failed("clearing", e))?;
        }
        self.waiting = 0;
        Ok(())
    }

    fn put(&mut self, tier: Tier, key: u64, block: &[u8]) -> Result<(), Error> {
        if tier == Tier::Host {
            self.memory.insert(key, block.to_vec());
            return Ok(());
        }
        if self.waiting + block.len() > WAIT {
            self.wait()?;
        }
        self.waiting += block.len();
        let put = self.disk()?.storage_writer(key).force().insert(block.to_vec());
        put.map(drop).ok_or_else(|| failed("put", "refused"))
    }

    fn settle(&mut self, durable: bool) -> Result<(), Error> {
        self.wait()?;
        if !durable || self.engine == Engine::Memory {
            return Ok(());
        }
        sync(&self.dir).map_err(|e| failed("syncing", e))
    }

    /// Nothing to drop: it reads past the page cache, and what was written has left its queue.
    fn chill(&mut self) -> Result<(), Error> {
        self.wait()
    }

    fn get(&mut self, tier: Tier, keys: &[u64], into: &mut [u8]) -> Result<(), Error> {
        let parts = into.chunks_mut(into.len() / keys.len().max(1));
        if tier == Tier::Host {
            for (key, into) in keys.iter().zip(parts) {
                let found = self.memory.get(key).ok_or_else(|| failed("get", "a miss"))?;
                into.copy_from_slice(found.value());
            }
            return Ok(());
        }
        let disk = self.disk()?.clone();
        self.runtime.block_on(async move {
            let load = |key: u64| {
                let disk = disk.clone();
                async move { disk.storage().load(&key).await }
            };
            if let [key] = *keys {
                return copy(load(key).await, into_one(parts));
            }
            // Tasks, so that checksums are computed on every core of its runtime.
            let loads: Vec<_> = keys.iter().map(|&key| tokio::spawn(load(key))).collect();
            for (load, into) in loads.into_iter().zip(parts) {
                copy(load.await.map_err(|e| failed("get", e))?, into)?;
            }
            Ok(())
        })
    }
}

fn into_one<'a>(mut parts: impl Iterator<Item = &'a mut [u8]>) -> &'a mut [u8] {
    parts.next().unwrap_or_default()
}

type Loaded = foyer::Result<Load<u64, Vec<u8>, foyer::HybridCacheProperties>>;

fn copy(loaded: Loaded, into: &mut [u8]) -> Result<(), Error> {
    match loaded.map_err(|e| failed("get", e))? {
        Load::Entry { value, .. } if value.len() == into.len() => into.copy_from_slice(&value),
        // It dropped the block, or still has it in memory: both would be another measurement.
        other => {
            return Err(failed("get", format!("{other:?}").chars().take(80).collect::<String>()));
        }
    }
    Ok(())
}

fn sync(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_data()?;
    }
    File::open(dir)?.sync_all()
}

fn main() -> Result<(), Error> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().map(PathBuf::from);
    let engine = args.next().and_then(|name| match name.to_str()? {
        "memory" => Some(Engine::Memory),
        "io_uring" => Some(Engine::IoUring),
        "psync" => Some(Engine::Threads),
        _ => None,
    });
    let (Some(dir), Some(engine)) = (dir, engine) else {
        return Err(failed("usage", "kvist-peer-foyer DIRECTORY memory|io_uring|psync"));
    };
    serve(&mut Foyer::new(dir, engine)?)
}
