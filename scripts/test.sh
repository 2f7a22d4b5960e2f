#!/usr/bin/env bash
# Lint (of bash too, where shellcheck is installed) and tests. Makes .venv on the first call. Arguments go to pytest:
# bash scripts/test.sh -k crd
# WORKERS=2 processes share the tests.
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements-dev.txt requirements.txt --any "$@"
[[ $PYTHON != [!/]*/* ]] || PYTHON=$PWD/$PYTHON
cd "$ROOT"
[ -z "$(command -v shellcheck)" ] || shellcheck scripts/*.sh scripts/*.sbatch .ci/run
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -n "${WORKERS:-2}" "$@"
