#!/usr/bin/env bash
# The commands behind the shipped `tiny`, in order; each resumes where it was stopped.
# usage: runs/tiny.sh DATA OUT   (DATA: folder of .tar shards or photographs)
# The perceptual terms need VGG19 and SqueezeNet weights: NEXTSCALE_WEIGHTS names their folder.
set -euo pipefail
data=$1
out=$2
train() { python -m nextscale.cli train "$@"; }
train tokenizer --phase autoencoder --data "$data" --out "$out/autoencoder" --steps 360 --batch 8 --lr 6e-4 --warmup 40 --ema 0.99
train tokenizer --phase codebook --data "$data" --out "$out/codebook" --start "$out/autoencoder/model" \
  --steps 650 --batch 16 --lr 0.02 --warmup 10 --weight-decay 0 --final-lr 0.01 --ema 0.98
