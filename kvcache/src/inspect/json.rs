//! How fingerprints and reasons are written.

use serde::Serializer;

use crate::MissReason;
use crate::format::BlockKey;

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn key<S: Serializer>(key: &Option<BlockKey>, out: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(key) => out.collect_str(key),
        None => out.serialize_none(),
    }
}

pub(super) fn reason<S: Serializer>(reason: &MissReason, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(reason.name())
}
