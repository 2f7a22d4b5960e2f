#!/usr/bin/env bash
# Linear probes of frozen students on other data sets, several seeds, and the table of their last epochs.
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   STUDENTS="FILE or run folder ..."  default: every finished run in SAVE/student_model
#   DATASETS="stl10 tinyimagenet"      at 32x32; both in --data_folder (scripts/get_tinyimagenet.sh fetches the second)
#   SEEDS="1 2 3"  SAVE=save
#   OPTIONS=                           more flags of transfer_student.py: "--epochs 5 --probe_bn train"
# The published schedule:  bash scripts/run_cifar_transfer.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

SAVE=${SAVE:-save}
mapfile -t datasets < <(words "${DATASETS:-stl10 tinyimagenet}")
mapfile -t seeds < <(words "${SEEDS:-1 2 3}")
mapfile -t students < <(words "${STUDENTS:-}")
mapfile -t options < <(words "${OPTIONS:-}")

if [ ${#students[@]} = 0 ]; then
  for summary in "$SAVE"/student_model/*/summary.json; do
    [ ! -f "$summary" ] || students+=("${summary%/*}")
  done
fi
[ ${#students[@]} != 0 ] || fail "no finished run in $SAVE/student_model; name checkpoints or run folders in STUDENTS"
for seed in "${seeds[@]}"; do
  for dataset in "${datasets[@]}"; do
    for student in "${students[@]}"; do
      [ ! -d "$student" ] || student=${student%/}/last.pth
      echo "== $student > $dataset, seed $seed"
      "$PYTHON" "$ROOT/transfer_student.py" --path_s "$student" --dataset "$dataset" --image_size 32 --trial "$seed" \
        --save_folder "$SAVE" "${options[@]}"
    done
  done
done
"$PYTHON" "$ROOT/scripts/summarize.py" "$SAVE/transfer"
