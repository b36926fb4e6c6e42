//! The launches of a step, and the memory between them.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::tables::{Of, State};
use super::{StepMemory, StepShape};
use crate::DType;
use crate::cuda::params::{
    AttendParams, BoxedParams, Fold, PlanParams, ScoreParams, Segment, TokensParams, TopKParams,
    Unit, Vote, VoteParams, type_code,
};
use crate::cuda::program::Program;
use crate::cuda::work::{PlanRoom, ScoreSpec, TILE, TILES_MIN, TokensSpec, Work, merge_of};
use crate::cuda::{
    ATTEND_PAGES, BOXED, Buffer, Device, Error, Function, Kernel, MERGE, Macros, PLAN, SCORE,
    SELECT, Stream, TOKENS, VOTE,
};
use crate::summary::{BoxedSpec, TILE as CELL};

/// Threads and shared memory, as the heads of `plan.cu`, `select.cu` and `vote.cu` say.
const PLAN_LAUNCH: (u32, u32) = (512, 384);
const TOP_K_LAUNCH: (u32, u32) = (512, 8336);
const VOTE_LAUNCH: (u32, u32) = (512, 128);
const THREADS: u32 = 128;
/// Cells that are worth a block: one for each warp.
const CELLS_MIN: u32 = 4;

/// A step that is being made.
pub(super) struct Room<'a> {
    device: &'a Arc<Device>,
    stream: &'a Stream,
    s: &'a StepShape,
    memory: &'a StepMemory,
    state: &'a State,
    kept: Vec<Buffer>,
    program: Program,
}

/// Lists of equal room: their offsets, entries, and lengths.
#[derive(Clone, Copy)]
struct Lists {
    indptr: u64,
    items: u64,
    lens: u64,
}

/// Offsets of lists of equal room.
fn starts(lists: usize, room: usize) -> Vec<u32> {
    (0..=lists).map(|i| (i * room) as u32).collect()
}

impl<'a> Room<'a> {
    pub(super) fn new(
        device: &'a Arc<Device>,
        stream: &'a Stream,
        s: &'a StepShape,
        memory: &'a StepMemory,
        state: &'a State,
    ) -> Room<'a> {
        let (kept, program) = (Vec::new(), Program::default());
        Room { device, stream, s, memory, state, kept, program }
    }

    pub(super) fn finish(self) -> (Program, Vec<Buffer>) {
        (self.program, self.kept)
    }

    fn keep(&mut self, buffer: Buffer) -> u64 {
        let address = buffer.address();
        self.kept.push(buffer);
        address
    }

    /// Room for so many numbers of four bytes.
    fn numbers(&mut self, n: usize) -> Result<u64, Error> {
        let buffer = self.device.buffer(n * 4)?;
        Ok(self.keep(buffer))
    }

    fn of<T: Pod>(&mut self, data: &[T]) -> Result<u64, Error> {
        let buffer = self.device.buffer_of(self.stream, data)?;
        Ok(self.keep(buffer))
    }

    fn load(
        &self,
        kernel: &'static Kernel,
        macros: Macros,
        entry: &'static str,
    ) -> Result<Function, Error> {
        self.device.function(&kernel.with(macros), entry, self.stream)
    }

    /// How many blocks of a kernel run at once.
    fn workers(&self, function: &Function, shared_bytes: usize) -> Result<usize, Error> {
        let blocks = function.occupancy(THREADS, shared_bytes as u32)?;
        Ok((blocks * self.device.info().multiprocessors).max(1) as usize)
    }

    /// A list each, of the sequence's KV head.
    fn list_units(&self, rows: usize) -> Vec<Unit> {
        let list = |s, h| s * self.s.kv_heads + h;
        Work::units(&starts(self.s.sequences, 1), (self.s.kv_heads, self.s.group), rows, list)
    }

    /// Has a plan made for lists of these lengths.
    fn plan(
        &mut self,
        units: &[Unit],
        workers: usize,
        lens: u64,
        (tile, tiles_min): (u32, u32),
    ) -> Result<PlanParams, Error> {
        let room = PlanRoom::new(units.len(), workers);
        let p = PlanParams {
            units: self.of(units)?,
            segments: self.numbers(room.segments * size_of::<Segment>() / 4)?,
            workers: self.numbers(room.workers)?,
            lens,
            indptr: 0,
            units_n: units.len() as u32,
            workers_n: workers as u32,
            tile,
            tiles_min,
        };
        let plan = self.load(&PLAN, Macros::new(), "plan")?;
        self.program.push(plan, (1, PLAN_LAUNCH.0, PLAN_LAUNCH.1 as usize), p);
        Ok(p)
    }

    /// The best units of the pages, by their boxes.
    pub(super) fn units(&mut self, cell: usize, fold: Fold) -> Result<(), Error> {
        let (s, spec) = (self.s, self.s.score());
        let score = self.load(&SCORE, spec.macros(), "score_units")?;
        let workers = self.workers(&score, spec.shared_bytes())?;
        let units = self.list_units(ScoreSpec::rows(s.group));
        let tiles = (TILE as u32, TILES_MIN);
        let plan = self.plan(&units, workers, self.state.at(Of::Scored), tiles)?;
        let row = 2 * s.dim as i64;
        let scores = self.numbers(s.rows() * s.scores_row())?;
        let p = ScoreParams {
            q: self.memory.q,
            k: self.memory.cells,
            v: self.memory.cells + (s.dim * s.dtype.size()) as u64,
            out: scores,
            units: plan.units,
            segments: plan.segments,
            workers: plan.workers,
            indptr: self.of(&starts(s.rows(), s.cells_max()))?,
            items: self.state.cells(),
            lens: self.state.at(Of::Scored),
            q_row: (s.q_heads() * s.dim) as i64,
            q_head: s.dim as i64,
            k_frame: cell as i64 * row,
            k_head: 0,
            k_token: row,
            v_frame: cell as i64 * row,
            v_head: 0,
            v_token: row,
            out_row: s.scores_row() as i64,
            page_tokens: cell as u32,
            group: s.group as u32,
            kv_heads: s.kv_heads as u32,
            fold: fold as u32,
            types: type_code(s.q_dtype),
            zero: 0,
        };
        self.program.push(score, (workers, THREADS, spec.shared_bytes()), p);
        let to = (self.memory.chosen, self.memory.chosen_n, s.wanted_max);
        let chosen = self.choose_first(scores, to)?;
        self.attend(chosen)
    }

    /// The best tokens of the pages: more than are wanted by their codes, and of these by their keys.
    pub(super) fn tokens(&mut self, planes: usize) -> Result<(), Error> {
        let s = self.s;
        let behind = self.behind()?;
        let (weights, lse2) = self.estimate(planes, behind)?;
        let counts = self.numbers(s.rows())?;
        let to = (self.memory.candidates, counts, s.candidates_max());
        let candidates = Lists { lens: counts, ..self.choose_first(weights, to)? };
        let votes = self.closely(candidates, lse2)?;
        let lens = self.numbers(s.rows())?;
        let items = self.numbers(s.rows() * s.wanted_max)?;
        self.choose(TopKParams {
            scores: votes,
            counts,
            forced_ptr: self.state.at(Of::WantedPtr),
            forced: self.state.at(Of::WantedForced),
            out: self.memory.chosen,
            out_n: self.memory.chosen_n,
            wanted: self.state.at(Of::Wanted),
            indptr: candidates.indptr,
            frames: candidates.items,
            lens: counts,
            out_items: items,
            out_lens: lens,
            scores_row: s.candidates_max() as i64,
            out_row: s.wanted_max as i64,
            k: 0,
            unit_tokens: 1,
            page_units: 1,
            page_items: 1,
        })?;
        let indptr = self.of(&starts(s.rows(), s.wanted_max))?;
        self.attend(Lists { indptr, items, lens })
    }

    /// Base-2 log-sum-exps `[rows][group]` of the tokens that no cell speaks of.
    fn behind(&mut self) -> Result<u64, Error> {
        let s = self.s;
        let (items, lens) = (self.numbers(s.rows() * CELL)?, self.numbers(s.rows())?);
        let (ids, votes) = (self.numbers(s.rows() * CELL)?, self.numbers(s.rows() * CELL)?);
        // All that are chosen are forced: their scores, which may be anything, are not looked at.
        let scores_row = (s.page_tokens + CELL) as i64;
        let scores = self.numbers(s.rows() * scores_row as usize)?;
        self.choose(TopKParams {
            scores,
            counts: self.state.at(Of::BehindN),
            forced_ptr: self.state.at(Of::BehindPtr),
            forced: self.state.at(Of::BehindForced),
            out: ids,
            out_n: lens,
            wanted: 0,
            indptr: self.state.at(Of::Behind),
            frames: self.state.frames(),
            lens: self.state.at(Of::BehindN),
            out_items: items,
            out_lens: 0,
            scores_row,
            out_row: CELL as i64,
            k: 0,
            unit_tokens: 1,
            page_units: s.page_tokens as u32,
            page_items: 2 * s.page_tokens as u32,
        })?;
        let lists = Lists { indptr: self.of(&starts(s.rows(), CELL))?, items, lens };
        let lse2 = self.numbers(s.rows() * s.group)?;
        let (p, workers) = self.logits(lists, CELL)?;
        let vote = self.load(&TOKENS, s.closely().macros(), "vote_tokens")?;
        let of = AttendParams { lse2, ..p.of };
        let p = TokensParams { of, out: votes, out_row: CELL as i64, ..p };
        self.program.push(vote, (workers, THREADS, TokensSpec::VOTE_SHARED_BYTES), p);
        Ok(lse2)
    }

    /// Softmax masses of all tokens in finished cells, summed over the group, by their codes; and the log-sum-exps of
    /// these and of what is behind them.
    fn estimate(&mut self, planes: usize, behind: u64) -> Result<(u64, u64), Error> {
        let (s, spec) = (self.s, self.s.codes(planes));
        let score = self.load(&BOXED, spec.macros(), "score_boxed")?;
        let workers = self.workers(&score, spec.shared_bytes())?;
        let units = self.list_units(ScoreSpec::rows(s.group));
        let plan = self.plan(&units, workers, self.state.at(Of::Scored), (1, CELLS_MIN))?;
        let (heads, row) = (s.rows() * s.group, s.scores_row());
        let Ok(cell) = BoxedSpec::new(s.dim, planes as u32) else {
            unreachable!("the shape was checked")
        };
        let est = self.numbers(heads * row)?;
        let p = BoxedParams {
            q: self.memory.q,
            cells: self.memory.cells,
            est,
            bounds: 0,
            sigma: 0,
            units: plan.units,
            segments: plan.segments,
            workers: plan.workers,
            indptr: self.of(&starts(s.rows(), s.cells_max()))?,
            items: self.state.cells(),
            q_row: (s.q_heads() * s.dim) as i64,
            q_head: s.dim as i64,
            cell: cell.cell_bytes() as i64,
            cell_head: 0,
            est_row: row as i64,
            bounds_row: 0,
            group: s.group as u32,
            kv_heads: s.kv_heads as u32,
            types: type_code(s.q_dtype),
            zero: 0,
        };
        self.program.push(score, (workers, THREADS, spec.shared_bytes()), p);
        let (weights, lse2) = (self.numbers(s.rows() * row)?, self.numbers(heads)?);
        self.vote(VoteParams {
            scores: est,
            counts: self.state.at(Of::Known),
            lse2: behind,
            out: weights,
            out_lse2: lse2,
            scores_row: row as i64,
            out_row: row as i64,
            scale: s.scale * std::f32::consts::LOG2_E,
            ..VoteParams::zeroed()
        })?;
        Ok((weights, lse2))
    }

    /// Masses of listed candidates in softmaxes with these log-sum-exps, summed over the group, by their keys.
    fn closely(&mut self, lists: Lists, lse2: u64) -> Result<u64, Error> {
        let room = self.s.candidates_max();
        let votes = self.numbers(self.s.rows() * room)?;
        let (p, _) = self.logits(lists, room)?;
        self.vote(VoteParams {
            scores: p.logits,
            counts: lists.lens,
            lse2,
            out: votes,
            // None of them: all are in it already.
            from: lists.lens,
            scores_row: p.logits_row,
            out_row: room as i64,
            scale: 1.0,
            ..VoteParams::zeroed()
        })?;
        Ok(votes)
    }

    /// Sums masses over the group.
    fn vote(&mut self, p: VoteParams) -> Result<(), Error> {
        let vote = self.load(&VOTE, Macros::new(), "vote")?;
        let p = VoteParams { group: self.s.group as u32, fold: Vote::Mass as u32, ..p };
        let shared = VOTE_LAUNCH.1 as usize + 4 * self.s.group;
        self.program.push(vote, (self.s.rows(), VOTE_LAUNCH.0, shared), p);
        Ok(())
    }

    /// Logits of listed tokens, with room for so many of each row, in units of log2; what a vote on them is told, and
    /// its blocks.
    fn logits(&mut self, lists: Lists, room: usize) -> Result<(TokensParams, usize), Error> {
        let (s, spec) = (self.s, self.s.closely());
        let score = self.load(&TOKENS, spec.macros(), "score_tokens")?;
        let workers = self.workers(&score, spec.shared_bytes())?;
        let units = self.list_units(ScoreSpec::rows(s.group));
        let plan = self.plan(&units, workers, lists.lens, (TILE as u32, TILES_MIN))?;
        let row = room.next_multiple_of(2);
        let segments = PlanRoom::new(units.len(), workers).segments;
        let p = TokensParams {
            of: AttendParams {
                units: plan.units,
                segments: plan.segments,
                workers: plan.workers,
                ..self.reads(lists)
            },
            logits: self.numbers(s.rows() * s.group * row)?,
            parts: self.numbers(segments * 16 * 2)?,
            out: 0,
            logits_row: row as i64,
            out_row: 0,
            kv_heads: s.kv_heads as u32,
            zero: 0,
        };
        self.program.push(score, (workers, THREADS, spec.shared_bytes()), p);
        Ok((p, workers))
    }

    /// The first choice among the units of the pages: ids, how many, and room for each row's; and where they lie.
    fn choose_first(
        &mut self,
        scores: u64,
        (out, out_n, room): (u64, u64, usize),
    ) -> Result<Lists, Error> {
        let s = self.s;
        let (items, lens) = (self.numbers(s.rows() * room)?, self.numbers(s.rows())?);
        let p = TopKParams {
            scores,
            counts: self.state.at(Of::Units),
            forced_ptr: self.state.at(Of::FirstPtr),
            forced: self.state.at(Of::FirstForced),
            out,
            out_n,
            wanted: self.state.at(Of::First),
            indptr: self.of(&starts(s.rows(), s.pages_max))?,
            frames: self.state.frames(),
            lens: self.state.at(Of::Tokens),
            out_items: items,
            out_lens: lens,
            scores_row: s.scores_row() as i64,
            out_row: room as i64,
            k: 0,
            unit_tokens: s.unit_tokens() as u32,
            page_units: s.page_units() as u32,
            // A page's values lie behind its keys, so that its units are every other run of as many.
            page_items: 2 * s.page_units() as u32,
        };
        self.choose(p)?;
        Ok(Lists { indptr: self.of(&starts(s.rows(), room))?, items, lens })
    }

    fn choose(&mut self, p: TopKParams) -> Result<(), Error> {
        let top_k = self.load(&SELECT, Macros::new(), "top_k")?;
        let (threads, shared) = TOP_K_LAUNCH;
        self.program.push(top_k, (self.s.rows(), threads, shared as usize), p);
        Ok(())
    }

    /// Queries, and keys and values of listed units, or of tokens.
    fn reads(&self, lists: Lists) -> AttendParams {
        let (s, token) = (self.s, self.s.dim as i64);
        // Units are pages of their own; tokens are slots in pages, whose values are behind their keys.
        let page = if s.unit_tokens() > 1 { s.unit_tokens() } else { 2 * s.page_tokens };
        AttendParams {
            q: self.memory.q,
            k: self.memory.pages,
            v: self.memory.pages + (s.page_tokens * s.dim * s.dtype.size()) as u64,
            indptr: lists.indptr,
            items: lists.items,
            lens: lists.lens,
            q_row: (s.q_heads() * s.dim) as i64,
            q_head: token,
            k_frame: page as i64 * token,
            k_token: token,
            v_frame: page as i64 * token,
            v_token: token,
            far: self.memory.far,
            scale: s.scale,
            soft_cap: s.soft_cap,
            page_tokens: page as u32,
            group: s.group as u32,
            q_heads: s.q_heads() as u32,
            types: type_code(s.q_dtype) | type_code(DType::F32) << 8,
            ..AttendParams::zeroed()
        }
    }

    /// Attention to what is listed, with its plan and merge.
    fn attend(&mut self, lists: Lists) -> Result<(), Error> {
        let (s, spec) = (self.s, self.s.attend());
        let attend = self.load(&ATTEND_PAGES, spec.macros(), "attend_pages")?;
        let merge = self.load(&MERGE, Macros::new(), "merge_units")?;
        let workers = self.workers(&attend, spec.shared_bytes())?;
        let units = self.list_units(spec.rows());
        let plan = self.plan(&units, workers, lists.lens, (TILE as u32, TILES_MIN))?;
        let parts = PlanRoom::new(units.len(), workers).partials * spec.rows();
        let q_row = (s.q_heads() * s.dim) as i64;
        let p = AttendParams {
            o: self.memory.o,
            lse2: self.memory.lse2,
            part_o: self.numbers(parts * s.dim)?,
            part_lse2: self.numbers(parts)?,
            units: plan.units,
            segments: plan.segments,
            workers: plan.workers,
            o_row: q_row,
            o_head: s.dim as i64,
            ..self.reads(lists)
        };
        let blocks = (units.len() * spec.rows()).div_ceil(4);
        let work = Work { units, segments: vec![], workers: vec![], partials: 0 };
        let merging = merge_of(&spec, &p, &work);
        self.program.push(attend, (workers, THREADS, spec.shared_bytes()), p);
        self.program.push(merge, (blocks, THREADS, 0), merging);
        Ok(())
    }
}
