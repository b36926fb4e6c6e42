//! Opening a directory: is it ours, is it free, may we use it; and if it is new, making it.

use std::io;
use std::sync::Arc;

use super::dir::{LOCK, TEMPORARY, check, error_at, holder, read_meta, read_secret};
use super::health::Health;
use super::sessions::Sessions;
use super::turn::Turn;
use super::{Disk, DiskBudget, DiskOptions, OnVersion, State, Writer};
use crate::Error;
use crate::format::{KeySecret, Meta, SecretFile};
use crate::sync::Mutex;
use crate::vfs::{Access, BufPool, Dir, File, Vfs, write_all_at};

/// Where a directory of another version keeps what this version writes.
const BESIDE: &str = "kvist-1";

/// The files of one directory, opened and locked.
struct Opened {
    dir: Arc<dyn Dir>,
    lock: Box<dyn crate::vfs::Lock>,
    meta: Meta,
    secret: KeySecret,
}

impl Disk {
    /// Opens or makes a directory and finds what is stored in it. No segment of a former run is
    /// written to.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Permission`], [`Error::Version`], [`Error::NotAStore`],
    /// [`Error::Setting`], [`Error::Disk`]. Nothing of others is touched then.
    pub(crate) fn open(vfs: Arc<dyn Vfs>, options: DiskOptions) -> Result<Disk, Error> {
        options.validate()?;
        let opened = open_directory(&vfs, &options)?;
        let Opened { dir, lock, meta, secret } = opened;
        let mut disk = Disk {
            vfs,
            dir,
            uuid: meta.uuid,
            secret,
            budget: DiskBudget::new(options.bytes),
            buffers: BufPool::default(),
            state: Mutex::new(State::default()),
            writer: Turn::new(Writer::default()),
            health: Mutex::new(Health::default()),
            sessions: Turn::new(Sessions::default()),
            options,
            lock: Mutex::new(Some(lock)),
        };
        disk.recover()?;
        Ok(disk)
    }
}

fn open_directory(vfs: &Arc<dyn Vfs>, options: &DiskOptions) -> Result<Opened, Error> {
    let path = &options.path;
    let fail = |e: io::Error| error_at(path, e);
    let dir = vfs.open_dir(path, true).map_err(fail)?;
    match check(&*dir, path, options.allow_shared_dir) {
        Err(Error::Version { .. }) if options.on_version == OnVersion::Reset => {
            let beside = dir.subdir(BESIDE, true).map_err(fail)?;
            dir.sync().map_err(fail)?;
            return lock_and_read(beside, options);
        }
        checked => checked.map(drop)?,
    }
    lock_and_read(dir, options)
}

fn lock_and_read(dir: Arc<dyn Dir>, options: &DiskOptions) -> Result<Opened, Error> {
    let path = &options.path;
    let fail = |e: io::Error| error_at(path, e);
    let lock = dir.lock(LOCK).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => Error::InUse { path: path.clone(), pid: holder(&*dir) },
        _ => fail(e),
    })?;
    let secret = match (&options.secret, stored_secret(&*dir).map_err(fail)?) {
        (Some(given), _) => given.clone(),
        (None, Some(stored)) => stored,
        (None, None) => {
            let secret = KeySecret::random()?;
            replace(&*dir, SecretFile::NAME, &SecretFile::encode(&secret)).map_err(fail)?;
            secret
        }
    };
    // Written last: with it the directory is a store.
    let known = dir.list().map_err(fail)?.iter().any(|e| e.name == Meta::NAME);
    let meta = if known {
        read_meta(&*dir, path)?
    } else {
        let meta = Meta::new(random_uuid()?);
        replace(&*dir, Meta::NAME, meta.encode().as_bytes()).map_err(fail)?;
        meta
    };
    Ok(Opened { dir, lock, meta, secret })
}

/// The stored secret; `None` if there is none or it is damaged: then every old record is a miss.
fn stored_secret(dir: &dyn Dir) -> io::Result<Option<KeySecret>> {
    let secret = read_secret(dir)?;
    if let Some(Err(bad)) = &secret {
        tracing::warn!("{} is damaged ({bad}): stored blocks cannot be found", SecretFile::NAME);
    }
    Ok(secret.and_then(Result::ok))
}

/// Tells directories apart.
fn random_uuid() -> Result<[u8; 16], Error> {
    let mut uuid = [0; 16];
    let what = "random bytes for a new store";
    let refused = |e: getrandom::Error| Error::System { what, reason: e.to_string() };
    getrandom::fill(&mut uuid).map_err(refused)?;
    Ok(uuid)
}

/// Puts a small file in place, so that a crash leaves the old one or the new one.
fn replace(dir: &dyn Dir, name: &str, bytes: &[u8]) -> io::Result<()> {
    place(dir, name, bytes)?;
    dir.sync()
}

/// [`replace`] without making the name durable.
pub(super) fn place(dir: &dyn Dir, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}{TEMPORARY}");
    match dir.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file: Arc<dyn File> = dir.create(&temporary, Access::Buffered)?;
    write_all_at(&*file, bytes, 0)?;
    if !bug!("renamed_before_sync") {
        file.sync_data()?;
    }
    dir.rename(&temporary, name)
}
