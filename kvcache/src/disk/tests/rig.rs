//! A store over a simulated disk, with blocks whose bytes follow from their number.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::super::*;
use super::lies::{Lies, Sink};
use crate::codec::{Canonical, Codec, Plan};
use crate::format::{BlockDType, BlockLayout};
use crate::seal::{MasterKey, TenantKey};
use crate::vfs::sim::SimVfs;

pub(super) const MODEL: [u8; 32] = [7; 32];
pub(super) const SEGMENT: u64 = 64 << 10;
pub(super) const TOKENS: u32 = 16;

/// Blocks of tenant `t` are numbered from `t * OF_TENANT` on.
pub(super) const OF_TENANT: u32 = 1000;

pub(super) fn tenant_of(n: u32) -> u32 {
    n / OF_TENANT
}

pub(super) fn tag(tenant: u32) -> [u8; 16] {
    [tenant as u8 + 1; 16]
}

/// How many times the usual scope is wanted.
pub(super) fn soak() -> u64 {
    std::env::var("KVIST_SOAK").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

/// The seeds of a test: `KVIST_SEED`, or so many.
pub(super) fn seeds(usual: u64) -> Range<u64> {
    match std::env::var("KVIST_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..usual * soak(),
    }
}

/// Numbers that look random.
#[derive(Clone)]
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D154_21C5)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % bound
    }
}

/// Small blocks in the main, every fourth larger and of several pages.
pub(super) fn plan(n: u32) -> &'static Plan {
    static PLANS: OnceLock<[Plan; 2]> = OnceLock::new();
    let make = |layout| Plan::new(&layout, &Codec::raw()).unwrap();
    let plans = PLANS.get_or_init(|| {
        [
            make(BlockLayout::new(BlockDType::U8, TOKENS, 1, 1, 16)),
            make(BlockLayout::new(BlockDType::Bf16, TOKENS, 2, 2, 32)),
        ]
    });
    &plans[usize::from(n % 4 == 3)]
}

pub(super) fn key(n: u32) -> BlockKey {
    BlockKey(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

pub(super) fn tokens(n: u32) -> Vec<u32> {
    (0..TOKENS).map(|i| n * TOKENS + i).collect()
}

pub(super) fn block(n: u32) -> Vec<u8> {
    let mut bytes = vec![0; plan(n).layout().bytes()];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Whether a block lies in a cell: half of them.
fn in_cell(n: u32) -> bool {
    n % 8 < 4
}

/// A process that has the store open.
pub(super) struct Rig {
    pub(super) sim: SimVfs,
    pub(super) disk: Arc<Disk>,
    keys: Option<Vec<TenantKey>>,
}

/// How a rig's store is opened.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    /// Budget in segments.
    pub(super) segments: u64,
    pub(super) sealed: bool,
}

impl Setup {
    pub(super) const ROOMY: Setup = Setup { segments: 40, sealed: false };
    pub(super) const TIGHT: Setup = Setup { segments: 5, sealed: false };
    pub(super) const SEALED: Setup = Setup { segments: 8, sealed: true };

    pub(super) fn options(self) -> DiskOptions {
        let options = DiskOptions::new("/store", self.segments * SEGMENT).segment_bytes(SEGMENT);
        if self.sealed { options.seal([9; 32]) } else { options }
    }

    pub(super) fn open(self, sim: SimVfs) -> Result<Rig, crate::Error> {
        let disk = Arc::new(Disk::open(Arc::new(sim.clone()), self.options())?);
        let master = MasterKey::new([9; 32]);
        let derive = |t: u32| TenantKey::derive(&master, &tag(t)).expect("the feature `seal`");
        let keys = self.sealed.then(|| (0..8).map(derive).collect());
        Ok(Rig { sim, disk, keys })
    }
}

impl Rig {
    fn seal(&self, n: u32) -> Option<&TenantKey> {
        self.keys.as_ref().map(|keys| &keys[tenant_of(n) as usize])
    }

    pub(super) fn put(&self, ids: &[u32]) -> Vec<Result<(), Refused>> {
        let blocks: Vec<Lies> =
            ids.iter().map(|&n| Lies::new(plan(n).layout(), block(n), in_cell(n))).collect();
        let tokens: Vec<Vec<u32>> = ids.iter().map(|&n| tokens(n)).collect();
        let sources: Vec<Canonical> =
            ids.iter().zip(&blocks).map(|(&n, b)| b.source(plan(n).layout())).collect();
        let mut records = Vec::with_capacity(ids.len());
        for (i, &n) in ids.iter().enumerate() {
            records.push(NewRecord {
                key: key(n),
                model: MODEL,
                tenant: tag(tenant_of(n)),
                seal: self.seal(n),
                tokens: self.keys.is_none().then_some(&tokens[i][..]),
                num_tokens: TOKENS,
                plan: plan(n),
                pages: &sources[i],
                live: None,
            });
        }
        self.disk.commit(&records)
    }

    pub(super) fn expect(&self, n: u32) -> Expect<'_> {
        let (plan, tenant) = (plan(n), tag(tenant_of(n)));
        Expect { model: MODEL, tenant, plan, seal: self.seal(n), loss_max: 0 }
    }

    pub(super) fn get(&self, n: u32) -> Result<Vec<u8>, MissReason> {
        self.get_pages(n, 0..plan(n).layout().pages())
    }

    pub(super) fn get_pages(&self, n: u32, pages: Range<usize>) -> Result<Vec<u8>, MissReason> {
        let tokens = tokens(n);
        let tokens = self.keys.is_none().then_some(&tokens[..]);
        let sink = Sink::new(plan(n).layout(), in_cell(n));
        let want = Want { key: key(n), tokens, pages, sink };
        let mut reads = self.disk.read(self.expect(n), vec![want]);
        let BlockDone { index, result, sink, .. } = reads.next(self.disk.deadline()).unwrap();
        assert_eq!((index, reads.pending()), (0, 0));
        drop(reads);
        result.map(|()| sink.lies.bytes().to_vec())
    }

    /// Gets blocks together, as a restore does. A block that is handed out and is not right panics.
    pub(super) fn get_all(&self, ids: &[u32]) -> Vec<Result<(), MissReason>> {
        let mut results = vec![Err(MissReason::Busy); ids.len()];
        for large in [false, true] {
            let of_plan = |&&i: &&usize| (ids[i] % 4 == 3) == large;
            let all: Vec<usize> = (0..ids.len()).collect();
            let mine: Vec<usize> = all.iter().filter(of_plan).copied().collect();
            let tenants: std::collections::BTreeSet<u32> =
                mine.iter().map(|&i| tenant_of(ids[i])).collect();
            for tenant in tenants {
                let of_tenant = |&i: &usize| tenant_of(ids[i]) == tenant;
                let mine: Vec<usize> = mine.iter().copied().filter(of_tenant).collect();
                self.get_group(ids, &mine, &mut results);
            }
        }
        results
    }

    fn get_group(&self, ids: &[u32], mine: &[usize], results: &mut [Result<(), MissReason>]) {
        let tokens: Vec<Vec<u32>> = mine.iter().map(|&i| tokens(ids[i])).collect();
        let layout = plan(ids[mine[0]]).layout();
        let mut wants = Vec::with_capacity(mine.len());
        for (&i, tokens) in mine.iter().zip(&tokens) {
            let tokens = self.keys.is_none().then_some(&tokens[..]);
            let (key, sink) = (key(ids[i]), Sink::new(layout, in_cell(ids[i])));
            wants.push(Want { key, tokens, pages: 0..layout.pages(), sink });
        }
        let mut reads = self.disk.read(self.expect(ids[mine[0]]), wants);
        let mut done = Vec::new();
        while let Some(d) = reads.next(self.disk.deadline()) {
            done.push((d.index, d.result, d.sink));
        }
        drop(reads);
        assert_eq!(done.len(), mine.len(), "every block has a result");
        for (index, result, sink) in done {
            let n = ids[mine[index]];
            let right = || sink.lies.bytes() == block(n);
            assert!(result.is_err() || right(), "block {n} came back wrong");
            results[mine[index]] = result;
        }
    }

    /// As far as the index knows.
    pub(super) fn is_listed(&self, n: u32) -> bool {
        self.disk.state.lock().index.get(&key(n)).is_some()
    }

    /// Lengths of all segment files, those put aside included.
    pub(super) fn file_bytes(&self) -> u64 {
        let files = self.sim.files();
        files
            .iter()
            .filter(|f| f.path.contains("seg-") && f.path.ends_with(".kv"))
            .map(|f| f.len)
            .sum()
    }
}
