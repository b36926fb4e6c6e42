//! Summaries and scores against plain arithmetic: every instruction-set level, odd shapes, hostile
//! keys.

mod boxed;
mod common;
mod low_bit;
mod tiles;
mod units;
