#!/usr/bin/env bash
# TinyImageNet-200 (237 MB) into DATA/tiny-imagenet-200/, where `--dataset tinyimagenet --data_folder DATA` finds it.
# Interrupted, the same command goes on; a whole data set is passed over. Variables, with their defaults:
#   DATA=data  URL=https://cs231n.stanford.edu/tiny-imagenet-200.zip
#   SHA256=6198...             of that file; SHA256= does not compare the sum of another source
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt -- "$@"
source "$ROOT/scripts/download.sh"

DATA=${DATA:-data}
URL=${URL:-https://cs231n.stanford.edu/tiny-imagenet-200.zip}
SHA256=${SHA256-6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821}
name=tiny-imagenet-200

# listed FOLDER: whether the loader finds every image and label there; says what it found, or what is wrong
listed() {
  "$PYTHON" - "$ROOT" "$1" <<'END'
import sys

sys.path[0] = sys.argv.pop(1)  # the folder that this is called from may have modules of the same names

from dataset.tinyimagenet import listing

try:
    found = listing(sys.argv[1])
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
print(f"{found.root.name}: {len(found.classes)} classes, {len(found.train_files)} + {len(found.val_files)} images")
END
}

if [ -e "$DATA/$name" ]; then
  listed "$DATA/$name" && exit
  echo "error: $DATA/$name is not whole; move it away, then call this again" >&2
  exit 1
fi
mkdir -p "$DATA"
download "$URL" "$DATA/$name.zip" "$SHA256" || {
  echo "error: not to be had: $URL (status $?); the same command goes on, URL=... names another source" >&2
  exit 1
}
work=$(mktemp -d "$DATA/.unpacked.XXXXXX")
trap 'rm -rf "$work"' EXIT
if ! "$PYTHON" "$ROOT/scripts/unpack.py" "$DATA/$name.zip" "$work" || ! listed "$work/$name"; then
  rm "$DATA/$name.zip"
  echo "error: what $URL gave is not the data set" >&2
  exit 1
fi
mv "$work/$name" "$DATA/$name"
rm "$DATA/$name.zip"
