//! Sealing: records encrypted and authenticated with AES-256-GCM, a key per tenant and segment.
//!
//! Without the feature `seal` no tenant key can exist, and the rest of the store compiles the same.

use std::fmt;

use zeroize::Zeroizing;

#[cfg(feature = "seal")]
pub(crate) use sealed::TenantKey;
#[cfg(not(feature = "seal"))]
pub(crate) use unsealed::TenantKey;

/// The caller's key, from which those of tenants are derived. Wiped when dropped, never printed.
#[derive(Clone)]
pub(crate) struct MasterKey(
    #[cfg_attr(
        not(feature = "seal"),
        expect(dead_code, reason = "only sealing derives keys from it")
    )]
    Zeroizing<[u8; 32]>,
);

impl MasterKey {
    pub(crate) fn new(bytes: [u8; 32]) -> MasterKey {
        MasterKey(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey([redacted])")
    }
}

#[cfg(feature = "seal")]
mod sealed {
    use std::fmt;

    use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
    use zeroize::Zeroizing;

    use super::MasterKey;
    use crate::format::{Bad, HEADER_BYTES, Header};

    /// The key of one tenant, derived from the caller's master key and the tenant's salt.
    pub(crate) struct TenantKey(Zeroizing<[u8; 32]>);

    impl fmt::Debug for TenantKey {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("TenantKey([redacted])")
        }
    }

    impl TenantKey {
        /// `None` never: without the feature there are no keys.
        pub(crate) fn derive(master: &MasterKey, salt: &[u8]) -> Option<TenantKey> {
            let mut hash = blake3::Hasher::new_derive_key("kvist 2026 tenant sealing key v1");
            hash.update(&master.0[..]).update(salt);
            Some(TenantKey(Zeroizing::new(*hash.finalize().as_bytes())))
        }

        /// The key of a segment, whose head has random bytes for it: a copied or restored directory
        /// cannot use a key and nonce twice, because no segment is appended to after it was reopened.
        fn of_segment(&self, seal: &[u8; 32]) -> Option<LessSafeKey> {
            let mut hash = blake3::Hasher::new_derive_key("kvist 2026 segment sealing key v1");
            hash.update(&self.0[..]).update(seal);
            let key = Zeroizing::new(*hash.finalize().as_bytes());
            UnboundKey::new(&AES_256_GCM, &key[..]).ok().map(LessSafeKey::new)
        }

        /// Encrypts a payload in place and returns its tag. `header` is final but for its hash.
        pub(crate) fn seal(
            &self,
            seal: &[u8; 32],
            header: &Header,
            tokens: &[u8],
            payload: &mut [u8],
        ) -> [u8; 16] {
            let key = self.of_segment(seal).expect("a key of 32 bytes");
            let tag = key
                .seal_in_place_separate_tag(
                    nonce(header),
                    Aad::from(bound(header, tokens)),
                    payload,
                )
                .expect("a payload is far below the cipher's limit");
            let mut out = [0; 16];
            out.copy_from_slice(tag.as_ref());
            out
        }

        /// Decrypts a payload in place.
        pub(crate) fn open(
            &self,
            seal: &[u8; 32],
            header: &Header,
            tokens: &[u8],
            payload: &mut [u8],
        ) -> Result<(), Bad> {
            let key = self.of_segment(seal).ok_or(Bad::Decrypt)?;
            let tag = Tag::from(header.payload_hash);
            let aad = Aad::from(bound(header, tokens));
            key.open_in_place_separate_tag(nonce(header), aad, tag, payload, 0..)
                .map(|_| ())
                .map_err(|_| Bad::Decrypt)
        }
    }

    /// A segment is written once, so that a record's place in it is used once.
    fn nonce(header: &Header) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&header.position.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// What is authenticated beside the payload: the header without tag and checksum, token ids.
    fn bound(header: &Header, tokens: &[u8]) -> Vec<u8> {
        let mut raw = header.encode();
        raw[128..144].fill(0);
        raw[HEADER_BYTES - 4..].fill(0);
        [&raw[..], tokens].concat()
    }
}

#[cfg(not(feature = "seal"))]
mod unsealed {
    use super::MasterKey;
    use crate::format::{Bad, Header};

    /// No such key exists without the feature `seal`.
    #[derive(Debug)]
    pub(crate) enum TenantKey {}

    impl TenantKey {
        pub(crate) fn derive(_: &MasterKey, _: &[u8]) -> Option<TenantKey> {
            None
        }

        pub(crate) fn seal(&self, _: &[u8; 32], _: &Header, _: &[u8], _: &mut [u8]) -> [u8; 16] {
            match *self {}
        }

        pub(crate) fn open(
            &self,
            _: &[u8; 32],
            _: &Header,
            _: &[u8],
            _: &mut [u8],
        ) -> Result<(), Bad> {
            match *self {}
        }
    }
}
