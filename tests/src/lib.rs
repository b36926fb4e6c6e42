//! Whole-system tests of kvist; they live in `tests/`.
