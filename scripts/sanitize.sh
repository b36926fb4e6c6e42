#!/usr/bin/env bash
# Unit and corpus tests, and the seeds of the fuzz targets, under AddressSanitizer and LeakSanitizer.
# The large sweeps, which run the same code over and over, are left out, as is the test that leaks what
# the kernel may still write to.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
# The sanitizer asks for it; nothing that ships is built this way.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address"
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1:detect_stack_use_after_return=1}"
export RUST_BACKTRACE=0
cargo test --target "$host" --target-dir target/sanitize -p kvist --lib --test fuzz -- \
    --skip disk::tests::crash --skip disk::tests::damage --skip disk::tests::faults \
    --skip disk::tests::model --skip leaks_their_memory "$@"
