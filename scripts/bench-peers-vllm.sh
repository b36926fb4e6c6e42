#!/usr/bin/env bash
# Makes .venv-vllm-peers: LMCache beside the vLLM of .venv-vllm, for bindings/python/tests_engines/peers.py.
#
#   KVIST_VLLM_VENV=DIR        the environment with vLLM (default: .venv-vllm); only read
#   KVIST_VLLM_PEERS_VENV=DIR  where the peers' environment goes (default: .venv-vllm-peers)
set -euo pipefail
cd "$(dirname "$0")/.."

base=$(realpath -m "${KVIST_VLLM_VENV:-.venv-vllm}")
venv=${KVIST_VLLM_PEERS_VENV:-.venv-vllm-peers}
requirements=bindings/python/requirements-vllm-peers.txt

fail() { printf 'bench-peers-vllm: error: %s\n' "$*" >&2; exit 1; }

[[ -x $base/bin/python ]] || fail "no $base (make test-engines)"
# vLLM and torch are seen in the other environment.
scripts/peers-venv.sh "$base" "$venv" "$requirements"
"$venv/bin/lmcache" --help >/dev/null || fail "LMCache does not start"
