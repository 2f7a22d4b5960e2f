#!/usr/bin/env bash
# torchdistill's eight ILSVRC2012 recipes, ResNet-34 > ResNet-18 (Tf-KD: ResNet-18 > ResNet-18), and the table of their last
# epochs. Interrupted, the same command goes on; finished runs are passed over. Variables, with their defaults:
#   DATA_FOLDER=data  SEEDS=1  SAVE=save  DATASET=imagenet
#   METHODS="kd at ft crd tfkd sskd l2 pad_l2"   of configs/ilsvrc2012; pad_l2 goes on from l2, which is run before it
#   TEACHER=FILE      weights of torchvision's ResNet-34; default: the published ones, which torchvision downloads
#   TEACHER_18=FILE   of its ResNet-18, which teaches Tf-KD; default: likewise
#   NPROC=1           processes, one for each GPU; as published, kd, at, ft and tfkd then have a batch of 256 on each
#                     and the rate times their number, the others their batch and rate in all
#   OPTIONS=          more flags of train_student.py: "--amp bf16"
# The published runs:  DATA_FOLDER=ILSVRC2012 NPROC=3 bash scripts/run_imagenet_distill.sh
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"

DATASET=${DATASET:-imagenet}
SEEDS=${SEEDS:-1}
NPROC=${NPROC:-1}
source "$ROOT/scripts/procedures.sh"

COMMON+=(--data_folder "${DATA_FOLDER:-data}")
if [ "$NPROC" != 1 ]; then
  LAUNCH=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC" --no-python "$PYTHON")
fi

# recipe METHOD SEED FLAGS...: trains one student in SAVE/student_model/ilsvrc2012_METHOD_SEED
recipe() {
  local file=${TEACHER:-}
  [ "$1" != tfkd ] || file=${TEACHER_18:-}
  local teacher=(--pretrained_t)
  [ -z "$file" ] || teacher=(--path_t "$file")
  student "ilsvrc2012_$1" "$2" --config "$ROOT/configs/ilsvrc2012/$1.json" "${teacher[@]}" "${@:3}"
}

mapfile -t methods < <(words "${METHODS:-kd at ft crd tfkd sskd l2 pad_l2}")
for seed in "${seeds[@]}"; do
  for method in "${methods[@]}"; do
    case $method in
      kd | at | ft | tfkd) recipe "$method" "$seed" --adjust_lr --batch_size $((256 * NPROC)) ;;
      pad_l2)
        first=$SAVE/student_model/ilsvrc2012_l2_$seed
        if [ -f "$first/summary.json" ] || recipe l2 "$seed"; then
          recipe pad_l2 "$seed" --path_s "$first/last.pth"
        fi
        ;;
      *) recipe "$method" "$seed" ;;
    esac || true
  done
done
"$PYTHON" "$ROOT/scripts/summarize.py" "$SAVE"
finish
