//! What is said of a directory before a store is opened there is what opening it would say.

use std::path::Path;
use std::sync::Arc;

use kvist::inspect::Place;
use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};
use kvist::vfs::{Access, Vfs};
use kvist::{DiskOptions, Error, PrefixStore};

use super::common::{Scratch, golden};

const DIR: &str = "/store";

fn open(vfs: &SimVfs) -> Result<PrefixStore, Error> {
    let disk = DiskOptions::new(DIR, 64 << 20);
    PrefixStore::builder().host_bytes(1 << 20).disk(disk).vfs(Arc::new(vfs.clone())).build()
}

fn look(vfs: &SimVfs) -> Place {
    Place::look_on(Arc::new(vfs.clone()), DIR, false)
}

/// The refusal, which must be the error of opening.
fn refusal(vfs: &SimVfs) -> Error {
    let said = look(vfs).refusal.unwrap();
    assert_eq!(said, open(vfs).unwrap_err());
    said
}

fn make(vfs: &SimVfs, name: &str) {
    let dir = vfs.open_dir(Path::new(DIR), true).unwrap();
    dir.create(name, Access::Buffered).unwrap();
}

#[test]
fn nothing_an_empty_directory_and_a_store_can_be_opened() {
    let vfs = SimVfs::new(1);
    let place = look(&vfs);
    assert!(!place.exists && place.refusal.is_none() && place.store.is_none());
    assert!(vfs.open_dir(Path::new(DIR), false).is_err(), "looking made it");

    vfs.open_dir(Path::new(DIR), true).unwrap();
    let place = look(&vfs);
    assert!(place.exists && place.refusal.is_none() && place.store.is_none());
    assert_eq!(place.stat.unwrap().mode, 0o700);

    drop(open(&vfs).unwrap());
    let place = look(&vfs);
    assert!(place.refusal.is_none() && place.store.is_some() && place.foreign.is_empty());
    assert_eq!((place.in_use, place.secret), (Some(false), None));
    drop(open(&vfs).unwrap());
}

#[test]
fn a_directory_in_use_names_its_process() {
    let vfs = SimVfs::new(1);
    let store = open(&vfs.process()).unwrap();
    let Error::InUse { pid, .. } = refusal(&vfs) else { panic!("not refused as in use") };
    assert_eq!(look(&vfs).holder, pid);
    assert!(pid.is_some());
    drop(store);
    assert!(look(&vfs).refusal.is_none());
}

#[test]
fn what_is_foreign_is_named() {
    let vfs = SimVfs::new(1);
    make(&vfs, "thesis.tex");
    assert!(matches!(refusal(&vfs), Error::NotAStore { found, .. } if found == "thesis.tex"));
    let vfs = SimVfs::new(1);
    drop(open(&vfs).unwrap());
    make(&vfs, "thesis.tex");
    let place = look(&vfs);
    assert!(place.refusal.is_none(), "a store leaves it alone");
    assert_eq!(place.foreign, ["thesis.tex"]);
}

#[test]
fn rights_are_those_that_a_store_wants() {
    let vfs = SimVfs::new(1);
    vfs.open_dir(Path::new(DIR), true).unwrap();
    let root = vfs.process_of(0);
    let text = refusal(&root).to_string();
    assert!(text.contains("belongs to user 1000"), "{text}");
    assert!(Place::look_on(Arc::new(root), DIR, true).refusal.is_none());
    vfs.inject(Fault::Denied, Trigger::from(1).on(Call::List));
    assert!(matches!(refusal(&vfs), Error::Permission { .. }));
    vfs.heal();
    vfs.inject(Fault::Denied, Trigger::from(1).on(Call::OpenDir));
    assert!(matches!(look(&vfs).refusal, Some(Error::Permission { .. })));
}

#[test]
fn what_was_damaged_or_made_by_another_version_is_said() {
    let newer = Scratch::copy_of("place-newer", &golden());
    newer.write("kvist.meta", b"kvist store 2.0\n");
    let place = Place::look(&newer.0, false).unwrap();
    assert!(matches!(place.refusal, Some(Error::Version { found: 2, .. })));
    assert!(place.store.is_none());
    let bad = Scratch::copy_of("place-bad", &golden());
    let mut secret = bad.file("cache.key");
    secret[20] ^= 1;
    bad.write("cache.key", &secret);
    let place = Place::look(&bad.0, false).unwrap();
    assert!(place.refusal.is_none() && place.store.is_some() && place.secret.is_some());
    bad.write("kvist.meta", b"");
    let place = Place::look(&bad.0, false).unwrap();
    assert!(matches!(place.refusal, Some(Error::BadMeta { .. })));
}
