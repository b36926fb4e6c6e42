//! Summaries and scores against plain arithmetic: every instruction-set level, odd shapes, hostile
//! keys.

mod boxed;
mod common;
mod units;
