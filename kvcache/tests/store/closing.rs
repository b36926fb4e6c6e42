//! A closed store refuses everything, and lets go of what it had.

use std::time::Duration;

use kvist::format::{BlockDType, BlockLayout};
use kvist::{BlockRows, DiskOptions, Error, PrefixStore, Space, SpaceOptions, Strides};

fn layout() -> BlockLayout {
    BlockLayout::new(BlockDType::Bf16, 16, 2, 1, 8)
}

fn open(path: &std::path::Path) -> Result<PrefixStore, Error> {
    let disk = DiskOptions::new(path, 4 << 20);
    PrefixStore::builder().host_bytes(8 << 20).disk(disk).build()
}

fn space(store: &PrefixStore) -> Space {
    store.space(SpaceOptions::new([7; 32], layout())).unwrap()
}

#[test]
fn closing_unlocks_the_directory_whoever_still_holds_spaces() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("closing-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    let store = open(&path).unwrap();
    let space = space(&store);
    let prefix = space.prefix(&(0..16).collect::<Vec<_>>()).unwrap();
    let (layout, block) = (layout(), vec![5u8; layout().bytes()]);
    let rows = BlockRows::new(&layout, &block, Strides::canonical(&layout)).unwrap();
    space.put(&prefix, 0, &[rows]).unwrap()[0].unwrap();
    let lease = space.lease(&prefix.keys()[0]).unwrap();
    assert!(matches!(open(&path), Err(Error::InUse { .. })));
    store.close();
    store.close();
    assert_eq!(*lease, block);
    assert_eq!(store.check(), Err(Error::Closed));
    assert_eq!(space.put(&prefix, 0, &[rows]), Err(Error::Closed));
    assert_eq!(space.contains(&prefix), 0);
    assert!(space.lease(&prefix.keys()[0]).is_none());
    assert_eq!(space.evict(prefix.keys()), 0);
    let ticket = space.prefetch(&prefix, 0..1);
    assert_eq!((ticket.is_done(), ticket.wait(Duration::from_secs(60))), (true, None));
    assert!(!store.flush(Duration::ZERO));
    drop(lease);
    let stats = store.stats();
    assert_eq!((stats.host_blocks, stats.host_used_bytes), (0, 0));
    // Written while it was closed, and free for the next.
    let again = open(&path).unwrap();
    let there = self::space(&again);
    let prefix = there.prefix(&(0..16).collect::<Vec<_>>()).unwrap();
    assert_eq!(there.contains(&prefix), 1);
    drop((again, there));
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_prefix_belongs_to_the_spaces_that_have_its_keys() {
    let store = PrefixStore::builder().host_bytes(8 << 20).build().unwrap();
    let options = || SpaceOptions::new([7; 32], layout());
    let (a, twin) = (store.space(options().salt(b"a")).unwrap(), store.space(options().salt(b"a")));
    let b = store.space(options().salt(b"b")).unwrap();
    let prefix = a.prefix(&(0..16).collect::<Vec<_>>()).unwrap();
    let (layout, block) = (layout(), vec![5u8; layout().bytes()]);
    let rows = BlockRows::new(&layout, &block, Strides::canonical(&layout)).unwrap();
    let text = b.put(&prefix, 0, &[rows]).unwrap_err().to_string();
    assert_eq!(text, "prefix must be one of this space, found one of another space");
    twin.unwrap().put(&prefix, 0, &[rows]).unwrap()[0].unwrap();
    assert_eq!((a.contains(&prefix), b.contains(&prefix)), (1, 0));
    assert!(a.put(&prefix, usize::MAX, &[rows]).is_err());
}
