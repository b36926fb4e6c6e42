//! Every bit and every sector of what is stored, damaged: what was hit is missing, everything else is
//! there, and nothing comes back wrong.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice::from_ref;

use super::super::{Entry, MissReason};
use super::rig::{Numbers, OF_TENANT, Rig, Setup, block, key, plan, seeds, soak, tag, tenant_of};
use crate::format::{FooterEntry, HEAD_BYTES};
use crate::vfs::sim::SimVfs;

/// A directory, and where everything in it is.
struct Golden {
    sim: SimVfs,
    setup: Setup,
    /// Block, file, bytes of its record.
    records: Vec<(u32, String, Range<usize>)>,
    gone: Vec<u32>,
}

fn path(segment: u32) -> String {
    format!("store/seg-{segment:016x}.kv")
}

fn entry(rig: &Rig, n: u32) -> Entry {
    *rig.disk.state.lock().index.get(&key(n)).unwrap()
}

impl Golden {
    /// A finished segment with a tombstone, and one that was not finished.
    fn make(setup: Setup) -> Golden {
        let sim = SimVfs::new(1);
        let rig = setup.open(sim.process()).unwrap();
        let puts: [&[u32]; 2] = [&[OF_TENANT, OF_TENANT + 3], &[0, 1, 2, 3]];
        puts.iter().for_each(|ids| assert!(rig.put(ids).iter().all(Result::is_ok)));
        rig.disk.erase_tenant(tag(1)).unwrap();
        rig.disk.finish_segments();
        assert!(rig.put(&[12, 13]).iter().all(Result::is_ok));
        let place = |n: u32| {
            let e = entry(&rig, n);
            let from = e.position as usize * 512;
            (n, path(e.segment), from..from + e.sectors as usize * 512)
        };
        let records = [0, 1, 2, 3, 12, 13].map(place).to_vec();
        drop(rig);
        Golden { sim: sim.fork(1), setup, records, gone: vec![OF_TENANT, OF_TENANT + 3] }
    }

    fn ids(&self) -> Vec<u32> {
        self.records.iter().map(|(n, ..)| *n).collect()
    }

    fn files(&self) -> Vec<(String, usize)> {
        let mut files: Vec<String> = self.records.iter().map(|(_, file, _)| file.clone()).collect();
        files.dedup();
        files.into_iter().map(|f| (f.clone(), self.sim.bytes(&f).unwrap().len())).collect()
    }

    /// Opens what became of it. `hit` are the bytes that were touched.
    fn check(&self, sim: &SimVfs, file: &str, hit: &[Range<usize>]) {
        let rig =
            self.setup.open(sim.process()).unwrap_or_else(|e| panic!("cannot be opened: {e}"));
        let touched =
            |range: &Range<usize>| hit.iter().any(|h| h.start < range.end && range.start < h.end);
        let ids = self.ids();
        for ((n, of, range), result) in self.records.iter().zip(rig.get_all(&ids)) {
            let may_miss = of == file && (touched(range) || touched(&(0..HEAD_BYTES)));
            assert!(result.is_ok() || may_miss, "block {n} was not touched: {result:?}");
        }
        for (n, result) in self.gone.iter().zip(rig.get_all(&self.gone)) {
            assert_eq!(result, Err(MissReason::Absent), "block {n} was erased");
        }
    }
}

fn replayed(case: impl Fn() -> String, run: impl FnOnce()) {
    if let Err(e) = catch_unwind(AssertUnwindSafe(run)) {
        panic!("{}: {}", case(), e.downcast_ref::<String>().cloned().unwrap_or_default());
    }
}

/// Damages copies of files, and opens each.
fn opened(setup: Setup) -> u64 {
    let golden = Golden::make(setup);
    let mut cases = 0;
    for (file, len) in golden.files() {
        let mut one = |hit: &[Range<usize>], name: String, damage: &dyn Fn(&SimVfs)| {
            let sim = golden.sim.fork(1);
            replayed(
                || format!("{file}: {name}"),
                || {
                    damage(&sim);
                    golden.check(&sim, &file, hit);
                },
            );
            cases += 1;
        };
        for byte in 0..len {
            // The rest of the head is zeros, byte for byte the same.
            let bits = if (128..HEAD_BYTES).contains(&byte) { 0..1 } else { 0..8 };
            for bit in bits {
                let flip = |sim: &SimVfs| sim.flip(&file, (byte * 8 + bit) as u64);
                one(from_ref(&(byte..byte + 1)), format!("bit {bit} of byte {byte}"), &flip);
            }
        }
        for cut in (0..len).step_by(if soak() > 1 { 1 } else { 16 }) {
            let damage = |sim: &SimVfs| sim.edit(&file, |bytes| bytes.truncate(cut));
            // Direct reads see whole sectors.
            one(from_ref(&(cut / 512 * 512..usize::MAX)), format!("cut to {cut}"), &damage);
        }
        let sectors = len / 512;
        let at = |s: usize| s * 512..s * 512 + 512;
        for a in 0..sectors {
            let zero = |sim: &SimVfs| sim.edit(&file, |bytes| bytes[at(a)].fill(0));
            one(&[at(a)], format!("sector {a} is zeros"), &zero);
            for b in (0..sectors).filter(|b| *b != a) {
                let copy =
                    |sim: &SimVfs| sim.edit(&file, |bytes| bytes.copy_within(at(a), b * 512));
                one(&[at(b)], format!("sector {b} is as {a}"), &copy);
                if a < b {
                    let swap = |sim: &SimVfs| {
                        sim.edit(&file, |bytes| {
                            (0..512).for_each(|i| bytes.swap(a * 512 + i, b * 512 + i))
                        });
                    };
                    one(&[at(a), at(b)], format!("sectors {a} and {b} are swapped"), &swap);
                }
            }
        }
        let garbage = |sim: &SimVfs| sim.edit(&file, |bytes| bytes.extend([0x5A; 5000]));
        one(&[], "grown".to_owned(), &garbage);
    }
    cases
}

#[test]
fn every_bit_and_sector_before_opening() {
    println!("damage/open: {} cases", opened(Setup::ROOMY));
}

#[test]
fn every_bit_and_sector_of_a_sealed_store() {
    println!("damage/sealed: {} cases", opened(Setup::SEALED));
}

/// A store that is open while its files are damaged.
struct Serving {
    golden: Golden,
    rig: Rig,
    entries: Vec<(u32, FooterEntry)>,
}

impl Serving {
    fn new(setup: Setup) -> Serving {
        let golden = Golden::make(setup);
        let rig = setup.open(golden.sim.process()).unwrap();
        let of = |n: u32| {
            let e = entry(&rig, n);
            let Entry { sequence, segment, position, sectors, tokens, flags, codec, .. } = e;
            let (key, tenant) = (key(n), tag(tenant_of(n)));
            (
                segment,
                FooterEntry { key, tenant, sequence, position, sectors, tokens, flags, codec },
            )
        };
        let entries = golden.ids().into_iter().map(of).collect();
        Serving { golden, rig, entries }
    }

    /// One record is damaged: it is missing and stays so, its neighbours are there.
    fn case(&self, i: usize, bits: &[u64], pages: Option<Range<usize>>) {
        let (n, file, _) = &self.golden.records[i];
        bits.iter().for_each(|bit| self.golden.sim.flip(file, *bit));
        let result = match pages {
            None => self.rig.get(*n).map(|bytes| bytes == block(*n)),
            Some(pages) => {
                let page = plan(*n).layout().page_bytes();
                let range = pages.start * page..pages.end * page;
                let got = self.rig.get_pages(*n, pages);
                got.map(|bytes| bytes[range.clone()] == block(*n)[range])
            }
        };
        assert_ne!(result, Ok(false), "block {n} came back wrong");
        if result.is_err() {
            assert_eq!(self.rig.get(*n), Err(MissReason::Absent), "block {n} failed, and is back");
            let (segment, entry) = &self.entries[i];
            assert!(self.rig.disk.state.lock().publish(*segment, entry, false));
        }
        bits.iter().for_each(|bit| self.golden.sim.flip(file, *bit));
    }

    /// Everything as it was.
    fn intact(&self) {
        let ids = self.golden.ids();
        assert!(self.rig.get_all(&ids).iter().all(Result::is_ok));
    }
}

fn serving(setup: Setup) -> u64 {
    let serving = Serving::new(setup);
    let mut cases = 0;
    for (i, (n, _, range)) in serving.golden.records.iter().enumerate() {
        let pages = plan(*n).layout().pages();
        for bit in range.start * 8..range.end * 8 {
            let bits = [bit as u64];
            replayed(
                || format!("block {n}, bit {bit}"),
                || {
                    serving.case(i, &bits, None);
                    (0..pages).for_each(|p| serving.case(i, &bits, Some(p..p + 1)));
                },
            );
            cases += 1 + pages as u64;
        }
        serving.intact();
    }
    cases
}

#[test]
fn every_bit_while_it_is_served() {
    println!("damage/served: {} cases", serving(Setup::ROOMY));
}

#[test]
fn every_bit_while_it_is_served_sealed() {
    println!("damage/served sealed: {} cases", serving(Setup::SEALED));
}

#[test]
fn many_bits_while_it_is_served() {
    let serving = Serving::new(Setup::ROOMY);
    let mut cases = 0;
    for seed in seeds(150_000) {
        let mut numbers = Numbers::new(seed);
        let i = numbers.below(serving.golden.records.len() as u64) as usize;
        let range = &serving.golden.records[i].2;
        let (from, len) = (range.start as u64 * 8, range.len() as u64 * 8);
        let mut bits: Vec<u64> =
            (0..2 + numbers.below(4)).map(|_| from + numbers.below(len)).collect();
        bits.sort_unstable();
        bits.dedup();
        replayed(|| format!("KVIST_SEED={seed}"), || serving.case(i, &bits, None));
        cases += 1;
    }
    println!("damage/many: {cases} cases");
}

#[test]
fn the_small_files() {
    let golden = Golden::make(Setup::ROOMY);
    let mut cases = 0;
    for file in ["kvist.meta", "cache.key", "LOCK"] {
        let file = &format!("store/{file}");
        let len = golden.sim.bytes(file).unwrap().len();
        let flips = (0..len * 8).map(|bit| (bit, None));
        let cuts = (0..len).map(|cut| (0, Some(cut)));
        for (bit, cut) in flips.chain(cuts) {
            let sim = golden.sim.fork(1);
            match cut {
                None => sim.flip(file, bit as u64),
                Some(cut) => sim.edit(file, |bytes| bytes.truncate(cut)),
            }
            let damaged = sim.bytes(file);
            cases += 1;
            if file.ends_with("meta") {
                let error = golden.setup.open(sim.process()).map(drop).unwrap_err();
                assert!(
                    matches!(error, crate::Error::BadMeta { .. }),
                    "bit {bit} {cut:?}: {error}"
                );
                assert_eq!(sim.bytes(file), damaged, "nothing is touched");
            } else {
                golden.check(&sim, file, &[]);
            }
        }
    }
    println!("damage/small files: {cases} cases");
}
