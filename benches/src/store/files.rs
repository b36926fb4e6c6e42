//! One file per block: what anybody would write first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags};

use crate::Error;

use super::case::{Case, Tier};
use super::subject::Subject;

/// Readers of a batch.
const READERS: usize = 8;

/// Files in a directory of their own, through the page cache or past it.
pub(super) struct Files {
    dir: PathBuf,
    direct: bool,
    /// Not yet durable.
    dirty: Vec<u64>,
    keys: u64,
}

impl Files {
    pub(super) fn new(parent: &Path, direct: bool) -> Result<Files, Error> {
        let dir = parent.join(if direct { "files-direct" } else { "files" });
        fs::create_dir(&dir).map_err(Error::io(format!("making {}", dir.display())))?;
        Ok(Files { dir, direct, dirty: vec![], keys: 0 })
    }

    fn path(&self, key: u64) -> PathBuf {
        self.dir.join(format!("{key:016x}"))
    }

    fn open(&self, options: &mut OpenOptions, key: u64) -> io::Result<File> {
        if self.direct {
            options.custom_flags(OFlags::DIRECT.bits().cast_signed());
        }
        options.open(self.path(key))
    }

    fn each(&self, keys: &[u64], what: impl Fn(&File) -> io::Result<()>) -> Result<(), Error> {
        let one = |&key: &u64| File::open(self.path(key)).and_then(|file| what(&file));
        keys.iter().try_for_each(one).map_err(Error::io("syncing plain files"))
    }

    fn read(&self, key: u64, into: &mut [u8]) -> io::Result<()> {
        self.open(File::options().read(true), key)?.read_exact(into)
    }
}

impl Subject for Files {
    fn name(&self) -> String {
        if self.direct { "files, O_DIRECT" } else { "files" }.to_owned()
    }

    fn can(&self, case: &Case) -> bool {
        case.op.tier() == Tier::Disk
    }

    fn clear(&mut self, _: usize) -> Result<(), Error> {
        let removed = (0..self.keys).try_for_each(|key| fs::remove_file(self.path(key)));
        (self.keys, self.dirty) = (0, vec![]);
        removed.map_err(Error::io("removing plain files"))
    }

    fn put(&mut self, _: Tier, key: u64, block: &[u8]) -> Result<(), Error> {
        let file = self.open(File::options().write(true).create_new(true), key);
        let written = file.and_then(|mut file| file.write_all(block));
        self.dirty.push(key);
        self.keys = self.keys.max(key + 1);
        written.map_err(Error::io("writing a plain file"))
    }

    fn settle(&mut self, durable: bool) -> Result<(), Error> {
        if !durable {
            return Ok(());
        }
        let dirty = std::mem::take(&mut self.dirty);
        self.each(&dirty, File::sync_data)?;
        // The names, too, have to survive.
        let names = File::open(&self.dir).and_then(|dir| dir.sync_all());
        names.map_err(Error::io("syncing a directory"))
    }

    fn chill(&mut self) -> Result<(), Error> {
        self.settle(true)?;
        let keys: Vec<u64> = (0..self.keys).collect();
        self.each(&keys, forget)
    }

    fn get(&mut self, _: Tier, keys: &[u64], into: &mut [u8]) -> Result<(), Error> {
        let size = into.len() / keys.len().max(1);
        let files = &*self;
        let part = |keys: &[u64], into: &mut [u8]| {
            let mut pairs = keys.iter().zip(into.chunks_mut(size));
            pairs.try_for_each(|(&key, into)| files.read(key, into))
        };
        let read = if keys.len() == 1 {
            part(keys, into)
        } else {
            let each = keys.len().div_ceil(READERS);
            std::thread::scope(|scope| {
                let parts = keys.chunks(each).zip(into.chunks_mut(each * size));
                let readers: Vec<_> =
                    parts.map(|(keys, into)| scope.spawn(move || part(keys, into))).collect();
                let join = |r: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
                    r.join().unwrap_or_else(|_| Err(io::Error::other("a reader panicked")))
                };
                readers.into_iter().try_for_each(join)
            })
        };
        read.map_err(Error::io("reading plain files"))
    }
}

/// Drops a file that is on disk from the page cache.
fn forget(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use super::super::case::Plan;
    use super::super::measure::{Data, measure};
    use super::super::place::Place;
    use super::*;
    use crate::Options;

    #[test]
    fn files_keep_what_they_are_given() {
        let place = Place::new(&Options::default()).unwrap();
        let dir = place.path().to_owned();
        let plan = Plan { bytes: 4 << 20, dir, repeats: Some(1), least: 1, seconds: 0.1 };
        let mut data = Data::new(&plan).unwrap();
        for direct in [false, true] {
            let mut files = Files::new(place.path(), direct).unwrap();
            for case in Case::of_size(64 << 10) {
                if case.op.tier() == Tier::Host {
                    continue;
                }
                let figure = measure(&mut files, &case, &plan, &mut data, &mut |_| Ok(1.0));
                assert!(direct || figure.unwrap().1.median > 0.0);
            }
        }
    }
}
