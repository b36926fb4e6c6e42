//! What changes from step to step, in memory that the GPU reads.

use super::shape::MORE;
use super::{StepChoice, StepShape};
use crate::cuda::{Buffer, Device, Error, Event, Pinned, Stream};
use crate::summary::TILE;

/// A KV head of a sequence, in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRow {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// First and last units, or tokens, which are always read. Of tokens, the last ones hold those that no cell
    /// speaks of.
    pub keep: [usize; 2],
    /// Units, or tokens, that are read in all.
    pub wanted: usize,
}

impl StepRow {
    /// Of tokens, how many are looked at closely.
    #[must_use]
    pub fn candidates(&self) -> usize {
        let kept = self.keep[0].saturating_add(self.keep[1]);
        let more = self.wanted.saturating_sub(kept).div_ceil(MORE);
        self.wanted.saturating_add(more).min(self.tokens)
    }
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

/// What the rows of a step are, each as a table of u32.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    /// What is scored: units, or cells of boxed codes.
    Scored,
    /// What has a score: units, or tokens in these cells.
    Known,
    /// What is up for choice: units, or tokens.
    Units,
    Tokens,
    /// How many are chosen first, and which are in any case: offsets and ranges.
    First,
    FirstPtr,
    FirstForced,
    /// The same of the second choice, among those.
    Wanted,
    WantedPtr,
    WantedForced,
    /// Of the tokens that no cell speaks of: the first page's place in the list, tokens from there on, and which.
    Behind,
    BehindN,
    BehindPtr,
    BehindForced,
}

const TABLES: usize = 14;

/// All tables of a step.
#[derive(Debug)]
pub(super) struct State {
    rows: Tables<TABLES>,
    /// Frames and cells.
    lists: Tables<2>,
    pub(super) done: Event,
}

impl State {
    pub(super) fn new(device: &Device, shape: &StepShape) -> Result<State, Error> {
        let rows = shape.rows();
        let (ptr, forced) = (rows + 1, 4 * rows);
        let mut numbers = [rows; TABLES];
        for of in [Of::FirstPtr, Of::WantedPtr, Of::BehindPtr] {
            (numbers[of as usize], numbers[of as usize + 1]) = (ptr, forced);
        }
        Ok(State {
            rows: Tables::new(device, numbers)?,
            lists: Tables::new(device, [rows * shape.pages_max, rows * shape.cells_max()])?,
            done: device.event()?,
        })
    }

    /// Where a table is on the GPU.
    pub(super) fn at(&self, table: Of) -> u64 {
        self.rows.address(table as usize)
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
        let units = |row: &StepRow| row.tokens.div_ceil(shape.unit_tokens());
        let mut all = [(); TABLES].map(|()| Vec::new());
        let by_units = matches!(shape.choice, StepChoice::Units { .. });
        let scored = |row: &StepRow| if by_units { units(row) } else { row.tokens / TILE };
        let known = |row: &StepRow| if by_units { units(row) } else { scored(row) * TILE };
        // The page of the first token that no cell speaks of.
        let first_page = |row: &StepRow| row.tokens / TILE * TILE / shape.page_tokens;
        let first = |row: &StepRow| if by_units { row.wanted } else { row.candidates() };
        for (i, row) in rows.iter().enumerate() {
            let page = first_page(row);
            let numbers = [
                (Of::Behind, i * shape.pages_max + page.min(shape.pages_max - 1)),
                (Of::BehindN, row.tokens - page * shape.page_tokens),
                (Of::Scored, scored(row)),
                (Of::Known, known(row)),
                (Of::Units, units(row)),
                (Of::Tokens, row.tokens),
                (Of::First, first(row)),
                (Of::Wanted, row.wanted),
            ];
            numbers.iter().for_each(|&(table, n)| all[table as usize].push(n as u32));
        }
        for (table, numbers) in all.iter().enumerate() {
            self.rows.put(table, numbers);
        }
        self.force(rows, (Of::FirstPtr, Of::FirstForced), &units);
        self.force(rows, (Of::WantedPtr, Of::WantedForced), &first);
        let behind: Vec<StepRow> =
            rows.iter().map(|row| StepRow { keep: [0, row.tokens % TILE], ..*row }).collect();
        self.force(&behind, (Of::BehindPtr, Of::BehindForced), &|row| {
            row.tokens - first_page(row) * shape.page_tokens
        });
    }

    /// The first and the last of so many are chosen in any case.
    fn force(&mut self, rows: &[StepRow], to: (Of, Of), of: &dyn Fn(&StepRow) -> usize) {
        let (mut offsets, mut ranges) = (vec![0u32], Vec::new());
        for row in rows {
            let n = of(row);
            let first = row.keep[0].min(n);
            let last = (n - row.keep[1].min(n)).max(first);
            let own = [[0, first], [last, n]].into_iter().filter(|[begin, end]| begin < end);
            ranges.extend(own.flatten().map(|n| n as u32));
            offsets.push(ranges.len() as u32 / 2);
        }
        self.rows.put(to.0 as usize, &offsets);
        self.rows.put(to.1 as usize, &ranges);
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
