#!/usr/bin/env bash
# Networks trained alone, RepDistiller's teachers unless told otherwise, and the table of their last epochs.
# Interrupted, the same command goes on; finished runs are passed over, and so are fetched teachers. Seed 1 is called
# <model>_vanilla, where run_cifar_distill.sh looks for it. Variables, with their defaults:
#   MODELS="wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50"  DATASET=cifar100  SEEDS=1  SAVE=save
#   OPTIONS=                   more flags of train_teacher.py: "--epochs 20"
# The published runs:  bash scripts/run_cifar_vanilla.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

mapfile -t networks < <(words "${MODELS:-wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50}")
DATASET=${DATASET:-cifar100}
mapfile -t seeds < <(words "${SEEDS:-1}")
SAVE=${SAVE:-save}
mapfile -t options < <(words "${OPTIONS:-}")

for seed in "${seeds[@]}"; do
  for model in "${networks[@]}"; do
    echo "== $model, seed $seed"
    run=${model}_vanilla trial=() # none given, so that a run that began with the former default goes on
    [ "$seed" = 1 ] || { run+=_$seed && trial=(--trial "$seed"); }
    # a run of ours has options.json; to start one here would delete the fetched file
    if [ -f "$SAVE/models/$run/ckpt_epoch_240.pth" ] && [ ! -f "$SAVE/models/$run/options.json" ]; then
      echo "$SAVE/models/$run was fetched; SAVE=... trains elsewhere"
      continue
    fi
    "$PYTHON" "$ROOT/train_teacher.py" --model "$model" --dataset "$DATASET" --save_folder "$SAVE" --run_name "$run" \
      "${trial[@]}" "${options[@]}"
  done
done
"$PYTHON" "$ROOT/scripts/summarize.py" "$SAVE/models"
