#!/usr/bin/env bash
# What a GPU's speed is shown by, in one call of less than nine minutes: the epochs of a whole run in the fast profile
# (kd, batch 64, --amp bf16 --compile, the data on the device), then the step times of all methods, RepDistiller's in turn.
# Variables, with their defaults:
#   DATA=FILE|DIR     required: CIFAR-10's images as train/<class>/* and test/<class>/*, or a tar archive of that
#   PEER=DIR          a RepDistiller checkout; default: ours alone
#   OUT=save/gpu_suite   where log.csv, options.json, summary.json, step_time.json and step_time.md go
#   DEVICE=cuda  TEACHER_MODEL=resnet32x4  STUDENT_MODEL=resnet8x4  EPOCHS=240  METHODS=  (all)
#   TEACHER=FILE      the teacher's weights; default: five epochs of training, for time does not depend on them
#   FAST="--amp bf16 --compile"   of the whole run; step times are taken with AMP=bf16, without compilation
#   SECONDS_ALL=530   the whole run is stopped by SIGTERM 150 seconds before, and has its finished epochs in log.csv
#   OPTIONS=  STEP_OPTIONS=   more flags of train_student.py and of step_time.py
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "$0")/../scripts/setup.sh" requirements.txt
SECONDS=0

OUT=${OUT:-save/gpu_suite}
DEVICE=${DEVICE:-cuda}
TEACHER_MODEL=${TEACHER_MODEL:-resnet32x4}
STUDENT_MODEL=${STUDENT_MODEL:-resnet8x4}
SECONDS_ALL=${SECONDS_ALL:-530}
read -ra fast <<<"${FAST---amp bf16 --compile}"
read -ra options <<<"${OPTIONS:-}"
read -ra step_options <<<"${STEP_OPTIONS:-}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
data=${DATA:?the folder or archive of the images}
if [ -f "$data" ]; then
  "$PYTHON" scripts/unpack.py "$data" "$work"
  data=$work
fi
mkdir -p "$OUT"
common=(--dataset folder --data_folder "$data" --device "$DEVICE" --save_folder "$work/save" --print_freq 1000000
  --tb_freq 1000000 "${options[@]}")

teacher=${TEACHER:-$work/save/models/teacher/last.pth}
if [ -z "${TEACHER:-}" ]; then
  "$PYTHON" train_teacher.py "${common[@]}" --model "$TEACHER_MODEL" --run_name teacher --epochs "${TEACHER_EPOCHS:-5}" \
    --batch_size 256 --amp "${AMP:-bf16}"
fi

whole=0
timeout --signal=TERM $((SECONDS_ALL - 150 - SECONDS)) "$PYTHON" train_student.py "${common[@]}" "${fast[@]}" \
  --path_t "$teacher" --model_t "$TEACHER_MODEL" --model_s "$STUDENT_MODEL" --distill kd --run_name whole \
  --epochs "${EPOCHS:-240}" --save_freq 1000 || whole=$?
for file in log.csv options.json summary.json; do
  [ ! -f "$work/save/student_model/whole/$file" ] || cp "$work/save/student_model/whole/$file" "$OUT"
done
[ "$whole" = 0 ] || [ "$whole" = 124 ] || exit "$whole"

"$PYTHON" benchmarks/step_time.py --device "$DEVICE" --amp "${AMP:-bf16}" --pair "$TEACHER_MODEL:$STUDENT_MODEL" \
  --images 50000 --steps 100 --warm_up 10 --repeats 3 --together 14 --start_together \
  --minutes "$(((SECONDS_ALL - SECONDS) / 60))" ${METHODS:+--methods "$METHODS"} ${PEER:+--peer "$PEER"} --out "$OUT" \
  "${step_options[@]}"
