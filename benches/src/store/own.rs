//! kvist's prefix store under measurement.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kvist::format::{BlockDType, BlockKey, BlockLayout};
use kvist::{
    BlockRows, BlockRowsMut, Codec, DiskOptions, Prefix, PrefixStore, Space, SpaceOptions, Strides,
};

use super::case::{Case, Plan, Tier};
use super::subject::Subject;
use crate::Error;

/// Tokens, KV heads and dimension of the blocks, those of an 8B Llama, in bf16: a layer is 64 KiB, and
/// there are as many as make up the size.
const TOKENS: usize = 16;
const HEADS: usize = 8;
const DIM: usize = 128;
const LAYER: usize = 2 * 2 * TOKENS * HEADS * DIM;
/// Longest wait for room in the write queue or for a flush.
const PATIENCE: Duration = Duration::from_secs(60);
/// Host memory of a store whose disk is measured, and the part of it that may wait to be written.
const STAGING: u64 = 512 << 20;
const QUEUE: u64 = 128 << 20;

/// A store, made anew when the kind of block or the tier changes.
pub(super) struct Own {
    dir: PathBuf,
    bytes: usize,
    size: usize,
    open: Option<Open>,
}

struct Open {
    tier: Tier,
    store: PrefixStore,
    space: Space,
    /// Every block that there could be, by number.
    all: Prefix,
    layout: BlockLayout,
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::subject("kvist", e.to_string())
}

impl Own {
    pub(super) fn new(plan: &Plan) -> Own {
        Own { dir: plan.dir.join("kvist"), bytes: plan.bytes, size: 0, open: None }
    }

    /// Room for everything, in memory or on disk.
    fn open(&self, tier: Tier) -> Result<Open, Error> {
        let bytes = self.bytes as u64;
        let builder = PrefixStore::builder().backpressure(PATIENCE).prefault(true);
        let builder = match tier {
            // A block's index entry and handle are charged too.
            Tier::Host => builder.host_bytes(bytes + bytes / 64 + (16 << 20)),
            Tier::Disk => builder
                .host_bytes(STAGING + 4 * self.size as u64)
                .queue_bytes(QUEUE)
                .disk(DiskOptions::new(&self.dir, 2 * bytes + (1 << 30))),
        };
        let store = builder.build().map_err(failed)?;
        let layers = self.size / LAYER;
        let layout = BlockLayout::new(
            BlockDType::Bf16,
            TOKENS as u32,
            layers as u32,
            HEADS as u32,
            DIM as u32,
        );
        let options = SpaceOptions::new([7; 32], layout.clone()).codec(Codec::raw());
        let space = store.space(options).map_err(failed)?;
        let tokens: Vec<u32> = (0..(self.bytes / self.size * TOKENS) as u32).collect();
        let all = space.prefix(&tokens).map_err(failed)?;
        Ok(Open { tier, store, space, all, layout })
    }

    fn of(&mut self, tier: Tier) -> Result<&Open, Error> {
        if self.open.as_ref().is_none_or(|open| open.tier != tier) {
            self.open = None;
            self.open = Some(self.open(tier)?);
        }
        self.open.as_ref().ok_or_else(|| failed("it is closed"))
    }

    fn wipe(dir: &Path) -> Result<(), Error> {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
            _ => Ok(()),
        }
    }
}

impl Subject for Own {
    fn name(&self) -> String {
        format!("kvist {}", env!("CARGO_PKG_VERSION"))
    }

    fn can(&self, case: &Case) -> bool {
        case.size.is_multiple_of(LAYER)
    }

    fn clear(&mut self, size: usize) -> Result<(), Error> {
        if let Some(open) = self.open.as_ref().filter(|_| self.size == size) {
            // Arena and directory stay.
            open.space.evict(open.all.keys());
            return Ok(());
        }
        self.open = None;
        self.size = size;
        Own::wipe(&self.dir)
    }

    fn put(&mut self, tier: Tier, key: u64, block: &[u8]) -> Result<(), Error> {
        let open = self.of(tier)?;
        let rows = BlockRows::new(&open.layout, block, Strides::canonical(&open.layout));
        let rows = [rows.map_err(failed)?];
        let results = open.space.put(&open.all, key as usize, &rows).map_err(failed)?;
        match results.first() {
            Some(Ok(())) => Ok(()),
            other => Err(failed(format!("put: {other:?}"))),
        }
    }

    fn settle(&mut self, _: bool) -> Result<(), Error> {
        let Some(open) = &self.open else { return Ok(()) };
        match open.store.flush(PATIENCE) {
            true => Ok(()),
            false => Err(failed("not everything was written in time")),
        }
    }

    fn chill(&mut self) -> Result<(), Error> {
        // Reads go past the page cache; what is in kvist's own memory goes with the store.
        self.open = None;
        self.of(Tier::Disk).map(|_| ())
    }

    fn get(&mut self, tier: Tier, keys: &[u64], into: &mut [u8]) -> Result<(), Error> {
        let size = self.size;
        let open = self.of(tier)?;
        let strides = Strides::canonical(&open.layout);
        let rows = into.chunks_exact_mut(size);
        let rows = rows.map(|block| BlockRowsMut::new(&open.layout, block, strides));
        let mut rows: Vec<BlockRowsMut> = rows.collect::<Result<_, _>>().map_err(failed)?;
        let keys: Vec<BlockKey> = keys.iter().map(|&k| open.all.keys()[k as usize]).collect();
        let count = keys.len();
        let prefix = open.space.prefix_of_keys(keys);
        let restored = open.space.get(&prefix, 0..count, &mut rows).map_err(failed)?;
        match restored.blocks == count {
            true => Ok(()),
            false => Err(failed(format!("{restored:?} of {count} blocks"))),
        }
    }
}
