//! Pure decisions for a tiered KV cache. This crate says *what* to read, keep or move; it never
//! touches K or V, storage, threads, clocks or randomness, so every decision can be tested and
//! replayed alone.
//!
//! Here: the selectors of query-aware decoding ([`Select`]) with their defaults and the tokens
//! they always keep ([`Keep`]), the arithmetic of the missed-mass certificate ([`cover`]), which
//! pages leave memory ([`place`]), which come back before they are asked for ([`prefetch`]), and which
//! blocks of keys the queries of a prompt read ([`prefill`]).
#![forbid(unsafe_code)]

pub mod cover;
mod error;
mod keep;
pub mod place;
pub mod prefetch;
pub mod prefill;
mod select;

pub use error::Error;
pub use keep::Keep;
pub use select::{
    ArkVale, Boxed, Digest, Dsa, Fold, MagicDec, Method, Nsa, PRESETS, Parts, Preset, Quest,
    Refine, Reuse, Row, Rule, Scope, Select, SnapKv, Streaming, TidalDecode, TokenSelect, Twilight,
    nearest, selection_presets,
};
