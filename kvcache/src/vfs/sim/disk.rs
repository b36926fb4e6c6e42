//! The state of a file system: what everybody sees, what is durable, and what lies between.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::content::{Content, Write};

/// Identity of a file or directory, whatever its names.
pub(super) type Ino = u64;
/// Entries of a directory.
pub(super) type Names = BTreeMap<Arc<str>, Ino>;

/// The root directory.
pub(super) const ROOT: Ino = 1;

/// All inodes. Cloning copies one pointer an inode.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) inodes: BTreeMap<Ino, Arc<Inode>>,
    next_ino: Ino,
    next_seq: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) body: Body,
    pub(super) uid: u32,
    pub(super) mode: u32,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    File(FileBody),
    Dir(DirBody),
    /// Symbolic link, FIFO, socket, device: there to be refused.
    Other,
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileBody {
    /// What reads see.
    pub(super) current: Content,
    /// What every crash leaves.
    pub(super) durable: Content,
    /// What was durable before the last `fdatasync`: stale sectors come from here.
    pub(super) older: Content,
    /// What a crash may or may not leave, in order.
    pub(super) pending: Vec<Arc<Write>>,
    /// `current` differs from `durable` plus `pending`, because a failed `fdatasync` dropped writes.
    pub(super) dropped: bool,
    /// Room asked for in advance.
    pub(super) reserved: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct DirBody {
    pub(super) current: Names,
    pub(super) durable: Names,
    /// Changes of entries since the last `fsync`; a crash leaves a prefix of them.
    pub(super) pending: Vec<Meta>,
}

/// A change of a directory's entries.
#[derive(Clone, Debug)]
pub(super) enum Meta {
    Link(Arc<str>, Ino),
    Unlink(Arc<str>),
    Rename(Arc<str>, Arc<str>),
    /// The two halves of a move between directories, with a number they share. A crash may leave the
    /// file under both names, but never under none.
    MoveIn(Arc<str>, Ino, u64),
    MoveOut(Arc<str>, u64),
}

impl Meta {
    /// Carries the change out on `names`, as far as what it names is there.
    pub(super) fn apply(&self, names: &mut Names) {
        match self {
            Meta::Link(name, ino) | Meta::MoveIn(name, ino, _) => {
                names.insert(name.clone(), *ino);
            }
            Meta::Unlink(name) | Meta::MoveOut(name, _) => {
                names.remove(name);
            }
            Meta::Rename(from, to) => {
                if let Some(ino) = names.remove(from) {
                    names.insert(to.clone(), ino);
                }
            }
        }
    }
}

impl Disk {
    /// An empty root that everybody may write to.
    pub(super) fn new() -> Disk {
        let root = Inode { body: Body::Dir(DirBody::default()), uid: 0, mode: 0o777 };
        Disk { inodes: BTreeMap::from([(ROOT, Arc::new(root))]), next_ino: ROOT + 1, next_seq: 1 }
    }

    pub(super) fn inode(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino).map(Arc::as_ref)
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.inodes.get_mut(&ino).map(Arc::make_mut)
    }

    pub(super) fn file(&self, ino: Ino) -> Option<&FileBody> {
        match &self.inode(ino)?.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    pub(super) fn dir(&self, ino: Ino) -> Option<&DirBody> {
        match &self.inode(ino)?.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> Option<&mut FileBody> {
        match &mut self.inode_mut(ino)?.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    pub(super) fn dir_mut(&mut self, ino: Ino) -> Option<&mut DirBody> {
        match &mut self.inode_mut(ino)?.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn lookup(&self, dir: Ino, name: &str) -> Option<Ino> {
        self.dir(dir)?.current.get(name).copied()
    }

    /// The inode a path from the root leads to, following no symbolic links.
    pub(super) fn walk(&self, path: &str) -> Option<Ino> {
        path.split('/').filter(|c| !c.is_empty()).try_fold(ROOT, |dir, name| self.lookup(dir, name))
    }

    /// An inode without a name.
    pub(super) fn add(&mut self, body: Body, uid: u32, mode: u32) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.inodes.insert(ino, Arc::new(Inode { body, uid, mode }));
        ino
    }

    fn seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    /// Grows with every write: tells one moment from another.
    pub(super) fn version(&self) -> u64 {
        self.next_seq ^ (self.next_ino << 32)
    }

    fn change(&mut self, dir: Ino, meta: Meta) {
        if let Some(body) = self.dir_mut(dir) {
            meta.apply(&mut body.current);
            body.pending.push(meta);
        }
    }

    pub(super) fn link(&mut self, dir: Ino, name: &str, ino: Ino) {
        self.change(dir, Meta::Link(name.into(), ino));
    }

    pub(super) fn unlink(&mut self, dir: Ino, name: &str) {
        self.change(dir, Meta::Unlink(name.into()));
    }

    /// Gives the entry `from` another name, in the same or another directory.
    pub(super) fn rename(&mut self, dir: Ino, from: &str, to_dir: Ino, to: &str) {
        if dir == to_dir {
            if from != to {
                self.change(dir, Meta::Rename(from.into(), to.into()));
            }
        } else if let Some(ino) = self.lookup(dir, from) {
            let seq = self.seq();
            self.change(to_dir, Meta::MoveIn(to.into(), ino, seq));
            self.change(dir, Meta::MoveOut(from.into(), seq));
        }
    }

    /// Writes what a crash may lose or tear.
    pub(super) fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) {
        let seq = self.seq();
        if let Some(file) = self.file_mut(ino) {
            let write = file.current.write(seq, offset, data);
            file.pending.push(Arc::new(write));
        }
    }

    /// The length that writing `range` leaves, without the data.
    pub(super) fn extend(&mut self, ino: Ino, range: Range<u64>) {
        let seq = self.seq();
        if let Some(file) = self.file_mut(ino)
            && file.current.len() < range.end
        {
            file.current.extend(range.end);
            let write = Write::extend(seq, range.start, range.end - range.start);
            file.pending.push(Arc::new(write));
        }
    }

    /// Cuts or extends a file, which a crash may undo.
    pub(super) fn set_len(&mut self, ino: Ino, len: u64) {
        let seq = self.seq();
        let Some(file) = self.file_mut(ino) else { return };
        file.reserved = file.reserved.min(len);
        let old = file.current.len();
        if len < old {
            file.current.cut(len);
            file.pending.push(Arc::new(Write::cut(seq, len)));
        } else {
            self.extend(ino, old..len);
        }
    }

    /// `fdatasync` of a file.
    pub(super) fn sync_file(&mut self, ino: Ino) {
        if self.file(ino).is_some_and(|file| !file.pending.is_empty())
            && let Some(file) = self.file_mut(ino)
        {
            file.older = file.durable.clone();
            if file.dropped {
                for write in std::mem::take(&mut file.pending) {
                    file.durable.apply(&write, 0..write.len);
                }
            } else {
                file.durable = file.current.clone();
                file.pending.clear();
            }
        }
    }

    /// `fdatasync` that failed: the first `keep` pending writes reached the disk, the others are
    /// marked clean and never will; `forget` drops them from what reads see, too.
    pub(super) fn fail_sync_file(&mut self, ino: Ino, keep: usize, forget: bool) {
        if let Some(file) = self.file_mut(ino) {
            file.older = file.durable.clone();
            let pending = std::mem::take(&mut file.pending);
            for write in pending.iter().take(keep) {
                file.durable.apply(write, 0..write.len);
            }
            file.dropped |= keep < pending.len();
            if forget {
                file.current = file.durable.clone();
                file.dropped = false;
            }
        }
    }

    /// `fsync` of a directory.
    pub(super) fn sync_dir(&mut self, ino: Ino) {
        if self.dir(ino).is_none_or(|dir| dir.pending.is_empty()) {
            return;
        }
        let Some(dir) = self.dir_mut(ino) else { return };
        let pending = std::mem::take(&mut dir.pending);
        pending.iter().for_each(|meta| meta.apply(&mut dir.durable));
        for meta in &pending {
            // A file must not be lost between two directories: its arrival becomes durable as well.
            if let Meta::MoveOut(_, seq) = meta {
                self.arrive(*seq);
            }
        }
    }

    /// Makes the other half of a move durable.
    fn arrive(&mut self, seq: u64) {
        let is_it = |meta: &Meta| matches!(meta, Meta::MoveIn(_, _, s) if *s == seq);
        let waiting = |ino: &Ino| self.dir(*ino).is_some_and(|d| d.pending.iter().any(is_it));
        let Some(ino) = self.inodes.keys().copied().find(waiting) else { return };
        if let Some(dir) = self.dir_mut(ino)
            && let Some(at) = dir.pending.iter().position(is_it)
        {
            dir.pending.remove(at).apply(&mut dir.durable);
        }
    }

    /// `fsync` of a directory that failed and lost what it should have written.
    pub(super) fn drop_entries(&mut self, ino: Ino) {
        if let Some(dir) = self.dir_mut(ino) {
            // Arrivals stay pending: their departures may yet become durable.
            dir.pending.retain(|meta| matches!(meta, Meta::MoveIn(..)));
        }
    }

    /// Somebody else cut the file, for good.
    pub(super) fn truncate(&mut self, ino: Ino, len: u64) {
        if let Some(file) = self.file_mut(ino) {
            file.current.cut(len);
            file.durable = file.current.clone();
            file.pending.clear();
            file.dropped = false;
        }
    }

    /// Makes `content` all there is of a file, durably.
    pub(super) fn settle_file(&mut self, ino: Ino, content: Content) {
        if let Some(file) = self.file_mut(ino) {
            file.older = content.clone();
            file.durable = content.clone();
            file.current = content;
            file.pending.clear();
            file.dropped = false;
        }
    }

    /// As [`Disk::settle_file`], sharing the chunks that stay the same.
    pub(super) fn settle_bytes(&mut self, ino: Ino, bytes: &[u8]) {
        if let Some(file) = self.file(ino) {
            let mut content = file.current.clone();
            content.replace(bytes);
            self.settle_file(ino, content);
        }
    }

    /// Inodes with a name now.
    pub(super) fn named(&self) -> BTreeSet<Ino> {
        self.reach(|dir| dir.current.values().copied().collect())
    }

    fn reach(&self, below: impl Fn(&DirBody) -> Vec<Ino>) -> BTreeSet<Ino> {
        let (mut seen, mut todo) = (BTreeSet::from([ROOT]), vec![ROOT]);
        while let Some(ino) = todo.pop() {
            let children = self.dir(ino).map(&below).unwrap_or_default();
            todo.extend(children.into_iter().filter(|child| seen.insert(*child)));
        }
        seen
    }

    /// Forgets inodes without a name, present, durable or pending, that nobody holds open.
    pub(super) fn collect(&mut self, open: &BTreeSet<Ino>) {
        let seen = self.reach(|dir| {
            let pending = dir.pending.iter().filter_map(|meta| match meta {
                Meta::Link(_, ino) | Meta::MoveIn(_, ino, _) => Some(*ino),
                _ => None,
            });
            dir.current.values().chain(dir.durable.values()).copied().chain(pending).collect()
        });
        self.inodes.retain(|ino, _| seen.contains(ino) || open.contains(ino));
    }

    /// Bytes taken by files that have a name or are open.
    pub(super) fn used(&self, open: &BTreeSet<Ino>) -> u64 {
        let held = self.named().into_iter().chain(open.iter().copied()).collect::<BTreeSet<_>>();
        let files = held.into_iter().filter_map(|ino| self.file(ino));
        files.map(|file| file.current.allocated().max(file.reserved)).sum()
    }
}
