#!/usr/bin/env bash
# Every method for one teacher > student pair, several seeds, and the table of their last epochs. Students are trained
# at once, as many as there is memory for, and share what the teacher says (train_student.py --sweep).
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   PAIR=resnet32x4:resnet8x4  DATASET=cifar100  SEEDS="1 2 3"  SAVE=save
#   METHODS="none; kd; ..."    with flags where they differ from the published: "kd; crd; crd -a 1"; or one a line. Default:
#                              all that the pair allows; those that it does not are told (scripts/methods.py)
#   TEACHER=FILE               default: the one fetched to SAVE/models/<teacher>_vanilla, else it is trained there
#   TEACHER_OPTIONS= OPTIONS=  more flags of train_teacher.py and train_student.py: "--epochs 20"
# The published runs:  bash scripts/run_cifar_distill.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

DATASET=${DATASET:-cifar100}
source "$ROOT/scripts/procedures.sh"

PAIR=${PAIR:-resnet32x4:resnet8x4}
read_pair

find_teacher "${TEACHER:-$model_t}"
METHODS=${METHODS:-$("$PYTHON" "$ROOT/scripts/methods.py" "$model_t" "$model_s")}
together "$METHODS" --path_t "$FOUND" --model_s "$model_s" --seed "$(IFS=, && echo "${seeds[*]}")"
"$PYTHON" "$ROOT/scripts/summarize.py" "$SAVE"
finish
