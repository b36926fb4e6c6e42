//! What changes from step to step, in memory that the GPU reads.

use super::StepShape;
use crate::cuda::{Buffer, Device, Error, Event, Pinned, Stream};

/// A KV head of a sequence, in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRow {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// First and last units, which are always read.
    pub keep: [usize; 2],
    /// Units that are read in all.
    pub wanted: usize,
}

/// Where the rows' pages and boxes are.
#[derive(Debug)]
pub struct StepLists<'a> {
    /// `[rows][pages_max]`: the frame of each page, marked with [`StepLists::FAR`] where it lies there.
    pub frames: &'a mut [u32],
    /// `[rows][cells_max]`: the cell of each run of units.
    pub cells: &'a mut [u32],
}

impl StepLists<'_> {
    /// Marks the frame of a page that lies in the other place.
    pub const FAR: u32 = 1 << 31;
}

/// Tables side by side, in pinned memory and on the GPU.
#[derive(Debug)]
struct Tables<const N: usize> {
    host: Pinned,
    device: Buffer,
    at: [usize; N],
}

impl<const N: usize> Tables<N> {
    fn new(device: &Device, numbers: [usize; N]) -> Result<Self, Error> {
        let (mut at, mut end) = ([0; N], 0);
        for (at, numbers) in at.iter_mut().zip(numbers) {
            *at = end;
            end = (end + numbers * 4).next_multiple_of(16);
        }
        Ok(Tables { host: device.pinned(end)?, device: device.buffer(end)?, at })
    }

    fn address(&self, table: usize) -> u64 {
        self.device.address() + self.at[table] as u64
    }

    fn put(&mut self, table: usize, numbers: &[u32]) {
        let bytes: &[u8] = bytemuck::cast_slice(numbers);
        self.host.bytes_mut()[self.at[table]..][..bytes.len()].copy_from_slice(bytes);
    }

    /// # Safety
    /// The tables stay until what is queued is done, and are not written before.
    unsafe fn send(&self, stream: &Stream) -> Result<(), Error> {
        let bytes = self.host.bytes();
        // SAFETY: the caller's promise; they are equally large.
        unsafe { stream.send(self.device.address(), bytes.as_ptr(), bytes.len()) }
    }
}

/// All tables of a step.
#[derive(Debug)]
pub(super) struct State {
    /// Of each row: units, tokens, how many are wanted; offsets of its forced ranges; and these.
    rows: Tables<5>,
    /// Frames and cells.
    lists: Tables<2>,
    pub(super) done: Event,
}

impl State {
    pub(super) fn new(device: &Device, shape: &StepShape) -> Result<State, Error> {
        let rows = shape.rows();
        Ok(State {
            rows: Tables::new(device, [rows, rows, rows, rows + 1, 4 * rows])?,
            lists: Tables::new(device, [rows * shape.pages_max, rows * shape.cells_max()])?,
            done: device.event()?,
        })
    }

    pub(super) fn units(&self) -> u64 {
        self.rows.address(0)
    }

    pub(super) fn tokens(&self) -> u64 {
        self.rows.address(1)
    }

    pub(super) fn wanted(&self) -> u64 {
        self.rows.address(2)
    }

    /// Offsets of the forced ranges, and these.
    pub(super) fn forced(&self) -> [u64; 2] {
        [self.rows.address(3), self.rows.address(4)]
    }

    pub(super) fn frames(&self) -> u64 {
        self.lists.address(0)
    }

    pub(super) fn cells(&self) -> u64 {
        self.lists.address(1)
    }

    pub(super) fn lists(&mut self, shape: &StepShape) -> StepLists<'_> {
        let at = self.lists.at[1];
        let numbers: &mut [u32] = bytemuck::cast_slice_mut(self.lists.host.bytes_mut());
        let (frames, cells) = numbers.split_at_mut(at / 4);
        StepLists {
            frames: &mut frames[..shape.rows() * shape.pages_max],
            cells: &mut cells[..shape.rows() * shape.cells_max()],
        }
    }

    /// Writes the tables of rows that were checked.
    pub(super) fn set(&mut self, shape: &StepShape, rows: &[StepRow]) {
        let units = |row: &StepRow| row.tokens.div_ceil(shape.unit_tokens);
        let each = |of: &dyn Fn(&StepRow) -> usize| -> Vec<u32> {
            rows.iter().map(|row| of(row) as u32).collect()
        };
        self.rows.put(0, &each(&units));
        self.rows.put(1, &each(&|row| row.tokens));
        self.rows.put(2, &each(&|row| row.wanted));
        let (mut offsets, mut ranges) = (vec![0u32], Vec::new());
        for row in rows {
            let n = units(row);
            let first = row.keep[0].min(n);
            let last = (n - row.keep[1].min(n)).max(first);
            let own = [[0, first], [last, n]].into_iter().filter(|[begin, end]| begin < end);
            ranges.extend(own.flatten().map(|n| n as u32));
            offsets.push(ranges.len() as u32 / 2);
        }
        self.rows.put(3, &offsets);
        self.rows.put(4, &ranges);
    }

    /// # Safety
    /// As for [`Tables::send`].
    pub(super) unsafe fn send_rows(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.rows.send(stream) }
    }

    /// # Safety
    /// As for [`Tables::send`].
    pub(super) unsafe fn send_lists(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.lists.send(stream) }
    }
}
