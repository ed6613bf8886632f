#!/usr/bin/env bash
# The tables of docs/results.md from a model; each command goes on where it was stopped.
#
# usage: runs/results.sh MODEL BENCHES OUT [PAGE]
#   MODEL    a shipped model's name or a model folder
#   BENCHES  folder with `val` and `RealSR`, each holding LR (128 px) and HR (512 px)
#   OUT      folder of the reports: OUT/TABLE-SET/report.md, and the figures
#   PAGE     the page whose tables are replaced (default: docs/results.md)
# In the environment:
#   LIMIT=0     only the first pictures of each set (0: all)
#   DETAIL=12   pictures of the tables with many rows
#   PEERS="bicubic lanczos"   methods of Table 3
#   ABLATIONS=  what runs/ablations.sh left in its OUT: its rows become the page's
# NEXTSCALE_WEIGHTS names the folder of LPIPS's networks.
set -euo pipefail
model=$1
benches=$2
out=$3
root=$(cd "$(dirname "$0")/.." && pwd)
page=${4:-$root/docs/results.md}
limit=${LIMIT:-0}
detail=${DETAIL:-12}
read -r -a peers <<<"${PEERS:-bicubic lanczos}"
report() { PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" python -m reproduce report "$@"; }

for bench in val RealSR; do
  report table-1a --photos "$benches/$bench/HR" -n "$model" --limit "$limit" --out "$out/table-1a-$bench"
  report table-2 --bench "$benches/$bench" -n "$model" --limit "$limit" --out "$out/table-2-$bench"
  report table-3 --bench "$benches/$bench" -n "$model" --peers "${peers[@]}" --limit "$limit" \
    --out "$out/table-3-$bench"
  report codes --bench "$benches/$bench" -n "$model" --limit "$limit" --out "$out/codes-$bench"
  report confidence --bench "$benches/$bench" -n "$model" --limit "$limit" --out "$out/confidence-$bench"
  report figure --bench "$benches/$bench" -n "$model" -o "$out/figure-$bench.png"
  report figure-2 --bench "$benches/$bench" -n "$model" -o "$out/figure-2-$bench.png"
done
report inference --bench "$benches/val" -n "$model" --limit "$detail" --out "$out/inference-val"
report page "$page" --tables "$out"
if [[ -n ${ABLATIONS:-} ]]; then
  report page "$page" --tables "$ABLATIONS/tables"
fi
