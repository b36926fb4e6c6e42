//! Looking at the disk from outside, and damaging it: no process sees these as calls, no fault
//! strikes them, and what they change is durable at once.

use super::SimVfs;
use super::content::Content;
use super::disk::{Body, DirBody, Disk, FileBody, Ino, ROOT};
use crate::vfs::Kind;

/// A file, directory or other thing with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Components from the root, joined by `/`, without a leading one.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Length of a file as reads see it.
    pub len: u64,
    /// Length of a file that every crash leaves.
    pub len_durable: u64,
    /// Writes of a file, or changes of a directory, that a crash may lose.
    pub pending: usize,
    /// Owner.
    pub uid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Something that can be planted into the disk.
#[derive(Clone, Copy, Debug)]
pub enum Alien<'a> {
    /// A file with these bytes.
    File(&'a [u8]),
    /// A directory.
    Dir,
    /// A symbolic link, FIFO, socket or device: the trait tells none from another.
    Other,
}

impl SimVfs {
    /// Everything with a name, in order of paths, without the root.
    #[must_use]
    pub fn files(&self) -> Vec<FileInfo> {
        let state = self.world().state.lock();
        let mut files = Vec::new();
        list(&state.disk, ROOT, "", &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Bytes of a file as reads see them, if there is such a file.
    #[must_use]
    pub fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.world().state.lock();
        Some(state.disk.file(state.disk.walk(path)?)?.current.to_vec())
    }

    /// Changes the bytes of a file; what was pending becomes durable with them.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes(path).unwrap_or_else(|| panic!("no file {path}"));
        change(&mut bytes);
        self.put(path, &bytes);
    }

    /// Flips one bit of a file: what [`SimVfs::edit`] could do, at the price of one chunk.
    ///
    /// # Panics
    /// If the file does not have that many bits.
    pub fn flip(&self, path: &str, bit: u64) {
        let mut state = self.world().state.lock();
        let found = state.disk.walk(path).and_then(|ino| Some((ino, state.disk.file(ino)?)));
        let (ino, file) = found.unwrap_or_else(|| panic!("no file {path}"));
        let (mut content, mut byte) = (file.current.clone(), [0]);
        assert_eq!(content.read(bit / 8, &mut byte), 1, "bit {bit} of {path}");
        content.overwrite(bit / 8, &[byte[0] ^ (1 << (bit % 8))]);
        state.disk().settle_file(ino, content);
    }

    /// Makes a file hold `bytes`, made if it is missing, as are the directories above it.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        self.plant(path, Alien::File(bytes));
    }

    /// Puts something at `path`, in the place of what is there unless both are files.
    ///
    /// # Panics
    /// If the path is empty.
    pub fn plant(&self, path: &str, alien: Alien) {
        let mut state = self.world().state.lock();
        let uid = state.processes.get(&self.pid()).copied().unwrap_or_default();
        let disk = state.disk();
        if let (Alien::File(bytes), Some(ino)) = (alien, disk.walk(path))
            && disk.file(ino).is_some()
        {
            disk.settle_bytes(ino, bytes);
            return;
        }
        let (parent, name) = split(path);
        let mut dir = ROOT;
        for name in parent.split('/').filter(|c| !c.is_empty()) {
            dir = match disk.lookup(dir, name) {
                Some(ino) => ino,
                None => name_durably(disk, dir, name, Body::Dir(DirBody::default()), uid),
            };
        }
        let body = match alien {
            Alien::File(_) => Body::File(FileBody::default()),
            Alien::Dir => Body::Dir(DirBody::default()),
            Alien::Other => Body::Other,
        };
        let ino = name_durably(disk, dir, name, body, uid);
        if let Alien::File(bytes) = alien {
            disk.settle_file(ino, Content::from_bytes(bytes));
        }
    }

    /// Takes a name away; whoever has the file open keeps it.
    ///
    /// # Panics
    /// If there is nothing of that name.
    pub fn delete(&self, path: &str) {
        let mut state = self.world().state.lock();
        let (parent, name) = split(path);
        let dir = state.disk.walk(parent).and_then(|ino| state.disk().dir_mut(ino));
        let removed = dir.and_then(|dir| {
            dir.durable.remove(name);
            dir.current.remove(name)
        });
        assert!(removed.is_some(), "nothing at {path}");
    }

    /// Gives a file or directory another owner and other permissions.
    ///
    /// # Panics
    /// If there is nothing of that name.
    pub fn own(&self, path: &str, uid: u32, mode: u32) {
        let mut state = self.world().state.lock();
        let ino = state.disk.walk(path);
        let inode = ino.and_then(|ino| state.disk().inode_mut(ino));
        let inode = inode.unwrap_or_else(|| panic!("nothing at {path}"));
        (inode.uid, inode.mode) = (uid, mode);
    }
}

fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    assert!(!name.is_empty(), "a path without a name");
    (parent, name)
}

fn name_durably(disk: &mut Disk, dir: Ino, name: &str, body: Body, uid: u32) -> Ino {
    let mode = if matches!(body, Body::Dir(_)) { 0o700 } else { 0o600 };
    let ino = disk.add(body, uid, mode);
    let body = disk.dir_mut(dir).unwrap_or_else(|| panic!("{name} would not be in a directory"));
    body.current.insert(name.into(), ino);
    body.durable.insert(name.into(), ino);
    ino
}

fn list(disk: &Disk, dir: Ino, prefix: &str, out: &mut Vec<FileInfo>) {
    let Some(body) = disk.dir(dir) else { return };
    for (name, ino) in &body.current {
        let Some(inode) = disk.inode(*ino) else { continue };
        let path = format!("{prefix}{name}");
        let (kind, len, len_durable, pending) = match &inode.body {
            Body::File(file) => {
                (Kind::File, file.current.len(), file.durable.len(), file.pending.len())
            }
            Body::Dir(dir) => (Kind::Dir, 0, 0, dir.pending.len()),
            Body::Other => (Kind::Other, 0, 0, 0),
        };
        let (uid, mode) = (inode.uid, inode.mode);
        if kind == Kind::Dir {
            list(disk, *ino, &format!("{path}/"), out);
        }
        out.push(FileInfo { path, kind, len, len_durable, pending, uid, mode });
    }
}
