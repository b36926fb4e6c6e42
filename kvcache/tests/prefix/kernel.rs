//! What a real kernel refuses: a full file system, limits of files and descriptors, a directory that
//! may not be written. Each needs a right that not every machine grants, and says so.

use std::path::Path;
use std::process::Command;

use kvist::{DiskOptions, Error, PrefixStore, Refused};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::{SEGMENT, get, put, space};
use crate::scratch::Scratch;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn open(path: &Path, segments: u64) -> Result<PrefixStore, Error> {
    let options = DiskOptions::new(path, segments * SEGMENT).segment_bytes(SEGMENT);
    PrefixStore::builder().host_bytes(8 << 20).disk(options).threads(false).build()
}

/// Puts until something is refused; nothing that is handed out is wrong.
fn fill(store: &PrefixStore, blocks: u32) {
    let space = space(store, 0);
    for n in 0..blocks {
        assert!(matches!(put(&space, 0, n), Ok(()) | Err(Refused::AlreadyPresent)));
        store.run_pending();
    }
    for n in 0..blocks {
        let key = crate::common::prefix(&space, n).keys()[0];
        drop(space.lease(&key));
        let _ = get(&space, 0, n);
    }
}

fn run(name: &str, variable: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(variable, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} with {variable}: {status}");
}

#[test]
fn a_full_file_system() {
    let scratch = Scratch::new("full");
    std::fs::create_dir_all(&scratch.0).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs"])
        .arg(&scratch.0)
        .status();
    if !is_root() || !mount.is_ok_and(|s| s.success()) {
        println!("skipped: no right to mount a tmpfs");
        return;
    }
    let store = open(&scratch.0.join("store"), 40);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let store = store.unwrap();
        fill(&store, 400);
        let usage = store.stats().disk.unwrap();
        assert!(usage.records > 0, "{usage:?}");
        assert!(store.stats().throttled > 0, "the file system is smaller than the budget");
        drop(store);
        let store = open(&scratch.0.join("store"), 40).unwrap();
        let space = space(&store, 0);
        let there = (0..400).filter(|&n| get(&space, 0, n).is_ok()).count() as u64;
        assert_eq!(there, usage.records, "what was written before it was full is there");
    }));
    assert!(Command::new("umount").arg("-l").arg(&scratch.0).status().unwrap().success());
    outcome.unwrap();
}

#[test]
fn files_that_may_not_grow() {
    const CHILD: &str = "KVIST_FSIZE_CHILD";
    if std::env::var_os(CHILD).is_none() {
        return run("kernel::files_that_may_not_grow", CHILD);
    }
    // As the bindings do where the default action is set: a limit is an error, not the end.
    ignore_file_size_signal();
    let scratch = Scratch::new("fsize");
    let limit = Rlimit { current: Some(SEGMENT / 2), ..getrlimit(Resource::Fsize) };
    setrlimit(Resource::Fsize, limit).unwrap();
    let store = open(&scratch.0, 200).unwrap();
    fill(&store, 400);
    // Where the limit cuts a direct write short, the rest is refused as a write of nothing.
    let stats = store.stats();
    assert!(stats.throttled + stats.write_errors > 0, "{stats:?}");
}

/// Ignores `SIGXFSZ`.
fn ignore_file_size_signal() {
    // SAFETY: as the C library declares it; a handler is as wide as an address.
    unsafe extern "C" {
        fn signal(number: i32, handler: usize) -> usize;
    }
    // SAFETY: `SIG_IGN` (1) for `SIGXFSZ` (25) on Linux; no handler of ours runs.
    unsafe { signal(25, 1) };
}

#[test]
fn no_descriptors_left() {
    const CHILD: &str = "KVIST_NOFILE_CHILD";
    if std::env::var_os(CHILD).is_none() {
        return run("kernel::no_descriptors_left", CHILD);
    }
    let scratch = Scratch::new("nofile");
    let store = open(&scratch.0, 200).unwrap();
    let space = space(&store, 0);
    put(&space, 0, 0).unwrap();
    store.run_pending();
    let open_now = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = Rlimit { current: Some(open_now + 2), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    fill(&store, 400);
    assert!(store.stats().throttled > 0, "{:?}", store.stats());
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), ..getrlimit(Resource::Nofile) })
        .unwrap();
    assert_eq!(get(&space, 0, 0), Ok(()));
    put(&space, 0, 1000).unwrap();
    store.run_pending();
}

#[test]
fn a_directory_that_may_not_be_written() {
    use std::os::unix::fs::PermissionsExt;
    if is_root() {
        println!("skipped: root may write everything");
        return;
    }
    let scratch = Scratch::new("readonly");
    drop(open(&scratch.0, 40).unwrap());
    std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o500)).unwrap();
    std::fs::remove_file(scratch.0.join("LOCK")).unwrap_err();
    let opened = open(&scratch.0.join("below"), 40).map(drop);
    std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o700)).unwrap();
    assert!(matches!(opened, Err(Error::Permission { .. })), "{opened:?}");
}

#[test]
fn a_file_system_that_is_read_only() {
    let scratch = Scratch::new("rofs");
    std::fs::create_dir_all(&scratch.0).unwrap();
    let mount = |options: &str| {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&scratch.0)
            .status();
        status.is_ok_and(|s| s.success())
    };
    if !is_root() || !mount("size=2m,mode=0700") {
        println!("skipped: no right to mount a tmpfs");
        return;
    }
    drop(open(&scratch.0.join("store"), 8).unwrap());
    let remounted = mount("remount,ro");
    let opened = open(&scratch.0.join("store"), 8).map(drop);
    assert!(Command::new("umount").arg("-l").arg(&scratch.0).status().unwrap().success());
    assert!(!remounted || matches!(opened, Err(Error::Permission { .. })), "{opened:?}");
}
