#!/usr/bin/env bash
# peers-venv.sh BASE VENV REQUIREMENTS: makes the environment VENV with what REQUIREMENTS lists, without what
# that names in turn: LMCache wants CUDA packages that a machine without a GPU does not need. What BASE has is
# seen there; BASE stays as it is. Returns at once when nothing changed.
set -euo pipefail
base=$1 venv=$2 requirements=$3

say() { printf 'peers-venv: %s\n' "$*"; }
fail() { printf 'peers-venv: error: %s\n' "$*" >&2; exit 1; }
site() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

hash=$({ "$base/bin/python" --version; printf '%s\n' "$base"; cat "$requirements"; } | cksum)
[[ -f $venv/.peers && $(<"$venv/.peers") == "$hash" ]] && exit 0
say "installing $requirements into $venv"
rm -rf "$venv"
"$base/bin/python" -m venv "$venv" || fail "'python -m venv' failed"
printf '%s\n' "$(site "$base")" >"$(site "$venv")/base.pth"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --requirement "$requirements" || fail "pip could not install $requirements"
printf '%s\n' "$hash" >"$venv/.peers"
