#!/usr/bin/env bash
# A GPU node: what it is, what it reaches, 30 seconds of readings and what the health rules say of them; then every
# static fact against nvidia-smi. Exit status 0 only if all agree. PYTHON chooses another Python.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
trace="$folder/trace.jsonl" # a new file: --record does not write over one
"$PYTHON" -m kernel_pytorch.cli probe --measure
"$PYTHON" -m kernel_pytorch.cli probe --record "$trace" --seconds 30
"$PYTHON" -m kernel_pytorch.cli probe --replay "$trace"
"$PYTHON" -m benchmarks.gpu_probe
