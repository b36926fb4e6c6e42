//! The patterns by name, with their settings.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AShape, BlockSparse, Nsa, Proxy, VerticalSlash};
use crate::settings::{self, list, nearest};
use crate::{Error, Preset};

/// How the queries of a prompt read the keys.
///
/// As JSON: an object with the `name` and those settings that are not the default.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "name")]
#[non_exhaustive]
pub enum Prefill {
    /// All of them.
    #[default]
    #[serde(rename = "dense")]
    Dense,
    /// The first keys and the nearest ones.
    #[serde(rename = "a-shape")]
    AShape(AShape),
    /// The keys and distances that the last queries look at.
    #[serde(rename = "vertical-slash")]
    VerticalSlash(VerticalSlash),
    /// The blocks whose mean key suits the mean query.
    #[serde(rename = "block-sparse")]
    BlockSparse(BlockSparse),
    /// The best of these three for each head.
    #[serde(rename = "minference")]
    MInference(MInference),
    /// Blocks ranked by a few proxy heads, a budget for each head.
    #[serde(rename = "proxyattn")]
    ProxyAttn(ProxyAttn),
    /// Blocks ranked by attention to compressed keys, one list for a group.
    #[serde(rename = "nsa")]
    Nsa(Nsa),
}

/// MInference (Jiang et al., NeurIPS 2024, arXiv 2407.02490): each head reads by the pattern that covers
/// most of what its last queries look at.
///
/// The published choice is made once per model, offline; here it is made for each prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MInference {
    /// Share of the prompt's keys that each query may read; none (code): as many as the other settings say,
    /// which fit prompts of 100k tokens and more.
    pub share: Option<f32>,
    /// First keys of the A-shape (code: 128).
    pub sinks: usize,
    /// Nearest keys of the A-shape (code: 3968).
    pub local: usize,
    /// Keys of vertical lines (most heads of Llama 3: 1000).
    pub vertical: usize,
    /// Distances of slashes (most heads of Llama 3: 6096).
    pub slash: usize,
    /// Blocks of 64 keys of the block-sparse pattern (code: 100).
    pub blocks: usize,
}

impl Default for MInference {
    fn default() -> Self {
        MInference {
            share: None,
            sinks: 128,
            local: 3968,
            vertical: 1000,
            slash: 6096,
            blocks: 100,
        }
    }
}

/// Of the keys that a share stands for, as many distances are read by vertical-slash: whole blocks make
/// more of them.
const SLASH: f32 = 0.1;
/// Keys that the share leaves at least.
const LEAST: usize = 64;

impl MInference {
    /// The patterns to choose among, for a prompt of `keys` tokens in blocks of `block`.
    #[must_use]
    pub fn patterns(&self, keys: usize, block: usize) -> (AShape, BlockSparse, VerticalSlash) {
        let lines = VerticalSlash::default();
        let Some(share) = self.share else {
            let (vertical, slash) = (self.vertical.max(lines.sinks), self.slash.max(lines.recent));
            return (
                AShape { sinks: self.sinks, local: self.local.max(1) },
                BlockSparse { blocks: self.blocks.max(1) },
                VerticalSlash { vertical, slash, ..lines },
            );
        };
        let tokens = ((share * keys as f32) as usize).max(LEAST);
        let slash = lines.recent.max((tokens as f32 * SLASH) as usize);
        (
            AShape { sinks: lines.sinks, local: tokens.saturating_sub(block).max(block) },
            BlockSparse { blocks: tokens.div_ceil(block) },
            VerticalSlash { vertical: (tokens / 2).max(lines.sinks), slash, ..lines },
        )
    }
}

/// ProxyAttn (ICLR 2026, arXiv 2509.24745), see [`Proxy`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyAttn {
    /// Proxy heads: a divisor of the query heads and of the KV heads.
    pub proxies: usize,
    /// Share of the attention that a head's budget must cover, above 0 and at most 1.
    pub mass: f32,
    /// Key blocks per query block at least.
    pub blocks_min: usize,
}

impl Default for ProxyAttn {
    fn default() -> Self {
        let Proxy { mass, blocks_min } = Proxy::default();
        ProxyAttn { proxies: 1, mass, blocks_min }
    }
}

impl ProxyAttn {
    /// The choice of blocks.
    #[must_use]
    pub fn policy(&self) -> Proxy {
        Proxy { mass: self.mass, blocks_min: self.blocks_min }
    }
}

/// All patterns, for listings.
pub const PATTERNS: &[Preset] = &[
    Preset { name: "dense", about: "every key", source: "exact" },
    Preset { name: "a-shape", about: "the first keys and the nearest", source: "arXiv 2309.17453" },
    Preset {
        name: "vertical-slash",
        about: "keys and distances that the last queries look at",
        source: "MInference, NeurIPS 2024, arXiv 2407.02490",
    },
    Preset {
        name: "block-sparse",
        about: "blocks whose mean key suits the mean query",
        source: "MInference, NeurIPS 2024, arXiv 2407.02490",
    },
    Preset {
        name: "minference",
        about: "for each head the best of a-shape, vertical-slash and block-sparse",
        source: "MInference, NeurIPS 2024, arXiv 2407.02490",
    },
    Preset {
        name: "proxyattn",
        about: "blocks ranked by a few proxy heads, a budget for each head",
        source: "ProxyAttn, ICLR 2026, arXiv 2509.24745",
    },
    Preset {
        name: "nsa",
        about: "blocks ranked by attention to compressed keys, one list for a group",
        source: "Native Sparse Attention, ACL 2025, arXiv 2502.11089",
    },
];

impl Prefill {
    /// The pattern of that name, with its default settings.
    ///
    /// # Errors
    /// [`Error::UnknownName`], with the nearest name if one is near.
    pub fn parse(name: &str) -> Result<Prefill, Error> {
        let object = Map::from_iter([("name".to_owned(), Value::from(name))]);
        serde_json::from_value(object.into()).map_err(|_| Error::UnknownName {
            what: "prefill pattern",
            name: name.to_owned(),
            suggestion: nearest(name, PATTERNS.iter().map(|p| p.name)),
            known: list(PATTERNS.iter().map(|p| p.name)),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let number = match self {
            Prefill::Dense => 0,
            Prefill::AShape(_) => 1,
            Prefill::VerticalSlash(_) => 2,
            Prefill::BlockSparse(_) => 3,
            Prefill::MInference(_) => 4,
            Prefill::ProxyAttn(_) => 5,
            Prefill::Nsa(_) => 6,
        };
        PATTERNS[number].name
    }

    /// The pattern of that name with some settings changed, by the names of its fields.
    ///
    /// # Errors
    /// [`Error::UnknownName`]; [`Error::UnknownSetting`] with the nearest setting, [`Error::SettingType`] for
    /// a value of the wrong type, [`Error::Setting`] for one that is out of range.
    pub fn configured(name: &str, settings: Map<String, Value>) -> Result<Prefill, Error> {
        let pattern = Prefill::parse(name)?;
        let mut all = pattern.settings();
        settings::change(pattern.name(), &mut all, settings, |all| pattern.with(all).map(drop))?;
        let changed = pattern.with(&all).unwrap_or(pattern);
        changed.validate()?;
        Ok(changed)
    }

    fn with(&self, settings: &Map<String, Value>) -> Result<Prefill, serde_json::Error> {
        let mut object = settings.clone();
        object.insert("name".to_owned(), self.name().into());
        serde_json::from_value(object.into())
    }

    /// Its settings by name.
    #[must_use]
    pub fn settings(&self) -> Map<String, Value> {
        settings::of(serde_json::to_value(self))
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Prefill::Dense => Ok(()),
            Prefill::AShape(p) => p.validate(),
            Prefill::VerticalSlash(p) => p.validate(),
            Prefill::BlockSparse(p) => p.validate(),
            Prefill::MInference(p) => match p.share {
                Some(x) if !(x > 0.0 && x <= 1.0) => {
                    Err(Error::setting("minference", "share", "above 0 and at most 1", x))
                }
                _ => Ok(()),
            },
            Prefill::ProxyAttn(p) if p.proxies == 0 => {
                Err(Error::setting("proxyattn", "proxies", "at least 1", 0))
            }
            Prefill::ProxyAttn(p) => p.policy().validate(),
            Prefill::Nsa(p) => p.validate(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(name: &str, settings: Value) -> Result<Prefill, Error> {
        let Value::Object(settings) = settings else { panic!("an object") };
        Prefill::configured(name, settings)
    }

    #[test]
    fn every_pattern_has_its_name_and_goes_through_json() {
        for p in PATTERNS {
            let pattern = Prefill::parse(p.name).unwrap();
            assert_eq!(pattern.name(), p.name);
            pattern.validate().unwrap();
            let text = serde_json::to_string(&pattern).unwrap();
            assert_eq!(serde_json::from_str::<Prefill>(&text).unwrap(), pattern);
            assert_eq!(Prefill::configured(p.name, pattern.settings()).unwrap(), pattern);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = |name, settings| changed(name, settings).unwrap_err().to_string();
        assert!(text("minferense", json!({})).contains("did you mean \"minference\""));
        assert!(text("minference", json!({ "shar": 1 })).contains("did you mean \"share\""));
        assert!(text("minference", json!({ "share": 2.0 })).contains("above 0 and at most 1"));
        assert!(text("a-shape", json!({ "local": 0 })).contains("at least 1"));
        assert!(text("a-shape", json!({ "local": "many" })).contains("usize"));
        assert!(text("proxyattn", json!({ "proxies": 0 })).contains("proxies"));
        assert!(text("proxyattn", json!({ "mass": 0 })).contains("mass"));
        assert!(text("block-sparse", json!({ "blocks": 0 })).contains("blocks"));
        assert!(text("nsa", json!({ "block": 65 })).contains("stride"));
        assert!(text("vertical-slash", json!({ "recent": 0 })).contains("recent"));
        let share = changed("minference", json!({ "share": 0.1 })).unwrap();
        let Prefill::MInference(share) = share else { panic!("{share:?}") };
        let (shape, sparse, lines) = share.patterns(20_000, 64);
        assert_eq!(
            (shape.local, sparse.blocks, lines.vertical, lines.slash),
            (1936, 32, 1000, 200)
        );
    }
}
