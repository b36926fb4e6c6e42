//! Pure decisions for a tiered KV cache. This crate says *what* to read, keep or move; it never
//! touches K or V, storage, threads, clocks or randomness, so every decision can be tested and
//! replayed alone.
//!
//! Here: the selectors of query-aware decoding ([`Select`]) with their defaults and the tokens
//! they always keep ([`Keep`]), how each head of a model is read ([`Profile`]), the arithmetic of
//! the missed-mass certificate ([`cover`]), which pages leave memory ([`place`]), which get a frame on a GPU ([`admit`]), which come back
//! before they are asked for ([`prefetch`]), which blocks of keys the queries of a prompt read
//! ([`prefill`]), which heads read what others selected ([`share`]), how a tree of chunks is searched
//! ([`tree`]), what chunks are sent with ([`compress`]), whether a stored prefix is worth loading
//! ([`gain`], [`loading`]), which blocks leave a full tier and are let in ([`replace`]), and which sequences have
//! memory ([`schedule`]).
#![forbid(unsafe_code)]

pub mod admit;
pub mod compress;
pub mod cover;
mod error;
pub mod gain;
mod keep;
pub mod loading;
pub mod place;
pub mod prefetch;
pub mod prefill;
mod profile;
pub mod replace;
pub mod schedule;
mod select;
mod settings;
pub mod share;
pub mod tree;

pub use error::Error;
pub use keep::Keep;
pub use profile::{Class, Expected, HeadStats, Missed, Profile, Rules, Shape, Window};
pub use select::{
    ArkVale, Boxed, ClusterKv, Clustering, Digest, Dsa, DuoAttention, Fold, HShare, InfLlm,
    InfiniGen, LeoAm, MagicDec, Method, Nsa, PRESETS, Parts, PqCache, Preset, Quest, Refine,
    RetroInfer, Reuse, Row, Rule, Scope, Select, ShadowKv, SnapKv, Streaming, Style, TidalDecode,
    TokenSelect, Twilight, selection_presets,
};
pub use settings::nearest;
