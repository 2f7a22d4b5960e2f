# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment in .venv with the pinned packages of the files named in "$@".
# PYTHON=/path/to/python uses that interpreter as it is and installs nothing.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [ -z "${PYTHON:-}" ]; then
  PYTHON=.venv/bin/python
  [ -x "$PYTHON" ] || python3 -m venv .venv
  wanted=$(cat "$@" | cksum)
  if [ "$(cat ".venv/$1.installed" 2>/dev/null)" != "$wanted" ]; then
    for file in "$@"; do "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$file"; done
    echo "$wanted" >".venv/$1.installed"
  fi
fi

# fail MESSAGE: ends the script
fail() {
  echo "error: $1" >&2
  exit 2
}
