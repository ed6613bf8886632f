#!/usr/bin/env bash
# Ablations on `tiny`: each row differs from `base` in one configuration file or option, and every phase of every row has
# the same budget. Each command resumes where it was stopped.
#
# usage: runs/ablations.sh DATA BENCH OUT
#   DATA   folder of .tar shards or photographs to train on
#   BENCH  pairs to judge by: LR of 128 px and HR of 512 px
#   OUT    folder of the runs; the tables are OUT/tables/*/report.md
# In the environment:
#   STEPS=400   optimizer steps of each phase
#   SIDE=64     side in pixels of the training inputs, a multiple of 64
#   LIMIT=0     only the first pictures of BENCH (0: all)
#   RATE=6e-4   learning rate of decoders and transformers
#   AUTOENCODER=tiny   the tokenizer or model whose autoencoder all rows have
# The perceptual terms need VGG19 and SqueezeNet weights: NEXTSCALE_WEIGHTS names their folder.
#
# All rows are the paper's decoder (w = 0), so no fusion is trained. What they share is trained once:
# base's tokenizer (all transformers but those of another number of stages), base's transformer (hybrid-off, which
# changes the decoders alone).
set -euo pipefail
data=$1
bench=$2
out=$3
steps=${STEPS:-400}
side=${SIDE:-64}
limit=${LIMIT:-0}
rate=${RATE:-6e-4}
root=$(cd "$(dirname "$0")/.." && pwd)
changes=$root/runs/ablations
train() { python -m nextscale train "$@" --data "$data"; }
report() { PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" python -m reproduce report "$@" --limit "$limit"; }
vocabulary() { # NAME [option ...]
  train tokenizer --phase codebook --out "$out/$1/codebook" --start "$autoencoder" \
    --steps "$steps" --batch 16 --lr 0.02 --warmup 10 --weight-decay 0 --final-lr 0.01 --ema 0.98 \
    --codebook.side "$side" "${@:2}"
}
decoders() { # NAME TOKENIZER [option ...]
  train tokenizer --phase decoders --out "$out/$1/decoders" --start "$2" \
    --steps "$steps" --batch 4 --lr "$rate" --warmup 20 --final-lr 0.03 --ema 0.99 \
    --reconstruction.side "$side" \
    --reconstruction.unquantized-prob 0.5 "${@:3}"
}
transformer() { # NAME TOKENIZER [option ...]
  train transformer --out "$out/$1/transformer" --tokenizer "$2" \
    --steps "$steps" --batch 8 --lr "$rate" --warmup 12 --ema 0.97 \
    --codes.sides "$side" "$side" "$side" "$((2 * side))" --codes.beta 3 "${@:3}"
}

autoencoder=${AUTOENCODER:-tiny}

# The row all others differ from: three stages, hierarchical codes, half of the decoders' samples unquantized,
# preference with beta 3, aligned conditioning.
vocabulary base
decoders base "$out/base/codebook/model"
transformer base "$out/base/decoders/model"

# Hierarchical or flat codes: the same tokenizer read in one stage. Its row is Table 2's baseline (which the paper
# trains without preference): prefixes of the flat codes, decoded after each stage's steps.
transformer flat-codes "$out/base/decoders/model" --config "$changes/one-stage.json"

# One or two stages of the same ten steps, with a vocabulary and decoders of their own: what three stages cost at x4.
vocabulary one-stage --config "$changes/one-stage.json"
decoders one-stage "$out/one-stage/codebook/model"
transformer one-stage "$out/one-stage/decoders/model"
vocabulary two-stages --config "$changes/two-stages.json"
decoders two-stages "$out/two-stages/codebook/model"
transformer two-stages "$out/two-stages/decoders/model"

# Preference (DPO): off, milder, sharper.
transformer preference-off "$out/base/decoders/model" --codes.preference 0
transformer beta-1 "$out/base/decoders/model" --codes.beta 1
transformer beta-10 "$out/base/decoders/model" --codes.beta 10

# Conditioning by the prefix alone, as in the paper. It also starts from VAR's initialization: `start_from_codebook`
# needs the aligned latents.
transformer unaligned "$out/base/decoders/model" --config "$changes/unaligned.json"

# Hybrid training off: the decoders never see unquantized latents. Only they differ, so base's transformer serves.
decoders hybrid-off "$out/base/codebook/model" --reconstruction.unquantized-prob 0
python - "$out" <<'PYTHON'
import sys
from pathlib import Path
from nextscale import NextScale

out = Path(sys.argv[1])
model = NextScale.assemble(out / "hybrid-off" / "decoders" / "model", out / "base" / "transformer" / "model")
model.save_pretrained(out / "hybrid-off" / "transformer" / "model", half=False)
PYTHON

rows=()
for name in base one-stage two-stages preference-off beta-1 beta-10 unaligned hybrid-off; do
  rows+=("$name=$out/$name/transformer/model")
done
report models --bench "$bench" --models "${rows[@]}" --baselines "flat-codes=$out/flat-codes/transformer/model" \
  --out "$out/tables/models"
report table-1b --bench "$bench" -n "$out/base/transformer/model" --without "$out/preference-off/transformer/model" \
  --out "$out/tables/table-1b"
report table-2 --bench "$bench" -n "$out/base/transformer/model" --baseline "$out/flat-codes/transformer/model" \
  --out "$out/tables/table-2"
# The photographs' own codes: what the tokenizers alone lose.
report reconstructions --photos "$bench/HR" --out "$out/tables/reconstructions" \
  --models "base=$out/base/decoders/model" "one-stage=$out/one-stage/decoders/model" \
  "two-stages=$out/two-stages/decoders/model" "hybrid-off=$out/hybrid-off/decoders/model"
report table-1a --photos "$bench/HR" -n "$out/base/decoders/model" --flat-trained "$out/one-stage/decoders/model" \
  --out "$out/tables/table-1a"
# No training: class, guidance, temperature, top-k (the fidelity dial needs a fusion, see runs/results.sh).
report inference --bench "$bench" -n "$out/base/transformer/model" --fidelity 0 --out "$out/tables/inference"
