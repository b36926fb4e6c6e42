//! A compiled kernel, and the file that keeps it.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `KVISTGPU` |
//! | 4 | version of this format, 1 (all numbers little-endian) |
//! | 4 | 0 cubin, 1 PTX |
//! | 4 + 4 | version of the compiler: major, minor |
//! | 8 | length of the code |
//! | 32 | key |
//! | 32 | blake3 of the bytes before and of the code |
//! | … | the code |

use super::{Key, Version};

const MAGIC: &[u8; 8] = b"KVISTGPU";
const FORMAT: u32 = 1;
const COVERED: usize = 64;
const HEADER: usize = COVERED + 32;
/// No kernel comes near: a longer file is none of ours.
pub(super) const FILE_MAX: u64 = 64 << 20;

/// Code that a driver can load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Assembly, which the driver has to finish, in place of machine code.
    pub ptx: bool,
    /// The compiler's version.
    pub compiler: Version,
    /// The code; PTX ends with a zero byte.
    pub code: Vec<u8>,
}

/// Why a file is no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Shorter or longer than it says.
    Length,
    /// Another kind of file, or of another version.
    Format,
    /// Another kernel's.
    Key,
    /// Bytes changed.
    Checksum,
    /// Not code.
    Code,
}

impl Image {
    /// Whether a driver can be given it: it takes no length, so it has to end where it should.
    pub(super) fn is_code(&self) -> bool {
        match self.ptx {
            true => self.code.last() == Some(&0),
            false => self.code.starts_with(b"\x7fELF"),
        }
    }

    /// The bytes of its file.
    #[must_use]
    pub fn encode(&self, key: &Key) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.code.len());
        out.extend_from_slice(MAGIC);
        for n in [FORMAT, u32::from(self.ptx), self.compiler.major, self.compiler.minor] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&(self.code.len() as u64).to_le_bytes());
        out.extend_from_slice(&key.0);
        let checksum = checksum(&out, &self.code);
        out.extend_from_slice(&checksum);
        out.extend_from_slice(&self.code);
        out
    }

    /// What [`Image::encode`] wrote under this key.
    ///
    /// # Errors
    /// [`Damage`] for any other bytes.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Image, Damage> {
        let (header, code) = bytes.split_at_checked(HEADER).ok_or(Damage::Length)?;
        let (covered, sum) = header.split_at(COVERED);
        let number = |at: usize| u32::from_le_bytes(array(&covered[at..at + 4]));
        if !covered.starts_with(MAGIC) || number(8) != FORMAT || number(12) > 1 {
            return Err(Damage::Format);
        }
        if u64::from_le_bytes(array(&covered[24..32])) != code.len() as u64 {
            return Err(Damage::Length);
        }
        if covered[32..] != key.0 {
            return Err(Damage::Key);
        }
        if sum != checksum(covered, code) {
            return Err(Damage::Checksum);
        }
        let compiler = Version { major: number(16), minor: number(20) };
        let image = Image { ptx: number(12) == 1, compiler, code: code.to_vec() };
        if image.is_code() { Ok(image) } else { Err(Damage::Code) }
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

fn checksum(covered: &[u8], code: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(covered).update(code).finalize().as_bytes()
}
