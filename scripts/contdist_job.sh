#!/usr/bin/env bash
# A trained student learns from one teacher after the other. Each teacher is a run of its own with a new optimiser, from
# where the run before ended (with slow weights, from those and the trained ones both). After each: top-1, its change
# against the first student, gained and lost samples, transfer rate, in SAVE/continual/RUN_NAME/history.csv.
# https://arxiv.org/abs/2310.17653
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   STUDENT_FILE=FILE          its checkpoint; STUDENT=its network, where the file does not say
#   TEACHERS="FILE FILE ..."   in their order; or networks: fetched to SAVE/models/<network>_vanilla, else trained there
#   MODEL_LIST=CSV             in their place, a list with columns modelname,modeltype,modelparams,modeltop1,path
#   N=  T_SEED=1234            draw N of the list;  CURRICULUM=asc or desc: in the order of modeltop1
#   METHOD=dp                  or "kl", "xekl", "xekl --mcl_tau 0.9999 --mcl_every 2", ...
#   DATASET=cifar100  SEEDS="1 2 3"  SAVE=save  RUN_NAME=made of student, teachers, data set and method
#   TEACHER_OPTIONS= OPTIONS=  more flags of train_teacher.py and train_student.py: "--epochs 5"; without them the
#                              students are trained as configs/trained_student.json says
# STUDENT_FILE=save/models/resnet8x4_vanilla/last.pth TEACHERS="vgg8 resnet56 wrn_40_2" bash scripts/contdist_job.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"
DATASET=${DATASET:-cifar100}
source "$ROOT/scripts/procedures.sh"

[ -n "${STUDENT_FILE:-}" ] || fail "give STUDENT_FILE, a checkpoint of the student"
network=${STUDENT:-$("$PYTHON" "$ROOT/scripts/procedures.py" network "$STUDENT_FILE")}
mapfile -t teachers < <(words "${TEACHERS:-}")
if [ -n "${MODEL_LIST:-}" ]; then
  listed=$("$PYTHON" "$ROOT/scripts/procedures.py" teachers "$MODEL_LIST" --t_seed "${T_SEED:-1234}" \
    --n "${N:-0}" --curriculum "${CURRICULUM:-none}")
  mapfile -t teachers <<<"$listed"
fi
[ ${#teachers[@]} != 0 ] || fail "give TEACHERS or MODEL_LIST"
mapfile -t method < <(words "${METHOD:-dp}")

files=() chain=$network
for teacher in "${teachers[@]}"; do
  find_teacher "$teacher"
  files+=("$FOUND") chain+=+$LABEL
done
[ ${#chain} -le 120 ] || chain=$network+$(cksum <<<"$chain" | cut -d' ' -f1)
RUN_NAME=${RUN_NAME:-${chain}_${DATASET}_$(slug "${method[@]}")}

names=()
for n in $(seq ${#files[@]}); do names+=("${RUN_NAME}_teacher$n"); done
for seed in "${seeds[@]}"; do
  FOUND=$STUDENT_FILE
  for n in "${!files[@]}"; do
    student "${names[n]}" "$seed" --path_t "${files[n]}" --model_s "$network" --path_s "$FOUND" \
      --config "$ROOT/configs/trained_student.json" --distill "${method[@]}" --save_predictions || break
    table history "continual/$RUN_NAME/history" "${names[@]}" >/dev/null
  done
done
table history "continual/$RUN_NAME/history" "${names[@]}"
finish
