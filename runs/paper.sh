#!/usr/bin/env bash
# The paper's recipe for 24 GPUs of 80 GB, from the official checkpoints to the tables; each command resumes where it
# stopped.
#
# usage: runs/paper.sh OPENIMAGES PHOTOS BENCHES CHECKPOINTS OUT
#   OPENIMAGES   shards or folders of OpenImages, for the tokenizer
#   PHOTOS       shards or folders of DIV2K, DIV8K, Flickr2K, OST and 10,000 faces of FFHQ, for the rest
#                (`nextscale data pack` makes shards)
#   BENCHES      folder with DIV2K, RealSR and DRealSR, each holding LR (128 px) and HR (512 px)
#   CHECKPOINTS  folder with two official files:
#                  switti/model.safetensors   hf download yresearch/VQVAE-Switti model.safetensors --local-dir switti
#                  var_d16.pth                hf download FoundationVision/var var_d16.pth --local-dir .
#   OUT          folder of the runs, seen by all machines
#
# Start it on every machine, with these in the environment:
#   GPUS=24 MACHINES=3 RANK=0 HEAD=first-machine PORT=29500
# On fewer GPUs, raise ACCUMULATE (tokenizer) and ACCUMULATE_TRANSFORMER, so that a step still sees 384 samples; the
# script checks that. NEXTSCALE_WEIGHTS names the folder of the perceptual weights. `--plan` at the end of a training
# command prints its memory and time instead of running it.
#
# Numbers are the paper's (sections 3 and 4.1) unless a comment says otherwise.
set -euo pipefail
openimages=$1
photos=$2
benches=$3
checkpoints=$4
out=$5
gpus=${GPUS:-24}
machines=${MACHINES:-3}
rank=${RANK:-0}
accumulate=${ACCUMULATE:-4}
accumulate_transformer=${ACCUMULATE_TRANSFORMER:-2}
# 800 + 2650 + 1500 + 10324 + 10000.
num_photos=${NUM_PHOTOS:-25274}
samples=384

batch_of() { # samples of one process at a time, for so many accumulated batches
  if ((samples % (gpus * $1))); then
    echo "runs/paper.sh: $samples samples do not divide into $gpus GPUs x $1 accumulated batches" >&2
    return 1
  fi
  echo $((samples / (gpus * $1)))
}
batch=$(batch_of "$accumulate")
batch_transformer=$(batch_of "$accumulate_transformer")

train() {
  # The loop casts by itself; accelerate only starts and joins the processes.
  accelerate launch --num_processes "$gpus" --num_machines "$machines" --machine_rank "$rank" \
    --main_process_ip "${HEAD:-127.0.0.1}" --main_process_port "${PORT:-29500}" --mixed_precision no \
    -m nextscale train "$@"
}
first() { # on one machine only
  if ((rank == 0)); then "$@"; fi
}

# 1. Official checkpoints. Each stage's decoder starts as a copy of Switti's; VAR-d16's positions are enlarged to the
#    grid.
[[ -e $out/switti/config.json ]] || first nextscale convert "$checkpoints/switti/model.safetensors" "$out/switti" --from switti --part tokenizer
[[ -e $out/var-d16/config.json ]] || first nextscale convert "$checkpoints/var_d16.pth" "$out/var-d16" --from var --part transformer

# 2. Tokenizer: AdamW, 2.5e-4, weight decay 0.05, batch 384; encoder and quant_conv stay frozen.
#    - Schedule and warm-up are not stated: a line to a tenth after 500 steps. Neither are betas and clipping: the
#      transformer's.
tokenizer=(--lr 2.5e-4 --weight-decay 0.05 --betas 0.9 0.95 --clip 2.0 --steps 25000 --warmup 500 --schedule linear
  --final-lr 0.1 --ema 0.999 --batch "$batch" --grad-accum-steps "$accumulate")
#    First phase, 25,000 iterations: decoders, one per stage, and the codebook, on L2 + 5 LPIPS. Half of the samples,
#    drawn one by one, skip the quantization (the paper does not say whether it draws per sample or per batch). LPIPS is
#    SqueezeNet's: the paper does not name the network, and AlexNet's is what the tables are measured by.
train tokenizer --phase decoders --data "$openimages" --out "$out/decoders" --start "$out/switti" "${tokenizer[@]}" \
  --reconstruction.side 128 --reconstruction.codebook --reconstruction.unquantized-prob 0.5 \
  --reconstruction.squared --reconstruction.pixel 1.0 --reconstruction.lpips 5.0 \
  --reconstruction.feature 0.0 --reconstruction.grid 0.0
#    Second phase: decoders frozen, codebook and Phi on the L2 between each stage's latent and its quantization. The
#    paper does not divide its 25,000 iterations between the two; as many again cost little more than the encoder's
#    forward pass. No code is replaced: the paper speaks of none.
train tokenizer --phase finetune-codebook --data "$openimages" --out "$out/codebook" --start "$out/decoders/model" \
  "${tokenizer[@]}" --codebook.side 128 --codebook.phi-lr 1.0 --codebook.step-weight 0.0 --codebook.revive-every 0

# 3. Transformer from VAR-d16: AdamW (0.9, 0.95), weight decay 0.005, batch 384, 200 epochs.
#    - The paper's learning rate is 1e-3, 6.7 times what VAR's rule (1e-4 for 256 samples) gives: LR=1.5e-4 is the safe
#      choice.
#    - Schedule and clipping are VAR's, which the paper follows: warm-up over a fiftieth, then a line to a tenth;
#      norm 2. VAR holds the peak for 5% of the run first, which is left out.
#    - The paper counts tokens alike (--codes.balance 0); its preference term has no stated sharpness: beta 1, on the
#      mean log probability of a token, since the product over 3452 of them saturates.
#    - Degradation is Real-ESRGAN's (x4plus), as the text says, mixed with the milder settings of the test sets that
#      it reports on (stablesr).
#    - Averaged weights, which the paper does not mention, are what is saved.
steps=$((200 * num_photos / samples))
train transformer --data "$photos" --out "$out/transformer" \
  --tokenizer "$out/codebook/model" --start "$out/var-d16" \
  --lr "${LR:-1e-3}" --weight-decay 0.005 --betas 0.9 0.95 --clip 2.0 --ema 0.999 \
  --steps "$steps" --warmup $((steps / 50)) --schedule linear --final-lr 0.1 \
  --batch "$batch_transformer" --grad-accum-steps "$accumulate_transformer" \
  --peak-tflops 312 --save-minutes 15 --codes.sides 128 --codes.balance 0.0 --codes.preference 1.0 --codes.beta 1.0 \
  --codes.presets x4plus stablesr --codes.clean 0.25 --codes.class-free 0.1

# 4. Tables.
for bench in DIV2K RealSR DRealSR; do
  first nextscale evaluate -n "$out/transformer/model" --bench "$benches/$bench" --out "$out/tables/$bench-paper"
done
