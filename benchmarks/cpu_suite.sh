#!/usr/bin/env bash
# The CPU tables of results/speed in about an hour on 2 cores, which nothing else may use meanwhile.
# Variables: PEER=DIR, a RepDistiller checkout (required); OUT=save/speed; OPTIONS=, more flags of step_time.py
set -euo pipefail
# shellcheck source=scripts/setup.sh
source "$(dirname "$0")/../scripts/setup.sh" requirements.txt -- "$@"

OUT=${OUT:-save/speed}
read -ra options <<<"${OPTIONS:-}"
pairs=(wrn_40_2:wrn_16_2 resnet32x4:resnet8x4)  # the quicker first: what it leaves of the time goes to the other
# table MINUTES NAME FLAGS...
table() { "$PYTHON" benchmarks/step_time.py --minutes "$1" --out "$OUT/$2" --pair "${pairs[@]}" "${@:3}" "${options[@]}"; }

table 34 repdistiller --peer "${PEER:?a RepDistiller checkout}" --together 9 --repeats 5 --seconds 1.5 \
  --methods kd,fitnet,at,sp,cc,vid,rkd,pkt,ab,ft,fsp,nst,kdsvd,crd
table 3 images_50000 --peer "$PEER" --methods crd --images 50000 --repeats 3
table 2 bank_1300000 --methods crd --bank 1300000 --repeats 3
# the first round fills the cache, the others find it warm
table 9 teacher_cache --peer "$PEER" --methods kd,crd,icd,rrd,rkd,pkt --repeats 4 --steps 5 --seconds 60 \
  --options "--cache_teacher cache"
table 10 others --together 12 --repeats 3 --seconds 1.5 \
  --methods none,hinton,tfkd,mt,triplet,triplet_cosine,kl,xekl,sup,dp,cd,at_paper,ft_flat,ofd,pkd,sfd,cse_l2,pad_l2,icd,rrd,uda,sskd
