//! The seeds of the fuzz targets, and a few mutations of each: what a fuzzer once found stays found.
//! `KVIST_BLESS=1` writes the seeds that are made from golden files anew.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use kvist::fuzz::{TARGETS, Target, a_migration};

/// Mutations of every seed.
const MUTATIONS: u64 = 2000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds")
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(root().join(target)).unwrap().map(Result::unwrap);
    let mut seeds: Vec<(String, Vec<u8>)> = files
        .map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap()))
        .collect();
    seeds.sort();
    seeds
}

/// xorshift64*.
fn next(state: &mut u64) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize
}

/// A few edits of the kinds that fuzzers make. The first byte, which holds switches, changes rarely.
fn mutated(seed: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + next(state) % 4 {
        let len = bytes.len().max(1);
        let at = next(state) % len;
        match next(state) % 6 {
            _ if bytes.is_empty() => bytes.push(next(state) as u8),
            0 => bytes[at] ^= 1 << (next(state) % 8),
            1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][next(state) % 5],
            2 => bytes[at..len.min(at + 4)].fill(0xFF),
            3 => bytes.truncate(at),
            4 => bytes.insert(at, next(state) as u8),
            _ => {
                let from = next(state) % len;
                let piece = bytes[from..len.min(from + 64)].to_vec();
                let end = len.min(at + piece.len());
                bytes[at..end].copy_from_slice(&piece[..end - at]);
            }
        }
    }
    bytes
}

fn run((name, target): Target, case: &str, data: &[u8]) {
    catch_unwind(AssertUnwindSafe(|| target(data))).unwrap_or_else(|e| {
        let text = e.downcast_ref::<String>().cloned();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-failed"));
        std::fs::write(&path, data).unwrap();
        panic!("{name}, {case}, kept as {}: {}", path.display(), text.unwrap_or_default())
    });
}

#[test]
fn seeds_and_their_neighbours() {
    let soak: u64 = std::env::var("KVIST_SOAK").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    if std::env::var_os("KVIST_BLESS").is_some() {
        bless();
    }
    for target in TARGETS {
        let seeds = seeds(target.0);
        assert!(!seeds.is_empty(), "no seeds of {}", target.0);
        let mut state = 0x9E37_79B9_7F4A_7C15;
        for (file, seed) in &seeds {
            run(target, file, seed);
            for n in 0..MUTATIONS * soak {
                run(target, &format!("{file}, mutation {n}"), &mutated(seed, &mut state));
            }
        }
        println!("fuzz/{}: {} seeds", target.0, seeds.len());
    }
}

fn write(target: &str, name: &str, flags: &[u8], bytes: &[u8]) {
    let dir = root().join(target);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), [flags, bytes].concat()).unwrap();
}

/// Seeds from golden files: a store, and a record of each codec.
fn bless() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let read = |path: &str| std::fs::read(data.join(path)).unwrap();
    for number in [2, 3] {
        let segment = read(&format!("store-v1/seg-000000000000000{number}.kv"));
        write("segment", &format!("golden-{number}"), &[1], &segment);
        write("segment", &format!("golden-{number}-unsigned"), &[0], &segment);
        let at = segment.len() - 64;
        let start = u64::from_le_bytes(segment[at + 16..at + 24].try_into().unwrap()) as usize;
        if segment[at..].starts_with(b"KVISTTR1") {
            let len = (segment.len() as u64).to_le_bytes();
            write("trailer", "golden", &[&[1], &len[..]].concat(), &segment[at..]);
            let bytes = u64::from_le_bytes(segment[at + 24..at + 32].try_into().unwrap()) as usize;
            write("footer", "golden", &[1], &segment[start..start + bytes]);
        }
        write("record", &format!("golden-{number}"), &[1], &segment[4096..4096 + 192]);
    }
    write("meta", "meta", &[1], &read("store-v1/kvist.meta"));
    write("meta", "secret", &[1], &read("store-v1/cache.key"));
    for codec in ["raw", "lossless"] {
        let record = read(&format!("codec/{codec}-v1.bin"));
        write("payload", codec, &[1, 0], &record[192..]);
        write("block", codec, &[0, 3], &record[192..600]);
        write("expw", codec, &[2, 2, 15], &record[512..1500]);
    }
    write("expw", "floats", &[0, 3, 7], &[0x3F; 200]);
    write(
        "keys",
        "letters",
        &[],
        b"kvist: two tuples of fields, and a chain of blocks, from here on; and on",
    );
    write("keys", "zeros", &[], &[0; 64]);
    write("migration", "whole", &[1], &a_migration());
    write("migration", "unsigned", &[0], &a_migration());
}
