#!/usr/bin/env bash
# The recipe of `tiny`, from photographs to a model; each command resumes where it was stopped.
# usage: runs/tiny.sh DATA START OUT
#   DATA   folder of .tar shards or photographs
#   START  realesr-general-x4v3.pth of Real-ESRGAN (or its safetensors, or one trained on from it)
#   STEPS=20          no phase longer than this, to try the recipe out
#   SIDE=128          side in pixels of the training inputs of the codes, a multiple of 64 (64)
#   FACES=, PAGES=    folders or shards of photographs with faces and of rendered pages (`nextscale data pages`)
# The perceptual terms need VGG19 and SqueezeNet weights: NEXTSCALE_WEIGHTS names their folder.
# The shipped codes (tokenizer and transformer) are those of version 4, which had further trainings; LOG.md tells which.
set -euo pipefail
data=$1
start=$2
out=$3
side=${SIDE:-64}
train() { python -m nextscale train "$@" --data "$data"; }
steps() { echo $((${STEPS:-$1} < $1 ? ${STEPS:-$1} : $1)); }
terms=(
  --restoration.pixel 0.3 --restoration.feature 0.3 --restoration.lpips 1.6 --restoration.lpips-scale 0.55 1.25
  --restoration.adversarial 1.0 --restoration.grain 0.2
  --restoration.presets stablesr stablesr stablesr stablesr x4plus x4plus camera compressed noisy noisy
)
restoration=()
[[ -z ${FACES:-} ]] || restoration+=(--restoration.faces "$FACES")
[[ -z ${PAGES:-} ]] || restoration+=(--restoration.pages "$PAGES")

# The codes.
train tokenizer --phase autoencoder --out "$out/autoencoder" \
  --steps "$(steps 940)" --batch 4 --lr 6e-4 --warmup 30 --final-lr 0.1 --ema 0.99 \
  --reconstruction.side "$side" --reconstruction.noise 0.2 \
  --reconstruction.feature 0.25 --reconstruction.lpips 0.3
train tokenizer --phase codebook --out "$out/codebook" --start "$out/autoencoder/model" \
  --steps "$(steps 500)" --batch 16 --lr 0.02 --warmup 10 --weight-decay 0 --final-lr 0.01 --ema 0.98 \
  --codebook.side "$side"
train tokenizer --phase decoders --out "$out/decoders" --start "$out/codebook/model" \
  --steps "$(steps 1150)" --batch 4 --lr 6e-4 --warmup 20 --final-lr 0.03 --ema 0.99 \
  --reconstruction.side "$side" --reconstruction.pixel 0.4 --reconstruction.feature 0.6 --reconstruction.lpips 0.4
train transformer --out "$out/transformer" --tokenizer "$out/decoders/model" \
  --steps "$(steps 900)" --batch 8 --lr 6e-4 --warmup 12 --ema 0.97 --codes.beta 3 \
  --codes.sides "$side" "$side" "$side" "$((2 * side))"

# The restorer, then the fusion of both.
python -m nextscale convert "$start" "$out/start" --from realesrgan --part restorer
train restorer --out "$out/restorer" --start "$out/start" \
  --steps "$(steps 700)" --batch 8 --lr 1e-4 --warmup 40 --final-lr 0.1 --ema 0.997 \
  --betas 0.9 0.99 --clip 1 --weight-decay 0 \
  "${terms[@]}" "${restoration[@]}"
# The mean of the weights at both ends is better than either (LOG.md).
python - "$out" <<'PYTHON'
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file

first, last = (load_file(f"{sys.argv[1]}/{name}/model.safetensors") for name in ("start", "restorer"))
mean = Path(sys.argv[1], "mean")
mean.mkdir(exist_ok=True)
last_plane = last["body.0.weight"][:, 3].clone()
for name in last:
    last[name] = (first[name] + last[name]) / 2
last["body.0.weight"][:, 3] = last_plane
save_file(last, mean / "model.safetensors")
(mean / "config.json").write_bytes(Path(sys.argv[1], "start", "config.json").read_bytes())
PYTHON
train fusion --out "$out/fusion" --start "$out/transformer/model" --restorer "$out/mean" \
  --steps "$(steps 220)" --batch 4 --lr 3e-4 --warmup 20 --final-lr 0.1 --ema 0.99 \
  --betas 0.9 0.99 --clip 1 --weight-decay 0 \
  --restoration.predicted-after 40 "${terms[@]}" "${restoration[@]}"
python - "$out" <<'PYTHON'
import sys
from nextscale import NextScale

NextScale.from_pretrained(f"{sys.argv[1]}/fusion/model", device="cpu", fp32=True).save_pretrained(f"{sys.argv[1]}/tiny")
PYTHON
