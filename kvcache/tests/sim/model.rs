//! Random runs: every image of every point holds what was made durable, and nothing that never was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvist::vfs::sim::{Log, SimVfs};
use kvist::vfs::{Access, Dir, File};

use crate::{Numbers, disk};

/// What a crash may leave of a file: per byte, what is durable and whether a write is pending on it.
#[derive(Clone, Default)]
struct Allowed {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<bool>,
    /// Lengths that pending changes made: a crash may leave any, and what lies between.
    lens: BTreeSet<usize>,
}

/// What a crash may leave at one point.
#[derive(Clone, Default)]
struct Moment {
    files: Vec<Allowed>,
    now: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    /// Names with changes that are not durable, and the files they may stand for.
    unsure: BTreeMap<String, BTreeSet<usize>>,
}

struct Run {
    sim: SimVfs,
    dir: Arc<dyn Dir>,
    handles: Vec<Arc<dyn File>>,
    moment: Moment,
    /// The moment after each point, by point.
    moments: Vec<(usize, Moment)>,
}

impl Run {
    fn step(&mut self, numbers: &mut Numbers) {
        let names: Vec<String> = self.moment.now.keys().cloned().collect();
        match numbers.below(14) {
            0 | 1 => self.create(numbers),
            2 if !names.is_empty() => {
                self.remove(&names[numbers.below(names.len() as u64) as usize])
            }
            3 if !names.is_empty() => {
                let from = names[numbers.below(names.len() as u64) as usize].clone();
                self.rename(&from, &format!("f{}", numbers.below(8)));
            }
            4 => self.sync_names(),
            5 if !self.handles.is_empty() => self.set_len(numbers),
            6 | 7 if !self.handles.is_empty() => {
                let file = numbers.below(self.handles.len() as u64) as usize;
                self.sync_data(file);
            }
            _ if !self.handles.is_empty() => self.write(numbers),
            _ => {}
        }
        self.moments.push((self.sim.points(), self.moment.clone()));
    }

    fn create(&mut self, numbers: &mut Numbers) {
        let name = format!("f{}", numbers.below(8));
        let made = self.dir.create(&name, Access::Buffered);
        assert_eq!(made.is_err(), self.moment.now.contains_key(&name));
        if let Ok(file) = made {
            let id = self.handles.len();
            self.handles.push(file);
            self.moment.files.push(Allowed::default());
            self.moment.now.insert(name.clone(), id);
            self.moment.unsure.entry(name).or_default().insert(id);
        }
    }

    fn remove(&mut self, name: &str) {
        self.dir.remove(name).unwrap();
        self.moment.now.remove(name);
        self.moment.unsure.entry(name.into()).or_default();
    }

    fn rename(&mut self, from: &str, to: &str) {
        self.dir.rename(from, to).unwrap();
        if from != to {
            let id = self.moment.now.remove(from).unwrap();
            self.moment.now.insert(to.into(), id);
            self.moment.unsure.entry(from.into()).or_default();
            self.moment.unsure.entry(to.into()).or_default().insert(id);
        }
    }

    fn sync_names(&mut self) {
        self.dir.sync().unwrap();
        self.moment.durable = self.moment.now.clone();
        self.moment.unsure.clear();
    }

    fn sync_data(&mut self, id: usize) {
        self.handles[id].sync_data().unwrap();
        let file = &mut self.moment.files[id];
        file.durable = file.current.clone();
        file.pending.clear();
        file.lens.clear();
    }

    fn set_len(&mut self, numbers: &mut Numbers) {
        let id = numbers.below(self.handles.len() as u64) as usize;
        let len = numbers.below(20_000) as usize;
        self.handles[id].set_len(len as u64).unwrap();
        let file = &mut self.moment.files[id];
        let longest = file.current.len().max(file.durable.len()).max(file.pending.len());
        // Whatever was behind a cut may be gone or back, and zeros once the file grows again.
        file.pending.resize(longest, false);
        file.pending.iter_mut().skip(len).for_each(|p| *p = true);
        file.current.resize(len, 0);
        file.lens.insert(len);
    }

    fn write(&mut self, numbers: &mut Numbers) {
        let id = numbers.below(self.handles.len() as u64) as usize;
        let file = &mut self.moment.files[id];
        let offset = match numbers.below(3) {
            0 => numbers.below(6000) as usize,
            _ => file.current.len(),
        };
        let len = 1 + numbers.below(9000) as usize;
        let bytes: Vec<u8> = (0..len).map(|_| numbers.below(256) as u8).collect();
        assert_eq!(self.handles[id].write_at(&bytes, offset as u64).unwrap(), len);
        let end = offset + len;
        file.current.resize(file.current.len().max(end), 0);
        file.current[offset..end].copy_from_slice(&bytes);
        file.lens.insert(file.current.len());
        file.pending.resize(file.pending.len().max(end), false);
        file.pending[offset..end].fill(true);
    }
}

fn run(seed: u64) -> (Log, Vec<(usize, Moment)>) {
    let (sim, dir) = disk(seed);
    sim.record();
    let mut numbers = Numbers(seed);
    let mut run = Run {
        sim,
        dir,
        handles: Vec::new(),
        moment: Moment::default(),
        moments: vec![(0, Moment::default())],
    };
    for _ in 0..40 {
        run.step(&mut numbers);
        for (name, id) in &run.moment.now {
            let seen = run.sim.bytes(&format!("store/{name}"));
            assert!(seen.as_ref() == Some(&run.moment.files[*id].current), "seed {seed}: {name}");
        }
    }
    (run.sim.take_log(), run.moments)
}

impl Allowed {
    fn allows(&self, bytes: &[u8]) -> bool {
        let pending = |i: usize| self.pending.get(i).copied().unwrap_or(false);
        let durable = self.durable.len();
        let least = self.lens.first().map_or(durable, |len| durable.min(*len));
        let most = self.lens.last().map_or(durable, |len| durable.max(*len));
        let len = (least..=most).contains(&bytes.len());
        // Behind the durable end and under no pending write lie the zeros of a hole.
        let byte =
            |(i, &b): (usize, &u8)| b == self.durable.get(i).copied().unwrap_or(0) || pending(i);
        len && bytes.iter().enumerate().all(byte)
    }
}

fn check(moment: &Moment, image: &SimVfs) -> Result<(), String> {
    let found: BTreeMap<String, Vec<u8>> = image
        .files()
        .into_iter()
        .filter_map(|f| Some((f.path.strip_prefix("store/")?.to_string(), image.bytes(&f.path)?)))
        .collect();
    for (name, id) in &moment.durable {
        let sure = !moment.unsure.contains_key(name);
        if sure && !found.get(name).is_some_and(|bytes| moment.files[*id].allows(bytes)) {
            return Err(format!("{name} is durable, and gone or changed"));
        }
    }
    for (name, bytes) in &found {
        let unsure = moment.unsure.get(name).into_iter().flatten();
        let mut may_be = moment.durable.get(name).into_iter().chain(unsure);
        if !may_be.any(|id| moment.files[*id].allows(bytes)) {
            return Err(format!("{name} holds what it never did"));
        }
    }
    Ok(())
}

#[test]
fn images_keep_what_is_durable_and_invent_nothing() {
    let (mut images, mut points) = (0, 0);
    for seed in 0..60 {
        let (log, moments) = run(seed);
        for point in log.changes() {
            let (_, moment) = moments.iter().find(|(p, _)| *p >= point).unwrap();
            let all = log.images(point);
            for (index, image) in all.sample(60, seed) {
                if let Err(wrong) = check(moment, &image) {
                    panic!("seed {seed}, point {point}: {wrong}: {}", all.describe(index));
                }
                images += 1;
            }
            points += 1;
        }
    }
    println!("{points} points, {images} images");
}

#[test]
fn the_extremes_are_always_among_the_images() {
    for seed in 0..20 {
        let (log, moments) = run(seed);
        let (point, moment) = moments.last().unwrap();
        let images = log.images(*point);
        let found: Vec<SimVfs> = images.sample(4, seed).map(|(_, image)| image).collect();
        let names = |sim: &SimVfs| {
            let files = sim.files().into_iter();
            files
                .filter_map(|f| f.path.strip_prefix("store/").map(String::from))
                .collect::<Vec<_>>()
        };
        let durable: Vec<String> = moment.durable.keys().cloned().collect();
        let now: Vec<String> = moment.now.keys().cloned().collect();
        assert!(found.iter().any(|sim| names(sim) == durable), "seed {seed}: nothing pending");
        let everything = |sim: &SimVfs| {
            names(sim) == now
                && moment.now.iter().all(|(name, id)| {
                    sim.bytes(&format!("store/{name}")).as_ref() == Some(&moment.files[*id].current)
                })
        };
        assert!(found.iter().any(everything), "seed {seed}: everything pending");
    }
}
