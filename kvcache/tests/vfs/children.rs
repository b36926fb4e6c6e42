//! What only a process of its own can show: the umask, the table of descriptors, a second owner of
//! a lock. Each parent runs this binary again for one ignored test.

use std::process::Command;

use kvist::vfs::{Access, Next};
use rustix::fs::Mode;

use super::*;

const PLACE: &str = "KVIST_TEST_PLACE";

fn child(test: &str, place: &Path) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("children::{test}"), "--ignored", "--nocapture"])
        .env(PLACE, place)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let cried = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{cried}");
    assert!(said.contains("1 passed"), "{said}");
}

/// Where the parent told this process to work; `None` if it was started by hand.
fn place() -> Option<PathBuf> {
    let place = std::env::var_os(PLACE);
    if place.is_none() {
        eprintln!("skipped: its parent runs it");
    }
    place.map(PathBuf::from)
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    child("umask", &Scratch::new().0);
}

#[test]
#[ignore = "run by its parent"]
fn umask() {
    let Some(place) = place() else { return };
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new(Engine::Auto).unwrap());
    for (number, mask) in [0o777u32, 0o000, 0o077, 0o277, 0o022].into_iter().enumerate() {
        rustix::process::umask(Mode::from_raw_mode(mask));
        let dir = vfs.open_dir(&place.join(format!("dir{number}")), true).unwrap();
        assert_eq!(dir.stat().unwrap().mode, 0o700, "{mask:o}");
        assert_eq!(dir.subdir("below", true).unwrap().stat().unwrap().mode, 0o700, "{mask:o}");
        for access in [Access::Direct, Access::Buffered] {
            let file = dir.create(&format!("{access:?}"), access).unwrap();
            assert_eq!(file.stat().unwrap().mode, 0o600, "{mask:o}");
        }
        drop(dir.lock("LOCK").unwrap());
        let lock = dir.open("LOCK", Access::Buffered).unwrap();
        assert_eq!(lock.stat().unwrap().mode, 0o600, "{mask:o}");
    }
}

#[test]
fn a_lock_keeps_other_processes_out() {
    let scratch = Scratch::new();
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new(Engine::Auto).unwrap());
    let lock = scratch.dir(&vfs).lock("LOCK").unwrap();
    child("locked_out", &scratch.0);
    drop(lock);
    child("locks_and_ends", &scratch.0);
    // The other process is gone, and its lock with it.
    scratch.dir(&vfs).lock("LOCK").unwrap();
}

#[test]
#[ignore = "run by its parent"]
fn locked_out() {
    let Some(place) = place() else { return };
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new(Engine::Auto).unwrap());
    let error = vfs.open_dir(&place, false).unwrap().lock("LOCK").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    let holder: u32 = std::fs::read_to_string(place.join("LOCK")).unwrap().parse().unwrap();
    assert_ne!(holder, std::process::id());
    assert!(Path::new(&format!("/proc/{holder}")).exists());
}

#[test]
#[ignore = "run by its parent"]
fn locks_and_ends() {
    let Some(place) = place() else { return };
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new(Engine::Auto).unwrap());
    let lock = vfs.open_dir(&place, false).unwrap().lock("LOCK").unwrap();
    std::mem::forget(lock);
}

#[test]
fn descriptors_and_threads_come_back() {
    child("baseline", &Scratch::new().0);
}

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

#[test]
#[ignore = "run by its parent"]
fn baseline() {
    let Some(place) = place() else { return };
    let before = (count("fd"), count("task"));
    for round in 0..6 {
        for vfs in engines() {
            let dir = vfs.open_dir(&place, true).unwrap();
            let name = format!("{}-{round}", vfs.name());
            let file = dir.create(&name, Access::Direct).unwrap();
            run(&vfs, vec![write(&file, 0, &noise(8 << 20, 1))]);
            let reads = || (0..32).map(|i| read(&file, i << 18, 1 << 18)).collect();
            drop(run(&vfs, reads()));
            let mut batch = vfs.start(reads());
            assert!(matches!(batch.next(None), Next::Done(_)));
            drop(batch);
            drop(vfs.start(reads()));
            // Refused files leave nothing behind either.
            assert!(dir.open("nothing", Access::Direct).is_err());
            let locks = (dir.lock("LOCK"), dir.lock("LOCK"));
            assert!(locks.0.is_ok() && locks.1.is_err());
        }
    }
    eventually("the descriptors and threads of before", || (count("fd"), count("task")) == before);
}

#[test]
fn a_process_out_of_descriptors_says_so() {
    child("no_descriptors", &Scratch::new().0);
}

#[test]
#[ignore = "run by its parent"]
fn no_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Some(place) = place() else { return };
    let emfile = Some(rustix::io::Errno::MFILE.raw_os_error());
    for vfs in engines() {
        let dir = vfs.open_dir(&place, true).unwrap();
        let file = dir.create(vfs.name(), Access::Buffered).unwrap();
        run(&vfs, vec![write(&file, 0, &[5; 4096])]);
        let most = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..most }).unwrap();
        assert_eq!(dir.open(vfs.name(), Access::Direct).unwrap_err().raw_os_error(), emfile);
        assert_eq!(dir.list().unwrap_err().raw_os_error(), emfile);
        let mut held = vfs.start(vec![read(&file, 0, 4096)]);
        // With io_uring this one finds no idle ring, and makes none.
        let mut batch = vfs.start(vec![read(&file, 0, 4096), read(&file, 0, 4096)]);
        for _ in 0..2 {
            let Next::Done(done) = batch.next(None) else { panic!() };
            match done.result {
                Ok(n) => assert_eq!((n, vfs.name()), (4096, "threads")),
                Err(error) => assert_eq!(error.raw_os_error(), emfile),
            }
        }
        assert!(matches!(batch.next(None), Next::Empty));
        assert!(matches!(held.next(None), Next::Done(done) if done.result.is_ok()));
        assert_eq!(run(&vfs, vec![read(&file, 0, 4096)])[0][..], [5; 4096]);
        setrlimit(Resource::Nofile, most).unwrap();
        // A pushed operation tries anew.
        batch.push(read(&file, 0, 4096));
        assert!(matches!(batch.next(None), Next::Done(done) if done.result.is_ok()));
    }
}
