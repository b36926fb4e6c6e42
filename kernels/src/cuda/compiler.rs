//! From a kernel to its image, by the shortest way: memory, prebuilt files, the cache on disk, NVRTC.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use rayon::prelude::*;

use super::{
    Arch, Cache, Error, Image, Kernel, Key, Nvrtc, Specialisation, Target, cache, library,
};

/// Images by their key, each made once however many ask for it at once.
#[derive(Debug)]
pub struct Compiler {
    cache: Cache,
    prebuilt: Vec<PathBuf>,
    nvrtc: OnceLock<Result<Nvrtc, Error>>,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    counts: [AtomicU64; 3],
}

/// One image: whoever holds the lock makes it.
#[derive(Debug, Default)]
struct Slot {
    ready: OnceLock<Result<Arc<Image>, Error>>,
    making: Mutex<()>,
}

/// Where images came from so far; what was in memory is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// From folders of prebuilt ones.
    pub prebuilt: u64,
    /// From the cache on disk.
    pub cached: u64,
    /// From the compiler.
    pub compiled: u64,
}

impl Counts {
    pub(super) fn since(self, before: Counts) -> Counts {
        Counts {
            prebuilt: self.prebuilt - before.prebuilt,
            cached: self.cached - before.cached,
            compiled: self.compiled - before.compiled,
        }
    }
}

#[derive(Clone, Copy)]
enum Origin {
    Prebuilt,
    Cached,
    Compiled,
}

impl Compiler {
    /// With the cache of [`Cache::from_env`] and the folders of [`super::prebuilt_in`]. Nothing is opened
    /// before it is needed.
    #[must_use]
    pub fn from_env() -> Compiler {
        Compiler::new(Cache::from_env(), library::prebuilt_folders())
    }

    /// With this cache and these folders of prebuilt images.
    #[must_use]
    pub fn new(cache: Cache, prebuilt: Vec<PathBuf>) -> Compiler {
        Compiler {
            cache,
            prebuilt,
            nvrtc: OnceLock::new(),
            slots: Mutex::default(),
            counts: Default::default(),
        }
    }

    /// NVRTC, found when first asked for.
    ///
    /// # Errors
    /// [`Error::NoCompiler`].
    pub fn nvrtc(&self) -> Result<&Nvrtc, Error> {
        self.nvrtc.get_or_init(Nvrtc::find).as_ref().map_err(Clone::clone)
    }

    /// The cache on disk.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Where images came from.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let [prebuilt, cached, compiled] =
            [0, 1, 2].map(|i| self.counts[i].load(Ordering::Relaxed));
        Counts { prebuilt, cached, compiled }
    }

    /// The image for a GPU, whose compute capability is `gpu` / 10.
    ///
    /// # Errors
    /// [`Error::UnsupportedArch`], [`Error::CompileFailed`]; [`Error::NoCompiler`] if it is not
    /// prebuilt.
    pub fn image(&self, of: &Specialisation, gpu: u32) -> Result<Arc<Image>, Error> {
        let exact = of.key(Target::Cubin(Arch::new(gpu, of.kernel().accelerated)));
        let slot = Arc::clone(self.slots.lock().entry(exact).or_default());
        if let Some(ready) = slot.ready.get() {
            return ready.clone();
        }
        let _making = slot.making.lock();
        if let Some(ready) = slot.ready.get() {
            return ready.clone();
        }
        let made = self.make(of, gpu, &exact).map(Arc::new);
        // What may go better next time, such as a compiler that is installed later, is not kept.
        if made.as_ref().map_or_else(Error::is_permanent, |_| true) {
            let _ = slot.ready.set(made.clone());
        }
        made
    }

    /// The images of several kernels, made in parallel on rayon's threads.
    ///
    /// # Errors
    /// The first of those of [`Compiler::image`].
    pub fn images(&self, all: &[Specialisation], gpu: u32) -> Result<Vec<Arc<Image>>, Error> {
        all.par_iter().map(|of| self.image(of, gpu)).collect()
    }

    fn make(&self, of: &Specialisation, gpu: u32, exact: &Key) -> Result<Image, Error> {
        let file = exact.file_name();
        let prebuilt = self.prebuilt.iter().find_map(|f| cache::read_file(&f.join(&file), exact));
        if let Some(image) = prebuilt {
            return Ok(self.count(Origin::Prebuilt, image));
        }
        let nvrtc = self.nvrtc()?;
        let target = Target::choose(gpu, of.kernel().accelerated, nvrtc.archs())?;
        let key = of.key(target).by(nvrtc.version());
        if let Some(image) = self.cache.read(&key) {
            return Ok(self.count(Origin::Cached, image));
        }
        let start = Instant::now();
        let compiled = nvrtc.compile(of, target)?;
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!(kernel = %of, %target, seconds, usage = ?compiled.usage, "compiled");
        self.cache.write(&key, &compiled.image);
        Ok(self.count(Origin::Compiled, compiled.image))
    }

    fn count(&self, origin: Origin, image: Image) -> Image {
        self.counts[origin as usize].fetch_add(1, Ordering::Relaxed);
        image
    }

    /// Compiles all variants of these kernels for each architecture into a folder, to be shipped and
    /// named in [`super::prebuilt_in`]: no NVRTC is needed there. Returns the number of files.
    ///
    /// # Errors
    /// What [`Nvrtc::compile`] says, [`Error::UnsupportedArch`] for one that it does not know; files that
    /// cannot be written.
    pub fn prebuild(
        &self,
        kernels: &[&'static Kernel],
        gpus: &[u32],
        folder: &Path,
    ) -> Result<usize, PrebuildError> {
        let nvrtc = self.nvrtc()?;
        let mut files = 0;
        for &gpu in gpus {
            for (of, _) in kernels.iter().flat_map(|kernel| kernel.shipped()) {
                let target = Target::choose(gpu, of.kernel().accelerated, nvrtc.archs())?;
                if matches!(target, Target::Ptx(_)) {
                    return Err(Error::UnsupportedArch { found: gpu }.into());
                }
                let compiled = nvrtc.compile(&of, target)?;
                cache::write_prebuilt(folder, &of.key(target), &compiled.image)?;
                files += 1;
            }
        }
        Ok(files)
    }
}

/// Images could not be built in advance.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrebuildError {
    /// Not compiled.
    #[error(transparent)]
    Compile(#[from] Error),
    /// Not written.
    #[error("writing prebuilt kernels: {0}")]
    Write(#[from] io::Error),
}
