//! Sealed stores: nobody without the key reads or forges a record, and no key is used twice with a
//! nonce.

use std::collections::BTreeSet;

use super::super::MissReason;
use super::rig::{OF_TENANT, Rig, Setup, block, key};
use crate::format::{HEADER_BYTES, Head, Header, Limits, SECTOR};
use crate::vfs::sim::SimVfs;

fn segments(sim: &SimVfs) -> Vec<String> {
    let paths = sim.files().into_iter().map(|f| f.path);
    paths.filter(|p| p.starts_with("store/seg-")).collect()
}

/// Headers of all records of a file, with their offsets.
fn headers(bytes: &[u8]) -> Vec<(usize, Header)> {
    let at = (0..bytes.len()).step_by(SECTOR);
    let header = |at: usize| Some((at, Header::decode(&bytes[at..], &Limits::default()).ok()?));
    at.filter_map(header).collect()
}

fn sealed(sim: &SimVfs, ids: &[u32]) -> Rig {
    let rig = Setup::SEALED.open(sim.process()).unwrap();
    assert!(rig.put(ids).iter().all(Result::is_ok));
    rig
}

#[test]
fn nothing_stands_in_the_clear() {
    let sim = SimVfs::new(1);
    drop(sealed(&sim, &[0, 1, 3, OF_TENANT]));
    for path in segments(&sim) {
        let bytes = sim.bytes(&path).unwrap();
        for n in [0, 1, 3, OF_TENANT] {
            let canary = &block(n)[64..80];
            assert!(!bytes.windows(16).any(|w| w == canary), "block {n} can be read in {path}");
        }
    }
}

#[test]
fn a_key_and_nonce_are_used_once_also_in_copies() {
    let sim = SimVfs::new(1);
    drop(sealed(&sim, &[0, 1, 2]));
    let copy = sim.fork(2);
    let mut used = BTreeSet::new();
    for (which, sim) in [sim, copy].iter().enumerate() {
        for session in 0..3 {
            drop(sealed(sim, &[100 * (1 + which as u32) + session]));
        }
        for path in segments(sim) {
            let bytes = sim.bytes(&path).unwrap();
            let head = Head::decode(&bytes).unwrap();
            assert_ne!(head.seal, [0; 32]);
            for (_, header) in headers(&bytes) {
                // The same record may be in both directories; another one may not share its nonce.
                let payload = header.payload_hash;
                let used_by: Vec<_> = used
                    .iter()
                    .filter(|(s, t, p, _)| {
                        (*s, *t, *p) == (head.seal, head.tenant, header.position)
                    })
                    .collect();
                assert!(
                    used_by.iter().all(|(.., tag)| *tag == payload),
                    "{path}: a nonce is used twice"
                );
                used.insert((head.seal, head.tenant, header.position, payload));
            }
        }
    }
}

#[test]
fn records_that_were_moved_or_swapped_do_not_open() {
    let sim = SimVfs::new(1);
    drop(sealed(&sim, &[0, 1, 2]));
    let path = &segments(&sim)[0];
    let found = headers(&sim.bytes(path).unwrap());
    let (a, b) = (&found[0], &found[1]);
    let len = a.1.sectors() as usize * SECTOR;
    assert_eq!(a.1.sectors(), b.1.sectors());
    // Each takes the other's header, made right for its place: only the seal can tell.
    sim.edit(path, |bytes| {
        let (first, second) = (bytes[a.0..a.0 + len].to_vec(), bytes[b.0..b.0 + len].to_vec());
        for (to, from, old, at) in [(a, second, b, a.0), (b, first, a, b.0)] {
            let header =
                Header { key: to.1.key, sequence: to.1.sequence, position: to.1.position, ..old.1 };
            bytes[at..at + len].copy_from_slice(&from);
            bytes[at..at + HEADER_BYTES].copy_from_slice(&header.encode());
        }
    });
    let rig = Setup::SEALED.open(sim.process()).unwrap();
    for n in [0, 1] {
        assert_eq!(rig.get(n), Err(MissReason::Decrypt));
        assert_eq!(rig.get(n), Err(MissReason::Absent), "it failed once");
    }
    assert!(rig.get(2).is_ok());
}

#[test]
fn a_record_in_the_clear_is_not_taken() {
    let (sim, forger) = (SimVfs::new(1), SimVfs::new(2));
    drop(sealed(&sim, &[0]));
    // What an attacker who can write the directory makes of public knowledge: the same key and place.
    let open = Setup::ROOMY.open(forger.process()).unwrap();
    assert!(open.put(&[0]).iter().all(Result::is_ok));
    drop(open);
    let path = &segments(&sim)[0];
    let (at, real) = headers(&sim.bytes(path).unwrap())[0];
    let bytes = forger.bytes(&segments(&forger)[0]).unwrap();
    let (from, fake) = headers(&bytes)[0];
    assert_eq!(fake.key, key(0));
    let header =
        Header { sequence: real.sequence, segment: real.segment, position: real.position, ..fake };
    let mut record = bytes[from..from + fake.sectors() as usize * SECTOR].to_vec();
    record[..HEADER_BYTES].copy_from_slice(&header.encode());
    sim.edit(path, |bytes| {
        bytes.truncate(at);
        bytes.extend(record);
    });
    let rig = Setup::SEALED.open(sim.process()).unwrap();
    assert_eq!(rig.get(0), Err(MissReason::Decrypt));
}

#[test]
fn another_master_key_opens_nothing() {
    let sim = SimVfs::new(1);
    drop(sealed(&sim, &[0, 3]));
    let rig = Setup::ROOMY.open(sim.process()).unwrap();
    assert_eq!(rig.get(0), Err(MissReason::Decrypt));
    assert_eq!(rig.get_pages(3, 0..1).map(drop), Err(MissReason::Decrypt));
}
