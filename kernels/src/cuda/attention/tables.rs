//! What a call tells its kernel in memory: ten tables, which travel in one copy.

use bytemuck::{Pod, cast_slice};

use crate::attend::{Listed, Params, Queries};
use crate::cuda::params::{AttendParams, Segment, Unit};
use crate::cuda::work::{PlanRoom, Work};

/// Tables start at multiples of this.
const ALIGN: usize = 16;
const TABLES: usize = 10;
const UNITS: usize = 0;
const WORKERS: usize = 2;

/// The tables of a call, in the order of [`Layout::address`]; `None` for what it does not have.
pub(super) struct Tables<'a>([Option<&'a [u8]>; TABLES]);

/// Where tables lie in their copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    at: [usize; TABLES],
    room: [usize; TABLES],
    has: [bool; TABLES],
}

impl<'a> Tables<'a> {
    pub(super) fn new(
        queries: &Queries<'a>,
        listed: &Listed<'a>,
        params: &Params<'a>,
        work: &'a Work,
    ) -> Tables<'a> {
        fn some<T: Pod>(of: Option<&[T]>) -> Option<&[u8]> {
            of.map(cast_slice)
        }
        let masked = params.causal || params.window > 0;
        let (indptr, items, lens, first, slot) = match *listed {
            Listed::Pages(_, l) => (l.indptr, l.frames, Some(l.lens), l.first_pos, None),
            Listed::Slots(_, l) => (l.indptr, l.slots, None, None, l.positions.filter(|_| masked)),
        };
        Tables([
            Some(cast_slice(&work.units)),
            Some(cast_slice(&work.segments)),
            Some(cast_slice(&work.workers)),
            Some(cast_slice(indptr)),
            Some(cast_slice(items)),
            some(lens),
            some(first),
            some(slot),
            some(queries.positions.filter(|_| masked)),
            some(params.sinks),
        ])
    }

    /// Just enough room for them.
    pub(super) fn layout(&self) -> Layout {
        Layout::new(self.0.map(|table| table.map(<[u8]>::len)))
    }

    /// Room for other tables of the same kind: so many units, work for so many blocks, lists, and entries.
    pub(super) fn layout_for(
        &self,
        units: usize,
        workers: usize,
        lists: usize,
        items: usize,
    ) -> Layout {
        let (plan, mut room) = (PlanRoom::new(units, workers), self.0.map(|t| t.map(<[u8]>::len)));
        room[UNITS] = Some(units * size_of::<Unit>());
        room[1] = Some(plan.segments * size_of::<Segment>());
        room[WORKERS] = Some(plan.workers * 4);
        room[3] = Some((lists + 1) * 4);
        for (of, n) in [(4, items), (5, lists), (6, lists), (7, items)] {
            room[of] = room[of].map(|_| n * 4);
        }
        Layout::new(room)
    }
}

impl Layout {
    fn new(room: [Option<usize>; TABLES]) -> Layout {
        let (has, room) = (room.map(|r| r.is_some()), room.map(Option::unwrap_or_default));
        let (mut at, mut end) = ([0; TABLES], 0);
        for (at, room) in at.iter_mut().zip(room) {
            *at = end;
            end = (end + room).next_multiple_of(ALIGN);
        }
        Layout { at, room, has }
    }

    /// Bytes of all tables.
    pub(super) fn bytes(&self) -> usize {
        (self.at[TABLES - 1] + self.room[TABLES - 1]).next_multiple_of(ALIGN)
    }

    /// Whether there is a place for each of these tables, and no other.
    pub(super) fn fits(&self, tables: &Tables) -> bool {
        let fit = |i: usize| match tables.0[i] {
            Some(table) => self.has[i] && table.len() <= self.room[i],
            None => !self.has[i],
        };
        (0..TABLES).all(fit)
    }

    /// Writes tables that fit. Units behind the last have no rows, blocks behind the last nothing to do.
    pub(super) fn write(&self, tables: &Tables, to: &mut [u8]) {
        for (i, table) in tables.0.iter().enumerate() {
            let (to, table) = (&mut to[self.at[i]..][..self.room[i]], table.unwrap_or_default());
            let (now, rest) = to.split_at_mut(table.len());
            now.copy_from_slice(table);
            match i {
                UNITS => rest.fill(0),
                WORKERS => {
                    let last = &table[table.len() - 4..];
                    rest.chunks_exact_mut(4).for_each(|n| n.copy_from_slice(last));
                }
                _ => {}
            }
        }
    }

    /// The tables' addresses, in memory that starts at `base`.
    pub(super) fn address(&self, base: u64, p: AttendParams) -> AttendParams {
        let at = |i: usize| if self.has[i] { base + self.at[i] as u64 } else { 0 };
        AttendParams {
            units: at(UNITS),
            segments: at(1),
            workers: at(WORKERS),
            indptr: at(3),
            items: at(4),
            lens: at(5),
            first_pos: at(6),
            slot_pos: at(7),
            q_pos: at(8),
            sinks: at(9),
            ..p
        }
    }
}
