//! Where kernels run their tasks: inline or on a rayon pool, the caller's own if wanted.
//!
//! Work is cut into tasks by shapes and list lengths, never by the number of threads, and each
//! task writes its own part of the output: results are bit-equal for any pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Error;

/// Runs numbered tasks, in any order, possibly at once.
#[derive(Clone, Debug, Default)]
pub struct Executor {
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Executor {
    /// Runs everything on the calling thread.
    #[must_use]
    pub fn inline() -> Executor {
        Executor { pool: None }
    }

    /// Most threads of a pool: far above any machine, so that a slip does not fill the process table.
    pub const THREADS_MAX: usize = 1024;

    /// A new pool of `threads` threads; `0` and `1` mean inline.
    ///
    /// # Errors
    /// [`Error::Range`] above [`Executor::THREADS_MAX`], [`Error::Threads`] if the operating system
    /// refuses to start that many.
    pub fn with_threads(threads: usize) -> Result<Executor, Error> {
        if threads <= 1 {
            return Ok(Executor::inline());
        }
        if threads > Executor::THREADS_MAX {
            return Err(Error::range("threads", format!("1..={}", Executor::THREADS_MAX), threads));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("kvist-{i}"))
            .build()
            .map_err(|e| Error::Threads { count: threads, reason: e.to_string() })?;
        Ok(Executor { pool: Some(Arc::new(pool)) })
    }

    /// Uses a pool the caller already has.
    #[must_use]
    pub fn from_pool(pool: Arc<rayon::ThreadPool>) -> Executor {
        Executor { pool: Some(pool) }
    }

    /// Threads that may run tasks at once (at least 1).
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, |p| p.current_num_threads())
    }

    /// Runs `task(0..tasks)`, each once, and returns when all are done.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 => {
                let next = AtomicUsize::new(0);
                let work = || {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= tasks {
                            break;
                        }
                        task(i);
                    }
                };
                // The caller works too instead of sleeping until the others, which must first wake
                // up, are done.
                let others = (pool.current_num_threads() - 1).min(tasks - 1);
                pool.in_place_scope(|scope| {
                    (0..others).for_each(|_| scope.spawn(|_| work()));
                    work();
                });
            }
            _ => (0..tasks).for_each(task),
        }
    }
}

/// A slice of which every task takes another part.
struct Parts<T>(*mut T, usize);

// SAFETY: parts are handed to one task each, see `Executor::chunks2`.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// The `i`th part of `size` elements; the last may be shorter.
    ///
    /// # Safety
    /// No other task may hold the same part.
    #[expect(clippy::mut_from_ref, reason = "the parts are disjoint")]
    unsafe fn part(&self, i: usize, size: usize) -> &mut [T] {
        let from = (i * size).min(self.1);
        let to = (from + size).min(self.1);
        // SAFETY: inside the slice that `self` was made of; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), to - from) }
    }
}

impl Executor {
    /// Runs `task(i, part)` for the consecutive parts of `size` elements of `data`.
    ///
    /// # Panics
    /// If `size` is 0.
    pub(crate) fn chunks<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let tasks = data.len().div_ceil(size);
        self.chunks2((data, size), (&mut [(); 0], 1), tasks, |i, part, _| task(i, part));
    }

    /// Runs `task(i, a, b)` for `i` in `0..tasks` with the `i`th parts of two slices, given with the
    /// size of their parts.
    pub(crate) fn chunks2<A: Send, B: Send>(
        &self,
        (a, a_size): (&mut [A], usize),
        (b, b_size): (&mut [B], usize),
        tasks: usize,
        task: impl Fn(usize, &mut [A], &mut [B]) + Sync,
    ) {
        let (a, b) = (Parts(a.as_mut_ptr(), a.len()), Parts(b.as_mut_ptr(), b.len()));
        self.run(tasks, |i| {
            // SAFETY: `run` calls each task once, so each part has one holder.
            unsafe { task(i, a.part(i, a_size), b.part(i, b_size)) }
        });
    }
}
