#!/usr/bin/env bash
# The Triton kernels on a GPU: the tests, errors on fresh random numbers, then one table of times. Exit status 0
# only if every number was right. Options go to `python -m benchmarks.run triton`; PYTHON chooses another Python.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
exec "$PYTHON" -m benchmarks.run triton --device cuda "$@"
