#!/usr/bin/env bash
# One student, many teachers: which one teaches it best?
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   STUDENT=resnet8  DATASET=cifar10  SEEDS="1 2 3"  SAVE=save
#   TEACHERS="resnet8 resnet14 resnet20 resnet26 resnet32 resnet44 resnet56"
#                              networks (fetched to SAVE/models/<network>_vanilla, else trained there) or checkpoints
#   METHOD="kd -r 0.5 -a 0.5 --kd_T 5"
#   TEACHER_OPTIONS= OPTIONS=  more flags of train_teacher.py and train_student.py: "--epochs 20"
# bash scripts/run_allkd.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"
DATASET=${DATASET:-cifar10}
source "$ROOT/scripts/procedures.sh"

STUDENT=${STUDENT:-resnet8}
mapfile -t teachers < <(words "${TEACHERS:-resnet8 resnet14 resnet20 resnet26 resnet32 resnet44 resnet56}")
mapfile -t method < <(words "${METHOD:-kd -r 0.5 -a 0.5 --kd_T 5}")
end=${STUDENT}_${DATASET}_$(slug "${method[@]}")

together "$(items_of "${STUDENT}_${DATASET}_none" none)" --model_s "$STUDENT"
rows=(--row alone "${STUDENT}_${DATASET}_none")
for teacher in "${teachers[@]}"; do
  find_teacher "$teacher" || { FAILED+=("teacher $teacher") && continue; }
  together "$(items_of "$LABEL+$end" "${method[@]}")" --path_t "$FOUND" --model_s "$STUDENT"
  rows+=(--row "by $LABEL" "$LABEL+$end")
done
table table "tables/allkd_$end" --best "${rows[@]}"
finish
