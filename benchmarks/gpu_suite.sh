#!/usr/bin/env bash
# What a GPU computes and how fast, in one call of less than nine minutes. Each part writes its table to RESULTS, all of
# them are printed at the end, and the script ends with 1 where a part fails. Variables, with their defaults:
#   PARTS="recorded resumed start sweep steps"
#     recorded  recorded steps against steps that run as they are, all methods, float32 and bf16
#     resumed   with --deterministic: a stopped sweep, and a sweep against its runs alone, bit for bit
#     start     kd, crd and nst in the fast profile, kd in float32: images/s, and seconds from the start to the first step
#     sweep     twelve students of one teacher at once, in the fast profile
#     steps     every method against kd and against RepDistiller, bf16 without compilation
#   PEER=DIR          a RepDistiller checkout; default: ours alone
#   DATA=DIR          images as train/<class>/* and val|test/<class>/* for `resumed`; default: noise, as for the speeds
#   RESULTS=save/gpu_suite  DEVICE=cuda  PAIR=resnet32x4:resnet8x4  METHODS=  (all)
#   FAST="--amp bf16 --compile"   of `start` and `sweep`
#   SECONDS_ALL=530   the last part, `steps`, has what is left of it; 200 of them at least
#   CHECK_OPTIONS=  STEP_OPTIONS=   more flags of gpu_check.py and step_time.py
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "$0")/../scripts/setup.sh" requirements.txt -- "$@"
SECONDS=0

RESULTS=${RESULTS:-save/gpu_suite}
DEVICE=${DEVICE:-cuda}
PAIR=${PAIR:-resnet32x4:resnet8x4}
SECONDS_ALL=${SECONDS_ALL:-530}
mapfile -t parts < <(words "${PARTS:-recorded resumed start sweep steps}")
mapfile -t fast < <(words "${FAST---amp bf16 --compile}")
mapfile -t check_options < <(words "${CHECK_OPTIONS:-}")
mapfile -t step_options < <(words "${STEP_OPTIONS:-}")
mkdir -p "$RESULTS"
failed=()

check() { # PART FLAGS...
  "$PYTHON" "$ROOT/benchmarks/gpu_check.py" --parts "$1" --device "$DEVICE" --pair "$PAIR" --out "$RESULTS" "${@:2}" \
    "${check_options[@]}"
}

# Long warm-ups, because steps are recorded in them, and multiples of 8, because the teacher is asked for 8 at once.
speed() { # PART MINUTES FLAGS...
  "$PYTHON" "$ROOT/benchmarks/step_time.py" --device "$DEVICE" --pair "$PAIR" --images 50000 --warm_up 32 --steps 800 \
    --seconds 5 --repeats 3 --minutes "$2" --out "$RESULTS/$1" ${PEER:+--peer "$PEER"} "${@:3}" "${step_options[@]}" &&
    "$PYTHON" -c 'import json, sys; sys.exit(bool(json.load(open(sys.argv[1]))["failed"]))' "$RESULTS/$1/step_time.json"
}

twelve=$(printf 'kd --run_name %s; ' 1 2 3 4 5 6 7 8 9 10 11 12)
for part in "${parts[@]}"; do
  echo "== $part, after $SECONDS s"
  case $part in
    recorded) check recorded ${METHODS:+--methods "$METHODS"} ;;
    resumed) check resumed ${DATA:+--data_folder "$DATA"} ;;
    start) speed start 1 --methods kd,crd,nst "${fast[@]}" && speed start/float32 1 --methods kd ;;
    sweep) speed sweep 1 --methods kd --sweep "$twelve" "${fast[@]}" ;;
    steps)
      left=$((SECONDS_ALL - SECONDS > 200 ? SECONDS_ALL - SECONDS : 200))
      speed steps "$(((left - 80) / 60))" --amp bf16 --together 14 --start_together ${METHODS:+--methods "$METHODS"}
      ;;
    *) fail "PARTS: unknown part $part" ;;
  esac || failed+=("$part")
done

for part in "${parts[@]}"; do
  echo "## $part"
  cat "$RESULTS/$part.md" "$RESULTS/$part/step_time.md" "$RESULTS/$part/float32/step_time.md" 2>/dev/null || true
done
[ ${#failed[@]} = 0 ] || fail "failed: ${failed[*]}"
