//! A life of a store, chosen byte by byte.

#![no_main]

#[path = "../../kvcache/tests/common/prefix.rs"]
mod common;
#[path = "../../kvcache/tests/prefix/lives.rs"]
#[allow(unused_imports, reason = "its tests are left out here")]
mod lives;

libfuzzer_sys::fuzz_target!(|data: &[u8]| lives::live(1, common::Numbers::given(data.to_vec()), 300));
