#!/usr/bin/env bash
# Ablations of the transformer on the shipped tokenizer: the paper's (Table 1b: the preference term; Table 2's baseline: flat codes), and
# what `tiny` does otherwise (what a token attends to, what the codes are conditioned on, whose codes are learned); and, with TAEF2, of
# the tokenizer (Table 1a: a codebook that learns flat codes; decoders without the hybrid trick).
# Every row of the transformer begins with new blocks (`start_from_codebook`), those on the restorer's features with the shipped stem, and trains for about
# the same time: a row's steps are STEPS times its speed, as it was on one core. Each command resumes where it was stopped.
#
# usage: runs/ablations.sh DATA MODEL BENCH OUT
#   DATA   folder of .tar shards or photographs to train on
#   MODEL  a trained model, whose tokenizer, restorer and stem all rows have
#   BENCH  pairs to judge by: LR of 128 px and HR of 512 px
#   OUT    folder of the runs; the tables are OUT/tables/*/report.md
# In the environment:
#   STEPS=82   optimizer steps of `base`: five minutes of one core with AVX-512 and bfloat16
#   SIDE=64    side in pixels of the training inputs, a multiple of 64
#   KEPT=480   samples, which are made once and kept
#   LIMIT=0    only the first pictures of BENCH (0: all)
#   TAEF2=     taef2_encoder.pth of TAESD (or its safetensors), with taef2_decoder beside it: where the tokenizer's rows begin, which
#              are left out without it
#   ROWS="latents preference flat"   only these rows, and the tables that they make (all)
set -euo pipefail
data=$1
model=$2
bench=$3
out=$4
root=$(cd "$(dirname "$0")/.." && pwd)
all="base causal photograph restored-preference latents preference flat prefix prefix-causal codebook codebook-flat hybrid plain"
rows=" ${ROWS:-$all} "
wanted() { # all of NAME ...
  local name
  for name in "$@"; do [[ $rows == *" $name "* ]] || return 1; done
}
report() { # TABLE [option ...]
  PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" python -m reproduce report "$@" --fp32 --limit "${LIMIT:-0}"
}
row() { # NAME CONFIG SPEED [option ...]
  local name=$1 change=$root/runs/ablations/$2.json steps begins
  wanted "$name" || return 0
  steps=$((${STEPS:-82} * $3 / 100))
  begins=(--config "$change")
  if [[ " ${*:4} " == *" --restorer "* ]]; then
    with_shipped_stem "$change" "$out/$name/start"
    begins=(--start "$out/$name/start")
  fi
  python -m nextscale train transformer --data "$data" --out "$out/$name/transformer" --tokenizer "$model" "${begins[@]}" \
    --steps "$((steps > 0 ? steps : 1))" --batch 8 --lr 6e-4 --warmup 8 --final-lr 0.03 --ema 0.95 \
    --betas 0.9 0.97 --cache "$out/samples" --codes.kept-crops "${KEPT:-480}" --codes.sides "${SIDE:-64}" \
    --codes.presets stablesr stablesr stablesr x4plus camera camera compressed noisy --codes.soft 0.35 --codes.clean 0.1 \
    --codes.mixed 0.5 --codes.class-free 0.05 --codes.balance 0.5 "${@:4}"
  # Flat codes have no pictures at x1 and x2 but as a baseline.
  [[ $name == flat ]] || report table-2 --bench "$bench" -n "$out/$name/transformer/model" --out "$out/tables/$name"
}
with_shipped_stem() { # CHANGE FOLDER
  python - "$model" "$2" "$1" <<'PYTHON'
import sys
from dataclasses import replace
from pathlib import Path

import torch
from nextscale import NextScale
from nextscale.model.config_io import read_difference
from nextscale.train.tasks.transformer import start_from_codebook
from nextscale.upscale.nextscale import with_restorer

model, out, file = NextScale.from_pretrained(sys.argv[1], device="cpu", fp32=True), *map(Path, sys.argv[2:])
config = read_difference(model.config, file)
# The model's temperatures belong to its weights.
config = replace(config, transformer=replace(config.transformer, temperatures=()))
torch.manual_seed(0)
fresh = NextScale.create(config)
start_from_codebook(fresh.transformer, model.tokenizer)
fresh.transformer.stem.load_state_dict(model.transformer.stem.state_dict())
with_restorer(model.tokenizer, fresh.transformer, model.restorer, config.fusion).save_pretrained(out, half=False)
PYTHON
}
restored=(--restorer "$model" --codes.target restored --codes.preference 0)

row base step 100 "${restored[@]}"
row causal causal 78 "${restored[@]}"
# The photograph's codes instead of the restored picture's.
row photograph step 87 --restorer "$model" --codes.preference 0
row restored-preference step 87 "${restored[@]}" --codes.preference 1
# The tokenizer's latents of the enlarged input instead of the restorer's features, as in the paper; then with the paper's preference
# term; and on flat codes, without it, which is the paper's baseline.
row latents latents 110 --codes.preference 0
row preference latents 110 --codes.preference 1 --codes.beta 3
row flat one-stage 110 --codes.preference 0
# With the latents as a prefix too; and causal too, which is the paper's transformer but for the alignment.
row prefix prefix 68 --codes.preference 0
row prefix-causal prefix-causal 62 --codes.preference 0

if wanted latents preference; then
  report table-1b --bench "$bench" -n "$out/preference/transformer/model" --without "$out/latents/transformer/model" --out "$out/tables/table-1b"
fi
if wanted latents flat; then
  report table-2 --bench "$bench" -n "$out/latents/transformer/model" --baseline "$out/flat/transformer/model" --out "$out/tables/table-2"
fi

# ---- of the tokenizer: codebook and decoders begin anew on TAEF2's latents ----

[[ -n ${TAEF2:-} ]] || exit 0
tokenizer() { # NAME PHASE START SPEED [option ...]
  local steps=$((${STEPS:-82} * $4 / 100))
  wanted "$1" || return 0
  python -m nextscale train tokenizer --phase "$2" --data "$data" --out "$out/$1" --start "$3" \
    --steps "$((steps > 0 ? steps : 1))" "${@:5}"
}
codebook() { # NAME [option ...]
  tokenizer "$1" codebook "$out/taef2" 240 --batch 16 --lr 0.02 --warmup 10 --weight-decay 0 --final-lr 0.01 --ema 0.95 \
    --codebook.side "${SIDE:-64}" --codebook.kept-crops "$((${KEPT:-480} / 2))" "${@:2}"
}
decoders() { # NAME [option ...]
  tokenizer "$1" decoders "$out/codebook/model" 55 --batch 4 --lr 6e-4 --warmup 8 --final-lr 0.03 --ema 0.95 \
    --reconstruction.side "${SIDE:-64}" --reconstruction.pixel 0.4 --reconstruction.feature 0.6 --reconstruction.lpips 0.4 "${@:2}"
}
[[ -e $out/taef2/config.json ]] || python -m nextscale convert "$TAEF2" "$out/taef2" --from taesd --part tokenizer
codebook codebook
codebook codebook-flat --config "$root/runs/ablations/one-stage.json"
# Half of the samples decoded from the latent without quantization (the paper's hybrid trick), and none.
decoders hybrid
decoders plain --reconstruction.unquantized-prob 0

# The codebooks with TAEF2's decoder, which knows neither.
if wanted codebook codebook-flat; then
  report table-1a --photos "$bench/HR" -n "$out/codebook/model" --flat-trained "$out/codebook-flat/model" --out "$out/tables/table-1a"
fi
if wanted hybrid plain; then
  report reconstructions --photos "$bench/HR" --models "hybrid=$out/hybrid/model" "plain=$out/plain/model" --out "$out/tables/hybrid"
fi
