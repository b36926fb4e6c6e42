#!/usr/bin/env bash
# Prints the folder of NVRTC in the Python environment KVIST_VENV (default: .venv), or nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
shopt -s nullglob

for folder in "${KVIST_VENV:-.venv}"/lib/python3*/site-packages/nvidia/{cu13,cuda_nvrtc}/lib; do
    for library in "$folder"/libnvrtc.so.1[23]; do
        realpath "$(dirname "$library")"
        exit
    done
done
