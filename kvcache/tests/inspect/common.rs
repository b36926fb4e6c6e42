//! A small store with something of everything, and copies of it to break.

use std::path::{Path, PathBuf};

use kvist::format::{BlockDType, BlockKey, BlockLayout};
use kvist::inspect::{Report, StoreView, VerifyOptions};
use kvist::vfs::{Engine, OsVfs};
use kvist::{BlockRows, Codec, DiskOptions, PrefixStore, Space, SpaceOptions, Strides};

/// A directory that goes when the test ends.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        let name = format!("inspect-{name}-{}", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }

    /// A copy of a directory, as a store wants its own.
    pub(crate) fn copy_of(name: &str, from: &Path) -> Scratch {
        let scratch = Scratch::new(name);
        copy(from, &scratch.0);
        scratch
    }

    pub(crate) fn verify(&self) -> Report {
        self.verify_as(false)
    }

    pub(crate) fn verify_as(&self, strict: bool) -> Report {
        let options = VerifyOptions { strict, ..VerifyOptions::default() };
        StoreView::open(&self.0).unwrap().verify(&options).unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.join(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        std::fs::copy(entry.path(), &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Where the golden directory lies.
pub(crate) fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/store-v1")
}

pub(crate) fn layout() -> BlockLayout {
    BlockLayout::new(BlockDType::Bf16, 16, 2, 1, 8)
}

/// A store of the directory that does everything on this thread.
pub(crate) fn store(path: &Path) -> PrefixStore {
    let vfs = std::sync::Arc::new(OsVfs::new(Engine::Threads).unwrap());
    let disk = DiskOptions::new(path, 4 << 20).segment_bytes(64 << 10);
    PrefixStore::builder().host_bytes(8 << 20).disk(disk).vfs(vfs).threads(false).build().unwrap()
}

pub(crate) fn space(store: &PrefixStore, salt: &str) -> Space {
    let options = SpaceOptions::new([7; 32], layout()).salt(salt.as_bytes()).codec(Codec::raw());
    store.space(options).unwrap()
}

/// Bytes of block `n`.
pub(crate) fn block(n: u32) -> Vec<u8> {
    (0..layout().bytes() as u32).map(|i| (i * (n + 3)).to_le_bytes()[0] ^ n as u8).collect()
}

/// Tokens of a stream of one block.
pub(crate) fn tokens(n: u32) -> Vec<u32> {
    (n * 100..n * 100 + 16).collect()
}

/// Stores block `n` as a stream of its own; returns its key.
pub(crate) fn put(space: &Space, n: u32) -> BlockKey {
    let (layout, block) = (layout(), block(n));
    let prefix = space.prefix(&tokens(n)).unwrap();
    let rows = BlockRows::new(&layout, &block, Strides::canonical(&layout)).unwrap();
    space.put(&prefix, 0, &[rows]).unwrap()[0].unwrap();
    prefix.keys()[0]
}

/// Fills a new directory: a tenant that was erased and came back, one that stayed, segments with and
/// without an index.
pub(crate) fn fill(path: &Path) {
    let first = Scratch::new(&format!("fill-{:x}", path.as_os_str().len()));
    let s = store(&first.0);
    let (a, b) = (space(&s, "tenant a"), space(&s, "tenant b"));
    for n in 0..3 {
        put(&a, n);
        put(&b, 10 + n);
    }
    s.run_pending();
    s.erase_tenant(b"tenant a").unwrap();
    put(&a, 1);
    s.run_pending();
    drop((s, a, b));
    let s = store(&first.0);
    let b = space(&s, "tenant b");
    put(&b, 20);
    put(&b, 21);
    s.run_pending();
    // Before it is closed: its last segment has no index, as after a crash.
    copy(&first.0, path);
    std::fs::remove_file(path.join("LOCK")).unwrap();
}

/// Segments by name, and whether they have an index.
pub(crate) fn segments(path: &Path) -> Vec<(String, bool)> {
    let inventory = StoreView::open(path).unwrap().inventory();
    inventory.segments.into_iter().map(|s| (s.file, s.finished)).collect()
}
