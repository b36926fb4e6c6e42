//! Attention call after call over memory of the GPU: lists and plan of a call travel in one copy.

mod kind;
mod replay;
mod room;
mod tables;

use std::collections::HashMap;
use std::sync::Arc;

use kind::Kind;
pub(super) use kind::{FEW_ROWS, HOPPER};
pub use replay::{Capacity, Replay};
use room::{Room, Rooms};
use tables::Tables;

use super::params::{MergePartsParams, Part, type_code};
use super::work::{self, AttendSpec, Work};
use super::{Device, Error, Function, Grid, MERGE, Macros, Stream, TrialError};
use crate::DType;
use crate::attend::{Listed, Out, Params, Queries};

const THREADS: u32 = 128;
/// Rows that a block of the merges does: one per warp.
const MERGED: usize = 4;

/// A partial result on the GPU, as f32 without gaps.
#[derive(Clone, Copy, Debug)]
pub struct DevicePart {
    /// Address of the outputs, `[rows, heads, dim]`.
    pub o: u64,
    /// Address of the base-2 log-sum-exps, `[rows, heads]`.
    pub lse2: u64,
}

/// Calls of the attention kernels on one GPU. The views of a call name memory of the GPU; lists, positions and
/// sinks are the host's.
#[derive(Debug)]
pub struct Attention {
    device: Arc<Device>,
    kernels: HashMap<Kind, (Function, usize)>,
    merge_units: Function,
    merge_parts: Function,
    rooms: Rooms,
}

/// Blocks of a merge of so many rows.
fn merge_grid(rows: usize) -> Grid {
    let blocks = [rows.div_ceil(MERGED).max(1) as u32, 1, 1];
    Grid { blocks, threads: THREADS, shared_bytes: 0 }
}

impl Attention {
    /// Loads what every call needs.
    ///
    /// # Errors
    /// Those of [`Device::function`].
    pub fn new(device: &Arc<Device>, stream: &Stream) -> Result<Attention, Error> {
        let merge = MERGE.with(Macros::new());
        Ok(Attention {
            device: Arc::clone(device),
            kernels: HashMap::new(),
            merge_units: device.function(&merge, "merge_units", stream)?,
            merge_parts: device.function(&merge, "merge_parts", stream)?,
            rooms: Rooms::default(),
        })
    }

    /// Loads the kernels for keys and values of a type before they are needed: for few rows and for many.
    ///
    /// # Errors
    /// Those of [`Device::function`].
    pub fn warm_up(&mut self, dim: usize, dtype: DType, stream: &Stream) -> Result<(), Error> {
        let spec = |slots, wide| AttendSpec { dim, dtype, slots, wide };
        let few = [(false, false), (true, false), (false, true), (true, true)];
        let many = Kind::many(&spec(false, true), self.device.info());
        let all = few.map(|(slots, wide)| Kind::Few(spec(slots, wide)));
        all.iter().chain([&many]).try_for_each(|kind| self.kernel(kind, stream).map(drop))
    }

    /// The kernel, and how many blocks of it the GPU runs at once.
    fn kernel(&mut self, kind: &Kind, stream: &Stream) -> Result<(Function, usize), Error> {
        if let Some(found) = self.kernels.get(kind) {
            return Ok(found.clone());
        }
        let (kernel, entry) = kind.specialisation();
        let function = self.device.function(&kernel, entry, stream)?;
        let (threads, shared_bytes) = kind.block();
        let blocks = function.occupancy(threads, shared_bytes)?;
        let workers = (blocks * self.device.info().multiprocessors).max(1) as usize;
        self.kernels.insert(*kind, (function.clone(), workers));
        Ok((function, workers))
    }

    /// Queues a call. `out.o` is memory of the GPU, and so is `lse2` (f32 `[rows, q_heads]`), if it is not 0;
    /// `out.lse2` is not used.
    ///
    /// # Errors
    /// Arguments that no kernel takes; those of [`Device::function`], [`Device::buffer`] and
    /// [`Function::launch`].
    ///
    /// # Safety
    /// Queries, the pool of `listed`, `out.o` and `lse2` are memory of this GPU, or mapped to it, until
    /// what is queued is done; no other work that is not ordered with it writes what it reads or touches
    /// what it writes.
    pub unsafe fn launch(
        &mut self,
        stream: &Stream,
        (queries, listed, params): (&Queries, &Listed, &Params),
        out: &Out,
        lse2: u64,
    ) -> Result<(), TrialError> {
        let (spec, p) = work::describe(queries, listed, params, out)?;
        let kind = Kind::of((&spec, &p), (queries, listed), self.device.info());
        let (function, workers) = self.kernel(&kind, stream)?;
        let work = Work::new(queries, listed, params, kind.rows(), workers)?;
        let tables = Tables::new(queries, listed, params, &work);
        let layout = tables.layout();
        let mut room =
            self.rooms.take(&self.device, layout.bytes(), kind.part_bytes(work.partials)[1])?;
        layout.write(&tables, room.host.bytes_mut());
        let p = layout.address(room.device.address(), room.parts_of(&kind, work.partials, p));
        let p = super::params::AttendParams { lse2, ..p };
        let queued = (|| {
            // SAFETY: the room stays until what uses it is done; the rest is the caller's promise.
            unsafe {
                room.send(stream, layout.bytes())?;
                kind.launch(&function, stream, work.workers.len() - 1, &p)?;
                if work.partials > 0 {
                    let rows = work.units.len() * kind.rows();
                    let merge = kind.merge_of(&p, &work);
                    self.merge_units.launch(stream, merge_grid(rows), &merge)?;
                }
            }
            Ok(())
        })();
        self.rooms.give(room, stream)?;
        queued
    }

    /// Queues the merge of partial results, at least one, into `out.o` (memory of the GPU) and `lse2` (or 0).
    ///
    /// # Errors
    /// Those of [`Device::buffer`] and [`Function::launch`].
    ///
    /// # Safety
    /// As of [`Attention::launch`].
    pub unsafe fn merge(
        &mut self,
        stream: &Stream,
        parts: &[DevicePart],
        out: &Out,
        lse2: u64,
    ) -> Result<(), Error> {
        let o = out.o.as_view();
        let ([rows, heads, dim], strides) = (o.shape(), o.strides());
        let (row, head) = ((heads * dim) as i64, dim as i64);
        let of = |part: &DevicePart| Part { o: part.o, lse2: part.lse2, row, head };
        let table: Vec<Part> = parts.iter().map(of).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&table);
        let mut room = self.rooms.take(&self.device, bytes.len(), 0)?;
        room.host.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let p = MergePartsParams {
            parts: room.device.address(),
            o: o.row_ptr(0, 0) as u64,
            lse2,
            o_row: strides[0],
            o_head: strides[1],
            parts_n: parts.len() as u32,
            rows: rows as u32,
            heads: heads as u32,
            dim: dim as u32,
            part_type: type_code(DType::F32),
            o_type: type_code(o.dtype()),
        };
        let queued = (|| {
            // SAFETY: as in `launch`.
            unsafe {
                room.send(stream, bytes.len())?;
                self.merge_parts.launch(stream, merge_grid(rows * heads), &p)
            }
        })();
        self.rooms.give(room, stream)?;
        queued
    }
}
