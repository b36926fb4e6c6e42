//! Tensors of a GPU, whoever made them, as bytes of the host.

use std::sync::Arc;

use super::params::CopyParams;
use super::{Device, Error, Function, Grid, Macros, Pinned, Stream, TRANSFER};

/// Bytes of pinned memory that rows with gaps pass through at a time.
const STAGE_BYTES: usize = 4 << 20;
/// Blocks of the copying kernel: enough for a link, few enough to leave the GPU to the model.
const QUOTA: u32 = 32;
const THREADS: u32 = 128;
/// What the kernel moves at a time: rows that are no multiples of it, or lie between, are copied one by one.
const PIECE: usize = 16;

/// A tensor in the memory of a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// Of its first element.
    pub address: u64,
    /// Bytes of an element.
    pub element_bytes: usize,
    /// Elements of each dimension.
    pub shape: &'a [usize],
    /// Elements from one entry of a dimension to the next; any number.
    pub strides: &'a [i64],
}

/// A dimension: how many, and bytes from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dim {
    count: usize,
    step: i64,
}

/// Brings tensors to the host, on a stream of its own.
#[derive(Debug)]
pub struct Reader {
    device: Arc<Device>,
    stream: Stream,
    rows: Option<Rows>,
    /// Whether it was tried to make the kernel.
    asked: bool,
}

/// What rows with gaps pass through.
#[derive(Debug)]
struct Rows {
    copy: Function,
    stage: Pinned,
}

impl Reader {
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Driver`].
    pub fn new(device: Arc<Device>) -> Result<Reader, Error> {
        let stream = device.new_stream()?;
        Ok(Reader { device, stream, rows: None, asked: false })
    }

    /// Where copies are queued: whoever writes a tensor makes this stream wait before it is read.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Copies a tensor, row-major, behind what is queued on the stream, and waits. Neighbours go in one copy,
    /// and rows with gaps by a kernel, if it can be made; else each row has a copy of its own.
    ///
    /// # Errors
    /// [`Error::Launch`] if `out` has another length; [`Error::OutOfMemory`], [`Error::DeviceLost`],
    /// [`Error::Driver`].
    ///
    /// # Safety
    /// Every element of the tensor is memory of this GPU, and stays as it is until this returns.
    pub unsafe fn read(&mut self, from: &Strided, out: &mut [u8]) -> Result<(), Error> {
        let bytes = from.shape.iter().try_fold(from.element_bytes, |n, &d| n.checked_mul(d));
        if bytes != Some(out.len()) || from.shape.len() != from.strides.len() {
            let expected = format!("the {} bytes to copy to", out.len());
            let found = format!("{:?} of {} bytes", from.shape, from.element_bytes);
            return Err(Error::Launch { what: "tensor to copy", expected, found });
        }
        if out.is_empty() {
            return Ok(());
        }
        let (dims, row) = rows(from);
        let copied = self.part(from.address, &dims, row, out);
        // Whatever happened, nothing writes to `out` behind the caller's back.
        copied.and(self.stream.synchronize())
    }

    /// Copies the rows of these dimensions, row-major.
    fn part(&mut self, at: u64, dims: &[Dim], row: usize, out: &mut [u8]) -> Result<(), Error> {
        let Some((first, rest)) = dims.split_first() else {
            // SAFETY: a row of the caller's tensor; whoever called waits.
            return unsafe { self.stream.fetch(out, at) };
        };
        let (count, each) = (first.count, out.len() / first.count);
        let fits = STAGE_BYTES / each;
        if fits > 0 && rest.len() <= 1 && by_kernel(at, dims, row) && self.can_copy()? {
            let of = |i: usize| at.wrapping_add_signed(i as i64 * first.step);
            for (i, out) in out.chunks_mut(fits * each).enumerate() {
                self.launch(of(i * fits), first.step, rest.first(), row, out)?;
            }
            return Ok(());
        }
        for (i, out) in (0..count).zip(out.chunks_mut(each)) {
            self.part(at.wrapping_add_signed(i as i64 * first.step), rest, row, out)?;
        }
        Ok(())
    }

    /// Whether there is the kernel.
    fn can_copy(&mut self) -> Result<bool, Error> {
        if !self.asked {
            self.asked = true;
            let kernel = TRANSFER.with(Macros::new());
            match self.device.function(&kernel, "copy_items", &self.stream) {
                Ok(copy) => {
                    self.rows = Some(Rows { copy, stage: self.device.pinned(STAGE_BYTES)? })
                }
                Err(e) => tracing::warn!("tensors with gaps are copied row by row: {e}"),
            }
        }
        Ok(self.rows.is_some())
    }

    /// Copies items of one or more rows by the kernel, and waits: as many as `out` holds.
    fn launch(
        &self,
        from: u64,
        step: i64,
        inner: Option<&Dim>,
        row: usize,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let Some(Rows { copy, stage }) = &self.rows else { return Ok(()) };
        let pieces = inner.map_or(1, |dim| dim.count);
        let items = out.len() / (pieces * row);
        let params = CopyParams {
            from,
            to: stage.address(),
            from_item: step,
            from_piece: inner.map_or(0, |dim| dim.step),
            to_item: (pieces * row) as i64,
            to_piece: row as i64,
            items: items as u32,
            pieces: pieces as u32,
            piece_bytes: row as u32,
            ..bytemuck::Zeroable::zeroed()
        };
        let blocks = QUOTA.min((items * pieces).div_ceil(4) as u32);
        let grid = Grid { blocks: [blocks, 1, 1], threads: THREADS, shared_bytes: 0 };
        // SAFETY: rows of the caller's tensor; the stage is as long, and is read once the work is done.
        unsafe { copy.launch(&self.stream, grid, &params)? }
        self.stream.synchronize()?;
        out.copy_from_slice(&stage.bytes()[..out.len()]);
        Ok(())
    }
}

/// Whether all rows begin at a multiple of what the kernel moves, and are one.
fn by_kernel(at: u64, dims: &[Dim], row: usize) -> bool {
    let fits = |step: i64| step % PIECE as i64 == 0;
    at.is_multiple_of(PIECE as u64) && fits(row as i64) && dims.iter().all(|dim| fits(dim.step))
}

/// The dimensions over rows, and the bytes of a row: dimensions that lie side by side are one.
fn rows(from: &Strided) -> (Vec<Dim>, usize) {
    let mut row = from.element_bytes;
    let mut dims: Vec<Dim> = Vec::new();
    let of = |(&count, &stride): (&usize, &i64)| Dim {
        count,
        step: stride.wrapping_mul(from.element_bytes as i64),
    };
    let all = from.shape.iter().zip(from.strides).map(of);
    for dim in all.rev().filter(|dim| dim.count > 1) {
        match dims.last_mut() {
            None if dim.step == row as i64 => row *= dim.count,
            Some(inner) if dim.step == inner.step.wrapping_mul(inner.count as i64) => {
                inner.count *= dim.count;
            }
            _ => dims.push(dim),
        }
    }
    dims.reverse();
    (dims, row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_row() {
        let found = |shape: &[usize], strides: &[i64]| {
            let (dims, row) = rows(&Strided { address: 0, element_bytes: 2, shape, strides });
            (dims.iter().map(|dim| (dim.count, dim.step)).collect::<Vec<_>>(), row)
        };
        assert_eq!(found(&[], &[]), (vec![], 2));
        assert_eq!(found(&[3, 4, 8], &[32, 8, 1]), (vec![], 192));
        assert_eq!(found(&[1, 4, 8], &[999, 8, 1]), (vec![], 64));
        assert_eq!(found(&[3, 4, 8], &[8, 24, 1]), (vec![(3, 16), (4, 48)], 16));
        assert_eq!(found(&[3, 4, 8], &[64, 16, 2]), (vec![(3 * 4 * 8, 4)], 2));
        assert_eq!(found(&[3, 4, 8], &[80, 16, 1]), (vec![(3, 160), (4, 32)], 16));
        assert_eq!(found(&[2, 3, 8], &[48, 16, 1]), (vec![(6, 32)], 16));
        assert_eq!(found(&[3, 8], &[-8, 1]), (vec![(3, -16)], 16));
        assert_eq!(found(&[3, 8], &[0, 1]), (vec![(3, 0)], 16));
    }
}
