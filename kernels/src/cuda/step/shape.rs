//! Sizes and memory of a step that chooses what it reads.

use crate::cuda::params::Fold;
use crate::cuda::work::{AttendSpec, BoxedScoreSpec, ScoreSpec, TokensSpec};
use crate::cuda::{
    ATTEND_PAGES, BOXED, Kernel, MERGE, Macros, PLAN, SCORE, SELECT, Specialisation, TOKENS, VOTE,
};
use crate::summary::{BoxedSpec, TILE};
use crate::{DType, Error};

/// What is chosen, and by what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepChoice {
    /// Units of consecutive tokens, by the bounds of their boxes.
    Units {
        /// Tokens of a unit, a multiple of 16.
        tokens: usize,
        /// Units of a cell of boxes.
        cell: usize,
        /// How the scores of a group's query heads become one: maximum, sum or mean.
        fold: Fold,
    },
    /// Tokens: the best by their boxed codes, and a quarter more, of which the best by their keys are read. Both by
    /// the softmax masses of the group's query heads.
    Tokens {
        /// Bit planes of a key, 2 to 4.
        planes: usize,
    },
}

/// Sizes of a [`SelectedStep`](super::SelectedStep).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepShape {
    /// Sequences, one query each.
    pub sequences: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of each, 16 at most.
    pub group: usize,
    /// Dimensions of keys and values.
    pub dim: usize,
    /// Type of keys, values and boxes: f16 or bf16.
    pub dtype: DType,
    /// Type of queries.
    pub q_dtype: DType,
    /// What is chosen.
    pub choice: StepChoice,
    /// Tokens of a page: whole units.
    pub page_tokens: usize,
    /// Pages that a KV head of a sequence may have.
    pub pages_max: usize,
    /// Units, or tokens, that are read of it at most.
    pub wanted_max: usize,
    /// Multiplies q.k.
    pub scale: f32,
    /// Bends scaled logits, 0 is off; not the scores by which units are chosen. Tokens are not chosen with it.
    pub soft_cap: f32,
}

/// Addresses of a step's tensors on the GPU.
#[derive(Clone, Copy, Debug)]
pub struct StepMemory {
    /// `[sequences][q_heads][dim]`.
    pub q: u64,
    /// `[frames][2][page_tokens][dim]`: pages of one KV head, keys, then values.
    pub pages: u64,
    /// Bytes from there to the pages whose frame is marked ([`StepLists::FAR`](super::StepLists::FAR)), or 0.
    pub far: i64,
    /// Cells: `[cells][units][2][dim]`, the largest and the smallest of a unit's keys in each dimension; or boxed
    /// codes.
    pub cells: u64,
    /// f32 `[sequences][q_heads][dim]`.
    pub o: u64,
    /// f32 `[sequences][q_heads]`, base 2.
    pub lse2: u64,
    /// u32 `[sequences][kv_heads][wanted_max]`: the units that were read, ascending. Of tokens, their numbers among
    /// the candidates.
    pub chosen: u64,
    /// u32 `[sequences][kv_heads]`: how many.
    pub chosen_n: u64,
    /// u32 `[sequences][kv_heads][candidates_max]`: positions of tokens that were looked at closely, ascending; or 0
    /// where units are chosen.
    pub candidates: u64,
}

/// A candidate more for so many tokens that are picked.
pub(super) const MORE: usize = 4;

impl StepShape {
    /// KV heads of all sequences: each chooses for itself.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.sequences * self.kv_heads
    }

    pub(super) fn q_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Tokens of what is chosen at once.
    #[must_use]
    pub fn unit_tokens(&self) -> usize {
        match self.choice {
            StepChoice::Units { tokens, .. } => tokens,
            StepChoice::Tokens { .. } => 1,
        }
    }

    /// Units of a page.
    pub(super) fn page_units(&self) -> usize {
        self.page_tokens / self.unit_tokens()
    }

    fn cell_tokens(&self) -> usize {
        match self.choice {
            StepChoice::Units { tokens, cell, .. } => tokens * cell,
            StepChoice::Tokens { .. } => TILE,
        }
    }

    pub(super) fn tokens_max(&self) -> usize {
        self.pages_max * self.page_tokens
    }

    /// Cells that a KV head of a sequence may have.
    #[must_use]
    pub fn cells_max(&self) -> usize {
        self.tokens_max().div_ceil(self.cell_tokens())
    }

    /// Numbers between the scores of two rows.
    pub(super) fn scores_row(&self) -> usize {
        self.cells_max() * self.cell_tokens() / self.unit_tokens()
    }

    /// Tokens of a KV head of a sequence that are looked at closely at most; 0 where units are chosen.
    #[must_use]
    pub fn candidates_max(&self) -> usize {
        match self.choice {
            StepChoice::Units { .. } => 0,
            StepChoice::Tokens { .. } => self.wanted_max + self.wanted_max.div_ceil(MORE),
        }
    }

    /// Bytes of the GPU that scores and lists of a step take, as far as they grow with sequences: its own memory but for
    /// what depends on the GPU alone.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        let (rows, heads) = (self.rows(), self.rows() * self.group);
        let lists = rows * (self.pages_max + self.cells_max() + 2 * self.wanted_max);
        let (scored, closely) = match self.choice {
            StepChoice::Units { .. } => (rows, 0),
            StepChoice::Tokens { .. } => (rows + heads, rows + heads),
        };
        4 * (lists + scored * self.scores_row() + closely * self.candidates_max()) as u64
    }

    pub(super) fn attend(&self) -> AttendSpec {
        let slots = matches!(self.choice, StepChoice::Tokens { .. });
        AttendSpec { dim: self.dim, dtype: self.dtype, slots, wide: false }
    }

    pub(super) fn score(&self) -> ScoreSpec {
        ScoreSpec { dim: self.dim, dtype: self.dtype, boxes: true }
    }

    pub(super) fn closely(&self) -> TokensSpec {
        TokensSpec { dim: self.dim, dtype: self.dtype, slots: true }
    }

    pub(super) fn codes(&self, planes: usize) -> BoxedScoreSpec {
        BoxedScoreSpec { dim: self.dim, planes }
    }

    /// The kernels of a step: for [`Device::warm_up`](crate::cuda::Device::warm_up).
    #[must_use]
    pub fn kernels(&self) -> Vec<Specialisation> {
        let plain = |kernel: &'static Kernel| kernel.with(Macros::new());
        let own = match self.choice {
            StepChoice::Units { .. } => vec![SCORE.with(self.score().macros())],
            StepChoice::Tokens { planes } => vec![
                BOXED.with(self.codes(planes).macros()),
                plain(&VOTE),
                TOKENS.with(self.closely().macros()),
            ],
        };
        let attend = ATTEND_PAGES.with(self.attend().macros());
        own.into_iter().chain([attend, plain(&PLAN), plain(&SELECT), plain(&MERGE)]).collect()
    }

    /// Checks that there are kernels for it.
    ///
    /// # Errors
    /// [`Error::Range`] for what no kernel takes.
    pub fn check(&self) -> Result<(), Error> {
        self.attend().check()?;
        match self.choice {
            StepChoice::Units { tokens, cell, fold } => self.check_units(tokens, cell, fold)?,
            StepChoice::Tokens { planes } => self.check_tokens(planes)?,
        }
        for (what, found, most) in
            [("group", self.group, 16), ("wanted_max", self.wanted_max, usize::MAX)]
        {
            if !(1..=most).contains(&found) {
                return Err(Error::range(what, format!("1 to {most}"), found));
            }
        }
        Ok(())
    }

    fn check_units(&self, tokens: usize, cell: usize, fold: Fold) -> Result<(), Error> {
        if !ScoreSpec::all().any(|spec| spec == self.score()) {
            let found = format!("{} of {}", self.dim, self.dtype);
            return Err(Error::range("dim", "64, 80, 96 or 128 of f16 or bf16", found));
        }
        if tokens == 0 || !tokens.is_multiple_of(16) {
            return Err(Error::range("tokens of a unit", "a multiple of 16", tokens));
        }
        if self.page_tokens == 0 || !self.page_tokens.is_multiple_of(tokens) {
            let expected = format!("a multiple of the {tokens} tokens of a unit");
            return Err(Error::range("page_tokens", expected, self.page_tokens));
        }
        if cell == 0 {
            return Err(Error::range("units of a cell", "at least 1", cell));
        }
        if !matches!(fold, Fold::Max | Fold::Sum | Fold::Mean) {
            return Err(Error::range("fold", "a maximum, sum or mean", format!("{fold:?}")));
        }
        Ok(())
    }

    fn check_tokens(&self, planes: usize) -> Result<(), Error> {
        BoxedSpec::new(self.dim, u32::try_from(planes).unwrap_or(u32::MAX))?;
        if self.soft_cap != 0.0 {
            return Err(Error::range("soft_cap", "0 where tokens are chosen", self.soft_cap));
        }
        Ok(())
    }
}
