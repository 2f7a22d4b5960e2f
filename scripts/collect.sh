#!/usr/bin/env bash
# Adds what documents the finished and the failed runs below SAVE (options.json, logs, summary.json; no weights) to
# RESULTS/runs, and writes the tables and figures of all runs there to RESULTS. Run it again for the folder of another machine:
# runs on other data, or by other weights of the same teacher, are refused (digests in options.json), and nothing is copied.
# Of this machine's absolute paths, what is below SAVE begins with its name there, of others the last names are left.
# Variables, with their defaults:
#   RESULTS=FOLDER  required, below results/  SAVE=save  FIGURES=--figures
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

[ -n "${RESULTS:-}" ] || fail "give RESULTS, the folder under results/"
mapfile -t figures < <(words "${FIGURES---figures}")
"$PYTHON" "$ROOT/scripts/summarize.py" "${SAVE:-save}" --out "$RESULTS" --runs "${figures[@]}"
