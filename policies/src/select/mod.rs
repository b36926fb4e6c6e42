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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(name: &str, settings: Value) -> Result<Select, Error> {
        let Value::Object(settings) = settings else { panic!("an object") };
        Select::configured(name, settings)
    }

    fn refused(name: &str, settings: Value) -> String {
        changed(name, settings).unwrap_err().to_string()
    }

    #[test]
    fn a_typing_error_gets_the_nearest_name() {
        let text = Select::parse("boxd").unwrap_err().to_string();
        let start = "unknown selector \"boxd\", did you mean \"boxed\"?; there are: full, boxed, duoattention, streaming, quest";
        assert!(text.starts_with(start), "{text}");
        assert!(!Select::parse("somethingelse").unwrap_err().to_string().contains("did you mean"));
    }

    #[test]
    fn every_preset_parses_and_is_valid_and_goes_through_json() {
        for p in selection_presets() {
            let select = Select::parse(p.name).unwrap();
            assert_eq!(select.name(), p.name);
            select.validate().unwrap();
            let text = serde_json::to_string(&select).unwrap();
            assert_eq!(serde_json::from_str::<Select>(&text).unwrap(), select);
            assert_eq!(Select::configured(p.name, select.settings()).unwrap(), select);
            for budget in [1024, 4096, 16384] {
                let set = select.clone().with_budget(budget);
                set.validate().unwrap();
                assert!(set.budget().is_none_or(|tokens| tokens == budget), "{set:?}");
            }
        }
    }

    #[test]
    fn settings_are_changed_by_name() {
        assert_eq!(Select::parse("twilight").unwrap().settings()["top_p"], json!(0.85));
        let quest = changed("quest", json!({ "budget": 512 })).unwrap();
        assert_eq!(quest, Select::Quest(Quest { budget: 512, ..Quest::default() }));
        let tokens = changed("tokenselect", json!({ "theta": null, "sinks": 4 })).unwrap();
        let want = TokenSelect { theta: None, sinks: 4, ..TokenSelect::default() };
        assert_eq!(tokens, Select::TokenSelect(want));
        assert_eq!(
            refused("quest", json!({ "budgett": 512 })),
            "quest: unknown setting \"budgett\", did you mean \"budget\"?; there are: budget, unit_tokens"
        );
        let text = refused("quest", json!({ "budget": "many" }));
        assert!(text.starts_with("quest: budget: ") && text.contains("usize"), "{text}");
        assert!(refused("quest", json!({ "budget": -1 })).starts_with("quest: budget: "));
        assert!(refused("streaming", json!({ "sinks": 0, "recent": 0 })).contains("recent"));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let bad = |b: Boxed| Select::Boxed(b).validate().unwrap_err().to_string();
        assert_eq!(
            bad(Boxed { planes: 5, ..Boxed::default() }),
            "boxed: planes must be 2, 3 or 4, found 5"
        );
        assert_eq!(
            bad(Boxed::with_budget(80)),
            "boxed: budget must be above sinks + recent (at least 63) = 80, found 80"
        );
        let both = Boxed { reuse: Some(0.9), ..Boxed::with_max_missed_mass(0.1) };
        assert_eq!(bad(both), "boxed: reuse must be none with max_missed_mass, found both");
        assert!(
            bad(Boxed { reuse: Some(1.0), ..Boxed::default() }).contains("reuse must be above 0")
        );
        assert!(bad(Boxed { reuse_steps: 0, ..Boxed::default() }).contains("reuse_steps"));
        assert!(bad(Boxed { residency: f32::NAN, ..Boxed::default() }).contains("residency"));
        for share in [0.0, 1.0, -0.5, f32::NAN, f32::INFINITY] {
            assert!(bad(Boxed::with_max_missed_mass(share)).contains("max_missed_mass"));
        }
        let proven = Boxed { recent: 0, ..Boxed::with_max_missed_mass(0.1) };
        assert_eq!(
            bad(Boxed { max_tokens: Some(78), ..proven.clone() }),
            "boxed: max_tokens must be at least the tokens read anyway, 79, found 78"
        );
        assert!(Select::Boxed(Boxed { max_tokens: Some(79), ..proven }).validate().is_ok());
        assert_eq!(
            refused("quest", json!({ "budget": 31 })),
            "quest: budget must be at least 32: what is kept, 16, and a unit of 16, found 31"
        );
        assert!(refused("quest", json!({ "unit_tokens": 24 })).contains("a divisor of 64"));
        assert!(refused("quest", json!({ "unit_tokens": 0 })).contains("a divisor of 64"));
        assert!(refused("tokenselect", json!({ "budget": 640 })).contains("at least 641"));
        assert!(refused("tokenselect", json!({ "theta": 1.5 })).contains("theta"));
        assert!(refused("twilight", json!({ "top_p": 1.0 })).contains("top_p"));
        assert!(refused("snapkv", json!({ "pool": 4 })).contains("odd"));
        assert!(refused("snapkv", json!({ "window": 0 })).contains("window"));
        assert!(refused("tidaldecode", json!({ "anchors": [5, 2] })).contains("ascending"));
        assert!(refused("hshare", json!({ "steps": 0 })).contains("steps"));
        assert!(refused("hshare", json!({ "heads": 1.5 })).contains("heads"));
        assert!(refused("hshare", json!({ "layers": -0.5 })).contains("layers"));
        assert!(refused("leoam", json!({ "flat": 0.0 })).contains("flat"));
        assert!(refused("leoam", json!({ "queries": 0 })).contains("queries"));
        assert!(refused("nsa", json!({ "unit_tokens": 0 })).contains("unit_tokens"));
        assert!(refused("clusterkv", json!({ "cluster_tokens": 0 })).contains("cluster_tokens"));
        assert!(refused("clusterkv", json!({ "window": 0 })).contains("window"));
        assert!(refused("clusterkv", json!({ "budget": 20 })).contains("at least 22"));
        assert!(refused("retroinfer", json!({ "estimated": 1.5 })).contains("estimated"));
        assert!(refused("retroinfer", json!({ "retrieved": 0 })).contains("above 0"));
        assert!(refused("pqcache", json!({ "bits": 9 })).contains("from 1 to 8"));
        assert!(refused("pqcache", json!({ "recent_share": 1 })).contains("recent_share"));
        assert!(refused("shadowkv", json!({ "unit_tokens": 7 })).contains("a divisor of 64"));
        assert!(refused("infllm", json!({ "representatives": 129 })).contains("representatives"));
        assert!(refused("infllm", json!({ "recent": 64 })).contains("recent"));
        assert!(refused("infinigen", json!({ "channels": 0 })).contains("channels"));
        assert!(refused("infinigen", json!({ "alpha": -1 })).contains("alpha"));
        for name in ["quest", "arkvale", "tokenselect", "twilight", "snapkv", "nsa", "dsa"] {
            assert!(refused(name, json!({ "budget": 0 })).contains("budget"), "{name}");
        }
    }
}
