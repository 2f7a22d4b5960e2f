#!/usr/bin/env bash
# Every method for one teacher > student pair, several seeds, and the table of their last epochs.
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   PAIR=resnet32x4:resnet8x4  DATASET=cifar100  SEEDS="1 2 3"  SAVE=save
#   METHODS="none; kd; ..."    with flags where they differ from the published: "kd; crd; crd -a 1"
#   TEACHER=FILE               default: SAVE/models/<teacher>_vanilla/ckpt_epoch_240.pth where it is there, else trained
#   TEACHER_OPTIONS, OPTIONS   more flags of train_teacher.py and train_student.py: "--epochs 20"
# The published runs:  bash scripts/run_cifar_distill.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt

PAIR=${PAIR:-resnet32x4:resnet8x4}
DATASET=${DATASET:-cifar100}
SEEDS=${SEEDS:-1 2 3}
METHODS=${METHODS:-none; kd; fitnet; ab; crd; crd -a 1}
SAVE=${SAVE:-save}
model_t=${PAIR%%:*} model_s=${PAIR##*:}
read -ra teacher_options <<<"${TEACHER_OPTIONS:-}"
read -ra options <<<"${OPTIONS:-}"
common=(--dataset "$DATASET" --save_folder "$SAVE")

if [ -z "${TEACHER:-}" ]; then
  TEACHER=$SAVE/models/${model_t}_vanilla/ckpt_epoch_240.pth
  if [ ! -f "$TEACHER" ]; then
    TEACHER=$SAVE/models/${model_t}_vanilla/last.pth
    "$PYTHON" train_teacher.py --model "$model_t" "${common[@]}" --run_name "${model_t}_vanilla" "${teacher_options[@]}"
  fi
fi
IFS=';' read -ra methods <<<"$METHODS"
for seed in $SEEDS; do
  for method in "${methods[@]}"; do
    read -ra flags <<<"$method"
    echo "== $model_t > $model_s: ${flags[*]}, seed $seed"
    "$PYTHON" train_student.py --path_t "$TEACHER" --model_s "$model_s" --distill "${flags[@]}" --trial "$seed" \
      "${common[@]}" "${options[@]}"
  done
done
"$PYTHON" scripts/summarize.py "$SAVE"
