//! Settings of the device tier.

use std::any::Any;
use std::sync::Arc;

use kvist_kernels::cuda::Compiler;

/// A GPU that keeps copies of pages, and attends to them: [`Builder::device`](crate::Builder::device).
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    pub(super) ordinal: usize,
    pub(super) bytes: Option<u64>,
    pub(super) memory: Option<(u64, u64)>,
    pub(super) owner: Option<Arc<dyn Any + Send + Sync>>,
    pub(super) zero_copy: bool,
    pub(super) optional: bool,
    pub(super) ahead: bool,
    pub(super) compiler: Option<Arc<Compiler>>,
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
            compiler: None,
        }
    }
}

impl DeviceOptions {
    /// The GPU's number in this process. Default 0.
    #[must_use]
    pub fn ordinal(mut self, ordinal: usize) -> DeviceOptions {
        self.ordinal = ordinal;
        self
    }

    /// Bytes of GPU memory for pages, taken at once: a hard limit. Lists and results take a few MiB more.
    /// Default: half of what the driver says is free, so that memory that a framework has in its pool is
    /// not touched.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> DeviceOptions {
        self.bytes = Some(bytes);
        self
    }

    /// Memory of the GPU that the caller took, say by the framework's own allocator, in place of own memory.
    ///
    /// # Safety
    /// It is memory of that GPU, 256-byte aligned, nobody else touches it, and it stays until the last clone
    /// of the cache and the last sequence are gone.
    #[must_use]
    pub unsafe fn memory(mut self, address: u64, bytes: u64) -> DeviceOptions {
        self.memory = Some((address, bytes));
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

    /// Whether the cache works on the CPU where there is no such GPU, no driver, or not enough memory; see
    /// [`DeviceUse::degraded`](crate::DeviceUse::degraded). Default no: the cache is refused then.
    #[must_use]
    pub fn optional(mut self, on: bool) -> DeviceOptions {
        self.optional = on;
        self
    }

    /// Who makes kernels. Default: [`Compiler::from_env`].
    #[must_use]
    pub fn compiler(mut self, compiler: Arc<Compiler>) -> DeviceOptions {
        self.compiler = Some(compiler);
        self
    }
}
