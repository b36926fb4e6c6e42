#!/usr/bin/env bash
# Makes .venv-vllm-peers: LMCache beside the vLLM of .venv-vllm, for bindings/python/tests_engines/peers.py.
# Returns at once when nothing changed.
#
#   KVIST_VLLM_VENV=DIR        the environment with vLLM (default: .venv-vllm); only read
#   KVIST_VLLM_PEERS_VENV=DIR  where the peers' environment goes (default: .venv-vllm-peers)
set -euo pipefail
cd "$(dirname "$0")/.."

base=$(realpath -m "${KVIST_VLLM_VENV:-.venv-vllm}")
venv=${KVIST_VLLM_PEERS_VENV:-.venv-vllm-peers}
requirements=bindings/python/requirements-vllm-peers.txt

say() { printf 'bench-peers-vllm: %s\n' "$*"; }
fail() { printf 'bench-peers-vllm: error: %s\n' "$*" >&2; exit 1; }
site() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

[[ -x $base/bin/python ]] || fail "no $base (make test-engines)"
hash=$({ "$base/bin/python" --version; printf '%s\n' "$base"; cat "$requirements"; } | cksum)
[[ -f $venv/.peers && $(<"$venv/.peers") == "$hash" ]] && exit 0

say "installing LMCache into $venv ($requirements)"
rm -rf "$venv"
"$base/bin/python" -m venv "$venv" || fail "'python -m venv' failed"
# vLLM and torch are seen in the other environment, which stays as it is.
printf '%s\n' "$(site "$base")" >"$(site "$venv")/base.pth"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --requirement "$requirements" || fail "pip could not install $requirements"
"$venv/bin/lmcache" --help >/dev/null || fail "LMCache does not start"
printf '%s\n' "$hash" >"$venv/.peers"
say "$venv is ready"
