# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment in the project's .venv with the pinned packages of the project's
# files named in "$@". PYTHON=/path/to/python uses that interpreter as it is and installs nothing.
# Scripts stay in the folder that they are called from, so that paths are the caller's; ROOT is the project's.
unset CDPATH # cd would search it, and print what it has found
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=$ROOT/.venv/bin/python
  [ -x "$PYTHON" ] || python3 -m venv "$ROOT/.venv"
  wanted=$(cd "$ROOT" && cat "$@" | cksum)
  if [ "$(cat "$ROOT/.venv/$1.installed" 2>/dev/null)" != "$wanted" ]; then
    for file in "$@"; do "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/$file"; done
    echo "$wanted" >"$ROOT/.venv/$1.installed"
  fi
fi

# fail MESSAGE: ends the script
fail() {
  echo "error: $1" >&2
  exit 2
}

# words TEXT: what blanks and line ends part, each on a line of its own; * and ? stand for themselves
words() {
  local found
  read -r -d '' -a found <<<"$1" || true # status 1: there is no NUL at the end
  [ ${#found[@]} = 0 ] || printf '%s\n' "${found[@]}"
}

# items TEXT: what semicolons and line ends part, each on a line of its own, without the blank ones
items() { tr ';' '\n' <<<"$1" | grep '[^[:blank:]]' || true; }
