//! What is not a session, or not one for this cache, is refused and nothing else happens.

use super::*;
use crate::MissReason;
use crate::vfs::sim::Alien;

const FILE: &str = "store/sessions/a.kvs";

fn saved(setup: &Setup) -> SimVfs {
    let sim = SimVfs::new(1);
    let cache = setup.open(&sim);
    filled(&cache, 1, 200).save("a").unwrap();
    drop(cache);
    sim
}

#[test]
fn another_model_or_geometry_is_refused_and_both_are_named() {
    let setup = Setup::default();
    let sim = saved(&setup);
    let open = |setup: &Setup| setup.open(&sim).open_session("a").unwrap_err().to_string();
    assert_eq!(
        open(&Setup { model: "weights 2", ..setup.clone() }),
        "session \"a\" was saved for model \"weights 1\", this cache has \"weights 2\""
    );
    let text = open(&Setup { dtype: DType::F16, ..setup.clone() });
    assert!(text.contains("geometry") && text.contains("bf16") && text.contains("f16"), "{text}");
    let text = open(&Setup { page_tokens: 32, ..setup.clone() });
    assert!(text.contains("pages of 64") && text.contains("pages of 32"), "{text}");
    let binary = setup.builder(&sim).model([0xFF, 0x01]).build().unwrap();
    let text = binary.open_session("a").unwrap_err().to_string();
    assert!(text.ends_with("this cache has ff01"), "{text}");
    drop(binary);
    assert!(setup.open(&sim).open_session("a").is_ok());
}

#[test]
fn what_is_needed_must_be_given() {
    let (setup, sim) = (Setup::default(), SimVfs::new(1));
    let plain = Cache::builder(setup.geometry()).model("m").threads(1).build().unwrap();
    for text in [
        plain.sequence().save("a").unwrap_err().to_string(),
        plain.open_session("a").unwrap_err().to_string(),
        plain.sessions().unwrap_err().to_string(),
        plain.delete_session("a").unwrap_err().to_string(),
    ] {
        assert!(text.contains("disk") && text.contains("Builder::disk"), "{text}");
    }
    let nameless = setup.builder(&sim).model("").build().unwrap();
    let text = nameless.sequence().save("a").unwrap_err().to_string();
    assert!(text.contains("Builder::model"), "{text}");
    assert!(nameless.open_session("a").is_err());
    drop(nameless);
    let long = setup.builder(&sim).model("x".repeat(257)).build().unwrap_err().to_string();
    assert_eq!(long, "model must be at most 256 bytes, found 257");
    let cache = setup.open(&sim);
    for name in ["", ".", "..", "../a", "a/b", "a b", "a\0", ".a", "-a", &"x".repeat(65)] {
        for text in [
            cache.sequence().save(name).unwrap_err().to_string(),
            cache.open_session(name).unwrap_err().to_string(),
            cache.delete_session(name).unwrap_err().to_string(),
        ] {
            assert!(text.contains("session name") && text.contains("1 to 64"), "{text}");
        }
    }
    assert_eq!(
        cache.open_session("a").unwrap_err(),
        Error::Session { name: "a".to_owned(), reason: MissReason::Absent }
    );
    assert!(!cache.delete_session("a").unwrap());
    assert_eq!(cache.sessions().unwrap(), []);
}

/// The file of the session is damaged: it is listed with a reason, and can be saved anew or deleted.
fn missing(sim: &SimVfs, setup: &Setup) -> MissReason {
    let cache = setup.open(sim);
    let Err(Error::Session { reason, .. }) = cache.open_session("a") else {
        panic!("a damaged session was opened")
    };
    let listed = cache.sessions().unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].missing.is_none_or(|missing| missing == reason), "{listed:?}");
    reason
}

#[test]
fn every_bit_and_cut_of_a_sessions_file_is_noticed() {
    let setup = Setup { host_bytes: 1 << 20, ..Setup::default() };
    let sim = saved(&setup);
    let good = sim.bytes(FILE).unwrap();
    for bit in (0..good.len() * 8).step_by(7) {
        let (image, mut bad) = (sim.fork(1), good.clone());
        bad[bit / 8] ^= 1 << (bit % 8);
        image.plant(FILE, Alien::File(&bad));
        missing(&image, &setup);
    }
    for len in (0..good.len()).step_by(13).chain([good.len() - 1]) {
        let image = sim.fork(1);
        image.plant(FILE, Alien::File(&good[..len]));
        let reason = missing(&image, &setup);
        assert_eq!(reason, MissReason::Torn, "{len} bytes of {}", good.len());
    }
    // What a damaged file needed stays until it is saved anew or deleted.
    let image = sim.fork(1);
    image.plant(FILE, Alien::File(b"KVISTSN1"));
    drop(setup.open(&image));
    image.plant(FILE, Alien::File(&good));
    assert!(holds(&setup.open(&image).open_session("a").unwrap(), 1, 200).unwrap());
    image.plant(FILE, Alien::File(b"KVISTSN1"));
    let cache = setup.open(&image);
    assert!(cache.delete_session("a").unwrap());
    drop(cache);
    assert_eq!(setup.open(&image).disk().unwrap().live_bytes, 0);
}

#[test]
fn a_session_of_another_directory_or_name_is_none() {
    let setup = Setup::default();
    let (sim, other) = (saved(&setup), SimVfs::new(2));
    drop(setup.open(&other));
    let good = sim.bytes(FILE).unwrap();
    let cache = setup.open(&other);
    filled(&cache, 1, 10).save("a").unwrap();
    drop(cache);
    other.plant(FILE, Alien::File(&good));
    assert_eq!(missing(&other, &setup), MissReason::Checksum);
    sim.plant("store/sessions/b.kvs", Alien::File(&good));
    let error = setup.open(&sim).open_session("b").unwrap_err();
    assert_eq!(error, Error::Session { name: "b".to_owned(), reason: MissReason::Checksum });
}

#[test]
fn what_else_lies_among_the_sessions_is_counted_and_never_touched() {
    let setup = Setup::default();
    let sim = saved(&setup);
    let aliens = ["store/sessions/notes.txt", "store/sessions/.kvs", "store/sessions/b.kvs.old"];
    aliens.iter().for_each(|path| sim.plant(path, Alien::File(path.as_bytes())));
    let cache = setup.open(&sim);
    assert_eq!(cache.disk().unwrap().alien_files, aliens.len() as u64);
    assert_eq!(cache.sessions().unwrap().len(), 1);
    filled(&cache, 2, 100).save("b").unwrap();
    cache.delete_session("a").unwrap();
    drop(cache);
    for path in aliens {
        assert_eq!(sim.bytes(path).as_deref(), Some(path.as_bytes()));
    }
}

#[test]
fn damaged_records_are_missing_and_nothing_is_half_opened() {
    let setup = Setup { host_bytes: 1 << 20, ..Setup::default() };
    let sim = saved(&setup);
    let segments = sim.files().into_iter().filter(|f| f.path.contains("seg-"));
    let (mut refused, mut late) = (0, 0);
    for file in segments {
        let good = sim.bytes(&file.path).unwrap();
        for at in (4096..good.len()).step_by(509) {
            let (image, mut bad) = (sim.fork(1), good.clone());
            bad[at] ^= 0x40;
            image.plant(&file.path, Alien::File(&bad));
            let cache = setup.open(&image);
            let used = cache.stats().used_bytes;
            match cache.open_session("a") {
                Ok(s) => match holds(&s, 1, 200) {
                    Ok(same) => assert!(same, "byte {at} of {}", file.path),
                    Err(Error::Missing { .. }) => late += 1,
                    Err(e) => panic!("{e}"),
                },
                Err(Error::Session { .. }) => {
                    refused += 1;
                    assert_eq!(cache.stats().used_bytes, used);
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
    assert!(refused > 0 && late > 0, "{refused} and {late}");
}
