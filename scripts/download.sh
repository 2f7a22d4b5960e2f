# shellcheck shell=bash
# Sourced by the scripts that fetch something, after setup.sh.

# download URL FILE [SHA256]: by curl, into FILE.part, which a later call goes on with. https only, but for this machine's
# own servers; http URLs are asked for by https. A FILE that is there is kept; of another sum, none is.
# Status: curl's (22: the server has no such file; else it cannot be reached or has broken off), 1: another sum.
download() {
  local file=$2 part=$2.part status=0 url=$1 scheme='=https'
  [ ! -f "$file" ] || return 0
  case $url in
    http://127.0.0.1[:/]* | http://localhost[:/]*) scheme='=http,https' ;;
    http://*) url=https://${url#http://} ;;
  esac
  _curl "$scheme" "$url" "$part" || status=$?
  # 33, 36: a server that cannot go on from the middle; 22: perhaps there is nothing to go on with. Afresh, once.
  if [ -s "$part" ] && [[ $status == 22 || $status == 33 || $status == 36 ]]; then
    status=0
    rm "$part"
    _curl "$scheme" "$url" "$part" || status=$?
  fi
  [ "$status" = 0 ] || return "$status"
  if [ -n "${3:-}" ] && [ "$(sha256 "$part")" != "$3" ]; then
    echo "error: $url: expected the SHA-256 $3, found $(sha256 "$part")" >&2
    rm "$part"
    return 1
  fi
  mv "$part" "$file"
}

sha256() { "$PYTHON" -c 'import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], "rb"), "sha256").hexdigest())' "$1"; }

_curl() {
  local bar=--silent
  [ ! -t 2 ] || bar=--progress-bar
  curl --fail --location --show-error "$bar" --proto "$1" --connect-timeout 20 --retry 2 \
    --speed-limit 1000 --speed-time 60 --continue-at - --output "$3" -- "$2"
}
