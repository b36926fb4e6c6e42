//! Why bytes could not be had: every miss has a reason, and nothing is served in their place.

use std::fmt;

/// Why a page or record could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissReason {
    /// It was never stored, or not under this key.
    Absent,
    /// It was dropped to make room.
    Evicted,
    /// It was erased on request.
    Erased,
    /// Its bytes do not match their checksum.
    Checksum,
    /// It was not written to its end.
    Torn,
    /// What lies there belongs to another key.
    KeyMismatch,
    /// It belongs to another model.
    ModelMismatch,
    /// It has another shape or type.
    LayoutMismatch,
    /// Its format has a version that this library does not read.
    Version,
    /// Its codec is unknown, or failed.
    Codec,
    /// It is sealed, and the key does not open it.
    Decrypt,
    /// The operating system refused to read or write it.
    Io,
    /// It did not arrive by its deadline.
    Timeout,
    /// What held it is gone.
    Gone,
    /// There was no room to bring it to, and all that is there is in use.
    Busy,
    /// Its tier was given up after too many failures.
    Degraded,
}

impl MissReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [MissReason; 16] = [
        MissReason::Absent,
        MissReason::Evicted,
        MissReason::Erased,
        MissReason::Checksum,
        MissReason::Torn,
        MissReason::KeyMismatch,
        MissReason::ModelMismatch,
        MissReason::LayoutMismatch,
        MissReason::Version,
        MissReason::Codec,
        MissReason::Decrypt,
        MissReason::Io,
        MissReason::Timeout,
        MissReason::Gone,
        MissReason::Busy,
        MissReason::Degraded,
    ];

    /// Its name in counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            MissReason::Absent => "absent",
            MissReason::Evicted => "evicted",
            MissReason::Erased => "erased",
            MissReason::Checksum => "checksum",
            MissReason::Torn => "torn",
            MissReason::KeyMismatch => "key_mismatch",
            MissReason::ModelMismatch => "model_mismatch",
            MissReason::LayoutMismatch => "layout_mismatch",
            MissReason::Version => "version",
            MissReason::Codec => "codec",
            MissReason::Decrypt => "decrypt",
            MissReason::Io => "io",
            MissReason::Timeout => "timeout",
            MissReason::Gone => "gone",
            MissReason::Busy => "busy",
            MissReason::Degraded => "degraded",
        }
    }
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MissReason::Absent => "never stored",
            MissReason::Evicted => "dropped to make room",
            MissReason::Erased => "erased",
            MissReason::Checksum => "its bytes do not match their checksum",
            MissReason::Torn => "not written to its end",
            MissReason::KeyMismatch => "stored under another key",
            MissReason::ModelMismatch => "stored for another model",
            MissReason::LayoutMismatch => "stored with another shape or type",
            MissReason::Version => "stored in an unknown version of the format",
            MissReason::Codec => "its codec is unknown or failed",
            MissReason::Decrypt => "sealed under another key",
            MissReason::Io => "input or output failed",
            MissReason::Timeout => "not there by the deadline",
            MissReason::Gone => "what held it is gone",
            MissReason::Busy => "no room to bring it to",
            MissReason::Degraded => "its tier was given up after failures",
        })
    }
}
