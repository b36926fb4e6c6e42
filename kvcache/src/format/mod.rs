//! The bytes on disk, version 1: keys, record headers, segment heads and footers, the directory's
//! own files. Pure functions over slices; `docs/formats.md` is the same in prose.
//!
//! Everything read is hostile: lengths are checked before they are used, sums are checked for
//! overflow, and a check that fails is a value ([`Bad`]), never a panic.

mod key;
mod layout;
mod meta;
mod record;
mod segment;
mod session;

pub use key::{BlockKey, KeyParts, KeySecret, MODEL_WIDE};
pub use layout::{AttentionKind, BlockDType, BlockLayout};
pub(crate) use meta::{Meta, MetaError, SecretFile};
pub(crate) use record::MAGIC as RECORD_MAGIC;
pub use record::{
    Bad, FLAG_SEALED, FLAG_TOKENS, FLAG_TOMBSTONE, HEADER_BYTES, Header, Limits, SECTOR,
};
pub(crate) use segment::{
    Footer, FooterEntry, HEAD_BYTES, Head, TRAILER_BYTES, Trailer, is_footer, parse_name,
    segment_name,
};
pub(crate) use session::{
    MODEL_MAX, SESSION_HEAD, SessionAbout, SessionFront, SessionParts, decode_front,
    encode_session, is_session_name, parse_session_file, put_geometry, session_body, session_file,
    take, take_geometry,
};
