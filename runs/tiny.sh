#!/usr/bin/env bash
# The recipe of the shipped `tiny`, from photographs to a model; each command resumes where it was stopped.
# usage: runs/tiny.sh DATA OUT   (DATA: folder of .tar shards or photographs)
# The perceptual terms need VGG19 and SqueezeNet weights: NEXTSCALE_WEIGHTS names their folder.
# LOG.md tells in which pieces, and with which detours, the shipped weights were trained.
set -euo pipefail
data=$1
out=$2
train() { python -m nextscale.cli train "$@" --data "$data"; }
train tokenizer --phase autoencoder --out "$out/autoencoder" --steps 360 --lr 6e-4 --warmup 40 --ema 0.99
train tokenizer --phase codebook --out "$out/codebook" --start "$out/autoencoder/model" \
  --steps 650 --batch 16 --lr 0.02 --warmup 10 --weight-decay 0 --final-lr 0.01 --ema 0.98
train transformer --out "$out/transformer" --tokenizer "$out/codebook/model" \
  --steps 150 --lr 5e-4 --warmup 15 --ema 0.95
train tokenizer --phase decoders --out "$out/decoders" --start "$out/transformer/model" \
  --steps 1000 --batch 6 --lr 4e-4 --warmup 20 --ema 0.98 --reconstruction.continuous 0.05 \
  --reconstruction.dial-off 0.25 --reconstruction.dial-full 0.6
python - "$out" <<'PYTHON'
import sys
from nextscale import NextScale

whole = NextScale.from_pretrained(f"{sys.argv[1]}/decoders/model", device="cpu", fp32=True)
whole.save_pretrained(f"{sys.argv[1]}/tiny")
PYTHON
