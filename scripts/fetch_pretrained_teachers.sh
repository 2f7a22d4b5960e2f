#!/usr/bin/env bash
# RepDistiller's six CIFAR-100 teachers, into SAVE/models/<name>_vanilla/ckpt_epoch_240.pth.
# Interrupted, the same command goes on; a teacher that is there and loads is passed over. Each file is unpacked aside,
# its SHA-256 is compared where it is known, and our own loader must take it for that network with 100 classes (tensors
# only, no code) before it moves to its place. The sums of all are printed. Exit status 1 where a teacher cannot be had.
# Variables, with their defaults:
#   TEACHERS="wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50"  SAVE=save
#   SUMS=FILE          lines `SHA-256 NAME`, as this script has printed them elsewhere, which are compared too
#   MIRRORS="URL ..."  tried in order, each for what is still missing. A URL with %s in place of the name is one file a
#                      teacher; .../releases/tags/... is GitHub's list of a release's files; any other is an archive.
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"
source "$ROOT/scripts/download.sh"

mapfile -t teachers < <(words "${TEACHERS:-wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50}")
SAVE=${SAVE:-save}
# The original host is last: it has not answered for years. What is inside the archives: cifar_teachers/ and cifar_ckpts/
# hold <name>_vanilla/ckpt_epoch_240.pth; of the third, only the release is known, so its files are listed and searched.
mapfile -t mirrors < <(words "${MIRRORS:-
https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar
https://github.com/hunto/DIST_KD/releases/download/v0.0.2/cifar_ckpts.zip
https://api.github.com/repos/zhengli97/CTKD/releases/tags/pretrained-models
https://shape2prog.csail.mit.edu/repo/%s_vanilla/ckpt_epoch_240.pth}")

# Found equal in the first archive and on the original host. Nobody has published the sums of the other five.
known_sha256() {
  case $1 in
    resnet32x4) echo 22aa12e2b632b19ddde155ccf2388671842ddd304824b3095e0a7fff364beb4f ;;
    *) [ -z "${SUMS:-}" ] || awk -v name="$1" '$2 == name { print $1; exit }' "$SUMS" ;;
  esac
}

place() { echo "$SAVE/models/$1_vanilla/ckpt_epoch_240.pth"; }

# loadable {NAME FILE SHA256}...: prints `NAME FILE` for the first file of each name that is that network; says why others
# are not. An empty SHA256 is not compared.
loadable() {
  [ $# = 0 ] || "$PYTHON" - "$ROOT" "$@" <<'END'
import hashlib
import sys

sys.path[0] = sys.argv.pop(1)  # the folder that this is called from may have modules of the same names

import models
from helper import checkpoint
from helper.util import UserError

done = set()
arguments = iter(sys.argv[1:])
for name, path, expected in zip(arguments, arguments, arguments, strict=True):
    if name in done:
        continue
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if expected not in ("", found):
            raise UserError(f"teacher {path}: expected the SHA-256 {expected}, found {found}")
        state = checkpoint.load(path, "teacher")
        checkpoint.load_weights(models.create_model(name, 100), name, state, "teacher", path)
    except (UserError, ValueError) as error:
        print(f"passed over: {error}", file=sys.stderr)
    else:
        done.add(name)
        print(name, path)
END
}

# get URL: a file, or all files of an archive, into a new folder below $work. Status: that of download.
get() {
  local folder kept status=0
  kept=$parts/$(cksum <<<"$1" | cut -d ' ' -f 1)-${1##*/}
  download "$1" "$kept" || status=$?
  if [ "$status" != 0 ]; then
    echo "not to be had (curl: $status): $1" >&2
    return "$status"
  fi
  folder=$(mktemp -d "$work/XXXXXX")
  case $1 in
    *.pt | *.pth | *.pth.tar)
      folder+=/$(basename "$(dirname "$1")") # says which network it is where every file has the same name
      mkdir "$folder"
      mv "$kept" "$folder/${1##*/}"
      ;;
    *) "$PYTHON" "$ROOT/scripts/unpack.py" "$kept" "$folder" || rm -r "$folder" ;;
  esac
  rm -f "$kept"
}

# install: moves what $work holds of the missing teachers to their places, and forgets them
install() {
  local name file candidates=() got=" " still=()
  for name in "${missing[@]}"; do
    while IFS= read -r file; do
      candidates+=("$name" "$file" "$(known_sha256 "$name")")
    done < <(
      find "$work" -type f -path "*/${name}_vanilla/ckpt_epoch_240.pth"
      find "$work" -type f -path "*/${name}[_./]*" -name '*.pt*' ! -path "*/${name}_vanilla/ckpt_epoch_240.pth" | sort
    )
  done
  while read -r name file; do
    mkdir -p "$(dirname "$(place "$name")")"
    [ ! -f "$(place "$name")" ] || mv "$(place "$name")" "$(place "$name").old"
    mv "$file" "$(place "$name")"
    echo "$name: $(place "$name")"
    echo "$(sha256 "$(place "$name")") $name"
    got+="$name "
  done < <(loadable "${candidates[@]}")
  for name in "${missing[@]}"; do [[ $got == *" $name "* ]] || still+=("$name"); done
  missing=("${still[@]}")
}

there=" " candidates=() missing=()
for name in "${teachers[@]}"; do [ ! -f "$(place "$name")" ] || candidates+=("$name" "$(place "$name")" ""); done
while read -r name file; do
  echo "$name: $file is there"
  there+="$name "
done < <(loadable "${candidates[@]}")
for name in "${teachers[@]}"; do [[ $there == *" $name "* ]] || missing+=("$name"); done
[ ${#missing[@]} != 0 ] || exit 0

parts=$SAVE/models/.downloads
mkdir -p "$parts"
work=$(mktemp -d "$SAVE/models/.unpacked.XXXXXX")
trap 'rm -rf "$work"; rmdir "$parts" 2>/dev/null || true' EXIT

for mirror in "${mirrors[@]}"; do
  echo "== ${missing[*]}: $mirror"
  case $mirror in
    *%s*)
      for name in "${missing[@]}"; do
        get "${mirror//%s/$name}" || [ $? = 22 ] || break # 22: this file is not there; else the host is not
      done
      ;;
    */releases/tags/*)
      if download "$mirror" "$work/release.json"; then
        while read -r url; do get "$url" || true; done < <(
          "$PYTHON" -c 'import json, sys
for asset in json.load(sys.stdin)["assets"]:
    if "imagenet" not in asset["name"].lower():
        print(asset["browser_download_url"])' <"$work/release.json"
        )
      fi
      ;;
    *) get "$mirror" || true ;;
  esac
  install
  [ ${#missing[@]} != 0 ] || exit 0
done

{
  echo "no mirror gave ${missing[*]}. Try again later, name others in MIRRORS, or train them:"
  for name in "${missing[@]}"; do
    echo "  $PYTHON $ROOT/train_teacher.py --model $name --save_folder $SAVE --run_name ${name}_vanilla"
  done
} >&2
exit 1
