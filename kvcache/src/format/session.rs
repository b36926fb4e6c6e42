//! Saved sessions: a small file that says what a session is and which records it needs
//! (`docs/formats.md`, "Sessions").

#![deny(clippy::indexing_slicing)]

use super::{Bad, BlockDType, BlockKey, KeySecret, key::frame};
use crate::{DType, Geometry};

const MAGIC: [u8; 8] = *b"KVISTSN1";
const VERSION: u32 = 1;
/// Bytes of the head.
pub(crate) const SESSION_HEAD: usize = 128;
/// No session's file is longer.
pub(crate) const SESSION_MAX: u64 = 1 << 30;
/// Longest identity of a model.
pub(crate) const MODEL_MAX: usize = 256;
/// Longest name.
const NAME_MAX: usize = 64;
const ENDING: &str = ".kvs";
const HASH: usize = 32;

/// What a session is, without its content.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SessionAbout {
    /// Identity of the model's weights.
    pub(crate) model: Vec<u8>,
    pub(crate) geometry: Geometry,
    /// Tokens present in every layer.
    pub(crate) tokens: u64,
    /// Bytes of its records.
    pub(crate) stored_bytes: u64,
    /// When it was written, in seconds since 1970.
    pub(crate) written: u64,
}

/// The first part of a session's file: enough to keep its records.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SessionFront {
    pub(crate) about: SessionAbout,
    /// Records that it needs, each once.
    pub(crate) keys: Vec<BlockKey>,
}

/// Whether a name is one that a session can have: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first neither
/// `.` nor `-`.
pub(crate) fn is_session_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with(['.', '-'])
}

/// Name of a session's file.
pub(crate) fn session_file(name: &str) -> String {
    format!("{name}{ENDING}")
}

/// The session whose file has this name, if it is one.
pub(crate) fn parse_session_file(file: &str) -> Option<&str> {
    file.strip_suffix(ENDING).filter(|name| is_session_name(name))
}

/// The file's bytes.
pub(crate) fn encode_session(
    front: &SessionFront,
    body: &[u8],
    name: &str,
    uuid: &[u8; 16],
    secret: &KeySecret,
) -> Vec<u8> {
    let SessionFront { about, keys } = front;
    let len = SESSION_HEAD + about.model.len() + keys.len() * 32 + HASH + body.len() + HASH;
    let mut out = Vec::with_capacity(len);
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((about.model.len() as u32).to_le_bytes());
    out.extend(uuid);
    for number in [len as u64, about.stored_bytes, about.written, about.tokens] {
        out.extend(number.to_le_bytes());
    }
    put_geometry(&about.geometry, &mut out);
    out.extend((keys.len() as u64).to_le_bytes());
    out.extend((body.len() as u64).to_le_bytes());
    out.resize(SESSION_HEAD, 0);
    out.extend(&about.model);
    keys.iter().for_each(|key| out.extend(key.0));
    let hash = front_hash(&out, name, secret);
    out.extend(hash);
    out.extend(body);
    out.extend(body_hash(&hash, body, secret));
    out
}

fn front_hash(front: &[u8], name: &str, secret: &KeySecret) -> [u8; HASH] {
    let mut hash = blake3::Hasher::new_keyed(secret.bytes());
    frame(&mut hash, 0, b"session");
    frame(&mut hash, 1, name.as_bytes());
    *hash.update(front).finalize().as_bytes()
}

fn body_hash(front: &[u8; HASH], body: &[u8], secret: &KeySecret) -> [u8; HASH] {
    let mut hash = blake3::Hasher::new_keyed(secret.bytes());
    frame(&mut hash, 0, b"session body");
    *hash.update(front).update(body).finalize().as_bytes()
}

/// Where the parts of a session's file are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionParts {
    model: usize,
    keys: usize,
    body: usize,
}

impl SessionParts {
    /// From the head of a file of `len` bytes. What it says fits into the file.
    ///
    /// # Errors
    /// [`Bad`] if it is no session, of another version or of another length.
    pub(crate) fn of(head: &[u8], len: u64) -> Result<SessionParts, Bad> {
        let mut raw = head.get(..SESSION_HEAD).ok_or(Bad::Short)?;
        let raw = &mut raw;
        if take::<8>(raw)? != MAGIC {
            return Err(Bad::Magic);
        }
        if number(raw)? as u32 != VERSION {
            return Err(Bad::Version);
        }
        let model = number(raw)? as u64;
        take::<16>(raw)?;
        let said = long(raw)?;
        for _ in 0..24 + 6 * 4 + 8 {
            take::<1>(raw)?;
        }
        let (keys, body) = (long(raw)?, long(raw)?);
        let fixed = (SESSION_HEAD + 2 * HASH) as u64 + model;
        let total = keys.checked_mul(32).and_then(|k| k.checked_add(fixed)?.checked_add(body));
        if said > len {
            return Err(Bad::Short);
        }
        if total != Some(len) || said != len || len > SESSION_MAX || model > MODEL_MAX as u64 {
            return Err(Bad::Field);
        }
        Ok(SessionParts { model: model as usize, keys: keys as usize, body: body as usize })
    }

    /// Bytes of the first part, its hash included.
    pub(crate) fn front_bytes(&self) -> usize {
        SESSION_HEAD + self.model + self.keys * 32 + HASH
    }
}

/// Reads and checks the first part. Without a secret its hash is not checked.
///
/// # Errors
/// [`Bad`]; nothing of it may be used then.
pub(crate) fn decode_front(
    raw: &[u8],
    parts: &SessionParts,
    name: &str,
    uuid: &[u8; 16],
    secret: Option<&KeySecret>,
) -> Result<SessionFront, Bad> {
    let front = raw.get(..parts.front_bytes()).ok_or(Bad::Short)?;
    let (front, hash) = front.split_last_chunk::<HASH>().ok_or(Bad::Short)?;
    if secret.is_some_and(|secret| front_hash(front, name, secret) != *hash) {
        return Err(Bad::Checksum);
    }
    let (mut head, rest) = front.split_at_checked(SESSION_HEAD).ok_or(Bad::Short)?;
    let (model, keys) = rest.split_at_checked(parts.model).ok_or(Bad::Short)?;
    let head = &mut head;
    take::<16>(head)?;
    if take::<16>(head)? != *uuid {
        return Err(Bad::Field);
    }
    let [_, stored_bytes, written, tokens] = [long(head)?, long(head)?, long(head)?, long(head)?];
    let geometry = take_geometry(head)?;
    take::<16>(head)?;
    if model.is_empty() || head.iter().any(|&b| b != 0) {
        return Err(Bad::Field);
    }
    let about = SessionAbout { model: model.to_vec(), geometry, tokens, stored_bytes, written };
    let keys: Vec<BlockKey> = keys.as_chunks::<32>().0.iter().map(|k| BlockKey(*k)).collect();
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    if sorted.is_sorted_by(|a, b| a < b) {
        Ok(SessionFront { about, keys })
    } else {
        Err(Bad::Field)
    }
}

/// Adds a geometry's bytes.
pub(crate) fn put_geometry(g: &Geometry, out: &mut Vec<u8>) {
    for count in [g.layers, g.q_heads, g.kv_heads, g.dim_k, g.dim_v, g.page_tokens] {
        out.extend((count as u32).to_le_bytes());
    }
    out.extend([BlockDType::from(g.dtype).code(), 0, 0, 0, 0, 0, 0, 0]);
}

/// Takes a geometry off the front.
///
/// # Errors
/// [`Bad`] if it is not one.
pub(crate) fn take_geometry(head: &mut &[u8]) -> Result<Geometry, Bad> {
    let [layers, q_heads, kv_heads, dim_k, dim_v, page_tokens] =
        [number(head)?, number(head)?, number(head)?, number(head)?, number(head)?, number(head)?];
    let [code, zeros @ ..] = take::<8>(head)?;
    let dtypes = [DType::F32, DType::F16, DType::Bf16];
    let dtype = dtypes.into_iter().find(|&d| BlockDType::from(d).code() == code);
    let dtype = dtype.filter(|_| zeros == [0; 7]).ok_or(Bad::Field)?;
    let geometry = Geometry { layers, q_heads, kv_heads, dim_k, dim_v, dtype, page_tokens };
    geometry.validate().map_err(|_| Bad::Field)?;
    Ok(geometry)
}

/// Checks the whole file, whose first part is right, and finds its content.
///
/// # Errors
/// [`Bad`]; nothing of it may be used then.
pub(crate) fn session_body<'a>(
    raw: &'a [u8],
    parts: &SessionParts,
    secret: &KeySecret,
) -> Result<&'a [u8], Bad> {
    let (front, rest) = raw.split_at_checked(parts.front_bytes()).ok_or(Bad::Short)?;
    let hash = front.last_chunk::<HASH>().ok_or(Bad::Short)?;
    let (body, end) = rest.split_at_checked(parts.body).ok_or(Bad::Short)?;
    if body_hash(hash, body, secret) == *end { Ok(body) } else { Err(Bad::Checksum) }
}

fn number(raw: &mut &[u8]) -> Result<usize, Bad> {
    Ok(u32::from_le_bytes(take(raw)?) as usize)
}

fn long(raw: &mut &[u8]) -> Result<u64, Bad> {
    Ok(u64::from_le_bytes(take(raw)?))
}

/// The next `N` bytes.
pub(crate) fn take<const N: usize>(raw: &mut &[u8]) -> Result<[u8; N], Bad> {
    let (head, rest) = raw.split_first_chunk().ok_or(Bad::Short)?;
    *raw = rest;
    Ok(*head)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    fn front() -> SessionFront {
        let about = SessionAbout {
            model: b"weights".to_vec(),
            geometry: Geometry::new(3, 8, 4, 64, DType::F16),
            tokens: 1000,
            stored_bytes: 123_456,
            written: 1_700_000_000,
        };
        SessionFront { about, keys: (0..5).map(|n| BlockKey([n; 32])).collect() }
    }

    fn read(raw: &[u8], name: &str) -> Result<(SessionFront, Vec<u8>), Bad> {
        let secret = KeySecret::new([7; 32]);
        let parts = SessionParts::of(raw, raw.len() as u64)?;
        let front = decode_front(raw, &parts, name, &[9; 16], Some(&secret))?;
        Ok((front, session_body(raw, &parts, &secret)?.to_vec()))
    }

    fn file() -> Vec<u8> {
        encode_session(&front(), b"what is in it", "a", &[9; 16], &KeySecret::new([7; 32]))
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(read(&file(), "a").unwrap(), (front(), b"what is in it".to_vec()));
        assert_eq!(read(&file(), "b"), Err(Bad::Checksum), "a file under another name");
    }

    #[test]
    fn every_bit_and_every_length_is_checked() {
        let good = file();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            read(&bad, "a").unwrap_err();
        }
        for len in 0..good.len() {
            read(&good[..len], "a").unwrap_err();
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(read(&longer, "a"), Err(Bad::Field));
    }

    #[test]
    fn counts_beyond_the_file_are_refused_before_anything_is_made_of_them() {
        for at in [12, 32, 96, 104] {
            let mut bad = file();
            bad[at..at + 4].copy_from_slice(&[0xFF; 4]);
            assert!(SessionParts::of(&bad, bad.len() as u64).is_err(), "{at}");
        }
    }

    #[test]
    fn names_are_plain() {
        for good in ["a", "chat-1", "A.b_c", "0", &"x".repeat(64)] {
            assert_eq!(parse_session_file(&session_file(good)), Some(good));
        }
        let bad = ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\0", "a\\b", &"x".repeat(65)];
        for name in bad {
            assert_eq!(parse_session_file(&session_file(name)), None, "{name:?}");
        }
        assert_eq!(parse_session_file("a.kvs.tmp"), None);
    }
}
