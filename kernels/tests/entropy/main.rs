//! The lossless codec: round trips, agreement of instruction sets, hostile input.

mod common;
mod hostile;
mod round_trip;
