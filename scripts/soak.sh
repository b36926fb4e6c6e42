#!/usr/bin/env bash
# The reliability tests of the disk tier and the prefix store with scopes KVIST_SOAK times as large,
# optimised, with what they counted; then a store under pressure for KVIST_SOAK_SECONDS, whose memory,
# descriptors and threads must stay what they were.
set -euo pipefail
cd "$(dirname "$0")/.."

export KVIST_SOAK="${KVIST_SOAK:-20}"
export KVIST_SOAK_SECONDS="${KVIST_SOAK_SECONDS:-300}"
export RUST_BACKTRACE=0
echo "scopes times $KVIST_SOAK"
cargo test --release -p kvist --lib --test prefix --test scenarios --test soak --no-run
cargo test --release -p kvist --lib -- disk::tests --nocapture
cargo test --release -p kvist --test prefix --test scenarios -- --nocapture
cargo test --release -p kvist --test soak -- --nocapture
