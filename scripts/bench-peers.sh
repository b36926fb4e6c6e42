#!/usr/bin/env bash
# Makes what `kvist bench store` and `cluster` compare with: .venv-peers with LMCache, faiss and
# scikit-learn, and the foyer peer.
# Returns at once when nothing changed. Redis is a system package: said, not installed.
#
#   KVIST_VENV=DIR        the environment that has torch and safetensors (default: .venv); only read
#   KVIST_PEERS_VENV=DIR  where the peers' environment goes (default: .venv-peers)
#   CARGO_TARGET_DIR=DIR  where builds go (default: target); the peer goes into its folder `peers`
set -euo pipefail
cd "$(dirname "$0")/.."

base=$(realpath -m "${KVIST_VENV:-.venv}")
venv=${KVIST_PEERS_VENV:-.venv-peers}
target=${CARGO_TARGET_DIR:-target}
requirements=benches/python/requirements-peers.txt

say() { printf 'bench-peers: %s\n' "$*"; }
fail() { printf 'bench-peers: error: %s\n' "$*" >&2; exit 1; }

[[ -x $base/bin/python ]] || fail "no $base (make setup)"

scripts/peers-venv.sh "$base" "$venv" "$requirements"

say "building the foyer peer"
cargo build --release --quiet --manifest-path benches/peers/Cargo.toml --target-dir "$target/peers"

command -v redis-server >/dev/null \
    || say "no redis-server (Debian and Ubuntu: apt-get install redis-server); its rows are left out"
say "ready"
