#!/usr/bin/env bash
# Several teachers at once. Without TEACHERS they are an ensemble of students, trained alone from other seeds.
# Beside it: the student alone, and the student of the first teacher alone.
# Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   STUDENT=resnet8  ENSEMBLE=3  DATASET=cifar10  SEEDS="1 2 3"  SAVE=save
#   METHOD="kd -r 0.5 -a 0.5 --kd_T 5"   the mean of the teachers' losses; or a method that takes all of them
#   TEACHERS="resnet26 FILE"   networks (fetched to SAVE/models/<network>_vanilla, else trained there) or checkpoints
#   TEACHER_OPTIONS= OPTIONS=  more flags of train_teacher.py and train_student.py: "--epochs 20"
# bash scripts/run_multikd.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"
DATASET=${DATASET:-cifar10}
source "$ROOT/scripts/procedures.sh"

STUDENT=${STUDENT:-resnet8}
mapfile -t teachers < <(words "${TEACHERS:-}")
mapfile -t method < <(words "${METHOD:-kd -r 0.5 -a 0.5 --kd_T 5}")
alone=${STUDENT}_${DATASET}_none
end=${STUDENT}_${DATASET}_$(slug "${method[@]}")

[[ ${ENSEMBLE:-3} =~ ^[1-9][0-9]*$ ]] || fail "ENSEMBLE=$ENSEMBLE: expected a number of students"
rows=(--row alone "$alone")
files=() labels=()
if [ ${#teachers[@]} = 0 ]; then
  for member in $(seq "${ENSEMBLE:-3}"); do # seeds that the students do not have: none is taught by its own start
    student "${alone}_member" "$((100 + member))" --model_s "$STUDENT" --distill none
    files+=("$FOUND") labels+=("$member")
  done
  names=("$STUDENT.1" "$STUDENT.1-${ENSEMBLE:-3}")
else
  for teacher in "${teachers[@]}"; do
    find_teacher "$teacher"
    files+=("$FOUND") labels+=("$LABEL")
  done
  names=("${labels[0]}" "$(IFS=+ && echo "${labels[*]}")")
fi
for seed in "${seeds[@]}"; do
  student "$alone" "$seed" --model_s "$STUDENT" --distill none || true
  student "${names[0]}+$end" "$seed" --path_t "${files[0]}" --model_s "$STUDENT" --distill "${method[@]}" || true
  student "${names[1]}+$end" "$seed" --path_t "${files[@]}" --model_s "$STUDENT" --distill "${method[@]}" || true
done
rows+=(--row "by the first" "${names[0]}+$end" --row "by all" "${names[1]}+$end")
table table "tables/multikd_${names[1]}+$end" "${rows[@]}"
finish
