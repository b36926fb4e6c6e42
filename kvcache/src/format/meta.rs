//! The directory's own two small files: what it is, and the secret that keys its hashes.

use super::KeySecret;
use super::record::{Bad, field};

/// Format of directories that this version writes.
const MAJOR: u32 = 1;
const MINOR: u32 = 0;
const KEY_MAGIC: [u8; 8] = *b"KVISTKEY";

/// `kvist.meta`: four lines of text, the last a checksum of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) uuid: [u8; 16],
    pub(crate) created_by: String,
}

/// A directory that cannot be used as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaError {
    /// Damaged or not ours.
    Bad,
    /// Of another major version.
    Version(u32),
}

impl Meta {
    /// Name of the file.
    pub(crate) const NAME: &str = "kvist.meta";
    /// No such file is longer.
    pub(crate) const BYTES_MAX: usize = 4096;
    /// The major version that this library reads and writes.
    pub(crate) const MAJOR: u32 = MAJOR;

    pub(crate) fn new(uuid: [u8; 16]) -> Meta {
        Meta { uuid, created_by: concat!("kvist ", env!("CARGO_PKG_VERSION")).to_owned() }
    }

    pub(crate) fn encode(&self) -> String {
        let uuid: String = self.uuid.iter().map(|b| format!("{b:02x}")).collect();
        let body =
            format!("kvist store {MAJOR}.{MINOR}\nuuid {uuid}\ncreated-by {}\n", self.created_by);
        format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()))
    }

    /// The version is read before the checksum, so that a newer format can be told apart.
    pub(crate) fn decode(raw: &[u8]) -> Result<Meta, MetaError> {
        let text = std::str::from_utf8(raw).map_err(|_| MetaError::Bad)?;
        let lines: Vec<&str> = text.lines().collect();
        let version = lines.first().and_then(|l| l.strip_prefix("kvist store "));
        let (major, _) = version.and_then(|v| v.split_once('.')).ok_or(MetaError::Bad)?;
        let major: u32 = major.parse().map_err(|_| MetaError::Bad)?;
        // A version without this checksum is another one; with it, a flipped digit is damage.
        if let Some(at) = text.rfind("crc32c ") {
            if text[at..] != format!("crc32c {:08x}\n", crc32c::crc32c(&raw[..at])) {
                return Err(MetaError::Bad);
            }
        } else if major == MAJOR {
            return Err(MetaError::Bad);
        }
        if major != MAJOR {
            return Err(MetaError::Version(major));
        }
        let [_, uuid, created_by, _] = lines[..] else { return Err(MetaError::Bad) };
        let hex = uuid.strip_prefix("uuid ").filter(|h| h.len() == 32).ok_or(MetaError::Bad)?;
        let uuid = u128::from_str_radix(hex, 16).map_err(|_| MetaError::Bad)?.to_be_bytes();
        let created_by = created_by.strip_prefix("created-by ").ok_or(MetaError::Bad)?.to_owned();
        Ok(Meta { uuid, created_by })
    }
}

/// `cache.key`: the secret that keys the hashes, with a checksum.
pub(crate) struct SecretFile;

impl SecretFile {
    /// Name of the file.
    pub(crate) const NAME: &str = "cache.key";
    /// Its length.
    pub(crate) const BYTES: usize = 44;

    pub(crate) fn encode(secret: &KeySecret) -> zeroize::Zeroizing<Vec<u8>> {
        let mut out = zeroize::Zeroizing::new(Vec::with_capacity(SecretFile::BYTES));
        out.extend(KEY_MAGIC);
        out.extend(secret.bytes());
        let crc = crc32c::crc32c(&out);
        out.extend(crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<KeySecret, Bad> {
        if raw.len() != SecretFile::BYTES {
            return Err(Bad::Short);
        }
        if !raw.starts_with(&KEY_MAGIC) {
            return Err(Bad::Magic);
        }
        if crc32c::crc32c(&raw[..40]) != u32::from_le_bytes(field(raw, 40)) {
            return Err(Bad::Checksum);
        }
        Ok(KeySecret::new(field(raw, 8)))
    }
}
