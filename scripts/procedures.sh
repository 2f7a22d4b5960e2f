# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts after setup.sh: variables and steps that they share. A step that was done is passed over.
SAVE=${SAVE:-save}
mapfile -t seeds < <(words "${SEEDS:-1 2 3}")
mapfile -t TEACHER_FLAGS < <(words "${TEACHER_OPTIONS:-}")
mapfile -t STUDENT_FLAGS < <(words "${OPTIONS:-}")
WITHIN=() # what goes before a training, to end it in time
LAUNCH=() # what starts several processes of a student's training
COMMON=(--dataset "$DATASET" --save_folder "$SAVE")
FAILED=() # a run that is refused, or that diverged, does not stop the others

# find_teacher NETWORK|FILE: sets FOUND to its checkpoint: the file, else the one fetched to
# SAVE/models/<network>_vanilla, else the network is trained there. LABEL: the network, or the name of the file's folder.
find_teacher() {
  if [[ $1 == */* || -f $1 ]]; then
    [ -f "$1" ] || { echo "error: $1: no such file" >&2 && return 2; }
    FOUND=$1
    LABEL=$(cd "$(dirname "$1")" && basename "$PWD")
    return
  fi
  LABEL=$1
  local folder=$SAVE/models/${1}_vanilla
  FOUND=$folder/ckpt_epoch_240.pth
  # a run of ours has options.json, and its result is last.pth whatever else it has kept
  if [ ! -f "$FOUND" ] || [ -f "$folder/options.json" ]; then
    FOUND=$folder/last.pth
    "${WITHIN[@]}" "$PYTHON" "$ROOT/train_teacher.py" --model "$1" "${COMMON[@]}" --run_name "${1}_vanilla" "${TEACHER_FLAGS[@]}"
  fi
}

# read_pair: sets model_t and model_s to those of PAIR=teacher:student, or of PAIR="teacher student" for names with colons
read_pair() {
  local two
  mapfile -t two < <(words "$PAIR")
  [ ${#two[@]} != 1 ] || mapfile -t two < <(words "${PAIR/:/ }")
  [ ${#two[@]} = 2 ] || fail "PAIR=$PAIR: expected teacher:student"
  model_t=${two[0]} model_s=${two[1]}
}

# slug FLAGS...: the flags as part of a folder's name
slug() {
  local joined
  joined=$(IFS=_ && echo "$*")
  joined=${joined//-/}
  echo "${joined//\//+}"
}

# student NAME SEED FLAGS...: trains a student in SAVE/student_model/NAME_SEED and sets FOUND to its checkpoint
student() {
  echo "== $1, seed $2"
  FOUND=$SAVE/student_model/$1_$2/last.pth
  "$PYTHON" "${LAUNCH[@]}" "$ROOT/train_student.py" --run_name "$1_$2" --trial "$2" "${COMMON[@]}" "${@:3}" \
    "${STUDENT_FLAGS[@]}" && return
  FAILED+=("$1, seed $2")
  return 1
}

# items_of NAME METHOD...: an item of --sweep for each seed, in SAVE/student_model/NAME_SEED
items_of() {
  local seed
  for seed in "${seeds[@]}"; do
    printf '%q ' "${@:2}" --run_name "$1_$seed" --trial "$seed"
    echo ';'
  done
}

# together ITEMS FLAGS...: trains the students of --sweep ITEMS at once; which of them failed is told there
together() {
  local status=0
  "${WITHIN[@]}" "$PYTHON" "$ROOT/train_student.py" --sweep "$1" "${COMMON[@]}" "${@:2}" "${STUDENT_FLAGS[@]}" || status=$?
  [ "$status" -le 1 ] || return "$status"
  [ "$status" = 0 ] || FAILED+=("students that are named there")
}

# table KIND NAME ...: prints a table of students' runs, and writes it to SAVE/NAME.md and SAVE/NAME.csv
table() {
  "$PYTHON" "$ROOT/scripts/procedures.py" "$1" --save "$SAVE" --seeds "${seeds[@]}" --out "$SAVE/$2" "${@:3}"
}

finish() {
  [ ${#FAILED[@]} != 0 ] || return 0
  printf 'not run, for the reason above: %s\n' "${FAILED[@]}" >&2
  exit 1
}
