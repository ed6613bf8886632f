"""Training the transformer: cross-entropy on the photograph's codes, and a preference for them over the input's own."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.data.crops import Crops
from nextscale.model.config import Ladder, SamplingOptions
from nextscale.model.sampler import sample, tile_noise
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.model.transformer import CLASS_FREE, Condition, Transformer
from nextscale.train.config import CodesConfig, LoopConfig
from nextscale.train.distributed import positions
from nextscale.train.loop import decay_groups
from nextscale.train.pairs import draws, pairs, whole_factor
from nextscale.train.validation import Validation


def enlarge(inputs: Tensor, side: int) -> Tensor:
    """Input photographs enlarged bilinearly, as the transformer's condition sees them (paper section 3)."""
    return F.interpolate(inputs, size=(side, side), mode="bilinear")


@torch.no_grad()
def start_from_codebook(
    transformer: Transformer, tokenizer: Tokenizer, *, share: float = 0.1, sharpness: float = 30.0
) -> None:
    """Start an aligned transformer as the nearest-code rule applied to the input's own latents.

    A step's residual is its stage's latent less f, and both are linear in the token: the first channels of the stream
    carry `share` (latent - map), and the head scores 2 r.e - |e|^2 times `sharpness` for each codebook row e. Training
    then starts from the enlarged input's codes instead of from noise. Reason and numbers: LOG.md.
    """
    assert transformer.aligned is not None
    rows = tokenizer.quantizer.codebook.weight
    width, channels = transformer.config.width, rows.shape[1]
    eye = torch.eye(channels) * share
    for table in (transformer.level_embed.weight, transformer.class_embed.weight):
        table[:, :channels] = 0
    if transformer.prefix_embed is not None:
        transformer.prefix_embed.weight[:channels] = 0
    transformer.position[:, :channels] = 0
    transformer.start_tokens[:, :channels] = 0
    transformer.word_embed.weight[:channels] = -eye
    transformer.aligned.weight[:channels] = eye
    # The final normalisation divides by the stream's deviation: three tables of VAR's initial one.
    deviation = (3 / width / 3) ** 0.5
    transformer.stack.head.weight[:, :channels] = 2 * sharpness * rows * deviation / share
    transformer.stack.head.bias.copy_(-sharpness * rows.square().sum(1))


def _token_weights(ladder: Ladder, balance: float) -> Tensor:
    """Weight of each token, mean one: (its step's side) ** -balance."""
    weights = torch.cat([torch.full((side * side,), float(side) ** -balance) for side in ladder.sides])
    return weights / weights.mean()


class CodesTask:
    """Loss = cross-entropy + preference term, both from the same teacher-forced logits (paper section 3, equation 4).

    The preference term per sample is -log sigmoid(beta (mean log p(z_HR) - mean log p(z_LR))): mean over the tokens,
    since the paper's product over thousands of tokens saturates the sigmoid.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        crops: dict[int, Crops],
        config: CodesConfig,
        validation: Validation | None = None,
    ) -> None:
        self.model: nn.Module = transformer
        self.transformer = transformer
        self.grad_accum_steps = 1
        self.tokens_per_sample = self.flops_per_sample = 0.0
        self.device = tokenizer.quant_conv.weight.device
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.crops = crops
        self.config = config
        self.validation = validation
        self.ladders = {side: tokenizer.ladder.for_input(side) for side in config.sides}
        self.weights = {side: _token_weights(ladder, config.balance) for side, ladder in self.ladders.items()}

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        self.grad_accum_steps = config.grad_accum_steps
        return decay_groups(self.transformer.named_parameters(), config.lr, config.weight_decay)

    def losses(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        side = config.sides[step // self.grad_accum_steps % len(config.sides)]
        ladder, crops = self.ladders[side], self.crops[side]
        batch = max(1, batch * min(config.sides) ** 2 // side**2)
        started = time.monotonic()
        factor = whole_factor(ladder)
        targets, inputs, classes = pairs(
            crops, step, batch, config.presets, config.clean, self.device, factor=factor, soft=config.soft
        )
        degraded = time.monotonic()
        chance = draws(crops.seed, 5, positions(step, batch).start, batch, 1)[:, 0]
        dropped = torch.from_numpy(chance < config.class_free).to(self.device)
        classes = torch.where(dropped, torch.full_like(classes, CLASS_FREE), classes)
        stages = config.stages or ladder.num_stages
        with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
            codes = self.tokenizer.encode(targets, stages, ladder=ladder)
            # The prefix is the last stage's latent of the enlarged input, so all of its stages are encoded anyway.
            latents = self.tokenizer.stage_latents(enlarge(inputs, targets.shape[-1]), ladder=ladder)
            own = self.tokenizer.quantise(latents[:stages], ladder=ladder)
            maps = self.tokenizer.step_inputs(codes)
        tokenised = time.monotonic()
        condition = Condition(latents, classes)
        segments = [self.transformer.start(condition)]
        segments += [self.transformer.embed(m, k) for k, m in enumerate(maps, start=1)]
        logits = self.transformer.logits(segments, condition)
        with torch.autocast(targets.device.type, enabled=False):
            wanted = torch.cat([ids.flatten(1) for ids in codes.steps], dim=1)
            avoided = torch.cat([ids.flatten(1) for ids in own.steps], dim=1)
            log_p = logits.log_softmax(dim=-1)
            chosen = log_p.gather(-1, wanted[..., None]).squeeze(-1)
            rejected = log_p.gather(-1, avoided[..., None]).squeeze(-1)
            weights = self.weights[side].to(chosen)
            cross_entropy = -(chosen * weights[: chosen.shape[1]]).mean()
            margin = (chosen - rejected).mean(dim=1)
            preference = -F.logsigmoid(config.beta * margin).mean()
            total = cross_entropy + config.preference * preference
        numbers = {
            "loss": float(total.detach()),
            "cross_entropy": float(cross_entropy.detach()),
            "preference": float(preference.detach()),
            "margin": float(margin.detach().mean()),
            "differ": float((wanted != avoided).float().mean()),
            "seconds_degrade": degraded - started,
            "seconds_tokenise": tokenised - degraded,
        }
        right = (logits.detach().argmax(-1) == wanted).float()
        ends = np.cumsum([ids[0].numel() for ids in codes.steps])
        for k, end in enumerate(ends):
            part = slice(end - codes.steps[k][0].numel(), end)
            numbers[f"cross_entropy_{k + 1}"] = -float(chosen[:, part].detach().mean())
            numbers[f"accuracy_{k + 1}"] = float(right[:, part].mean())
        return total, numbers

    @torch.no_grad()
    def validation_pictures(self, average: nn.Module) -> list[Tensor]:
        """The validation photographs restored by the averaged transformer, from codes alone."""
        assert self.validation is not None
        assert isinstance(average, Transformer)
        inputs = self.validation.inputs
        ladder = self.tokenizer.ladder.for_input(inputs.shape[-1])
        codes = predict(average, self.tokenizer, ladder, inputs, self.validation.classes)
        return [
            self.tokenizer.decode_canvas(f, stage).float().clamp(-1, 1)
            for stage, f in enumerate(self.tokenizer.canvases(codes))
        ]


@torch.no_grad()
def predict(transformer: Transformer, tokenizer: Tokenizer, ladder: Ladder, inputs: Tensor, classes: Tensor) -> Codes:
    """The transformer's greedy codes of input photographs B 3 h h in [-1, 1]."""
    latents = tokenizer.stage_latents(enlarge(inputs, ladder.image_sides[-1]), ladder=ladder)
    noise = tile_noise(0, [(0, 0)] * len(inputs))
    condition = Condition(latents, classes)
    *_, last = sample(transformer, tokenizer.quantizer, ladder, condition, SamplingOptions(), noise=noise)
    return last.codes
