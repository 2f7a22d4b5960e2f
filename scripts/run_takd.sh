#!/usr/bin/env bash
# Teacher assistants: each network of a chain is taught by the one before it. Beside it stand the student alone, and the
# student that the teacher teaches directly. https://arxiv.org/abs/1902.03393
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   PAIR=resnet26:resnet8  ASSISTANTS=resnet20  DATASET=cifar10  SEEDS="1 2 3"  SAVE=save
#   METHOD="kd -r 0.5 -a 0.5 --kd_T 5"   how each one is taught
#   TEACHER=FILE               default: the one fetched to SAVE/models/<teacher>_vanilla, else it is trained there
#   TEACHER_OPTIONS= OPTIONS=  more flags of train_teacher.py and train_student.py: "--epochs 20"
# Two assistants:  ASSISTANTS="resnet20 resnet14" bash scripts/run_takd.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"
DATASET=${DATASET:-cifar10}
source "$ROOT/scripts/procedures.sh"

PAIR=${PAIR:-resnet26:resnet8}
read_pair
mapfile -t assistants < <(words "${ASSISTANTS:-resnet20}")
mapfile -t method < <(words "${METHOD:-kd -r 0.5 -a 0.5 --kd_T 5}")
end=${DATASET}_$(slug "${method[@]}")

find_teacher "${TEACHER:-$model_t}"
teacher=$FOUND label=$LABEL
for seed in "${seeds[@]}"; do
  student "${model_s}_${DATASET}_none" "$seed" --model_s "$model_s" --distill none || true
  chain=$label FOUND=$teacher
  for network in "${assistants[@]}" "$model_s"; do
    chain+=+$network
    student "${chain}_$end" "$seed" --path_t "$FOUND" --model_s "$network" --distill "${method[@]}" || break
  done
  student "$label+${model_s}_$end" "$seed" --path_t "$teacher" --model_s "$model_s" --distill "${method[@]}" || true
done

rows=(--row alone "${model_s}_${DATASET}_none" --row directly "$label+${model_s}_$end")
chain=$label
for network in "${assistants[@]}"; do
  chain+=+$network
  rows+=(--row assistant "${chain}_$end")
done
rows+=(--row "by the last assistant" "$chain+${model_s}_$end")
table table "tables/takd_$chain+${model_s}_$end" "${rows[@]}"
finish
