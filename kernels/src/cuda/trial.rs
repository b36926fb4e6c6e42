//! Attention over copies of host tensors on a GPU: what checks and measurements launch.

use bytemuck::Pod;

use super::params::{AttendParams, MergeUnitsParams};
use super::work::{self, AttendSpec, Work};
use super::{ATTEND_PAGES, Buffer, Device, Error, Function, Grid, MERGE, Macros, Stream};
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
    attend: (Function, Grid, AttendParams),
    merge: (Function, Grid, MergeUnitsParams),
    o: Buffer,
    lse2: Buffer,
    /// Numbers of `o`, and of `lse2`.
    outputs: (usize, usize),
    _kept: Vec<Buffer>,
}

/// What goes to the GPU, one buffer each.
struct Upload<'a> {
    device: &'a Device,
    stream: &'a Stream,
    kept: Vec<Buffer>,
}

impl Upload<'_> {
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

    fn room(&mut self, bytes: usize) -> Result<u64, Error> {
        let buffer = self.device.buffer(bytes)?;
        let address = buffer.address();
        self.kept.push(buffer);
        Ok(address)
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
        (queries, listed, params): (&Queries, &Listed, &Params),
        memory: Memory<T>,
        wide: bool,
    ) -> Result<Trial, TrialError> {
        let shape = queries.q.shape();
        let outputs = (shape.iter().product::<usize>(), shape[0] * shape[1]);
        let mut o = vec![0f32; outputs.0];
        let out = Out { o: Tensor3Mut::contiguous(&mut o, shape)?, lse2: None };
        let (spec, p) = work::describe(queries, listed, params, &out)?;
        let spec = AttendSpec { wide: spec.wide || wide, ..spec };
        let attend = device.function(&ATTEND_PAGES.with(spec.macros()), "attend_pages", stream)?;
        let merge = device.function(&MERGE.with(Macros::new()), "merge_units", stream)?;
        let shared_bytes = spec.shared_bytes() as u32;
        let workers = attend.occupancy(128, shared_bytes)? * device.info().multiprocessors;
        let work = Work::new(queries, listed, params, spec.rows(), workers as usize)?;

        let mut up = Upload { device, stream, kept: Vec::new() };
        let moved = |up: &mut Upload, data: &[T], at: u64| {
            Ok::<u64, Error>(up.put(data)? + (at - data.as_ptr() as u64))
        };
        let p = AttendParams {
            q: moved(&mut up, memory.q, p.q)?,
            k: moved(&mut up, memory.k, p.k)?,
            v: moved(&mut up, memory.v, p.v)?,
            ..lists(&mut up, queries, listed, params, p)?
        };
        let partial = work.partials * spec.rows();
        let (o, lse2) = (device.buffer(outputs.0 * 4)?, device.buffer(outputs.1 * 4)?);
        let p = AttendParams {
            units: up.put(&work.units)?,
            segments: up.put(&work.segments)?,
            workers: up.put(&work.workers)?,
            o: o.address(),
            lse2: lse2.address(),
            part_o: up.room(partial * spec.dim * 4)?,
            part_lse2: up.room(partial * 4)?,
            ..p
        };
        let grid = |blocks: usize, shared_bytes| Grid {
            blocks: [blocks.max(1) as u32, 1, 1],
            threads: 128,
            shared_bytes,
        };
        let merging = grid((work.units.len() * spec.rows()).div_ceil(4), 0);
        Ok(Trial {
            stream: stream.clone(),
            merge: (merge, merging, work::merge_of(&spec, &p, &work)),
            attend: (attend, grid(work.workers.len() - 1, shared_bytes), p),
            o,
            lse2,
            outputs,
            _kept: up.kept,
        })
    }

    /// Queues the call: attention, and the merge behind it.
    ///
    /// # Errors
    /// Those of [`Function::launch`].
    pub fn launch(&self) -> Result<(), Error> {
        let ((attend, grid, p), (merge, merging, merged)) = (&self.attend, &self.merge);
        // SAFETY: the structs are those of the sources; every address in them is of a buffer that this
        // keeps, and the stream orders the two.
        unsafe {
            attend.launch(&self.stream, *grid, p)?;
            merge.launch(&self.stream, *merging, merged)
        }
    }

    /// Waits, and returns outputs `[rows, q_heads, dim]` and base-2 log-sum-exps `[rows, q_heads]`.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if the call failed, [`Error::Driver`].
    pub fn read(&self) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let (mut o, mut lse2) = (vec![0f32; self.outputs.0], vec![0f32; self.outputs.1]);
        self.o.read(&self.stream, 0, &mut o)?;
        self.lse2.read(&self.stream, 0, &mut lse2)?;
        Ok((o, lse2))
    }

    /// Overwrites the results with NaN, so that nothing old is taken for new.
    ///
    /// # Errors
    /// Those of [`Buffer::write`].
    pub fn poison(&mut self) -> Result<(), Error> {
        self.o.write(&self.stream, 0, &vec![f32::NAN; self.outputs.0])?;
        self.lse2.write(&self.stream, 0, &vec![f32::NAN; self.outputs.1])
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
