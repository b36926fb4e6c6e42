//! Directories and files: kinds, names, modes, locks, errors.

use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use kvist::vfs::{Access, Entry, Kind, read_exact_at, write_all_at};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

fn vfs() -> Arc<dyn Vfs> {
    Arc::new(OsVfs::new(Engine::Auto).unwrap())
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

#[test]
fn only_regular_files_are_opened() {
    let (vfs, scratch) = (vfs(), Scratch::new());
    let dir = scratch.dir(&vfs);
    let at = |name: &str| scratch.0.join(name);
    std::fs::write(at("real"), b"12345").unwrap();
    symlink("real", at("link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::create_dir(at("below")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    for name in ["link", "dangling", "fifo", "below", "socket"] {
        for access in [Access::Direct, Access::Buffered] {
            assert_eq!(kind(dir.open(name, access)), ErrorKind::InvalidInput, "{name}");
            assert_eq!(kind(dir.create(name, access)), ErrorKind::AlreadyExists, "{name}");
        }
        assert_eq!(kind(dir.lock(name)), ErrorKind::InvalidInput, "{name}");
    }
    assert_eq!(dir.open("real", Access::Direct).unwrap().len().unwrap(), 5);

    let mut listed = dir.list().unwrap();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let entry = |name: &str, kind, len| Entry { name: name.to_owned(), kind, len };
    let expected = [
        entry("below", Kind::Dir, 0),
        entry("dangling", Kind::Other, 0),
        entry("fifo", Kind::Other, 0),
        entry("link", Kind::Other, 0),
        entry("real", Kind::File, 5),
        entry("socket", Kind::Other, 0),
    ];
    assert_eq!(listed, expected);
    assert_eq!(dir.list().unwrap().len(), expected.len(), "a list starts anew each time");
}

#[test]
fn directories_are_not_reached_through_links() {
    let (vfs, scratch) = (vfs(), Scratch::new());
    std::fs::create_dir(scratch.0.join("real")).unwrap();
    symlink("real", scratch.0.join("link")).unwrap();
    std::fs::write(scratch.0.join("file"), b"").unwrap();
    for end in ["link", "link/", "link/.", "file"] {
        for create in [false, true] {
            let path = scratch.0.join(end);
            let error = vfs.open_dir(&path, create).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotADirectory, "{end}");
        }
    }
    let dir = scratch.dir(&vfs);
    for create in [false, true] {
        assert_eq!(kind(dir.subdir("link", create)), ErrorKind::NotADirectory);
        assert!(dir.subdir("real", create).is_ok());
        assert!(vfs.open_dir(&scratch.0.join("real/"), create).is_ok());
        // A link on the way is the caller's own choice.
        assert!(vfs.open_dir(&scratch.0.join("link/../real"), create).is_ok());
    }
}

#[test]
fn names_are_single_components() {
    let (vfs, scratch) = (vfs(), Scratch::new());
    let dir = scratch.dir(&vfs);
    dir.create("good", Access::Buffered).unwrap();
    for name in ["", ".", "..", "a/b", "/good", "good/", "nul\0"] {
        let results = [
            kind(dir.open(name, Access::Buffered)),
            kind(dir.create(name, Access::Buffered)),
            kind(dir.subdir(name, true)),
            kind(dir.rename("good", name)),
            kind(dir.rename(name, "good")),
            kind(dir.remove(name)),
            kind(dir.lock(name)),
        ];
        assert_eq!(results, [ErrorKind::InvalidInput; 7], "{name:?}");
    }
    assert_eq!(dir.list().unwrap().len(), 1);
}

#[test]
fn errors_carry_what_the_system_said() {
    let (vfs, scratch) = (vfs(), Scratch::new());
    let dir = scratch.dir(&vfs);
    let raw = |result: io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    let enoent = rustix::io::Errno::NOENT.raw_os_error();
    assert_eq!(raw(dir.open("none", Access::Direct).map(drop)), enoent);
    assert_eq!(raw(dir.remove("none")), enoent);
    assert_eq!(raw(dir.rename("none", "other")), enoent);
    assert_eq!(raw(dir.subdir("none", false).map(drop)), enoent);
    assert_eq!(raw(vfs.open_dir(&scratch.0.join("none"), false).map(drop)), enoent);
    assert_eq!(raw(vfs.open_dir(&scratch.0.join("none/below"), true).map(drop)), enoent);
    dir.create("there", Access::Direct).unwrap();
    let eexist = rustix::io::Errno::EXIST.raw_os_error();
    assert_eq!(raw(dir.create("there", Access::Direct).map(drop)), eexist);
    let reader = dir.open("there", Access::Buffered).unwrap();
    let ebadf = rustix::io::Errno::BADF.raw_os_error();
    assert_eq!(raw(reader.write_at(b"x", 0).map(drop)), ebadf);
}

#[test]
fn names_are_made_moved_and_removed() {
    let (vfs, scratch) = (vfs(), Scratch::new());
    let path = scratch.0.join("new");
    let dir = vfs.open_dir(&path, true).unwrap();
    assert_eq!(dir.stat().unwrap().mode, 0o700);
    assert!(dir.stat().unwrap().mine);
    let below = dir.subdir("quarantine", true).unwrap();
    assert_eq!(below.stat().unwrap().mode, 0o700);
    let file = dir.create("a", Access::Buffered).unwrap();
    assert_eq!(file.stat().unwrap().mode, 0o600);
    write_all_at(&*file, b"hello", 3).unwrap();
    file.sync_data().unwrap();
    dir.sync().unwrap();
    assert_eq!(file.len().unwrap(), 8);
    file.allocate(1 << 20).unwrap();
    file.allocate(0).unwrap();
    assert_eq!(file.len().unwrap(), 8, "room is not length");
    dir.create("b", Access::Buffered).unwrap();
    dir.rename("a", "b").unwrap();
    dir.rename_into("b", &*below, "c").unwrap();
    assert_eq!(dir.list().unwrap().len(), 1);
    let mut out = [0; 8];
    read_exact_at(&*below.open("c", Access::Buffered).unwrap(), &mut out, 0).unwrap();
    assert_eq!(out, *b"\0\0\0hello");
    below.remove("c").unwrap();
    assert!(below.list().unwrap().is_empty());
    // The open file outlives its name.
    read_exact_at(&*file, &mut out, 0).unwrap();
    assert!(dir.remove("quarantine").is_err(), "only files are removed");
    // Relative paths start at the working directory.
    assert!(vfs.open_dir(Path::new("."), true).is_ok());
}

#[test]
fn alignment_follows_the_way_bytes_travel() {
    let (vfs, scratch) = (vfs(), Scratch::new());
    let dir = scratch.dir(&vfs);
    let buffered = dir.create("buffered", Access::Buffered).unwrap();
    assert_eq!(buffered.alignment(), 1);
    let direct = dir.create("direct", Access::Direct).unwrap();
    let align = direct.alignment();
    assert!(align == 1 || (align >= 512 && align.is_power_of_two()), "{align}");
    let mut buf = Buf::alloc(2 * align.max(512)).unwrap();
    buf.fill(3);
    write_all_at(&*direct, &buf, 0).unwrap();
    buf.fill(0);
    let half = buf.len() / 2;
    read_exact_at(&*direct, &mut buf[..half], half as u64).unwrap();
    assert!(buf[..half].iter().all(|&b| b == 3));
    if align > 1 {
        assert_eq!(kind(direct.read_at(&mut buf[..half], 1)), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_lock_is_taken_once() {
    let (vfs, scratch) = (vfs(), Scratch::new());
    let dir = scratch.dir(&vfs);
    std::fs::write(scratch.0.join("LOCK"), b"a longer text than any process id").unwrap();
    let lock = dir.lock("LOCK").unwrap();
    let text = std::fs::read_to_string(scratch.0.join("LOCK")).unwrap();
    assert_eq!(text, std::process::id().to_string());
    assert_eq!(kind(dir.lock("LOCK")), ErrorKind::WouldBlock);
    assert_eq!(kind(scratch.dir(&vfs).lock("LOCK")), ErrorKind::WouldBlock);
    assert_eq!(std::fs::read_to_string(scratch.0.join("LOCK")).unwrap(), text);
    let other = dir.lock("other").unwrap();
    drop(lock);
    let lock = dir.lock("LOCK").unwrap();
    drop((lock, other));
}
