//! The selectors: which tokens a decoding query reads.

mod boxed;
mod check;
mod clusters;
mod derived;
mod duo;
mod given;
mod hshare;
mod leoam;
mod parts;
#[cfg(test)]
mod tests;
mod tokens;
mod units;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use boxed::Boxed;
pub use clusters::{ClusterKv, RetroInfer};
pub use derived::{InfLlm, InfiniGen, PqCache, ShadowKv};
pub use duo::DuoAttention;
pub use given::{Dsa, MagicDec, Nsa, SnapKv};
pub use hshare::HShare;
pub use leoam::LeoAm;
pub use parts::{Clustering, Digest, Fold, Parts, Refine, Reuse, Row, Rule, Scope, Style};
pub use tokens::{Streaming, TidalDecode, TokenSelect, Twilight};
pub use units::{ArkVale, Quest};

use crate::settings::{self, list, nearest};
use crate::{Error, Keep};

/// The settings of a system of the literature.
trait Settings: Clone + Default + PartialEq + Serialize + DeserializeOwned {
    /// What `select=` calls it.
    const NAME: &'static str;
    /// One line.
    const ABOUT: &'static str;
    /// Where it comes from.
    const SOURCE: &'static str;

    /// What it is made of.
    fn parts(&self) -> Parts;

    /// Sets the tokens that are read.
    fn set_budget(&mut self, tokens: usize);
}

/// How a preset is carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Everything is read.
    Full,
    /// kvist's own.
    Boxed(Boxed),
    /// A composition.
    Parts(Parts),
}

macro_rules! presets {
    ($($(#[$doc:meta])* $variant:ident,)*) => {
        /// Which tokens of a sequence a decoding query attends to.
        ///
        /// As JSON: an object with the preset's `name` and those of its settings that are not the
        /// default.
        #[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
        #[serde(tag = "name", rename_all = "lowercase")]
        #[non_exhaustive]
        pub enum Select {
            /// All of them: dense attention.
            #[default]
            Full,
            /// kvist's own: nested bit planes inside page boxes.
            Boxed(Boxed),
            /// Streaming heads beside others, as a profile says (DuoAttention).
            DuoAttention(DuoAttention),
            $($(#[$doc])* $variant($variant),)*
        }

        /// All selectors.
        pub const PRESETS: &[Preset] = &[
            Preset { name: "full", about: "dense attention over every token", source: "exact" },
            Preset {
                name: "boxed",
                about: "tokens ranked by nested bit planes inside 64-token key boxes, folded by softmax mass",
                source: "kvist",
            },
            Preset {
                name: "duoattention",
                about: "some KV heads read first and recent tokens only, the others everything; needs a profile",
                source: "DuoAttention, ICLR 2025, arXiv 2410.10819",
            },
            $(Preset {
                name: $variant::NAME,
                about: $variant::ABOUT,
                source: $variant::SOURCE,
            },)*
        ];

        $(impl From<$variant> for Select {
            fn from(settings: $variant) -> Select {
                Select::$variant(settings)
            }
        })*

        impl Select {
            /// The preset of that name, with its default settings.
            ///
            /// # Errors
            /// [`Error::UnknownName`], with the nearest name if one is near.
            pub fn parse(name: &str) -> Result<Select, Error> {
                $(if name == $variant::NAME {
                    return Ok(Select::$variant($variant::default()));
                })*
                match name {
                    "full" => Ok(Select::Full),
                    "boxed" => Ok(Select::Boxed(Boxed::default())),
                    "duoattention" => Ok(Select::DuoAttention(DuoAttention::default())),
                    _ => Err(Error::UnknownName {
 what: "selector",
                        name: name.to_owned(),
                        suggestion: nearest(name, PRESETS.iter().map(|p| p.name)),
                        known: list(PRESETS.iter().map(|p| p.name)),
                    }),
                }
            }

            /// The same selector with this budget; `full` has none and stays as it is.
            #[must_use]
            pub fn with_budget(mut self, tokens: usize) -> Select {
                match &mut self {
                    Select::Full => {}
                    Select::Boxed(boxed) => boxed.budget = Some(tokens),
                    Select::DuoAttention(duo) => duo.budget = Some(tokens),
                    $(Select::$variant(settings) => settings.set_budget(tokens),)*
                }
                self
            }

            /// The preset's name.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    Select::Full => "full",
                    Select::Boxed(_) => "boxed",
                    Select::DuoAttention(_) => "duoattention",
                    $(Select::$variant(_) => $variant::NAME,)*
                }
            }

            /// How it is carried out.
            #[must_use]
            pub fn method(&self) -> Method {
                match self {
                    Select::Full => Method::Full,
                    Select::Boxed(boxed) => Method::Boxed(boxed.clone()),
                    Select::DuoAttention(duo) => duo.method(),
                    $(Select::$variant(settings) => Method::Parts(settings.parts()),)*
                }
            }
        }
    };
}

presets! {
    /// Sinks and window (StreamingLLM).
    Streaming,
    /// Page boxes (Quest).
    Quest,
    /// Shrunken page boxes, one list for a layer (ArkVale).
    ArkVale,
    /// Exact scores of all keys, votes of all heads (TokenSelect).
    TokenSelect,
    /// Exact scores in some layers, the same positions in the others (TidalDecode).
    TidalDecode,
    /// Exact scores in some heads, the same positions in others that picked alike (HShare).
    HShare,
    /// Quest pruned by 4-bit keys (Twilight).
    Twilight,
    /// Clusters of similar keys (ClusterKV).
    ClusterKv,
    /// Clusters, the best read, the next ones estimated (RetroInfer).
    RetroInfer,
    /// Product-quantised keys (PQCache).
    PqCache,
    /// Means of short units, and units unlike their mean (ShadowKV).
    ShadowKv,
    /// Blocks by the keys that later queries looked for (InfLLM).
    InfLlm,
    /// Keys by a few channels (InfiniGen).
    InfiniGen,
    /// A tree of page boxes, searched best first (LeoAM).
    LeoAm,
    /// What the prompt's last queries attended to (SnapKV).
    SnapKv,
    /// The same as a draft view (MagicDec).
    MagicDec,
    /// Block scores of a trained model (NSA).
    Nsa,
    /// Token scores of a trained indexer (DSA).
    Dsa,
}

impl From<Boxed> for Select {
    fn from(boxed: Boxed) -> Select {
        Select::Boxed(boxed)
    }
}

impl From<DuoAttention> for Select {
    fn from(duo: DuoAttention) -> Select {
        Select::DuoAttention(duo)
    }
}

impl Select {
    /// The preset of that name with some settings changed, by the names of its fields.
    ///
    /// # Errors
    /// [`Error::UnknownName`], [`Error::UnknownSetting`] with the nearest setting, and
    /// [`Error::Setting`] for a value of the wrong type or out of range.
    pub fn configured(name: &str, settings: Map<String, Value>) -> Result<Select, Error> {
        let preset = Select::parse(name)?;
        let mut all = preset.settings();
        let proves = matches!(preset, Select::Boxed(_));
        if proves && settings.get("max_missed_mass").is_some_and(|share| !share.is_null()) {
            // A certificate reads every plane, and a finer one proves more.
            all.extend(Select::Boxed(Boxed { planes: 4, ..Boxed::default() }).settings());
        }
        settings::change(preset.name(), &mut all, settings, |all| {
            let mut object = all.clone();
            object.insert("name".to_owned(), preset.name().into());
            serde_json::from_value::<Select>(object.into()).map(drop)
        })?;
        all.insert("name".to_owned(), preset.name().into());
        let select: Select = serde_json::from_value(all.into()).unwrap_or(preset);
        select.validate()?;
        Ok(select)
    }

    /// Its settings by name.
    #[must_use]
    pub fn settings(&self) -> Map<String, Value> {
        settings::of(serde_json::to_value(self))
    }

    /// The tokens that are read whatever the query says.
    #[must_use]
    pub fn keep(&self) -> Keep {
        match self.method() {
            Method::Full => Keep { sinks: 0, recent: 0 },
            Method::Boxed(boxed) => boxed.keep(),
            Method::Parts(parts) => parts.keep,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        match self.method() {
            Method::Full => Ok(()),
            Method::Boxed(boxed) => boxed.validate(),
            Method::Parts(parts) => parts.validate(self.name()),
        }
    }

    /// Tokens read per KV head and query at least; a shorter sequence is read whole.
    #[must_use]
    pub fn floor_tokens(&self) -> usize {
        match self.method() {
            Method::Full => usize::MAX,
            Method::Boxed(boxed) => boxed.floor_tokens(),
            Method::Parts(parts) => parts.floor_tokens(),
        }
    }

    /// Tokens read per KV head and query, keeps included, where that is a fixed number: not for `full`, a
    /// share of the context, or a share of the mass.
    #[must_use]
    pub fn budget(&self) -> Option<usize> {
        match self.method() {
            Method::Full => None,
            Method::Boxed(boxed) => {
                let fixed = boxed.top_p.is_none() && boxed.max_missed_mass.is_none();
                fixed.then(|| boxed.floor_tokens())
            }
            Method::Parts(parts) => {
                let fixed = matches!(parts.rule, Rule::Budget(_)) && parts.refine.is_none();
                fixed.then(|| parts.floor_tokens())
            }
        }
    }

    /// The smallest budget that it can be given: what is always read and a token or unit more.
    #[must_use]
    pub fn least_budget(&self) -> usize {
        match self.method() {
            Method::Full => 0,
            Method::Boxed(boxed) => boxed.least_budget(),
            Method::Parts(parts) => parts.least_budget(),
        }
    }

    /// Whether it says nothing without a [`Profile`](crate::Profile).
    #[must_use]
    pub fn needs_profile(&self) -> bool {
        matches!(self, Select::DuoAttention(_))
    }
}

/// A selector by name, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name `select=` takes.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// Where it comes from.
    pub source: &'static str,
}

/// All selectors, for listings.
#[must_use]
pub fn selection_presets() -> &'static [Preset] {
    PRESETS
}
