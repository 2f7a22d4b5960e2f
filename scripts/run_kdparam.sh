#!/usr/bin/env bash
# KD for each temperature and each weight: a grid, T across and alpha down. Students of a seed are trained at once.
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   PAIR=resnet26:resnet8  DATASET=cifar10  SEEDS="1 2 3"  SAVE=save
#   TEMPERATURES="1 5 10 15 20"  ALPHAS="0.1 0.4 0.5 0.7 1.0"   alpha: KD's share, 1 - alpha is the cross entropy's
#   GRID=cinic                 another published grid: wrn_28_4:wrn_16_2 on cifar100, TEMPERATURES="2 4 8 16",
#                              ALPHAS="0.2 0.4 0.6 0.8"; alpha is the share of the cross entropy there
#   TEACHER=FILE               default: the one fetched to SAVE/models/<teacher>_vanilla, else it is trained there
#   TEACHER_OPTIONS= OPTIONS=  more flags of train_teacher.py and train_student.py: "--epochs 20"
# bash scripts/run_kdparam.sh;  GRID=cinic bash scripts/run_kdparam.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"
case ${GRID:-} in
"") weighed=kd ;;
cinic)
  weighed=ce
  PAIR=${PAIR:-wrn_28_4:wrn_16_2} DATASET=${DATASET:-cifar100}
  TEMPERATURES=${TEMPERATURES:-2 4 8 16} ALPHAS=${ALPHAS:-0.2 0.4 0.6 0.8}
  ;;
*) fail "GRID=$GRID: expected cinic or nothing" ;;
esac
DATASET=${DATASET:-cifar10}
source "$ROOT/scripts/procedures.sh"

PAIR=${PAIR:-resnet26:resnet8}
read_pair
find_teacher "${TEACHER:-$model_t}"
items="" names=()
mapfile -t alphas < <(words "${ALPHAS:-0.1 0.4 0.5 0.7 1.0}")
mapfile -t temperatures < <(words "${TEMPERATURES:-1 5 10 15 20}")
for alpha in "${alphas[@]}"; do
  rest=$(awk -v alpha="$alpha" 'BEGIN { printf "%.6g", 1 - alpha }')
  if [ "$weighed" = kd ]; then a=$alpha r=$rest; else a=$rest r=$alpha; fi
  for temperature in "${temperatures[@]}"; do
    flags=(kd -r "$r" -a "$a" --kd_T "$temperature")
    name=$LABEL+${model_s}_${DATASET}_$(slug "${flags[@]}")
    items+=$(items_of "$name" "${flags[@]}")
    names+=("$name")
  done
done
together "$items" --path_t "$FOUND" --model_s "$model_s"
table grid "tables/kdparam${GRID:+_$GRID}_$LABEL+${model_s}_$DATASET" --alpha_weighs "$weighed" "${names[@]}"
finish
