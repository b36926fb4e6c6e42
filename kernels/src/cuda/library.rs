//! Where NVRTC is. First of: loaded already, `KVIST_NVRTC`, folders that were handed over (Python
//! packages), the loader's own search.

use std::ffi::{CStr, OsStr, c_void};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use parking_lot::Mutex;

use super::{Error, Nvrtc};

/// Names of the library, best first: 13, 12, whatever a toolkit's link points to.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// NVRTC opens this one by its bare name when it first compiles, wherever itself was found.
const BUILTINS: &str = "libnvrtc-builtins.so";

/// How a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The process had it already: an engine's own.
    Loaded,
    /// `KVIST_NVRTC` named it.
    Variable,
    /// In a folder that was handed over.
    Folder,
    /// By the system's loader.
    System,
}

impl Found {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Found::Loaded => "loaded already",
            Found::Variable => "KVIST_NVRTC",
            Found::Folder => "a Python package",
            Found::System => "the system",
        }
    }
}

static SEARCH: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static PREBUILT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Names folders where NVRTC may be, in place of those that were named before.
pub fn search_in(folders: Vec<PathBuf>) {
    *SEARCH.lock() = folders;
}

/// Names folders of prebuilt kernels, in place of those that were named before.
pub fn prebuilt_in(folders: Vec<PathBuf>) {
    *PREBUILT.lock() = folders;
}

/// `KVIST_PREBUILT`, then what was handed over.
pub(super) fn prebuilt_folders() -> Vec<PathBuf> {
    let named = std::env::var_os("KVIST_PREBUILT").filter(|v| !v.is_empty()).map(PathBuf::from);
    named.into_iter().chain(PREBUILT.lock().iter().cloned()).collect()
}

/// A place to look at: a file, or a bare name for the loader.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    found: Found,
    file: PathBuf,
}

/// All places in order.
fn candidates(variable: Option<&OsStr>, folders: &[PathBuf]) -> Vec<Candidate> {
    let names = |found| NAMES.map(move |name| Candidate { found, file: name.into() });
    let mut all: Vec<Candidate> = names(Found::Loaded).into();
    let named = variable.filter(|v| !v.is_empty()).map(Path::new);
    if let Some(path) = named {
        if path.is_dir() {
            all.extend(in_folder(Found::Variable, path));
        } else {
            all.push(Candidate { found: Found::Variable, file: path.to_owned() });
        }
    }
    all.extend(folders.iter().flat_map(|folder| in_folder(Found::Folder, folder)));
    all.extend(names(Found::System));
    all
}

fn in_folder(found: Found, folder: &Path) -> impl Iterator<Item = Candidate> {
    let files = NAMES.map(|name| folder.join(name)).into_iter().filter(|file| file.exists());
    files.map(move |file| Candidate { found, file })
}

/// The first usable one of all places.
pub(super) fn find() -> Result<Nvrtc, Error> {
    let variable = std::env::var_os("KVIST_NVRTC");
    let folders = SEARCH.lock().clone();
    let mut tried = Vec::new();
    for candidate in candidates(variable.as_deref(), &folders) {
        match open(&candidate) {
            Ok(nvrtc) => return Ok(nvrtc),
            Err(reason) => {
                if candidate.found == Found::Variable {
                    tracing::warn!(
                        file = %candidate.file.display(), reason, "KVIST_NVRTC names no usable NVRTC"
                    );
                }
                // That a process has not loaded it is no news.
                if candidate.found != Found::Loaded {
                    tried.push(reason);
                }
            }
        }
    }
    if variable.as_ref().is_some_and(|v| Path::new(v).is_dir()) && tried.len() == NAMES.len() {
        tried.insert(0, format!("KVIST_NVRTC: no {} in the folder", NAMES[0]));
    }
    Err(Error::NoCompiler { tried: tried.join("; ") })
}

fn open(candidate: &Candidate) -> Result<Nvrtc, String> {
    let absolute = candidate.file.is_absolute() || candidate.file.components().count() > 1;
    if absolute {
        open_builtins(candidate.file.parent());
    }
    // Not global: two versions in one process would call each other's functions.
    let flags = RTLD_NOW | RTLD_LOCAL;
    let flags = if candidate.found == Found::Loaded { flags | libc::RTLD_NOLOAD } else { flags };
    // SAFETY: NVRTC's initialisers touch nothing of this process.
    let library = unsafe { Library::open(Some(&candidate.file), flags) };
    // Without the system's words the reason reads "dlopen failed".
    let library = library.map_err(|e| words(&e))?;
    let nvrtc = Nvrtc::bind(&library, candidate.found)
        .map_err(|reason| format!("{}: {reason}", candidate.file.display()))?;
    if !absolute {
        open_builtins(nvrtc.file().parent());
    }
    // Function pointers were taken out of it, and other threads may be inside at any time.
    let _ = library.into_raw();
    Ok(nvrtc)
}

fn words(error: &libloading::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Opens the builtins that lie beside NVRTC, so that it finds them among what is loaded.
fn open_builtins(folder: Option<&Path>) {
    let entries = folder.and_then(|f| f.read_dir().ok()).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_name().to_string_lossy().starts_with(BUILTINS)) {
        // SAFETY: a library of constants; its initialisers touch nothing of this process.
        if let Ok(library) = unsafe { Library::open(Some(entry.path()), RTLD_NOW | RTLD_LOCAL) } {
            let _ = library.into_raw();
        }
    }
}

/// The file that a function was loaded from.
pub(super) fn file_of(function: *const c_void) -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the result is written into `info`; any address may be asked for.
    let known = unsafe { libc::dladdr(function, info.as_mut_ptr()) } != 0;
    // SAFETY: zeroes are a valid value, too.
    let name = unsafe { info.assume_init() }.dli_fname;
    if !known || name.is_null() {
        return None;
    }
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: a C string that lives as long as the library, which is still open.
    Some(PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(variable: Option<&Path>, folders: &[PathBuf]) -> Vec<(Found, PathBuf)> {
        let all = candidates(variable.map(Path::as_os_str), folders);
        all.into_iter().map(|c| (c.found, c.file)).collect()
    }

    #[test]
    fn places_are_looked_at_in_order() {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let variable = file("own/libnvrtc.so.12");
        let both = [file("cu13/libnvrtc.so.13"), file("cu13/libnvrtc.so.12")];
        file("cu13/libnvrtc.alt.so.13");
        file("cu13/libnvrtc-builtins.so.13.0");
        let older = file("cuda_nvrtc/libnvrtc.so.12");
        let folders = ["cu13", "missing", "cuda_nvrtc"].map(|f| root.path().join(f));

        let all = places(Some(&root.path().join("own")), &folders);
        let bare = |found| NAMES.map(|n| (found, PathBuf::from(n)));
        let mut expected = bare(Found::Loaded).to_vec();
        expected.push((Found::Variable, variable.clone()));
        expected.extend(both.map(|f| (Found::Folder, f)));
        expected.push((Found::Folder, older));
        expected.extend(bare(Found::System));
        assert_eq!(all, expected);
        // A file is taken as it is, and an empty variable is none.
        assert_eq!(places(Some(&variable), &[])[3], (Found::Variable, variable));
        assert_eq!(places(Some(Path::new("")), &[]).len(), 2 * NAMES.len());
    }
}
