#!/usr/bin/env bash
# Runs each fuzz target for KVIST_FUZZ seconds (default 60), or those that are named. What they learn
# goes to fuzz/corpus, which git ignores; what they find to fuzz/artifacts. A finding becomes a file of
# fuzz/seeds, which the ordinary tests replay.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${KVIST_FUZZ:-60}"
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --version 0.13.2 --locked
# libFuzzer's instrumentation asks for it; nothing that ships is built this way.
export RUSTC_BOOTSTRAP=1

if [ "$#" -gt 0 ]; then
    targets=("$@")
else
    mapfile -t targets < <(cargo fuzz list)
fi
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target"
    # A life has at most 300 steps, of about three bytes.
    len=65536
    [ "$target" != operations ] || len=1024
    echo "=== $target, $seconds s"
    cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len="$len" -rss_limit_mb=2048 -timeout=20 -print_final_stats=1
done
