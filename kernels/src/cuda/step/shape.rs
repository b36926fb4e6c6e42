//! Sizes and memory of a step that chooses what it reads.

use crate::DType;
use crate::cuda::params::Fold;
use crate::cuda::work::{AttendSpec, ScoreSpec};
use crate::cuda::{ATTEND_PAGES, Kernel, MERGE, Macros, PLAN, SCORE, SELECT, Specialisation};

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
    /// Tokens of a unit, a multiple of 16: what is chosen at once.
    pub unit_tokens: usize,
    /// Tokens of a page: whole units.
    pub page_tokens: usize,
    /// Units of a cell of boxes.
    pub cell_units: usize,
    /// Pages that a KV head of a sequence may have.
    pub pages_max: usize,
    /// Units that are read of it at most.
    pub wanted_max: usize,
    /// How the scores of a group's query heads become one: maximum, sum or mean.
    pub fold: Fold,
    /// Multiplies q.k.
    pub scale: f32,
    /// Bends scaled logits, 0 is off; not the scores by which units are chosen.
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
    /// `[cells][cell_units][2][dim]`: the largest and the smallest of a unit's keys in each dimension.
    pub cells: u64,
    /// f32 `[sequences][q_heads][dim]`.
    pub o: u64,
    /// f32 `[sequences][q_heads]`, base 2.
    pub lse2: u64,
    /// u32 `[sequences][kv_heads][wanted_max]`: the units that were read, ascending.
    pub chosen: u64,
    /// u32 `[sequences][kv_heads]`: how many.
    pub chosen_n: u64,
}

impl StepShape {
    /// KV heads of all sequences: each chooses for itself.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.sequences * self.kv_heads
    }

    pub(super) fn q_heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Units of a page.
    pub(super) fn page_units(&self) -> usize {
        self.page_tokens / self.unit_tokens
    }

    pub(super) fn units_max(&self) -> usize {
        self.pages_max * self.page_units()
    }

    /// Cells that a KV head of a sequence may have.
    #[must_use]
    pub fn cells_max(&self) -> usize {
        self.units_max().div_ceil(self.cell_units)
    }

    pub(super) fn specs(&self) -> (ScoreSpec, AttendSpec) {
        let (dim, dtype) = (self.dim, self.dtype);
        (
            ScoreSpec { dim, dtype, boxes: true },
            AttendSpec { dim, dtype, slots: false, wide: false },
        )
    }

    /// The kernels of a step: for [`Device::warm_up`](crate::cuda::Device::warm_up).
    #[must_use]
    pub fn kernels(&self) -> Vec<Specialisation> {
        let (score, attend) = self.specs();
        let plain = |kernel: &'static Kernel| kernel.with(Macros::new());
        vec![
            SCORE.with(score.macros()),
            ATTEND_PAGES.with(attend.macros()),
            plain(&PLAN),
            plain(&SELECT),
            plain(&MERGE),
        ]
    }

    /// Checks that there are kernels for it.
    ///
    /// # Errors
    /// [`crate::Error::Range`] for what no kernel takes.
    pub fn check(&self) -> Result<(), crate::Error> {
        let range = crate::Error::range;
        let (score, attend) = self.specs();
        attend.check()?;
        if !ScoreSpec::all().any(|spec| spec == score) {
            let found = format!("{} of {}", self.dim, self.dtype);
            return Err(range("dim", "64, 80, 96 or 128 of f16 or bf16".to_owned(), found));
        }
        let unit = self.unit_tokens;
        if unit == 0 || !unit.is_multiple_of(16) {
            return Err(range("unit_tokens", "a multiple of 16".to_owned(), unit.to_string()));
        }
        if self.page_tokens == 0 || !self.page_tokens.is_multiple_of(unit) {
            let expected = format!("a multiple of the {unit} tokens of a unit");
            return Err(range("page_tokens", expected, self.page_tokens.to_string()));
        }
        let positive = [
            ("group", self.group, 16),
            ("cell_units", self.cell_units, usize::MAX),
            ("wanted_max", self.wanted_max, usize::MAX),
        ];
        for (what, found, most) in positive {
            if !(1..=most).contains(&found) {
                return Err(range(what, format!("1 to {most}"), found.to_string()));
            }
        }
        if !matches!(self.fold, Fold::Max | Fold::Sum | Fold::Mean) {
            let found = format!("{:?}", self.fold);
            return Err(range("fold", "a maximum, sum or mean".to_owned(), found));
        }
        Ok(())
    }
}
