//! Memory of calls on their way.

use super::kind::Kind;
use crate::cuda::params::AttendParams;
use crate::cuda::{Buffer, Device, Error, Event, Pinned, Stream};

/// Calls that may be on their way at once.
const FLYING: usize = 4;

/// Room for one call.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) host: Pinned,
    pub(super) device: Buffer,
    /// Partial results: outputs, then log-sum-exps.
    parts: Buffer,
    /// Behind the call that uses it.
    pub(super) done: Event,
}

/// Rooms of the last calls, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Rooms(Vec<Room>);

impl Room {
    pub(super) fn new(device: &Device, bytes: usize, parts: usize) -> Result<Room, Error> {
        Ok(Room {
            host: device.pinned(bytes)?,
            device: device.buffer(bytes)?,
            parts: device.buffer(parts)?,
            done: device.event()?,
        })
    }

    /// Sends the tables.
    ///
    /// # Safety
    /// They are not written before `done`.
    pub(super) unsafe fn send(&self, stream: &Stream, bytes: usize) -> Result<(), Error> {
        // SAFETY: promised by the caller.
        unsafe { stream.send(self.device.address(), self.host.bytes()[..bytes].as_ptr(), bytes) }
    }

    /// Where so many partial results go.
    pub(super) fn parts_of(&self, kind: &Kind, partials: usize, p: AttendParams) -> AttendParams {
        let part_o = self.parts.address();
        let [outputs, _] = kind.part_bytes(partials);
        AttendParams { part_o, part_lse2: part_o + outputs as u64, ..p }
    }
}

impl Rooms {
    /// Room that no call uses any more, with as much memory as that.
    pub(super) fn take(
        &mut self,
        device: &Device,
        bytes: usize,
        parts: usize,
    ) -> Result<Room, Error> {
        let mut had = (0, 0);
        if self.0.len() == FLYING {
            let room = self.0.remove(0);
            room.done.synchronize()?;
            had = (room.host.bytes().len(), room.parts.len());
            if had.0 >= bytes && had.1 >= parts {
                return Ok(room);
            }
        }
        Room::new(device, bytes.next_power_of_two().max(had.0), parts.max(had.1))
    }

    /// A call that uses the room is queued, or has failed on the way.
    pub(super) fn give(&mut self, room: Room, stream: &Stream) -> Result<(), Error> {
        let recorded = room.done.record(stream);
        self.0.push(room);
        recorded
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        // Memory may go when no call uses it.
        for room in &self.0 {
            if let Err(e) = room.done.synchronize() {
                tracing::debug!("work on a GPU did not end well: {e}");
            }
        }
    }
}
