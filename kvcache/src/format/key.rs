//! Block keys: 32 bytes that bind *what* a block holds (BLAKE3 over tagged, length-framed fields).

use std::fmt;

use zeroize::Zeroizing;

use super::BlockLayout;
use crate::Error;

/// A block's identity. Two blocks with the same key hold the same content; lookups compare all 32
/// bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey(pub [u8; 32]);

/// The layer field of a key whose object holds all layers of its layout.
pub const MODEL_WIDE: u32 = u32::MAX;

/// Longest tenant salt.
const SALT_MAX: usize = 64;
/// Longest extra field.
const EXTRA_MAX: usize = 4096;
/// Token ids stay below this.
const TOKEN_MAX: u32 = 1 << 31;

impl BlockKey {
    /// The parent of a first block.
    pub const ROOT: BlockKey = BlockKey([0; 32]);

    /// First 8 bytes as a number: seeds checksums, so that a right payload under a wrong key fails.
    #[must_use]
    pub fn seed(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(first)
    }

    /// From 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<BlockKey> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Some(BlockKey(key))
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockKey({self})")
    }
}

/// The secret that keys the hash: random per directory, or given so that several hosts agree. Wiped
/// when dropped.
#[derive(Clone)]
pub struct KeySecret(Zeroizing<[u8; 32]>);

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret([redacted])")
    }
}

impl KeySecret {
    /// A caller's own secret.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> KeySecret {
        KeySecret(Zeroizing::new(bytes))
    }

    /// A new secret from the system's random numbers.
    ///
    /// # Errors
    /// [`Error::System`] if it has none.
    pub fn random() -> Result<KeySecret, Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        let what = "random bytes for a key secret";
        let refused = |e: getrandom::Error| Error::System { what, reason: e.to_string() };
        getrandom::fill(&mut bytes[..]).map_err(refused)?;
        Ok(KeySecret(bytes))
    }

    /// Its bytes, to be handed to another process that computes the same keys.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What stands for a tenant in files: blake3 of its salt, keyed. Says nothing about the salt.
    #[must_use]
    pub fn tenant(&self, salt: &[u8]) -> [u8; 32] {
        let mut hash = blake3::Hasher::new_keyed(&self.0);
        frame(&mut hash, 0, b"tenant");
        frame(&mut hash, 2, salt);
        *hash.finalize().as_bytes()
    }
}

/// Adds one field: tag, length (u32, little-endian), bytes. Tags and lengths make it impossible for
/// two different lists of fields to run together.
pub(crate) fn frame(hash: &mut blake3::Hasher, tag: u8, bytes: &[u8]) {
    hash.update(&[tag]);
    hash.update(&(bytes.len() as u32).to_le_bytes());
    hash.update(bytes);
}

/// Everything a block's content depends on besides its own tokens and its parent.
#[derive(Clone)]
pub struct KeyParts {
    /// Tenant salt, 0 to 64 bytes; set by the server, never copied from a client's request.
    pub salt: Zeroizing<Vec<u8>>,
    /// blake3 of the model's weights (or a value that the caller vouches for). A name is not enough.
    pub model: [u8; 32],
    /// [`BlockLayout::fingerprint`].
    pub layout: [u8; 32],
    /// Fingerprint of the adapter (LoRA id and scale), if there is one.
    pub adapter: Option<[u8; 32]>,
    /// Whatever else the content depends on, up to 4 KiB: full hashes of images, position offset,
    /// RoPE base and scaling.
    pub extra: Vec<u8>,
}

impl fmt::Debug for KeyParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyParts").field("salt", &"[redacted]").finish_non_exhaustive()
    }
}

impl KeyParts {
    /// Content of a model in this layout, without tenant, adapter or extra.
    #[must_use]
    pub fn new(model: [u8; 32], layout: &BlockLayout) -> KeyParts {
        KeyParts {
            salt: Zeroizing::default(),
            model,
            layout: layout.fingerprint(),
            adapter: None,
            extra: Vec::new(),
        }
    }

    /// Checks the lengths.
    ///
    /// # Errors
    /// [`Error::Setting`] for a salt above 64 bytes or an extra field above 4 KiB.
    pub fn validate(&self) -> Result<(), Error> {
        if self.salt.len() > SALT_MAX {
            return Err(Error::setting("salt", "at most 64 bytes", self.salt.len()));
        }
        if self.extra.len() > EXTRA_MAX {
            return Err(Error::setting("extra", "at most 4096 bytes", self.extra.len()));
        }
        Ok(())
    }

    /// Key of the block with these tokens after `parent`; `layer` is [`MODEL_WIDE`] for a block of
    /// all layers.
    #[must_use]
    pub fn key(
        &self,
        secret: &KeySecret,
        parent: &BlockKey,
        tokens: &[u32],
        layer: u32,
    ) -> BlockKey {
        let mut hash = blake3::Hasher::new_keyed(secret.bytes());
        frame(&mut hash, 1, &1u16.to_le_bytes());
        if bug!("salt_not_framed") {
            hash.update(&self.salt).update(&self.extra);
        } else {
            frame(&mut hash, 2, &self.salt);
        }
        frame(&mut hash, 3, &self.model);
        frame(&mut hash, 4, &self.layout);
        frame(&mut hash, 5, &parent.0);
        hash.update(&[6]);
        hash.update(&((tokens.len() * 4) as u32).to_le_bytes());
        if cfg!(target_endian = "little") {
            hash.update(bytemuck::cast_slice(tokens));
        } else {
            for t in tokens {
                hash.update(&t.to_le_bytes());
            }
        }
        frame(&mut hash, 7, self.adapter.as_ref().map_or(&[], |a| &a[..]));
        if !bug!("salt_not_framed") {
            frame(&mut hash, 8, &self.extra);
        }
        frame(&mut hash, 9, &layer.to_le_bytes());
        BlockKey(*hash.finalize().as_bytes())
    }

    /// Key of a block of which only a hash is known, which another system computed over tokens and all
    /// that came before: no tokens and no parent, so that it is never the key of a block whose tokens are
    /// known.
    #[must_use]
    pub fn foreign(&self, secret: &KeySecret, hash: &[u8]) -> BlockKey {
        let len = (self.extra.len() as u32).to_le_bytes();
        let extra = [&len, &self.extra[..], hash].concat();
        KeyParts { extra, ..self.clone() }.key(secret, &BlockKey::ROOT, &[], MODEL_WIDE)
    }

    /// Keys of all full blocks of a token stream, each chained to the one before.
    ///
    /// # Errors
    /// [`Error::Setting`] for a token id of 2^31 or more.
    pub fn chain(
        &self,
        secret: &KeySecret,
        parent: &BlockKey,
        tokens: &[u32],
        block_tokens: usize,
    ) -> Result<Vec<BlockKey>, Error> {
        if let Some(bad) = tokens.iter().find(|&&t| t >= TOKEN_MAX) {
            return Err(Error::setting("token id", "below 2^31", bad));
        }
        let mut parent = *parent;
        let next = |block: &[u32]| {
            parent = self.key(secret, &parent, block, MODEL_WIDE);
            parent
        };
        Ok(tokens.chunks_exact(block_tokens).map(next).collect())
    }
}
