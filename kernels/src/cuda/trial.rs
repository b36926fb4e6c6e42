//! Attention over copies of host tensors on a GPU: what checks and measurements launch.

mod tall;

use std::fmt::Debug;

use bytemuck::Pod;

use super::program::Program;

use super::params::AttendParams;
use super::work::{self, AttendSpec, Work};
use super::{ATTEND_PAGES, Buffer, Device, Error, Function, Kernel, MERGE, Macros, Stream};
use crate::Tensor3Mut;
use crate::attend::{Listed, Out, Params, Queries};

/// Why a trial cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrialError {
    /// The GPU.
    #[error(transparent)]
    Device(#[from] Error),
    /// The arguments.
    #[error(transparent)]
    Arguments(#[from] crate::Error),
}

/// The memory behind the views of a call.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a, T> {
    /// Queries.
    pub q: &'a [T],
    /// Keys.
    pub k: &'a [T],
    /// Values.
    pub v: &'a [T],
}

/// A call whose tensors, lists and plan are on the GPU. Results are f32.
#[derive(Debug)]
pub struct Trial {
    stream: Stream,
    program: Program,
    results: Results,
    _kept: Vec<Buffer>,
}

/// Outputs f32 `[rows, q_heads, dim]` and base-2 log-sum-exps `[rows, q_heads]`.
#[derive(Debug)]
struct Results {
    o: Buffer,
    lse2: Buffer,
    shape: [usize; 3],
}

impl Results {
    /// Room for the results of these queries.
    fn new(device: &Device, queries: &Queries) -> Result<Results, Error> {
        let shape = queries.q.shape();
        let numbers = shape.iter().product::<usize>();
        let (o, lse2) = (device.buffer(numbers * 4)?, device.buffer(shape[0] * shape[1] * 4)?);
        Ok(Results { o, lse2, shape })
    }

    /// The parameters of a call as they are for an output of this kind; `f` gets the output.
    fn described<R>(
        &self,
        f: impl FnOnce(&Out) -> Result<R, crate::Error>,
    ) -> Result<R, crate::Error> {
        let mut o = vec![0f32; self.shape.iter().product()];
        f(&Out { o: Tensor3Mut::contiguous(&mut o, self.shape)?, lse2: None })
    }

    fn told(&self, p: AttendParams) -> AttendParams {
        AttendParams { o: self.o.address(), lse2: self.lse2.address(), ..p }
    }
}

/// Steps, and what goes to the GPU for them, one buffer each.
struct Upload<'a> {
    device: &'a Device,
    stream: &'a Stream,
    kept: Vec<Buffer>,
    program: Program,
}

impl<'a> Upload<'a> {
    fn new(device: &'a Device, stream: &'a Stream) -> Upload<'a> {
        Upload { device, stream, kept: Vec::new(), program: Program::default() }
    }

    fn put<T: Pod>(&mut self, data: &[T]) -> Result<u64, Error> {
        self.room(size_of_val(data)).and_then(|address| {
            let buffer = self.kept.last_mut();
            buffer.map_or(Ok(()), |buffer| buffer.write(self.stream, 0, data))?;
            Ok(address)
        })
    }

    fn put_some<T: Pod>(&mut self, data: Option<&[T]>) -> Result<u64, Error> {
        data.map_or(Ok(0), |data| self.put(data))
    }

    /// What lies at `at` on the host, somewhere in `data`.
    fn moved<T: Pod>(&mut self, data: &[T], at: u64) -> Result<u64, Error> {
        Ok(self.put(data)? + (at - data.as_ptr() as u64))
    }

    fn room(&mut self, bytes: usize) -> Result<u64, Error> {
        let buffer = self.device.buffer(bytes)?;
        let address = buffer.address();
        self.kept.push(buffer);
        Ok(address)
    }

    /// The tensors of a call.
    fn tensors<T: Pod>(
        &mut self,
        memory: Memory<T>,
        p: AttendParams,
    ) -> Result<AttendParams, Error> {
        Ok(AttendParams {
            q: self.moved(memory.q, p.q)?,
            k: self.moved(memory.k, p.k)?,
            v: self.moved(memory.v, p.v)?,
            ..p
        })
    }

    /// The cut of a call, and room for `rows` rows of each partial result.
    fn work(
        &mut self,
        work: &Work,
        (rows, dim): (usize, usize),
        p: AttendParams,
    ) -> Result<AttendParams, Error> {
        let partial = work.partials * rows;
        Ok(AttendParams {
            units: self.put(&work.units)?,
            segments: self.put(&work.segments)?,
            workers: self.put(&work.workers)?,
            part_o: self.room(partial * dim * 4)?,
            part_lse2: self.room(partial * 4)?,
            ..p
        })
    }

    /// A kernel, and the blocks of it that run at once.
    fn function(
        &self,
        (kernel, macros): (&'static Kernel, Macros),
        entry: &'static str,
        (threads, shared_bytes): (u32, usize),
    ) -> Result<(Function, usize), Error> {
        let function = self.device.function(&kernel.with(macros), entry, self.stream)?;
        let blocks = function.occupancy(threads, shared_bytes as u32)?;
        Ok((function, (blocks * self.device.info().multiprocessors) as usize))
    }

    /// Adds a merge of partial results or parts.
    fn merge<P: Pod + Debug + Send + Sync>(
        &mut self,
        entry: &'static str,
        rows: usize,
        p: P,
    ) -> Result<(), Error> {
        let (function, _) = self.function((&MERGE, Macros::new()), entry, (128, 0))?;
        self.program.push(function, (rows.div_ceil(4), 128, 0), p);
        Ok(())
    }

    /// Adds attention of few rows.
    fn attend<T: Pod>(
        &mut self,
        (queries, listed, params): (&Queries, &Listed, &Params),
        memory: Memory<T>,
        wide: bool,
        results: &Results,
    ) -> Result<(), TrialError> {
        let (spec, p) = results.described(|out| work::describe(queries, listed, params, out))?;
        let spec = AttendSpec { wide: spec.wide || wide, ..spec };
        let (kernel, shared) = ((&ATTEND_PAGES, spec.macros()), spec.shared_bytes());
        let (function, workers) = self.function(kernel, "attend_pages", (128, shared))?;
        let work = Work::new(queries, listed, params, spec.rows(), workers)?;
        let p = self.tensors(memory, results.told(p))?;
        let p = lists(self, queries, listed, params, p)?;
        let p = self.work(&work, (spec.rows(), spec.dim), p)?;
        self.program.push(function, (work.workers.len() - 1, 128, shared), p);
        let merge = work::merge_of(&spec, &p, &work);
        self.merge("merge_units", work.units.len() * spec.rows(), merge)?;
        Ok(())
    }

    fn finish(self, results: Results) -> Trial {
        Trial { stream: self.stream.clone(), program: self.program, results, _kept: self.kept }
    }
}

impl Trial {
    /// Copies everything to the GPU and plans for all its multiprocessors. `wide` asks for the kernel of up to
    /// 64 rows where 16 would do.
    ///
    /// # Errors
    /// Arguments that no kernel takes, and those of [`Device::function`] and [`Device::buffer`].
    pub fn new<T: Pod>(
        device: &Device,
        stream: &Stream,
        call: (&Queries, &Listed, &Params),
        memory: Memory<T>,
        wide: bool,
    ) -> Result<Trial, TrialError> {
        let (mut up, results) = (Upload::new(device, stream), Results::new(device, call.0)?);
        up.attend(call, memory, wide, &results)?;
        Ok(up.finish(results))
    }

    /// Queues the call: its steps, one behind the other.
    ///
    /// # Errors
    /// Those of [`Function::launch`].
    pub fn launch(&self) -> Result<(), Error> {
        // SAFETY: addresses are all of buffers that this keeps; structs are those of the sources.
        unsafe { self.program.queue(&self.stream) }
    }

    /// Waits, and returns outputs `[rows, q_heads, dim]` and base-2 log-sum-exps `[rows, q_heads]`.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if the call failed, [`Error::Driver`].
    pub fn read(&self) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let [rows, heads, dim] = self.results.shape;
        let (mut o, mut lse2) = (vec![0f32; rows * heads * dim], vec![0f32; rows * heads]);
        self.results.o.read(&self.stream, 0, &mut o)?;
        self.results.lse2.read(&self.stream, 0, &mut lse2)?;
        Ok((o, lse2))
    }

    /// Overwrites the results with NaN, so that nothing old is taken for new.
    ///
    /// # Errors
    /// Those of [`Buffer::write`].
    pub fn poison(&mut self) -> Result<(), Error> {
        for buffer in [&mut self.results.o, &mut self.results.lse2] {
            buffer.write(&self.stream, 0, &vec![f32::NAN; buffer.len() / 4])?;
        }
        Ok(())
    }
}

/// What the kernel is told of lists, positions and sinks.
fn lists(
    up: &mut Upload,
    queries: &Queries,
    listed: &Listed,
    params: &Params,
    p: AttendParams,
) -> Result<AttendParams, Error> {
    let masked = params.causal || params.window > 0;
    let p = AttendParams {
        q_pos: up.put_some(queries.positions.filter(|_| masked))?,
        sinks: up.put_some(params.sinks)?,
        ..p
    };
    Ok(match listed {
        Listed::Pages(_, pages) => AttendParams {
            indptr: up.put(pages.indptr)?,
            items: up.put(pages.frames)?,
            lens: up.put(pages.lens)?,
            first_pos: up.put_some(pages.first_pos)?,
            ..p
        },
        Listed::Slots(_, slots) => AttendParams {
            indptr: up.put(slots.indptr)?,
            items: up.put(slots.slots)?,
            slot_pos: up.put_some(slots.positions.filter(|_| masked))?,
            ..p
        },
    })
}
