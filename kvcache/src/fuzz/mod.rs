//! What fuzzers call (`make fuzz`), and a plain test calls with the seeds of `fuzz/seeds`: functions
//! of a string of bytes that panic if something does not hold.
//!
//! Behind checksums a fuzzer finds nothing, so the first byte says whether those of the rest are made
//! right again.

mod formats;
mod keys;
mod migration;
mod payload;
mod segment;
mod sign;

pub use formats::{footer, meta, record, trailer};
pub use keys::keys;
pub use migration::{a_migration, migration};
pub use payload::{block, expw, payload};
pub use segment::segment;
use sign::sign;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this module.
pub const TARGETS: [Target; 10] = [
    ("record", record),
    ("footer", footer),
    ("trailer", trailer),
    ("meta", meta),
    ("segment", segment),
    ("payload", payload),
    ("block", block),
    ("expw", expw),
    ("keys", keys),
    ("migration", migration),
];

/// The directory that everything here is of.
const UUID: [u8; 16] = *b"kvist fuzz store";

/// A string of bytes that is eaten from the front; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    /// Up to `len` bytes.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let head = self.take(N);
        out[..head.len()].copy_from_slice(head);
        out
    }
}
