#!/usr/bin/env bash
# The recipe of the shipped `tiny`, from photographs to a model; each command resumes where it was stopped.
# usage: runs/tiny.sh DATA OUT   (DATA: folder of .tar shards or photographs)
#   STEPS=20  no phase longer than this, to try the recipe out
#   SIDE=128  side in pixels of the training inputs, a multiple of 64 (64)
# The perceptual terms need VGG19 and SqueezeNet weights: NEXTSCALE_WEIGHTS names their folder.
# LOG.md tells in which pieces, and with which detours, the shipped weights were trained.
set -euo pipefail
data=$1
out=$2
side=${SIDE:-64}
train() { python -m nextscale train "$@" --data "$data"; }
steps() { echo $((${STEPS:-$1} < $1 ? ${STEPS:-$1} : $1)); }
train tokenizer --phase autoencoder --out "$out/autoencoder" \
  --steps "$(steps 940)" --batch 4 --lr 6e-4 --warmup 30 --final-lr 0.1 --ema 0.99 \
  --reconstruction.side "$side" --reconstruction.noise 0.2 \
  --reconstruction.feature 0.25 --reconstruction.lpips 0.3
train tokenizer --phase codebook --out "$out/codebook" --start "$out/autoencoder/model" \
  --steps "$(steps 500)" --batch 16 --lr 0.02 --warmup 10 --weight-decay 0 --final-lr 0.01 --ema 0.98 \
  --codebook.side "$side"
train transformer --out "$out/transformer" --tokenizer "$out/codebook/model" \
  --steps "$(steps 410)" --batch 8 --lr 6e-4 --warmup 12 --ema 0.97 --codes.beta 3 \
  --codes.sides "$side" "$side" "$side" "$((2 * side))"
train fusion --out "$out/fusion" --start "$out/transformer/model" \
  --steps "$(steps 1150)" --batch 4 --lr 6e-4 --warmup 20 --final-lr 0.03 --ema 0.99 \
  --reconstruction.side "$side" --reconstruction.clean 0.2 \
  --reconstruction.dial-off 0.2 --reconstruction.dial-full 0.7 \
  --reconstruction.predicted 0.4 --reconstruction.cycle 800 \
  --reconstruction.pixel 0.4 --reconstruction.feature 0.6 --reconstruction.lpips 0.4
train fusion --out "$out/texture" --start "$out/fusion/model" \
  --steps "$(steps 1500)" --batch 4 --lr 3e-4 --warmup 30 --final-lr 0.05 --ema 0.99 \
  --reconstruction.side "$side" --reconstruction.clean 0.2 --reconstruction.soft 0.4 \
  --reconstruction.dial-off 0.2 --reconstruction.dial-full 0.7 \
  --reconstruction.predicted 0.5 --reconstruction.cycle 1200 \
  --reconstruction.pixel 0.6 --reconstruction.feature 0.5 --reconstruction.lpips 0.4 \
  --reconstruction.adversarial 1.0
# Longer training of the transformer alone, then of the decoders on what it now predicts. That gains on the degradation it
# is trained with and loses on cameras; the mean of the weights before and after gains on both.
train transformer --out "$out/longer" --tokenizer "$out/texture/model" --start "$out/texture/model" \
  --steps "$(steps 500)" --batch 8 --lr 6e-4 --warmup 12 --ema 0.98 --codes.beta 3 --codes.soft 0.3 --codes.balance 0.5
train fusion --out "$out/refit" --start "$out/longer/model" \
  --steps "$(steps 900)" --batch 4 --lr 3e-4 --warmup 15 --final-lr 0.05 --ema 0.985 \
  --reconstruction.side "$side" --reconstruction.clean 0.2 --reconstruction.soft 0.4 \
  --reconstruction.dial-off 0.15 --reconstruction.dial-full 0.7 \
  --reconstruction.predicted 0.6 --reconstruction.cycle 960 \
  --reconstruction.pixel 0.5 --reconstruction.feature 0.5 --reconstruction.lpips 0.6 \
  --reconstruction.adversarial 1.0
python - "$out" <<'PYTHON'
import sys
from nextscale import NextScale

one, other = (NextScale.from_pretrained(f"{sys.argv[1]}/{name}/model", device="cpu", fp32=True) for name in ("longer", "refit"))
changed = other.modules.state_dict()
for name, weight in one.modules.state_dict().items():
    if weight.is_floating_point():
        weight.lerp_(changed[name], 0.4)
one.save_pretrained(f"{sys.argv[1]}/tiny")
PYTHON
