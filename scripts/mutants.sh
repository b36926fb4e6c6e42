#!/usr/bin/env bash
# Seeds known bugs, one at a time, and checks that the tests find each. Builds once, into a directory
# of its own. Arguments: names of bugs (default: all that the sources know).
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTFLAGS="${RUSTFLAGS:-} --cfg kvist_bugs"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/mutants"
export RUST_BACKTRACE=0

if [ "$#" -gt 0 ]; then
    bugs=("$@")
else
    mapfile -t bugs < <(grep -rhoE 'bug!\("[a-z_]+"\)' kvcache/src --include='*.rs' \
        | sed -E 's/bug!\("([a-z_]+)"\)/\1/' | grep -v '^name$' | sort -u)
fi

cargo nextest run -p kvist -p kvist-loom --no-run
caught=0
missed=()
for bug in "${bugs[@]}"; do
    log=$(mktemp)
    status=0
    KVIST_BUG=$bug timeout 900 cargo nextest run -p kvist -p kvist-loom --fail-fast \
        -E 'binary(kvist) & test(/disk|prefix|table|format|codec|vfs|session/) or binary(prefix) or binary(publish) or binary(scenarios) or package(kvist-loom)' \
        >"$log" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        missed+=("$bug")
        printf '%-28s MISSED\n' "$bug"
    else
        caught=$((caught + 1))
        by=$(grep -m 1 -oE 'FAIL \[[^]]*\] .*' "$log" | sed -E 's/.*\) //' || true)
        printf '%-28s caught by %s\n' "$bug" "${by:-a hang}"
    fi
    rm -f "$log"
done
echo "$caught of ${#bugs[@]} seeded bugs caught"
[ "${#missed[@]}" -eq 0 ]
