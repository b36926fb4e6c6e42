//! How each KV head of a model is read: densely, as a stream of first and recent tokens, or by the
//! selector with its own share of the budget.
//!
//! Heads differ more than layers do. Some never look beyond their first and last tokens (DuoAttention,
//! ICLR 2025, arXiv 2410.10819), a few look everywhere, and the rest miss very different masses at the same
//! budget. A profile says which is which. It is made once for a model, from measured statistics
//! ([`Profile::measured`]) or from learned gates ([`Profile::duo`]), is written as JSON, and changes what a
//! selector reads, never how it scores.

mod measured;
mod resolve;
mod shares;
mod stats;

use serde::{Deserialize, Serialize};

pub use measured::{Expected, Rules};
pub use stats::{HeadStats, Missed, Window};

use crate::Error;

/// The version of the JSON that this library writes and reads.
const VERSION: u32 = 1;
/// First and most recent tokens that a streaming head of DuoAttention reads (paper, section 3.1).
const DUO: (usize, usize) = (128, 256);
/// Counts above this are typing errors, and their products might overflow.
const COUNT_MAX: usize = 1 << 20;
/// Longest name of a model in bytes.
const MODEL_MAX: usize = 256;

/// How one KV head is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Class {
    /// Every token. Outside the budget, as dense layers are.
    Dense,
    /// Only the first and the most recent tokens: needs no summaries.
    Streaming {
        /// First tokens read.
        sinks: usize,
        /// Most recent tokens read.
        recent: usize,
    },
    /// What the selector picks.
    Select {
        /// The head's part of the budget, relative to the mean: 1 is as much as without a profile.
        share: f32,
    },
}

/// The attention that a profile speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Layers of the cache.
    pub layers: usize,
    /// Query heads.
    pub q_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a key.
    pub dim_k: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape { layers, q_heads, kv_heads, dim_k } = self;
        write!(f, "{layers} layers, {q_heads} query and {kv_heads} KV heads of {dim_k}")
    }
}

/// The class of every KV head of a model. A value of this type is always complete and in range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Profile {
    model: String,
    shape: Shape,
    /// `[layers][kv_heads]`
    heads: Vec<Vec<Class>>,
}

/// A profile as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kvist_profile: u32,
    model: String,
    shape: Shape,
    heads: Vec<Vec<Class>>,
}

impl From<Profile> for Written {
    fn from(profile: Profile) -> Written {
        let Profile { model, shape, heads } = profile;
        Written { kvist_profile: VERSION, model, shape, heads }
    }
}

impl TryFrom<Written> for Profile {
    type Error = Error;

    fn try_from(written: Written) -> Result<Profile, Error> {
        if written.kvist_profile != VERSION {
            let found = written.kvist_profile;
            return Err(Error::profile(format!("expected version {VERSION}, found {found}")));
        }
        Profile::new(written.model, written.shape, written.heads)
    }
}

impl Profile {
    /// A profile from the classes of all heads, `[layers][kv_heads]`. `model` is the model's name or any
    /// other identity, 1 to 256 bytes.
    ///
    /// # Errors
    /// [`Error::Profile`] naming what is missing or out of range.
    pub fn new(
        model: impl Into<String>,
        shape: Shape,
        heads: Vec<Vec<Class>>,
    ) -> Result<Profile, Error> {
        let profile = Profile { model: model.into(), shape, heads };
        profile.validate()?;
        Ok(profile)
    }

    /// A profile from JSON.
    ///
    /// # Errors
    /// [`Error::Profile`] if it is not one of this version, complete and in range.
    pub fn from_json(text: &str) -> Result<Profile, Error> {
        serde_json::from_str(text).map_err(|e| match e.is_data() {
            // What `validate` said, without its place in the text.
            true => Error::profile(e.to_string().trim_start_matches("profile: ").to_owned()),
            false => Error::profile(format!("expected a JSON object: {e}")),
        })
    }

    /// The profile as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// DuoAttention from the gate of every KV head, `[layers][kv_heads]`: the share `sparsity` of them with
    /// the lowest gates streams, 128 first and 256 recent tokens; the lower layer and head goes first among
    /// equals. The others go by the selector: all tokens with `full` or `duoattention`, its pick with any
    /// other.
    ///
    /// # Errors
    /// [`Error::Profile`] for gates that are not finite or not of this shape, or a share outside 0 to 1.
    pub fn duo(
        model: impl Into<String>,
        shape: Shape,
        gates: &[Vec<f64>],
        sparsity: f64,
    ) -> Result<Profile, Error> {
        shape.validate()?;
        if !(0.0..=1.0).contains(&sparsity) {
            return Err(Error::profile(format!("sparsity must be 0 to 1, found {sparsity}")));
        }
        if let Some(x) = gates.iter().flatten().find(|x| !x.is_finite()) {
            return Err(Error::profile(format!("gates must be finite, found {x}")));
        }
        shape.check("gates", gates)?;
        let heads = || (0..shape.layers).flat_map(|l| (0..shape.kv_heads).map(move |h| (l, h)));
        let mut order: Vec<(usize, usize)> = heads().collect();
        order.sort_by(|a, b| gates[a.0][a.1].total_cmp(&gates[b.0][b.1]).then(a.cmp(b)));
        let streaming = (sparsity * order.len() as f64).round() as usize;
        let mut classes = vec![vec![Class::Select { share: 1.0 }; shape.kv_heads]; shape.layers];
        for (layer, head) in order.into_iter().take(streaming) {
            classes[layer][head] = Class::Streaming { sinks: DUO.0, recent: DUO.1 };
        }
        Profile::new(model, shape, classes)
    }

    /// The model that it was made for.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The shape that it was made for.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The classes of all heads, `[layers][kv_heads]`.
    #[must_use]
    pub fn heads(&self) -> &[Vec<Class>] {
        &self.heads
    }

    fn validate(&self) -> Result<(), Error> {
        let err = |problem: String| Err(Error::profile(problem));
        if self.model.is_empty() || self.model.len() > MODEL_MAX {
            return err(format!("model must be 1..={MODEL_MAX} bytes, found {}", self.model.len()));
        }
        self.shape.validate()?;
        self.shape.check("heads", &self.heads)?;
        let numbered = |(l, row): (usize, &Vec<Class>)| {
            row.iter().copied().enumerate().map(move |(h, class)| (l, h, class)).collect::<Vec<_>>()
        };
        for (layer, head, class) in self.heads.iter().enumerate().flat_map(numbered) {
            let at = format!("layer {layer}, KV head {head}");
            match class {
                Class::Select { share } if !(share.is_finite() && share > 0.0) => {
                    return err(format!("{at}: share must be finite and above 0, found {share}"));
                }
                Class::Streaming { sinks, recent }
                    if recent == 0 || recent > COUNT_MAX || sinks > COUNT_MAX =>
                {
                    return err(format!(
                        "{at}: a streaming head reads 1..={COUNT_MAX} recent tokens and at most as many \
                         first ones, found {recent} and {sinks}"
                    ));
                }
                Class::Dense | Class::Streaming { .. } | Class::Select { .. } => {}
            }
        }
        Ok(())
    }

    /// Whether it was made for this model and shape. Names of models are the same if the last parts of
    /// their paths are, in upper or lower case; without a `model`, only the shape is compared.
    ///
    /// # Errors
    /// [`Error::OtherProfile`] naming what was expected and found.
    pub fn check(&self, model: Option<&[u8]>, shape: Shape) -> Result<(), Error> {
        let other = |what, expected, found| Err(Error::OtherProfile { what, expected, found });
        if shape != self.shape {
            return other("geometry", shape.to_string(), self.shape.to_string());
        }
        let last = |name: &[u8]| {
            let name = name.rsplit(|&c| c == b'/').next().unwrap_or_default();
            name.to_ascii_lowercase()
        };
        match model {
            Some(model) if last(model) != last(self.model.as_bytes()) => {
                let shown = |name: &[u8]| format!("{:?}", String::from_utf8_lossy(name));
                other("model", shown(model), shown(self.model.as_bytes()))
            }
            _ => Ok(()),
        }
    }
}

impl Class {
    /// Tokens that a streaming head reads.
    fn stream_tokens(self) -> Option<usize> {
        match self {
            Class::Streaming { sinks, recent } => Some(sinks.saturating_add(recent)),
            Class::Dense | Class::Select { .. } => None,
        }
    }
}

impl Shape {
    fn validate(&self) -> Result<(), Error> {
        let counts = [
            ("layers", self.layers),
            ("q_heads", self.q_heads),
            ("kv_heads", self.kv_heads),
            ("dim_k", self.dim_k),
        ];
        for (what, n) in counts {
            if n == 0 || n > COUNT_MAX {
                return Err(Error::profile(format!("{what} must be 1..={COUNT_MAX}, found {n}")));
            }
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            let (q, kv) = (self.q_heads, self.kv_heads);
            return Err(Error::profile(format!(
                "q_heads must be a multiple of kv_heads = {kv}, found {q}"
            )));
        }
        Ok(())
    }

    /// Checks that there is one of something for every head.
    fn check<T>(&self, what: &str, rows: &[Vec<T>]) -> Result<(), Error> {
        let Shape { layers, kv_heads, .. } = *self;
        if rows.len() != layers {
            let found = rows.len();
            return Err(Error::profile(format!("{what}: expected {layers} layers, found {found}")));
        }
        match rows.iter().position(|row| row.len() != kv_heads) {
            None => Ok(()),
            Some(layer) => Err(Error::profile(format!(
                "{what} of layer {layer}: expected {kv_heads} KV heads, found {}",
                rows[layer].len()
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
