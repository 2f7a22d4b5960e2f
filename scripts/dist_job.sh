#!/usr/bin/env bash
# A trained student learns from one trained teacher: contdist_job.sh with the settings published for a single pair.
# Top-1, its change, gained and lost samples and transfer rate are in SAVE/continual/RUN_NAME/history.csv.
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   STUDENT_FILE=FILE  TEACHER=FILE
#   METHOD="sup -r 0.32 -b 0.68 --kl_k 100 --mcl_tau 0.9999 --mcl_every 2 --learning_rate 1e-3"
#   STUDENT=  DATASET=  SEEDS=  SAVE=  RUN_NAME=  TEACHER_OPTIONS=  OPTIONS=   as there
# STUDENT_FILE=save/models/resnet8x4_vanilla/last.pth TEACHER=resnet56 bash scripts/dist_job.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

[[ -n ${STUDENT_FILE:-} && -n ${TEACHER:-} ]] || fail "give STUDENT_FILE and TEACHER"
METHOD=${METHOD:-sup -r 0.32 -b 0.68 --kl_k 100 --mcl_tau 0.9999 --mcl_every 2 --learning_rate 1e-3}
export METHOD TEACHERS=$TEACHER MODEL_LIST=
export -n TEACHER # contdist_job.sh has none
exec bash "$(dirname "$0")/contdist_job.sh"
