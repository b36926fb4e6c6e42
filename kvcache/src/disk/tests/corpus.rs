//! Bad files, one line each: an edit of a golden segment and what becomes of its three blocks.
//!
//! `scan r0+24 ffffffff fix = absent ok ok`: in a segment without a footer, four bytes of the first
//! record from its byte 24 on are set, checksums made right again. `KVIST_BLESS=1` writes the list anew;
//! read the difference before you keep it.

use std::fmt::Write;
use std::ops::Range;
use std::path::PathBuf;

use twox_hash::XxHash3_128;

use super::super::{Entry, MissReason};
use super::rig::{Setup, key, plan};
use crate::format::{HEADER_BYTES, TRAILER_BYTES};
use crate::vfs::sim::SimVfs;

const IDS: [u32; 3] = [0, 1, 3];
const FILE: &str = "store/seg-0000000000000001.kv";

/// A directory with one segment.
struct Golden {
    name: &'static str,
    sim: SimVfs,
    records: Vec<Range<usize>>,
    footer: usize,
}

impl Golden {
    fn make(name: &'static str) -> Golden {
        let sim = SimVfs::new(1);
        let rig = Setup::ROOMY.open(sim.process()).unwrap();
        assert!(rig.put(&IDS).iter().all(Result::is_ok));
        let place = |n: &u32| {
            let Entry { position, sectors, .. } =
                *rig.disk.state.lock().index.get(&key(*n)).unwrap();
            position as usize * 512..(position + sectors) as usize * 512
        };
        let records: Vec<Range<usize>> = IDS.iter().map(place).collect();
        if name == "footer" {
            rig.disk.finish_segments();
        }
        drop(rig);
        let footer = records[2].end;
        Golden { name, sim: sim.fork(1), records, footer }
    }

    /// Where something begins, in the file.
    fn start(&self, what: &str, bytes: &[u8]) -> usize {
        match what {
            "head" => 0,
            "r0" | "r1" | "r2" => self.records[usize::from(what.as_bytes()[1] - b'0')].start,
            "footer" => self.footer,
            "trailer" => bytes.len() - TRAILER_BYTES,
            _ => panic!("what is {what}?"),
        }
    }

    /// Makes checksums right again, from the inside out.
    fn fix(&self, what: &str, bytes: &mut [u8]) {
        let start = self.start(what, bytes);
        let crc = |bytes: &mut [u8], range: Range<usize>| {
            let crc = crc32c::crc32c(&bytes[range.clone()]);
            bytes[range.end..range.end + 4].copy_from_slice(&crc.to_le_bytes());
        };
        match what {
            "head" => crc(bytes, 0..96),
            "trailer" => crc(bytes, start..start + 60),
            "footer" => {
                let body = 48 + 72 * IDS.len();
                let hash = XxHash3_128::oneshot_with_seed(1, &bytes[start..start + body]);
                bytes[start + body..start + body + 16].copy_from_slice(&hash.to_le_bytes());
            }
            _ => {
                let n = IDS[usize::from(what.as_bytes()[1] - b'0')];
                let end = start + plan(n).prefix_bytes(16);
                let mut seed = [0; 8];
                seed.copy_from_slice(&bytes[start + 32..start + 40]);
                let hashed = &bytes[start + HEADER_BYTES..end];
                let hash = XxHash3_128::oneshot_with_seed(u64::from_le_bytes(seed), hashed);
                // An edit of the hash itself stays.
                if bytes[start + HEADER_BYTES..end]
                    != self.sim.bytes(FILE).unwrap()[start + HEADER_BYTES..end]
                {
                    bytes[start + 128..start + 144].copy_from_slice(&hash.to_le_bytes());
                }
                crc(bytes, start..start + HEADER_BYTES - 4);
            }
        }
    }

    /// What becomes of the blocks after an edit.
    fn outcome(&self, what: &str, offset: usize, hex: &[u8], fix: bool) -> String {
        let sim = self.sim.fork(1);
        sim.edit(FILE, |bytes| {
            let at = self.start(what, bytes) + offset;
            bytes[at..at + hex.len()].copy_from_slice(hex);
            if fix {
                self.fix(what, bytes);
            }
        });
        let rig = Setup::ROOMY.open(sim.process()).unwrap();
        let name =
            |result: &Result<(), MissReason>| result.map_or_else(MissReason::name, |()| "ok");
        rig.get_all(&IDS).iter().map(name).collect::<Vec<_>>().join(" ")
    }
}

/// Offset and length of every field.
fn fields(what: &str) -> Vec<(usize, usize)> {
    let directory = HEADER_BYTES + 64;
    match what {
        "head" => vec![
            (0, 8),
            (8, 4),
            (12, 4),
            (16, 16),
            (32, 8),
            (40, 8),
            (48, 32),
            (80, 16),
            (96, 4),
            (4000, 4),
        ],
        "trailer" => vec![(0, 8), (8, 8), (16, 8), (24, 8), (32, 8), (60, 4)],
        "footer" => {
            let entry = [(0, 32), (32, 16), (48, 8), (56, 4), (60, 4), (64, 4), (68, 2), (70, 2)];
            let entries = (0..3).flat_map(|i| entry.map(|(at, len)| (48 + 72 * i + at, len)));
            [(0, 8), (8, 8), (16, 16), (32, 8), (40, 8)].into_iter().chain(entries).collect()
        }
        _ => {
            let header = [
                (0, 8),
                (8, 2),
                (10, 1),
                (11, 1),
                (12, 4),
                (16, 8),
                (24, 4),
                (28, 4),
                (32, 8),
                (40, 24),
                (64, 32),
                (96, 32),
                (128, 16),
                (144, 8),
                (152, 4),
                (156, 4),
                (160, 2),
                (162, 2),
                (164, 4),
                (168, 16),
                (184, 4),
                (188, 4),
                (HEADER_BYTES, 4),
                (HEADER_BYTES + 60, 4),
            ];
            let head = [(0, 4), (4, 2), (6, 2), (8, 4), (12, 4)];
            let section =
                [(0, 4), (4, 4), (8, 8), (16, 2), (18, 2), (20, 1), (21, 1), (22, 1), (23, 1)];
            let sections =
                (0..2).flat_map(|i| section.map(|(at, len)| (directory + 16 + 24 * i + at, len)));
            let head = head.map(|(at, len)| (directory + at, len));
            header.into_iter().chain(head).chain(sections).collect()
        }
    }
}

/// Values that have broken parsers before.
fn values(len: usize) -> Vec<Vec<u8>> {
    let number = |n: u64| {
        let mut bytes = n.to_le_bytes().to_vec();
        bytes.resize(len.max(8), 0);
        bytes.truncate(len);
        bytes
    };
    let mut all = vec![vec![0; len], vec![0xFF; len], vec![0x80; len], vec![0x41; len]];
    all.extend([1, 2, 4, 0x10, 0x7F, 0x200, 0x7FFF_FFFF, 0x1000_0000].map(number));
    all.sort();
    all.dedup();
    all
}

fn write_list(goldens: &[Golden; 2]) -> String {
    let mut out = String::new();
    for golden in goldens {
        let footer: &[&str] = if golden.name == "footer" { &["footer", "trailer"] } else { &[] };
        for what in ["head", "r0", "r2"].iter().chain(footer) {
            for (offset, len) in fields(what) {
                for value in values(len) {
                    for fix in [false, true] {
                        let outcome = golden.outcome(what, offset, &value, fix);
                        let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
                        let fix = if fix { " fix" } else { "" };
                        let name = golden.name;
                        writeln!(out, "{name} {what}+{offset} {hex}{fix} = {outcome}").unwrap();
                    }
                }
            }
        }
    }
    out
}

fn check(goldens: &[Golden; 2], line: &str) {
    let (edit, expected) = line.split_once(" = ").unwrap();
    let words: Vec<&str> = edit.split(' ').collect();
    let golden = goldens.iter().find(|g| g.name == words[0]).unwrap();
    let (what, offset) = words[1].split_once('+').unwrap();
    let byte = |i: usize| u8::from_str_radix(&words[2][i..i + 2], 16).unwrap();
    let hex: Vec<u8> = (0..words[2].len()).step_by(2).map(byte).collect();
    let outcome = golden.outcome(what, offset.parse().unwrap(), &hex, words.len() > 3);
    assert_eq!(outcome, expected, "{line}");
}

#[test]
fn every_line_of_the_corpus() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/corpus/segment.txt");
    let goldens = [Golden::make("scan"), Golden::make("footer")];
    if std::env::var_os("KVIST_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, write_list(&goldens)).unwrap();
    }
    let list = std::fs::read_to_string(&path).unwrap();
    list.lines().for_each(|line| check(&goldens, line));
    println!("corpus: {} lines", list.lines().count());
    assert!(list.lines().count() >= 1500);
}
