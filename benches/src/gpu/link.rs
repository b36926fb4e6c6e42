//! Copies of scattered pages from host memory to a GPU, against one large copy.

use std::time::Instant;

use kvist_kernels::cuda::params::CopyParams;
use kvist_kernels::cuda::{Buffer, Error as GpuError, Grid, Macros, Pinned, TRANSFER, TrialError};

use super::Gpu;
use crate::{Error, Line, Options, Params, Rng, Sample, Sink};

/// Bytes that one call copies, at most an eighth of the GPU's memory.
const BYTES: usize = 256 << 20;
/// Bytes of a piece: a row, units, pages of 64 tokens of one and of more heads.
const PIECES: [usize; 5] = [256, 4 << 10, 16 << 10, 32 << 10, 256 << 10];
/// Blocks that copy.
const QUOTAS: [u32; 3] = [16, 32, 64];

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    let gpu = Gpu::open(sink)?;
    let bytes = BYTES.min(gpu.device.info().memory_bytes as usize / 8);
    let memory = Memory::new(&gpu, bytes).map_err(TrialError::from)?;
    let whole = timed(&gpu, options, || {
        // SAFETY: both stay until the copies are waited for.
        unsafe { gpu.stream.send(memory.device.address(), memory.host.bytes().as_ptr(), bytes) }
    })?;
    let limit = bytes as f64 / whole.median * 1e-9;
    let copy = gpu.device.function(&TRANSFER.with(Macros::new()), "copy_items", &gpu.stream);
    let copy = copy.map_err(TrialError::from)?;
    for piece in PIECES {
        for quota in QUOTAS {
            let p = memory.params(piece);
            let grid = Grid { blocks: [quota, 1, 1], threads: 128, shared_bytes: 0 };
            let step = timed(&gpu, options, || {
                // SAFETY: as above, and the numbers lie below those of pieces.
                unsafe { copy.launch(&gpu.stream, grid, &p) }
            })?;
            let rate = |seconds: f64| bytes as f64 / seconds * 1e-9;
            let params = gpu.params().with("piece", piece).with("blocks", quota as usize);
            let line = Line::new("gpu-copy", params, rate(step.median), "GB/s").floor(limit);
            let line = line.best(rate(step.best)).repeated(step.repeats, step.spread);
            sink.push(line.columns(Params::new().with("us", step.median * 1e6)));
        }
    }
    Ok(())
}

struct Memory {
    host: Pinned,
    device: Buffer,
    /// By bytes of a piece: where pieces come from and where they go, permuted.
    numbers: Vec<(usize, Buffer)>,
}

impl Memory {
    fn new(gpu: &Gpu, bytes: usize) -> Result<Memory, GpuError> {
        let permuted = |piece: usize| {
            let n = bytes / piece;
            let numbers = [Rng::new(1).permutation(n), Rng::new(2).permutation(n)].concat();
            Ok((piece, gpu.device.buffer_of(&gpu.stream, &numbers)?))
        };
        let mut host = gpu.device.pinned(bytes)?;
        let drawn: Vec<f32> = Rng::new(3).normals(1 << 20);
        for part in host.bytes_mut().chunks_mut(drawn.len() * 4) {
            part.copy_from_slice(&bytemuck::cast_slice(&drawn)[..part.len()]);
        }
        Ok(Memory {
            host,
            device: gpu.device.buffer(bytes)?,
            numbers: PIECES.into_iter().map(permuted).collect::<Result<_, GpuError>>()?,
        })
    }

    fn params(&self, piece: usize) -> CopyParams {
        let numbers = self.numbers.iter().find(|(of, _)| *of == piece);
        let at = numbers.map_or(0, |(_, numbers)| numbers.address());
        let items = self.host.bytes().len() / piece;
        CopyParams {
            from: self.host.address(),
            to: self.device.address(),
            from_items: at,
            to_items: at + (items * size_of::<u32>()) as u64,
            from_item: piece as i64,
            from_piece: 0,
            to_item: piece as i64,
            to_piece: 0,
            items: items as u32,
            pieces: 1,
            piece_bytes: piece as u32,
            zero: 0,
        }
    }
}

/// Seconds of one call, after some that warm up.
fn timed(
    gpu: &Gpu,
    options: &Options,
    mut queue: impl FnMut() -> Result<(), GpuError>,
) -> Result<Sample, Error> {
    let mut once = || -> Result<f64, TrialError> {
        let start = Instant::now();
        queue()?;
        gpu.stream.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    once()?;
    let (how, since, mut times) = (options.repeats(), Instant::now(), Vec::new());
    while !how.done(times.len(), since) {
        times.push(once()?);
    }
    Ok(Sample::of(times))
}
