//! Settings of the device tier.

use std::any::Any;
use std::sync::Arc;

use kvist_kernels::cuda::Compiler;
use parking_lot::Mutex;

/// Where one way of doing a thing ends and the other begins. Estimates, to be measured on a GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Copies of so many bytes are worth a launch of their own, so that what is there is read meanwhile.
    pub(super) split_bytes: u64,
    /// A run of neighbours of so many bytes goes by the copy engine, which takes some microseconds to start;
    /// a shorter one by the kernel.
    pub(super) engine_bytes: usize,
    /// Bytes of pinned memory that pages pass through at a time.
    pub(super) stage_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { split_bytes: 256 << 10, engine_bytes: 1 << 20, stage_bytes: 4 << 20 }
    }
}

/// Address and bytes of a caller's memory, for the one cache that takes them.
pub(super) type Lent = Arc<Mutex<Option<(u64, u64)>>>;

/// A GPU that keeps copies of pages, and attends to them: [`Builder::device`](crate::Builder::device).
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    pub(super) ordinal: usize,
    pub(super) bytes: Option<u64>,
    pub(super) memory: Option<Lent>,
    pub(super) owner: Option<Arc<dyn Any + Send + Sync>>,
    pub(super) zero_copy: bool,
    pub(super) optional: bool,
    pub(super) ahead: bool,
    pub(super) selects: bool,
    pub(super) compiler: Option<Arc<Compiler>>,
    pub(super) limits: Limits,
}

impl Default for DeviceOptions {
    fn default() -> DeviceOptions {
        DeviceOptions {
            ordinal: 0,
            bytes: None,
            memory: None,
            owner: None,
            zero_copy: true,
            optional: false,
            ahead: true,
            selects: true,
            compiler: None,
            limits: Limits::default(),
        }
    }
}

/// The share of the host budget that pinned memory takes at most.
const STAGE_SHARE: u64 = 32;

impl DeviceOptions {
    /// The same with no more pinned memory than a host budget has room for.
    pub(super) fn within(&self, budget: u64) -> DeviceOptions {
        let mut own = self.clone();
        own.limits.stage_bytes = own.limits.stage_bytes.min((budget / STAGE_SHARE) as usize);
        own
    }

    /// The GPU's number in this process. Default 0.
    #[must_use]
    pub fn ordinal(mut self, ordinal: usize) -> DeviceOptions {
        self.ordinal = ordinal;
        self
    }

    /// Bytes of GPU memory for pages, taken at once: a hard limit. Lists and results take a few MiB more.
    /// Default: half of what the driver says is free, so that memory that a framework has in its pool is
    /// not touched. Never more than the host tier has pages.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> DeviceOptions {
        self.bytes = Some(bytes);
        self
    }

    /// Memory of the GPU that the caller took, say by the framework's own allocator, in place of own memory.
    /// One cache takes it; building a second one of these options is refused.
    ///
    /// # Safety
    /// It is memory of that GPU, 256-byte aligned; nobody else touches it, nor does work that is queued
    /// already; and it stays until the last clone of the cache and the last sequence are gone.
    #[must_use]
    pub unsafe fn memory(mut self, address: u64, bytes: u64) -> DeviceOptions {
        self.memory = Some(Arc::new(Mutex::new(Some((address, bytes)))));
        self
    }

    /// Whoever that memory belongs to: held until no work uses it any more, so that nobody else has to know when.
    #[must_use]
    pub fn owner(mut self, owner: Arc<dyn Any + Send + Sync>) -> DeviceOptions {
        self.owner = Some(owner);
        self
    }

    /// Whether kernels read pages that have no frame in host memory themselves, over the link. Default yes.
    /// Only with [`Builder::prefault`](crate::Builder::prefault), because that memory is pinned; without, the
    /// CPU attends to such pages while the GPU attends to the others.
    #[must_use]
    pub fn zero_copy(mut self, on: bool) -> DeviceOptions {
        self.zero_copy = on;
        self
    }

    /// Whether pages of the next layer are copied while the model computes. Default yes.
    #[must_use]
    pub fn prefetch(mut self, on: bool) -> DeviceOptions {
        self.ahead = on;
        self
    }

    /// Whether the GPU chooses what queries read, where it can. Default yes; without, summaries take no memory of
    /// the GPU, and what `boxed` reads does not depend on whether there is one.
    #[must_use]
    pub fn selects(mut self, on: bool) -> DeviceOptions {
        self.selects = on;
        self
    }

    /// Whether the cache works on the CPU where there is no such GPU, no driver, or not enough memory; see
    /// [`DeviceUse::degraded`](crate::DeviceUse::degraded). Default no: the cache is refused then.
    #[must_use]
    pub fn optional(mut self, on: bool) -> DeviceOptions {
        self.optional = on;
        self
    }

    /// Other limits than those of the field, so that small tests come past them: copies from so many bytes on
    /// get a launch of their own, runs go by the copy engine, pinned memory is so large.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn limits(mut self, split: u64, engine: usize, stage: usize) -> DeviceOptions {
        self.limits = Limits { split_bytes: split, engine_bytes: engine, stage_bytes: stage };
        self
    }

    /// Who makes kernels. Default: [`Compiler::from_env`].
    #[must_use]
    pub fn compiler(mut self, compiler: Arc<Compiler>) -> DeviceOptions {
        self.compiler = Some(compiler);
        self
    }
}
