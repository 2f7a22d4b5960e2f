#!/usr/bin/env bash
# Copies what documents the finished runs below SAVE (options.json, logs, summary.json; no weights) to RESULTS/runs, and
# writes the tables and figures of them to RESULTS. Of this machine's absolute paths, what is below SAVE begins with its
# name there, of others the last names are left. Variables, with their defaults:
#   RESULTS=FOLDER  required, below results/  SAVE=save  FIGURES=--figures
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

[ -n "${RESULTS:-}" ] || fail "give RESULTS, the folder under results/"
mapfile -t figures < <(words "${FIGURES---figures}")
"$PYTHON" "$ROOT/scripts/summarize.py" "${SAVE:-save}" --out "$RESULTS" --runs "${figures[@]}"
