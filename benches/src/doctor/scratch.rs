//! A file to measure with, which has no name while it is used.

use std::io;
use std::path::Path;
use std::sync::Arc;

use kvist::vfs::{Access, File, Vfs};

/// Makes a file in a directory and takes its name away at once: it goes when it is closed, whatever
/// becomes of this process. Direct where the file system has that.
pub(super) fn file(vfs: &Arc<dyn Vfs>, dir: &Path) -> io::Result<Arc<dyn File>> {
    let dir = vfs.open_dir(dir, false)?;
    let name = format!(".kvist-doctor-{}", std::process::id());
    let file = dir.create(&name, Access::Direct);
    // Even if opening it failed half way.
    match dir.remove(&name) {
        Err(e) if file.is_ok() => Err(io::Error::new(e.kind(), format!("removing {name}: {e}"))),
        _ => file,
    }
}

/// A folder that goes when the test ends.
#[cfg(test)]
pub(super) struct Folder(pub(super) std::path::PathBuf);

#[cfg(test)]
impl Folder {
    pub(super) fn new(name: &str) -> Folder {
        let name = format!("doctor-{name}-{}", std::process::id());
        let path = std::env::current_exe().unwrap().parent().unwrap().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(super) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

#[cfg(test)]
impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};

    use super::*;

    #[test]
    fn it_is_never_seen() {
        let sim = SimVfs::new(1);
        let vfs: Arc<dyn Vfs> = Arc::new(sim.clone());
        let dir = vfs.open_dir(Path::new("/d"), true).unwrap();
        let made = file(&vfs, Path::new("/d")).unwrap();
        let bytes = kvist::vfs::Buf::alloc(512).unwrap();
        assert_eq!(made.write_at(&bytes, 0).unwrap(), 512);
        assert!(dir.list().unwrap().is_empty());
        drop(made);
        assert_eq!(sim.disk_used(), 0);
        for (fault, call) in [(Fault::CreateQuota, Call::Create), (Fault::ReadOnly, Call::Create)] {
            sim.inject(fault, Trigger::nth(1).on(call));
            assert!(file(&vfs, Path::new("/d")).is_err());
            assert!(dir.list().unwrap().is_empty());
            sim.heal();
        }
    }
}
