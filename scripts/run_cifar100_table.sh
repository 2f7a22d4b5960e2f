#!/usr/bin/env bash
# The table: every method with a published number for a pair on CIFAR-100, several seeds, trained at once (--sweep). At the end,
# and whenever it stops, SAVE/table/ holds table.md, table.csv, curves.csv and page.html. Run it again, and it goes on.
# Progress is one line an epoch, of all students together, that ends with the time that is left for all of them (docs/runs.md).
#   PAIR=resnet32x4:resnet8x4  SEEDS="1 2 3"  SAVE=save/cifar100
#   METHODS="none; kd; ..."    default: the methods with a published number for the pair (results/published.csv)
#   TEACHER=FILE               default: the one in SAVE/models/<teacher>_vanilla, else it is trained there first
#   DATA=data                  CIFAR-100's archive or its python folder is there, or is downloaded; or train/ and test/ with a
#                              folder for each class
#   MINUTES=                   stops before so many minutes are over
#   PROFILE=                   paper (float32) or fast (--amp bf16 --compile); default: fast on a GPU, else paper
#   TEACHER_OPTIONS= OPTIONS=  more flags of train_teacher.py and train_student.py: "--epochs 20"
# The published runs:  bash scripts/run_cifar100_table.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

SAVE=${SAVE:-save/cifar100}
DATA=${DATA:-data}
DATASET=cifar100
[ ! -d "$DATA/train" ] || DATASET=folder
source "$ROOT/scripts/procedures.sh"
COMMON+=(--data_folder "$DATA")
PAIR=${PAIR:-resnet32x4:resnet8x4}
read_pair
METHODS=${METHODS:-$("$PYTHON" "$ROOT/scripts/published.py" cifar100 "$model_t" "$model_s")}

if [ -z "${PROFILE:-}" ]; then
  PROFILE=paper
  ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || PROFILE=fast
fi
case $PROFILE in
  fast) COMMON+=(--amp bf16 --compile) ;;
  paper) ;;
  *) fail "PROFILE: expected paper or fast, found $PROFILE" ;;
esac

[[ ${MINUTES:-1} =~ ^[1-9][0-9]*$ ]] || fail "MINUTES: expected a whole number above 0, found $MINUTES"
SECONDS=0
# within_time: sets WITHIN to what sends SIGTERM when the time is up, after which a run is saved and ends
within_time() {
  [ -z "${MINUTES:-}" ] || WITHIN=(timeout --foreground --signal=TERM "$((60 * MINUTES > SECONDS ? 60 * MINUTES - SECONDS : 1))")
}

# summary: writes and prints the table of what is finished
summary() {
  mkdir -p "$SAVE/table"
  "$PYTHON" "$ROOT/scripts/summarize.py" "$SAVE" --out "$SAVE/table" --html "$SAVE/table/page.html" >"$SAVE/table/said" || return
  printf '%s\n\n' "CIFAR-100, $model_t > $model_s, $PROFILE profile" | cat - "$SAVE/table/said" >"$SAVE/table/table.md"
  rm "$SAVE/table/said"
  cat "$SAVE/table/table.md"
}

listed=$METHODS
[ ! -f "$METHODS" ] || listed=$(sed '/^[[:blank:]]*#/d' "$METHODS")
asked=$(items "$listed" | wc -l)
finished=$(find "$SAVE/student_model" -name summary.json 2>/dev/null | wc -l || true)
echo "asked for: $asked students, ${#seeds[@]} seeds, $((asked * ${#seeds[@]})) runs; finished in $SAVE/student_model: $finished"

status=0
within_time
find_teacher "${TEACHER:-$model_t}" || status=$?
if [ "$status" = 0 ]; then
  within_time
  together "$METHODS" --path_t "$FOUND" --model_s "$model_s" --seed "$(IFS=, && echo "${seeds[*]}")" || status=$?
fi
case $status in
  0) ;;
  124 | 143)
    echo "stopped after $MINUTES minutes; the same command goes on" ;;
  130) ;; # Ctrl-C
  *) exit "$status" ;;
esac
summary
[ "$status" != 130 ] || exit 130
finish
