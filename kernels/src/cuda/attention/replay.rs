//! A call that is repeated with other lists, as one graph.

use super::tables::{Layout, Tables};
use super::{Attention, Kind, Room, merge_grid};
use crate::attend::{Listed, Out, Params, Queries};
use crate::cuda::params::AttendParams;
use crate::cuda::work::{self, AttendSpec, PlanRoom, Work};
use crate::cuda::{Error, Function, Graph, Stream, TrialError};

/// What a [`Replay`] has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Lists.
    pub lists: usize,
    /// Entries (frames, or slots) of all lists together.
    pub items: usize,
}

/// A call that is captured once and repeated with other lists: the same kernel, rows, addresses and rules.
#[derive(Debug)]
pub struct Replay {
    graph: Graph,
    /// What the graph launches stays loaded.
    _kernels: [Function; 2],
    room: Room,
    layout: Layout,
    /// What stays: the kernel, the addresses, and the size of the plan.
    kind: Kind,
    spec: AttendSpec,
    params: AttendParams,
    workers: usize,
    units: usize,
}

impl Attention {
    /// Captures a call like this one, with room for more, in a graph. Nothing is computed yet. The stream is
    /// not the default one.
    ///
    /// # Errors
    /// As [`Attention::launch`]; [`Error::Launch`] if the call itself needs more room.
    ///
    /// # Safety
    /// As of [`Attention::launch`], each time that the result is launched.
    pub unsafe fn capture(
        &mut self,
        stream: &Stream,
        (queries, listed, params): (&Queries, &Listed, &Params),
        out: &Out,
        lse2: u64,
        most: Capacity,
    ) -> Result<Replay, TrialError> {
        let (spec, p) = work::describe(queries, listed, params, out)?;
        let kind = Kind::of((&spec, &p), (queries, listed), self.device.info());
        let (function, workers) = self.kernel(&kind, stream)?;
        let work = Work::new(queries, listed, params, kind.rows(), workers)?;
        let (tables, units) = (Tables::new(queries, listed, params, &work), work.units.len());
        let layout = tables.layout_for(units, workers, most.lists, most.items);
        if !layout.fits(&tables) {
            let expected = format!("at most {} lists of {} entries", most.lists, most.items);
            let found = "more".to_owned();
            return Err(Error::Launch { what: "call to capture", expected, found }.into());
        }
        let partials = PlanRoom::new(units, workers).partials;
        let room = Room::new(&self.device, layout.bytes(), kind.part_bytes(partials)[1])?;
        let told = room.parts_of(&kind, partials, AttendParams { lse2, ..p });
        let told = layout.address(room.device.address(), told);
        let (merge, merge_rows) = (kind.merge_of(&told, &work), units * kind.rows());
        let merge_units = &self.merge_units;
        let graph = stream.capture(|| {
            // SAFETY: the room is the graph's; the rest is the caller's promise.
            unsafe {
                room.send(stream, layout.bytes())?;
                kind.launch(&function, stream, workers, &told)?;
                merge_units.launch(stream, merge_grid(merge_rows), &merge)
            }
        })?;
        room.done.record(stream)?;
        let _kernels = [function, self.merge_units.clone()];
        Ok(Replay { graph, _kernels, room, layout, kind, spec, params: p, workers, units })
    }
}

impl Replay {
    /// Queues the call with these lists: queries, output and rules are those that were captured.
    ///
    /// # Errors
    /// [`Error::Launch`] for a call that differs in more than lists and positions, or needs more room;
    /// [`Error::DeviceLost`], [`Error::Driver`].
    ///
    /// # Safety
    /// As of [`Attention::capture`].
    pub unsafe fn launch(
        &mut self,
        stream: &Stream,
        (queries, listed, params): (&Queries, &Listed, &Params),
        out: &Out,
    ) -> Result<(), TrialError> {
        let (spec, p) = work::describe(queries, listed, params, out)?;
        let work = Work::new(queries, listed, params, self.kind.rows(), self.workers)?;
        let tables = Tables::new(queries, listed, params, &work);
        let same = (spec, p, work.units.len()) == (self.spec, self.params, self.units);
        if !same || !self.layout.fits(&tables) {
            let expected = "the captured one with other lists, that fit".to_owned();
            let found = if same { "longer lists" } else { "another kernel, shape or rule" };
            let found = found.to_owned();
            return Err(Error::Launch { what: "call to replay", expected, found }.into());
        }
        self.room.done.synchronize()?;
        self.layout.write(&tables, self.room.host.bytes_mut());
        // SAFETY: the last replay is over; the rest is the caller's promise.
        let queued = unsafe { self.graph.launch(stream) };
        self.room.done.record(stream)?;
        Ok(queued?)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if let Err(e) = self.room.done.synchronize() {
            tracing::debug!("work on a GPU did not end well: {e}");
        }
    }
}
