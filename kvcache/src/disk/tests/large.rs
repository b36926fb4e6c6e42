//! Records that are read in pieces, over a disk that hands them back in any order.

use std::sync::Arc;

use super::os::{Fixture, key};
use crate::codec::{Codec, Plan};
use crate::disk::pieces::PIECE;
use crate::disk::{Disk, DiskOptions, MissReason};
use crate::format::{BlockDType, BlockLayout, SECTOR};
use crate::vfs::sim::{Call, Fault, SimVfs, Trigger};

/// Blocks of 1.5 MiB.
fn open(sim: &SimVfs, codec: Codec) -> Fixture {
    let layout = BlockLayout::new(BlockDType::Bf16, 16, 12, 8, 256);
    let plan = Plan::new(&layout, &codec).unwrap();
    assert!(layout.bytes() as u64 > 2 * PIECE);
    let options = DiskOptions::new("/store", 64 << 20).segment_bytes(16 << 20);
    Fixture { plan, disk: Disk::open(Arc::new(sim.process()), options).unwrap() }
}

#[test]
fn they_are_read_whatever_the_order_of_their_pieces() {
    for seed in 0..8 {
        for codec in [Codec::raw(), Codec::lossless()] {
            let sim = SimVfs::new(seed);
            let f = open(&sim, codec);
            assert!(f.put(&[1, 2, 3], [1; 16]).iter().all(Result::is_ok));
            assert!([1, 2, 3].iter().all(|&n| f.right(n)), "seed {seed}, {codec:?}");
            drop(f);
            let f = open(&sim, codec);
            assert!([3, 1, 2].iter().all(|&n| f.right(n)), "seed {seed}, {codec:?}");
        }
    }
}

#[test]
fn a_flipped_bit_in_any_piece_is_a_miss_and_no_other_block_suffers() {
    for codec in [Codec::raw(), Codec::lossless()] {
        let sim = SimVfs::new(3);
        let f = open(&sim, codec);
        assert!(f.put(&[1, 2], [1; 16]).iter().all(Result::is_ok));
        let place = f.disk.find(&key(1)).unwrap();
        let start = u64::from(place.entry.position) * SECTOR as u64;
        let (bytes, name) =
            (place.entry.bytes(), crate::format::segment_name(u64::from(place.segment.id)));
        drop((place, f));
        for at in (100..bytes - SECTOR as u64).step_by(PIECE as usize / 3) {
            let sim = sim.fork(at);
            sim.flip(&format!("store/{name}"), (start + at) * 8 + 5);
            let f = open(&sim, codec);
            assert!(!f.right(1) && f.get(1).is_err(), "byte {at}");
            assert!(f.right(2), "byte {at}");
        }
    }
}

#[test]
fn a_disk_with_large_sectors_takes_and_gives_what_lies_in_place() {
    let layout = BlockLayout::new(BlockDType::Bf16, 16, 10, 16, 128);
    let plan = Plan::new(&layout, &Codec::raw()).unwrap();
    // Else everything goes through buffers.
    assert!(plan.plain_prefix(16).is_multiple_of(4096) && layout.page_bytes() == 8192);
    for seed in 0..4 {
        let sim = SimVfs::new(seed);
        sim.alignment(4096);
        let open = || {
            let options = DiskOptions::new("/store", 64 << 20).segment_bytes(16 << 20);
            let disk = Disk::open(Arc::new(sim.process()), options).unwrap();
            Fixture { plan: plan.clone(), disk }
        };
        let f = open();
        // Blocks that are copied and others, in turn.
        assert!(f.put(&[2, 1, 3, 4, 5], [1; 16]).iter().all(Result::is_ok));
        assert!((1..6).all(|n| f.right(n)), "seed {seed}");
        drop(f);
        let f = open();
        assert!((1..6).all(|n| f.right(n)), "seed {seed}");
    }
}

#[test]
fn a_read_that_fails_is_a_miss_and_leaves_nothing_behind() {
    for n in 1..8 {
        let sim = SimVfs::new(n);
        let f = open(&sim, Codec::lossless());
        assert!(f.put(&[1, 2], [1; 16]).iter().all(Result::is_ok));
        let id = sim.inject(Fault::ReadIo, Trigger::nth(n).on(Call::Read));
        let first = f.get(1);
        let struck = sim.fired(id) > 0;
        assert!(
            matches!(first, Ok(_) | Err(MissReason::Io)),
            "{first:?}",
            first = first.map(|_| ())
        );
        sim.heal();
        assert!(f.right(2) || struck, "read {n}");
        assert_eq!(f.disk.usage().parked_bytes, 0);
    }
}
