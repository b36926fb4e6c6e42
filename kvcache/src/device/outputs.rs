//! Results of a call on the GPU, and their way back.

use kvist_kernels::attend::Out;
use kvist_kernels::cuda::{Buffer, Device, DevicePart, Error, Pinned, Stream};
use kvist_kernels::{DType, Tensor3, Tensor3Mut};

/// Parts that a call is computed in at most.
pub(super) const PARTS: usize = 3;
const NUMBER: usize = size_of::<f32>();

/// Room for the results of one call: of each part, and of all together.
#[derive(Debug)]
pub(super) struct Outputs {
    device: Buffer,
    host: Pinned,
    /// Queries on their way.
    queries: Pinned,
    there: Buffer,
}

/// The rows of a call.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) dim: usize,
}

impl Rows {
    fn outputs(&self) -> usize {
        self.rows * self.heads * self.dim
    }

    fn sums(&self) -> usize {
        self.rows * self.heads
    }

    /// Numbers of one part, in whole multiples of 16 bytes.
    fn numbers(&self) -> usize {
        self.outputs() + self.sums().next_multiple_of(4)
    }
}

impl Outputs {
    pub(super) fn new(device: &Device) -> Result<Outputs, Error> {
        Ok(Outputs {
            device: device.buffer(0)?,
            host: device.pinned(0)?,
            queries: device.pinned(0)?,
            there: device.buffer(0)?,
        })
    }

    /// Makes room for a call. Calls before it are over.
    pub(super) fn make_room(&mut self, device: &Device, rows: &Rows) -> Result<(), Error> {
        let bytes = rows.numbers() * NUMBER;
        if self.host.bytes().len() < bytes {
            self.device = device.buffer((PARTS + 1) * bytes.next_power_of_two())?;
            self.host = device.pinned(bytes.next_power_of_two())?;
        }
        Ok(())
    }

    /// Sends queries, packed; returns where they are.
    pub(super) fn send(
        &mut self,
        device: &Device,
        stream: &Stream,
        q: &Tensor3,
    ) -> Result<u64, Error> {
        let [rows, heads, dim] = q.shape();
        let bytes = rows * heads * dim * q.dtype().size();
        if self.queries.bytes().len() < bytes {
            self.queries = device.pinned(bytes.next_power_of_two())?;
            self.there = device.buffer(bytes.next_power_of_two())?;
        }
        packed(q, self.queries.bytes_mut());
        let at = self.there.address();
        // SAFETY: calls before this one are over, and the next one comes when this one is.
        unsafe { stream.send(at, self.queries.bytes().as_ptr(), bytes)? }
        Ok(at)
    }

    /// Bytes of pinned memory for so many rows: results, and queries of 4 bytes an element at most.
    pub(super) fn host_bytes(rows: &Rows) -> usize {
        2 * (rows.numbers() * NUMBER).next_power_of_two()
    }

    /// Where a part's results go; part [`PARTS`] is all together.
    pub(super) fn part(&self, part: usize, rows: &Rows) -> DevicePart {
        let o = self.device.address() + (part * rows.numbers() * NUMBER) as u64;
        DevicePart { o, lse2: o + (rows.outputs() * NUMBER) as u64 }
    }

    /// A view of a part for kernels.
    pub(super) fn view(&self, part: usize, rows: &Rows) -> Out<'static> {
        let o = self.part(part, rows).o as *mut u8;
        let shape = [rows.rows, rows.heads, rows.dim];
        let strides = [(rows.heads * rows.dim) as i64, rows.dim as i64];
        // SAFETY: memory of the GPU; nobody writes it on the host.
        let o = unsafe { Tensor3Mut::from_raw(o, DType::F32, shape, strides) };
        Out { o, lse2: None }
    }

    /// Queues the way back of a part.
    pub(super) fn fetch(&mut self, stream: &Stream, part: usize, rows: &Rows) -> Result<(), Error> {
        let (from, bytes) = (self.part(part, rows).o, rows.numbers() * NUMBER);
        // SAFETY: both stay until the call is over.
        unsafe { stream.fetch(&mut self.host.bytes_mut()[..bytes], from) }
    }

    /// What came back, once the stream is done: outputs and log-sum-exps.
    pub(super) fn fetched(&self, rows: &Rows) -> (&[f32], &[f32]) {
        let numbers: &[f32] = bytemuck::cast_slice(&self.host.bytes()[..rows.numbers() * NUMBER]);
        let (o, lse2) = numbers.split_at(rows.outputs());
        (o, &lse2[..rows.sums()])
    }
}

/// Queries side by side.
pub(super) fn packed(q: &Tensor3, to: &mut [u8]) {
    let [rows, heads, dim] = q.shape();
    let row = dim * q.dtype().size();
    let each = (0..rows).flat_map(|r| (0..heads).map(move |h| (r, h)));
    for ((r, h), to) in each.zip(to.chunks_exact_mut(row)) {
        // SAFETY: a row of the caller's queries.
        to.copy_from_slice(unsafe { std::slice::from_raw_parts(q.row_ptr(r, h), row) });
    }
}
