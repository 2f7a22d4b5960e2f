# shellcheck shell=bash
# Sourced by the scripts that fetch something.

# download URL FILE: by curl, into FILE.part, which a later call goes on with; https is tried before http. A FILE that is
# there is kept. Status: curl's (22: the server has no such file; else it cannot be reached or has broken off).
download() {
  local file=$2 part=$2.part status=0 url urls=("$1")
  [ ! -f "$file" ] || return 0
  [[ $1 != http:* ]] || urls=("https:${1#http:}" "$1")
  for url in "${urls[@]}"; do
    _curl "$url" "$part" && status=0 || status=$?
    # 33, 36: a server that cannot go on from the middle; 22: perhaps there is nothing to go on with. Afresh, once.
    if [ -s "$part" ] && [[ $status == 22 || $status == 33 || $status == 36 ]]; then
      rm "$part"
      _curl "$url" "$part" && status=0 || status=$?
    fi
    if [ "$status" = 0 ] && [ -f "$part" ]; then
      mv "$part" "$file"
      return 0
    fi
  done
  return "$status"
}

_curl() {
  local bar=--silent
  [ ! -t 2 ] || bar=--progress-bar
  curl --fail --location --show-error "$bar" --proto '=http,https' --connect-timeout 20 --retry 2 \
    --speed-limit 1000 --speed-time 60 --continue-at - --output "$2" -- "$1"
}
