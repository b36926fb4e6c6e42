//! A segment file: opened, looked at, checked.

use std::sync::Arc;

use super::{Input, UUID, sign};
use crate::disk::scan::{Depth, Scanner, Seen};
use crate::disk::{Disk, DiskOptions};
use crate::format::{HEAD_BYTES, KeySecret, Limits, Meta, SECTOR, SecretFile, segment_name};
use crate::inspect::{StoreView, VerifyOptions};
use crate::vfs::sim::SimVfs;
use crate::vfs::{Access, BufPool, Vfs};

const BUDGET: u64 = 8 << 20;

/// A segment with any bytes, in a directory that is right otherwise.
pub fn segment(data: &[u8]) {
    let mut input = Input(data);
    let signed = input.byte() & 1 == 1;
    let mut bytes = input.0.to_vec();
    if signed {
        sign(&mut bytes, 1);
    }
    let sim = SimVfs::new(1);
    sim.put("store/kvist.meta", Meta::new(UUID).encode().as_bytes());
    sim.put("store/cache.key", &SecretFile::encode(&KeySecret::new([3; 32])));
    let path = format!("store/{}", segment_name(1));
    sim.put(&path, &bytes);
    let found = [Depth::Headers, Depth::Records].map(|depth| scan(&sim, bytes.len() as u64, depth));
    assert!(found[1].iter().all(|r| found[0].contains(r)), "records that have no header");
    look(&sim);
    open(&sim);
    assert!(sim.bytes(&path).is_none_or(|now| now == bytes), "a segment was written to");
}

/// Sectors of the records that a scan believes.
fn scan(sim: &SimVfs, len: u64, depth: Depth) -> Vec<(u64, u64)> {
    let vfs: Arc<dyn Vfs> = Arc::new(sim.process());
    let dir = vfs.open_dir("/store".as_ref(), false).expect("it was made");
    let file = dir.open(&segment_name(1), Access::Buffered).expect("it was made");
    let buffers = BufPool::default();
    let (limits, patience) = (Limits::default(), std::time::Duration::from_secs(10));
    let scanner = Scanner { vfs: &vfs, buffers: &buffers, file, id: 1, len, limits, patience };
    let (mut found, mut at) = (Vec::new(), HEAD_BYTES as u64);
    let each = scanner.each(depth, at, len, |seen| {
        let (place, sectors) = match seen {
            Seen::Record(record) => {
                // Headers alone take every one that is right, whatever is behind it.
                let header = if depth == Depth::Records { record.check() } else { record.header };
                let sectors = header.map_or(0, |header| u64::from(header.sectors()));
                (record.place, sectors)
            }
            Seen::Other(place, bytes) => {
                assert!(bytes.len() == SECTOR, "{} bytes of a sector", bytes.len());
                (place, 0)
            }
            Seen::Unread(place, e) => panic!("{e} at {place}"),
        };
        assert!(place >= at && place + sectors * SECTOR as u64 <= len, "{sectors} at {place}");
        let believed = depth == Depth::Records && sectors > 0;
        at = place + if believed { sectors } else { 1 } * SECTOR as u64;
        if sectors > 0 {
            found.push((place, sectors));
        }
        believed
    });
    each.expect("a disk without faults");
    found
}

/// Looks at the directory without opening it.
fn look(sim: &SimVfs) {
    let view = StoreView::open_on(Arc::new(sim.process()), "/store").expect("a directory");
    let options = VerifyOptions { threads: 1, strict: true, ..VerifyOptions::default() };
    let report = view.verify(&options).expect("a directory that may be looked at");
    assert_eq!(report.clean, report.damage.is_empty());
    let _ = view.inventory();
}

/// Opens the directory: what is listed lies in the segment, apart from one another.
fn open(sim: &SimVfs) {
    let options = DiskOptions::new("/store", BUDGET);
    let disk = Disk::open(Arc::new(sim.process()), options).expect("a directory");
    let mut places = disk.places();
    places.sort_unstable_by_key(|(_, place)| place.start);
    let apart = places.windows(2).all(|w| w[0].1.end <= w[1].1.start);
    assert!(apart, "records share bytes: {places:?}");
    let live: u64 = places.iter().map(|(_, p)| (p.end - p.start) * SECTOR as u64).sum();
    let usage = disk.usage();
    assert_eq!((usage.live_bytes, usage.records), (live, places.len() as u64));
    assert!(usage.used_bytes <= usage.budget_bytes, "{usage:?}");
    assert!(places.iter().all(|(key, _)| disk.remove(key)));
    assert_eq!(disk.usage().live_bytes, 0);
}
