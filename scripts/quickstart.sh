#!/usr/bin/env bash
# From nothing to a distilled student in minutes, on a CPU: a resnet20 teacher on the shipped digits, then resnet8
# alone and distilled, and the table of their last epochs. Interrupted, the same command goes on.
# Variables, with their defaults:
#   SAVE=save/quickstart  EPOCHS=12
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

SAVE=${SAVE:-save/quickstart}
EPOCHS=${EPOCHS:-12}
common=(--dataset digits --epochs "$EPOCHS" --lr_decay_epochs "8,11" --save_folder "$SAVE")
run() { "$PYTHON" "$ROOT/$1" "${@:2}" "${common[@]}"; }

run train_teacher.py --model resnet20 --run_name resnet20
for method in none kd dkd; do
  run train_student.py --path_t "$SAVE/models/resnet20/last.pth" --model_s resnet8 \
    --distill "$method" --run_name "resnet8_$method"
done
"$PYTHON" "$ROOT/scripts/summarize.py" "$SAVE"
