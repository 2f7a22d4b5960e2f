#!/usr/bin/env bash
# Copies what documents the finished runs below SAVE (options.json, logs, summary.json; no weights) to OUT/runs, and
# writes the tables and figures of them to OUT.
#   SAVE=save  OUT=results/mine  FIGURES=--figures
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt

SAVE=${SAVE:-save}
[ -n "${OUT:-}" ] || fail "give OUT, the folder under results/"
mapfile -t figures < <(words "${FIGURES---figures}")
while IFS= read -r summary; do
  run=${summary%/*}
  mkdir -p "$OUT/runs/${run#"$SAVE"/}"
  cp "$run"/{options.json,summary.json,*log.csv} "$OUT/runs/${run#"$SAVE"/}/"
done < <(find "$SAVE" -name summary.json | sort)
"$PYTHON" "$ROOT/scripts/summarize.py" "$SAVE" --out "$OUT" "${figures[@]}"
