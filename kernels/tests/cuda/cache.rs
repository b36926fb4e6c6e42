//! Files of compiled kernels: whole or not there, whatever happened to them.

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use kvist_kernels::cuda::{CAP_BYTES, Cache, Damage, Image, Key, Version};
use proptest::prelude::*;
use tempfile::TempDir;

fn key(n: u8) -> Key {
    Key([n; 32])
}

fn image(n: u8, len: usize) -> Image {
    let mut code = b"\x7fELF".to_vec();
    code.resize(len.max(4), n);
    Image { ptx: false, compiler: Version { major: 13, minor: 0 }, code }
}

fn at(folder: &TempDir) -> Cache {
    Cache::new(Some(folder.path().join("cubin")), CAP_BYTES)
}

fn path(folder: &TempDir, n: u8) -> std::path::PathBuf {
    folder.path().join("cubin").join(key(n).file_name())
}

prop_compose! {
    fn any_image()(
        ptx in any::<bool>(),
        major in any::<u32>(),
        minor in any::<u32>(),
        body in prop::collection::vec(any::<u8>(), 0..600),
    ) -> Image {
        let mut code = if ptx { Vec::new() } else { b"\x7fELF".to_vec() };
        code.extend(body);
        if ptx {
            code.push(0);
        }
        Image { ptx, compiler: Version { major, minor }, code }
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(image in any_image(), n in any::<u8>()) {
        prop_assert_eq!(Image::decode(&key(n), &image.encode(&key(n))), Ok(image));
    }

    #[test]
    fn every_changed_byte_is_seen(image in any_image(), at in any::<prop::sample::Index>(), by in 1u8..) {
        let mut bytes = image.encode(&key(1));
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        prop_assert!(Image::decode(&key(1), &bytes).is_err());
    }

    #[test]
    fn every_other_length_is_seen(image in any_image(), cut in any::<prop::sample::Index>(), more in 1usize..99) {
        let bytes = image.encode(&key(1));
        let short = &bytes[..cut.index(bytes.len())];
        prop_assert_eq!(Image::decode(&key(1), short), Err(Damage::Length));
        let mut long = bytes.clone();
        long.resize(bytes.len() + more, 0);
        prop_assert_eq!(Image::decode(&key(1), &long), Err(Damage::Length));
    }

    #[test]
    fn another_kernels_file_is_seen(image in any_image(), n in 2u8..) {
        prop_assert_eq!(Image::decode(&key(n), &image.encode(&key(1))), Err(Damage::Key));
    }

    #[test]
    fn made_up_bytes_are_no_image(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Image::decode(&key(1), &bytes).is_err());
        let mut magic = b"KVISTGPU\x01\0\0\0".to_vec();
        magic.extend(bytes);
        prop_assert!(Image::decode(&key(1), &magic).is_err());
    }
}

/// A whole file of bytes that a driver must not be given: it is told no length.
#[test]
fn what_is_not_code_is_no_image() {
    let compiler = Version { major: 13, minor: 0 };
    for (ptx, code) in [(false, &b"ELF"[..]), (false, b""), (true, b"// no end"), (true, b"")] {
        let bytes = Image { ptx, compiler, code: code.to_vec() }.encode(&key(1));
        assert_eq!(Image::decode(&key(1), &bytes), Err(Damage::Code));
    }
}

#[test]
fn other_versions_of_the_format_are_built_anew() {
    let mut bytes = image(1, 50).encode(&key(1));
    bytes[8] = 2;
    assert_eq!(Image::decode(&key(1), &bytes), Err(Damage::Format));
}

#[test]
fn a_damaged_file_is_absent_until_it_is_written_again() {
    let folder = TempDir::new().unwrap();
    let cache = at(&folder);
    assert_eq!(cache.read(&key(1)), None);
    cache.write(&key(1), &image(1, 5000));
    assert_eq!(cache.read(&key(1)), Some(image(1, 5000)));
    let file = path(&folder, 1);
    let whole = fs::read(&file).unwrap();
    // Torn, emptied, overwritten, another kernel's.
    for bad in [&whole[..whole.len() / 2], b"", &[0xA5; 5096], &image(2, 5000).encode(&key(2))] {
        fs::write(&file, bad).unwrap();
        assert_eq!(cache.read(&key(1)), None);
        cache.write(&key(1), &image(1, 5000));
        assert_eq!(cache.read(&key(1)), Some(image(1, 5000)));
    }
    let mode = fs::metadata(folder.path().join("cubin")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_no_plain_file_is_neither_followed_nor_waited_for() {
    let folder = TempDir::new().unwrap();
    let cache = at(&folder);
    cache.write(&key(1), &image(1, 100));
    symlink(path(&folder, 1), path(&folder, 2)).unwrap();
    fs::create_dir(path(&folder, 3)).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(path(&folder, 4)).status().unwrap();
    assert!(fifo.success());
    File::create(path(&folder, 5)).unwrap().set_len(1 << 40).unwrap();
    assert!((2..=5).all(|n| cache.read(&key(n)).is_none()));
    assert!(cache.read(&key(1)).is_some());
}

fn accessed(file: &Path, seconds_ago: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds_ago);
    File::open(file).unwrap().set_times(FileTimes::new().set_accessed(time)).unwrap();
}

#[test]
fn what_was_read_longest_ago_goes_first() {
    let folder = TempDir::new().unwrap();
    let one = image(0, 10_000).encode(&key(0)).len() as u64;
    let cache = Cache::new(Some(folder.path().join("cubin")), 4 * one);
    for n in 1..=4 {
        cache.write(&key(n), &image(n, 10_000));
        accessed(&path(&folder, n), 100 - u64::from(n));
    }
    let there = || (1..=9).filter(|&n| path(&folder, n).exists()).collect::<Vec<_>>();
    assert_eq!(there(), [1, 2, 3, 4]);
    assert!(cache.read(&key(1)).is_some());
    cache.write(&key(5), &image(5, 10_000));
    assert_eq!(there(), [1, 3, 4, 5]);
    cache.write(&key(6), &image(6, 20_000));
    assert_eq!(there(), [1, 5, 6]);
    // Files of others and of live processes stay, those of dead ones go.
    let (own, live, dead) = ("notes.txt", ".kvist-live", ".kvist-dead");
    let file = |name: &str| folder.path().join("cubin").join(name);
    [own, live, dead].iter().for_each(|name| fs::write(file(name), "x").unwrap());
    let old = SystemTime::now() - Duration::from_secs(7200);
    File::options().write(true).open(file(dead)).unwrap().set_modified(old).unwrap();
    cache.write(&key(7), &image(7, 100));
    assert!(file(own).exists() && file(live).exists() && !file(dead).exists());
}

#[test]
fn threads_see_whole_images_or_none() {
    let folder = TempDir::new().unwrap();
    let one = image(0, 20_000).encode(&key(0)).len() as u64;
    // Too small for all: files vanish while others read them.
    let cache = Arc::new(Cache::new(Some(folder.path().join("cubin")), 5 * one));
    let hits = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (cache, hits) = (&cache, &hits);
            scope.spawn(move || {
                for step in 0..60 {
                    let n = ((thread * 7 + step * 5) % 9) as u8;
                    match cache.read(&key(n)) {
                        Some(found) => {
                            assert_eq!(found, image(n, 20_000));
                            hits.fetch_add(1, Ordering::Relaxed);
                        }
                        None => cache.write(&key(n), &image(n, 20_000)),
                    }
                }
            });
        }
    });
    assert!(hits.into_inner() > 0);
    let left: Vec<_> = fs::read_dir(folder.path().join("cubin")).unwrap().collect();
    assert!(left.len() <= 5 + 6, "{left:?}");
}

/// Counts warnings.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, of: &tracing::Metadata<'_>) -> bool {
        *of.level() == tracing::Level::WARN
    }
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_folder_that_cannot_be_used_is_one_warning() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    at(&folder).write(&key(1), &image(1, 100));
    fs::copy(path(&folder, 1), open.join(key(1).file_name())).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    // Below a file, and where everyone can put something.
    for unusable in [file.join("cubin"), file.clone(), open.clone()] {
        let warnings = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::with_default(Warnings(Arc::clone(&warnings)), || {
            let cache = Cache::new(Some(unusable), CAP_BYTES);
            for _ in 0..3 {
                cache.write(&key(1), &image(1, 100));
                assert_eq!(cache.read(&key(1)), None);
            }
        });
        assert_eq!(warnings.load(Ordering::Relaxed), 1);
    }
    assert_eq!(fs::read_dir(&open).unwrap().count(), 1);
    // Nothing is kept, and nothing said, where that was wanted.
    let none = Cache::new(None, CAP_BYTES);
    none.write(&key(1), &image(1, 100));
    assert_eq!(none.read(&key(1)), None);
}
