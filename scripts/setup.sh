# shellcheck shell=bash
# Sourced by the other scripts: setup.sh FILE... -- "$@", where "$@" are the script's own arguments. It takes none but
# --help; one that passes its arguments on writes --any in the place of --.
# Makes a virtual environment in the project's .venv with the pinned packages of the project's FILEs.
# PYTHON=/path/to/python uses that interpreter as it is and installs nothing.
# Scripts stay in the folder that they are called from, so that paths are the caller's; ROOT is the project's.
unset CDPATH # cd would search it, and print what it has found
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

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

# _head SCRIPT: the comment at its top, from the second line on
_head() { sed -nE '1d; /^#/!q; s/^#( |$)//; p' "$1"; }

# _near A B: whether A is B but for two neighbours that are exchanged, or, of longer names, for one letter
_near() {
  local a=$1 b=$2
  while [ -n "$a" ] && [ "${a:0:1}" = "${b:0:1}" ]; do a=${a:1} b=${b:1}; done
  while [ -n "$a" ] && [ "${a: -1}" = "${b: -1}" ]; do a=${a%?} b=${b%?}; done
  [ "${#a}$b" = "2${a:1}${a:0:1}" ] || [[ ${#2} -ge 5 && ${#a} -le 1 && ${#b} -le 1 ]]
}

# _check_names SCRIPT: an exported name that is nearly one of the NAME= in the script's head is an error; a warning where
# another script has it, for which it may be meant
_check_names() {
  local name known names message
  mapfile -t names < <(_head "$1" | grep -oE '[A-Z][A-Z0-9_]*=' | tr -d =)
  while read -r name; do
    [[ $name =~ ^[A-Z][A-Z0-9_]*$ && " ${names[*]} " != *" $name "* ]] || continue
    for known in "${names[@]}"; do
      _near "$name" "$known" || continue
      message="$name is no variable of ${1##*/}; near: $known"
      grep -qE "^#(.*[^A-Z0-9_])?$name=" "$ROOT"/scripts/*.sh "$ROOT"/scripts/*.sbatch || fail "$message"
      echo "warning: $message" >&2
      break
    done
  done < <(compgen -e)
}

requirements=()
while [[ $# != 0 && $1 != -- && $1 != --any ]]; do requirements+=("$1") && shift; done
if [ $# != 0 ]; then
  if [[ ${2:-} == --help || ${2:-} == -h ]]; then
    _head "$0"
    exit
  fi
  [[ $1 == --any || $# == 1 ]] || fail "${0##*/} takes no arguments but --help, which lists its variables; found $2"
  _check_names "$0"
fi

if [ -z "${PYTHON:-}" ]; then
  PYTHON=$ROOT/.venv/bin/python
  [ -x "$PYTHON" ] || python3 -m venv "$ROOT/.venv"
  wanted=$(cd "$ROOT" && cat "${requirements[@]}" | cksum)
  if [ "$(cat "$ROOT/.venv/${requirements[0]}.installed" 2>/dev/null)" != "$wanted" ]; then
    for file in "${requirements[@]}"; do "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/$file"; done
    echo "$wanted" >"$ROOT/.venv/${requirements[0]}.installed"
  fi
fi
