//! The Disk tier over a real directory.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::*;
use super::lies::{Lies, Sink};
use crate::codec::{Canonical, Codec, Plan};
use crate::format::{BlockDType, BlockLayout};
use crate::vfs::{Engine, OsVfs};

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let root =
            std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = root.join(format!("kvist-disk-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tier with blocks of one plan.
pub(super) struct Fixture {
    pub(super) plan: Plan,
    pub(super) disk: Disk,
}

const MODEL: [u8; 32] = [7; 32];

fn plan() -> Plan {
    Plan::new(&BlockLayout::new(BlockDType::Bf16, 16, 2, 2, 32), &Codec::raw()).unwrap()
}

fn open(scratch: &Scratch) -> Fixture {
    let options = DiskOptions::new(&scratch.0, 4 << 20).segment_bytes(256 << 10);
    let vfs = Arc::new(OsVfs::new(Engine::Threads).unwrap());
    Fixture { plan: plan(), disk: Disk::open(vfs, options).unwrap() }
}

pub(super) fn key(n: u32) -> BlockKey {
    BlockKey(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn block(plan: &Plan, n: u32) -> Vec<u8> {
    (0..plan.layout().bytes()).map(|i| (i as u32).wrapping_mul(n + 1).to_le_bytes()[1]).collect()
}

impl Fixture {
    pub(super) fn put(&self, ids: &[u32], tenant: [u8; 16]) -> Vec<Result<(), Refused>> {
        let layout = self.plan.layout();
        let lies = |&n: &u32| Lies::new(layout, block(&self.plan, n), n % 2 == 1);
        let blocks: Vec<Lies> = ids.iter().map(lies).collect();
        let sources: Vec<Canonical> = blocks.iter().map(|b| b.source(layout)).collect();
        let tokens: Vec<u32> = (0..16).collect();
        let records: Vec<NewRecord> = ids
            .iter()
            .zip(&sources)
            .map(|(&n, pages)| NewRecord {
                key: key(n),
                model: MODEL,
                tenant,
                seal: None,
                tokens: Some(&tokens),
                num_tokens: 16,
                plan: &self.plan,
                pages,
                live: None,
            })
            .collect();
        self.disk.commit(&records)
    }

    pub(super) fn get(&self, n: u32) -> Result<Vec<u8>, MissReason> {
        self.get_pages(n, 0..self.plan.layout().pages())
    }

    fn get_pages(&self, n: u32, pages: std::ops::Range<usize>) -> Result<Vec<u8>, MissReason> {
        match self.get_of(n, pages.clone(), [1; 16]) {
            Err(MissReason::Absent) => self.get_of(n, pages, [2; 16]),
            found => found,
        }
    }

    fn get_of(
        &self,
        n: u32,
        pages: std::ops::Range<usize>,
        tenant: [u8; 16],
    ) -> Result<Vec<u8>, MissReason> {
        let sink = Sink::new(self.plan.layout(), n % 4 >= 2);
        let tokens: Vec<u32> = (0..16).collect();
        let expect = Expect { model: MODEL, tenant, plan: &self.plan, seal: None, loss_max: 0 };
        let want = Want { key: key(n), tokens: Some(&tokens), pages, sink };
        let mut reads = self.disk.read(expect, vec![want]);
        let BlockDone { index, result, sink, .. } = reads.next(self.disk.deadline()).unwrap();
        assert_eq!((index, reads.pending()), (0, 0));
        drop(reads);
        result.map(|()| sink.lies.bytes().to_vec())
    }

    pub(super) fn right(&self, n: u32) -> bool {
        self.get(n).is_ok_and(|bytes| bytes == block(&self.plan, n))
    }
}

#[test]
fn what_was_stored_is_read_back_here_and_after_a_restart() {
    let scratch = Scratch::new("restart");
    let ids: Vec<u32> = (0..50).collect();
    let f = open(&scratch);
    assert!(f.put(&ids, [1; 16]).iter().all(Result::is_ok));
    assert!(ids.iter().all(|&n| f.right(n)));
    assert_eq!(f.put(&[3, 50], [1; 16]), [Err(Refused::AlreadyPresent), Ok(())]);
    assert_eq!(f.get(99), Err(MissReason::Absent));
    let part = f.get_pages(7, 1..3).unwrap();
    let page = f.plan.layout().page_bytes();
    assert_eq!(part[page..3 * page], block(&f.plan, 7)[page..3 * page]);
    let usage = f.disk.usage();
    assert_eq!((usage.records, usage.quarantined), (51, 0));
    drop(f);
    // Without footers: the log is scanned.
    let f = open(&scratch);
    assert_eq!(f.disk.usage().records, 51);
    assert!((0..51).all(|n| f.right(n)));
    f.put(&[60, 61], [1; 16]);
    f.disk.finish_segments();
    drop(f);
    let f = open(&scratch);
    assert_eq!(f.disk.usage().records, 53);
    assert!((0..51).chain([60, 61]).all(|n| f.right(n)));
}

#[test]
fn the_oldest_leave_and_those_that_were_read_stay() {
    let scratch = Scratch::new("clock");
    let f = open(&scratch);
    assert!(f.put(&[0, 1, 2], [1; 16]).iter().all(Result::is_ok));
    for n in 0..60 {
        assert!(f.right(1), "{n}");
        let ids: Vec<u32> = (100 + n * 20..120 + n * 20).collect();
        assert!(f.put(&ids, [1; 16]).iter().all(Result::is_ok), "{n}");
        let usage = f.disk.usage();
        assert!(usage.used_bytes <= usage.budget_bytes);
    }
    assert_eq!(f.get(0), Err(MissReason::Absent));
    assert!(f.right(1) && f.right(1299));
    let files: u64 =
        std::fs::read_dir(&scratch.0).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(files <= 4 << 20, "{files}");
}

#[test]
fn an_erased_tenant_stays_erased() {
    let scratch = Scratch::new("erase");
    let f = open(&scratch);
    f.put(&[0, 1, 2], [1; 16]);
    f.put(&[3, 4, 5], [2; 16]);
    let erased = f.disk.erase_tenant([1; 16]).unwrap();
    assert_eq!((erased.records, erased.segments_left), (3, 0));
    let is = |f: &Fixture| (0..6).map(|n| f.right(n)).collect::<Vec<bool>>();
    let kept = [false, false, false, true, true, true];
    assert_eq!(is(&f), kept);
    drop(f);
    let f = open(&scratch);
    assert_eq!(is(&f), kept);
    f.put(&[0], [1; 16]);
    assert!(f.right(0));
    drop(f);
    assert!(open(&scratch).right(0));
}
