//! Steps that choose for themselves, captured and replayed.

use std::sync::Arc;

use kvist_kernels::cuda::{
    Buffer, Device, Error, Graph, Pinned, SelectedStep, StepChoice, StepMemory, StepShape, Stream,
    TrialError,
};

/// Shapes that are kept: of batches that take turns.
const KEPT: usize = 4;
const REFUSED: usize = 16;

/// A step of one shape, from queries in pinned memory to results there: one launch.
#[derive(Debug)]
pub(super) struct Captured {
    shape: StepShape,
    /// Before `step`, whose memory it names.
    graph: Graph,
    pub(super) step: SelectedStep,
    pub(super) queries: Pinned,
    results: Pinned,
    _there: [Buffer; 2],
}

/// Where the pages and boxes of all steps are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) pages: u64,
    pub(super) far: i64,
    pub(super) cells: u64,
}

/// Numbers of a step's results, each of four bytes: outputs, log-sum-exps, what was chosen and how much, and
/// candidates.
struct Layout([usize; 5]);

impl Layout {
    fn new(s: &StepShape) -> Layout {
        let (rows, heads) = (s.rows(), s.rows() * s.group);
        Layout([heads * s.dim, heads, rows * s.wanted_max, rows, rows * s.candidates_max()])
    }

    /// The first of each, at multiples of 16 bytes.
    fn at(&self) -> [usize; 5] {
        let mut end = 0;
        self.0.map(|n| {
            let at = end;
            end += n.next_multiple_of(4);
            at
        })
    }

    fn bytes(&self) -> usize {
        (self.at()[4] + self.0[4]) * 4
    }
}

/// What a step left.
pub(super) struct Results<'a> {
    /// `[sequences][q_heads][dim]` and `[sequences][q_heads]`.
    pub(super) o: &'a [f32],
    pub(super) lse2: &'a [f32],
    chosen: &'a [u32],
    chosen_n: &'a [u32],
    candidates: &'a [u32],
    shape: StepShape,
}

impl Results<'_> {
    /// The units, or tokens, that a row has read.
    pub(super) fn chosen(&self, row: usize) -> Vec<u32> {
        let s = &self.shape;
        let chosen = &self.chosen[row * s.wanted_max..][..self.chosen_n[row] as usize];
        match s.choice {
            StepChoice::Units { .. } => chosen.to_vec(),
            StepChoice::Tokens { .. } => {
                let candidates = &self.candidates[row * s.candidates_max()..];
                chosen.iter().map(|&i| candidates[i as usize]).collect()
            }
        }
    }
}

fn query_bytes(s: &StepShape) -> usize {
    s.rows() * s.group * s.dim * s.q_dtype.size()
}

/// A step with its memory, not captured yet.
struct Made {
    step: SelectedStep,
    there: [Buffer; 2],
    queries: Pinned,
    results: Pinned,
}

impl Made {
    fn new(
        device: &Arc<Device>,
        stream: &Stream,
        shape: StepShape,
        places: Places,
    ) -> Result<Made, TrialError> {
        let layout = Layout::new(&shape);
        let there = [device.buffer(query_bytes(&shape))?, device.buffer(layout.bytes())?];
        let queries = device.pinned(query_bytes(&shape))?;
        let results = device.pinned(layout.bytes())?;
        let out = there[1].address();
        let [o, lse2, chosen, chosen_n, candidates] = layout.at().map(|n| out + n as u64 * 4);
        let (Places { pages, far, cells }, q) = (places, there[0].address());
        let memory = StepMemory { q, pages, far, cells, o, lse2, chosen, chosen_n, candidates };
        let step = SelectedStep::new(device, stream, shape, memory)?;
        stream.synchronize()?;
        Ok(Made { step, there, queries, results })
    }
}

impl Captured {
    fn new(stream: &Stream, shape: StepShape, made: Made) -> Result<Captured, Error> {
        let Made { step, there, queries, mut results } = made;
        // SAFETY: all of it is kept with the graph, and replays are over before it is touched or dropped; the
        // arenas of pages and cells outlive all steps.
        let queue = || unsafe {
            stream.send(there[0].address(), queries.bytes().as_ptr(), queries.bytes().len())?;
            step.send_lists(stream)?;
            step.queue(stream)?;
            stream.fetch(results.bytes_mut(), there[1].address())
        };
        let graph = stream.capture(queue)?;
        Ok(Captured { shape, graph, step, queries, results, _there: there })
    }

    /// Does the step and waits for it.
    ///
    /// # Safety
    /// Its lists name frames and cells that are there.
    pub(super) unsafe fn replay(&mut self, stream: &Stream) -> Result<Results<'_>, Error> {
        // SAFETY: what was captured is kept; the rest is promised.
        unsafe { self.graph.launch(stream)? }
        stream.synchronize()?;
        let layout = Layout::new(&self.shape);
        let at = layout.at();
        let part = |i: usize| &self.results.bytes()[at[i] * 4..][..layout.0[i] * 4];
        Ok(Results {
            o: bytemuck::cast_slice(part(0)),
            lse2: bytemuck::cast_slice(part(1)),
            chosen: bytemuck::cast_slice(part(2)),
            chosen_n: bytemuck::cast_slice(part(3)),
            candidates: bytemuck::cast_slice(part(4)),
            shape: self.shape,
        })
    }
}

/// Those that are ready, the one used last at the end.
#[derive(Debug, Default)]
pub(super) struct Steps {
    ready: Vec<Captured>,
    /// The last shapes for which there was no memory, or no kernel: the rest of the tier goes on without their steps.
    refused: Vec<StepShape>,
}

impl Steps {
    /// Bytes of pinned memory of a step.
    fn bytes_of(s: &StepShape) -> usize {
        let lists = s.rows() * (s.pages_max + s.cells_max() + 32) * 4;
        query_bytes(s) + Layout::new(s).bytes() + lists
    }

    /// Bytes of pinned memory of all, with one of this shape.
    pub(super) fn bytes_with(&self, shape: &StepShape) -> u64 {
        let others = self.ready.iter().filter(|of| of.shape != *shape);
        let most = others.map(|of| Steps::bytes_of(&of.shape)).sum::<usize>();
        (most + Steps::bytes_of(shape)) as u64
    }

    /// Bytes of pinned memory of all.
    pub(super) fn bytes(&self) -> u64 {
        self.ready.iter().map(|of| Steps::bytes_of(&of.shape) as u64).sum()
    }

    /// Whether there was no memory for it, or no kernel.
    pub(super) fn refuses(&self, shape: &StepShape) -> bool {
        self.refused.contains(shape)
    }

    fn refuse(&mut self, shape: StepShape) -> Option<&mut Captured> {
        if self.refused.len() == REFUSED {
            self.refused.remove(0);
        }
        self.refused.push(shape);
        None
    }

    /// The step of a shape, captured now if it is new, with no more than so many bytes of the GPU for
    /// all; none if there is no memory or no kernel for it. All before it are over.
    pub(super) fn of(
        &mut self,
        device: &Arc<Device>,
        stream: &Stream,
        (shape, limit): (StepShape, u64),
        places: Places,
    ) -> Result<Option<&mut Captured>, TrialError> {
        let gpu = |of: &Captured| of.shape.scratch_bytes();
        match self.ready.iter().position(|of| of.shape == shape) {
            Some(i) => self.ready[i..].rotate_left(1),
            None if shape.scratch_bytes() > limit => return Ok(self.refuse(shape)),
            None => {
                let others = |ready: &[Captured]| ready.iter().map(gpu).sum::<u64>();
                while self.ready.len() >= KEPT
                    || others(&self.ready) + shape.scratch_bytes() > limit
                {
                    self.ready.remove(0);
                }
                match Made::new(device, stream, shape, places) {
                    Ok(made) => self.ready.push(Captured::new(stream, shape, made)?),
                    Err(e @ TrialError::Device(Error::DeviceLost { .. })) => return Err(e),
                    Err(e) => {
                        tracing::warn!("the CPU chooses: {e}, for {shape:?}");
                        return Ok(self.refuse(shape));
                    }
                }
            }
        }
        Ok(self.ready.last_mut())
    }
}
