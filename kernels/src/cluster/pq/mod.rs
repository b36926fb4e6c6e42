//! Product quantisation of keys: a few bits per token that tables of the query turn into scores.
//!
//! A key of `dim` elements is cut into `parts` of equal length; each part is replaced by the nearest of
//! `2^bits` centroids of its own ([`Codebook`]), so a token is `parts` codes. A query's dot products with
//! all centroids make a table per part ([`PqQuery`]); the score of a token is the sum of its entries
//! ([`score`]). PQCache (SIGMOD 2025) has 2 parts of 6 bits, 1.5 bytes a token.
//!
//! **Layout.** Tiles of 64 tokens, a cell per tile, in it the codes of one part after the other. Codes take
//! 4 bits (up to 16 centroids): byte i holds tokens i (low) and i + 32 (high); 6 bits (up to 64): the low
//! 4 bits like that, then 16 bytes of which byte i holds bits 4 and 5 of tokens i, i + 16, i + 32 and
//! i + 48, from the lowest bits up; or 8 bits: a byte per token. So a register of codes is a load, a mask and a
//! shift away.

mod codebook;
mod codes;
mod score;

pub use codebook::Codebook;
pub use codes::PqSpec;
pub(crate) use score::{Job, plain};
pub use score::{PqQuery, score};
