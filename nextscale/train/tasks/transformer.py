"""Trains the transformer: cross-entropy on the photograph's codes, and a preference for them over the input's codes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.data.crops import Crops
from nextscale.model.config import Ladder, SamplingOptions
from nextscale.model.quantizer import Scan
from nextscale.model.restorer import Restorer
from nextscale.model.sampler import sample, tile_noise
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.model.transformer import CLASS_FREE, Condition, Transformer
from nextscale.train.code_samples import CodeSamples
from nextscale.train.config import CodesConfig, LoopConfig
from nextscale.train.distributed import any_process, positions
from nextscale.train.log import Numbers
from nextscale.train.loop import decay_groups
from nextscale.train.pairs import draws
from nextscale.train.validation import Validation
from nextscale.upscale.pipeline import condition_latents


@torch.no_grad()
def start_from_codebook(
    transformer: Transformer, tokenizer: Tokenizer, *, share: float = 0.1, sharpness: float = 16.0
) -> None:
    """Initialize an aligned transformer so that it predicts the nearest codes of the input's own latents.

    A step's residual r is its stage's latent minus f, and both enter the token linearly: the first channels of the
    stream hold `share` * (latent - map), and the head gives each codebook row e the logit
    `sharpness` * (2 r.e - |e|^2) / (mean |e|^2). Training then starts from the enlarged input's codes instead of from
    noise. Reason and numbers: LOG.md.
    """
    assert transformer.aligned is not None
    rows = tokenizer.quantizer.codebook.weight
    width, channels = transformer.config.width, rows.shape[1]
    eye = torch.eye(channels) * share
    sharpness = sharpness / float(rows.square().sum(1).mean())
    for table in (transformer.level_embed.weight, transformer.class_embed.weight):
        table[:, :channels] = 0
    if transformer.prefix_embed is not None:
        transformer.prefix_embed.weight[:channels] = 0
    transformer.position[:, :channels] = 0
    transformer.start_tokens[:, :channels] = 0
    transformer.word_embed.weight[:channels] = -eye
    transformer.aligned.weight[:channels] = 0
    transformer.aligned.weight[:channels, :channels] = eye
    # The final normalization divides by the stream's deviation: three tables of VAR's initial one.
    deviation = (3 / width / 3) ** 0.5
    transformer.stack.head.weight[:, :channels] = 2 * sharpness * rows * deviation / share
    transformer.stack.head.bias.copy_(-sharpness * rows.square().sum(1))


def _token_weights(ladder: Ladder, balance: float, stages: int = 0) -> Tensor:
    """Weight of each token of the first stages (0: all), mean one: (its step's side) ** -balance."""
    sides = ladder.sides[: ladder.stage_ends[: stages or None][-1]]
    weights = torch.cat([torch.full((side * side,), float(side) ** -balance) for side in sides])
    return weights / weights.mean()


class CodesTask:
    """Cross-entropy plus preference term, both from the same teacher-forced logits (paper section 3, equation 4).

    The input's codes are those of the enlarged input; or, if the transformer has a stem, those of the stem's guess at
    the photograph's latents, to which a third term brings its first channels.

    The preference term per sample is -log sigmoid(beta (mean log p(z_HR) - mean log p(z_LR))). The means are over the
    tokens, because the paper's product over thousands of tokens saturates the sigmoid.

    Args:
        transformer: trained in place.
        tokenizer: frozen.
        crops: photographs per side of the input, of sides that the ladder's largest factor makes of it.
        config: sides, degradations, weights of the terms.
        validation: photographs for `validation_pictures`.
        restorer: frozen; on its features a transformer with a stem is conditioned.
        cache: folder to keep samples in (see `CodeSamples`).
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        crops: dict[int, Crops],
        config: CodesConfig,
        validation: Validation | None = None,
        *,
        restorer: Restorer | None = None,
        cache: Path | None = None,
    ) -> None:
        self.model: nn.Module = transformer
        self.transformer = transformer
        self.grad_accum_steps = 1
        self.tokens_per_sample = self.flops_per_sample = 0.0
        self.device = tokenizer.quant_conv.weight.device
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.restorer = None
        if transformer.stem is not None:
            assert restorer is not None
            self.restorer = restorer.to(self.device).eval().requires_grad_(False)
        self.crops = crops
        self.config = config
        self.validation = validation
        encoded = transformer.config.stem.encoded
        self.samples = CodeSamples(self.tokenizer, self.restorer, crops, config, cache, encoded=encoded)
        self.ladders = self.samples.ladders
        self.weights = {
            side: _token_weights(ladder, config.balance, config.stages) for side, ladder in self.ladders.items()
        }

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        self.grad_accum_steps = config.grad_accum_steps
        return decay_groups(self.transformer.named_parameters(), config.lr, config.weight_decay)

    def losses(self, step: int, batch: int) -> tuple[Tensor, Numbers]:
        config = self.config
        done = step // self.grad_accum_steps
        side = config.sides[done % len(config.sides)]
        ladder, crops = self.ladders[side], self.crops[side]
        batch = max(1, batch * min(config.sides) ** 2 // side**2)
        started = time.monotonic()
        samples = self.samples.batch(side, self._step_of_side(step) if config.kept_crops else step, batch)
        made = time.monotonic()
        numbers: dict[str, float | Tensor] = {}
        total = torch.zeros((), device=self.device)
        conditions = own = samples.own
        if self.transformer.stem is not None:
            assert samples.features is not None
            assert samples.inputs is not None
            conditions = self.transformer.stem(samples.features, samples.inputs, ladder, own)
            trained = list(zip(conditions, samples.latents, strict=False))
            latent = torch.stack([_distance(c, z) for c, z in trained]).mean()
            own = [c.detach()[:, : z.shape[1]].float() for c, z in trained]
            total = total + config.latent * latent
            numbers["latent"] = latent.detach()
            if done < config.latent_steps:
                # Processes that train together expect a gradient of every weight.
                total = total + 0.0 * torch.stack([p.sum() for p in self.transformer.parameters()]).sum()
                return total, numbers | {"loss": total.detach(), "seconds_samples": made - started}
        chance = draws(crops.seed, 5, positions(step, batch).start, batch, 4)
        dropped = torch.from_numpy(chance[:, 0] < config.class_free).to(self.device)
        classes = torch.where(dropped, torch.full_like(samples.classes, CLASS_FREE), samples.classes)
        stages = config.stages or ladder.num_stages
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            lr_codes = self.tokenizer.quantize(own[:stages], ladder=ladder)
            others, share = self._others(lr_codes, conditions, classes, chance, ladder)
            hr_codes, maps = self._history(
                samples.latents[:stages], others, share, positions(step, batch), ladder, crops.seed
            )
        tokenized = time.monotonic()
        logits = self.transformer(Condition(conditions, classes), maps)
        with torch.autocast(self.device.type, enabled=False):
            hr_ids, lr_ids = (torch.cat([ids.flatten(1) for ids in s], dim=1) for s in (hr_codes, lr_codes.steps))
            log_p = logits.log_softmax(dim=-1)
            hr_log_p, lr_log_p = (log_p.gather(-1, ids[..., None]).squeeze(-1) for ids in (hr_ids, lr_ids))
            weights = self.weights[side].to(hr_log_p)
            cross_entropy = -(hr_log_p * weights).mean()
            margin = (hr_log_p - lr_log_p).mean(dim=1)
            preference = -F.logsigmoid(config.beta * margin).mean()
            total = total + cross_entropy + config.preference * preference
        numbers |= {
            "loss": total.detach(),
            "cross_entropy": cross_entropy.detach(),
            "preference": preference.detach(),
            "margin": margin.detach().mean(),
            "differ": (hr_ids != lr_ids).float().mean(),
            "seconds_samples": made - started,
            "seconds_codes": tokenized - made,
        }
        return total, numbers | _by_step(log_p.detach(), hr_ids, hr_log_p.detach(), hr_codes)

    def _step_of_side(self, step: int) -> int:
        """The number of a batch among those of its side alone: kept samples that are counted over all sides would come
        in the rhythm of the sides, and some never."""
        sides, (done, place) = self.config.sides, divmod(step, self.grad_accum_steps)
        cycle, turn = divmod(done, len(sides))
        own = cycle * sides.count(sides[turn]) + sides[:turn].count(sides[turn])
        return own * self.grad_accum_steps + place

    def _others(
        self, lr_codes: Codes, conditions: list[Tensor], classes: Tensor, chance: np.ndarray, ladder: Ladder
    ) -> tuple[list[Tensor], np.ndarray]:
        """What the canvases hold instead of the photographs' codes: ids B rho rho per step, and the share per sample.

        These are the inputs' codes in `mixed` of the samples, and in `predicted` of them those that the model as it is
        now chooses, as in a restoration.
        """
        config = self.config
        others = [ids.clone() for ids in lr_codes.steps]
        share = np.where(chance[:, 1] < config.mixed, chance[:, 2], 0.0)
        rows = np.flatnonzero(chance[:, 3] < config.predicted)
        if config.predicted and any_process(len(rows) > 0)[0]:
            # Sharded weights are gathered by all processes together: one without such a sample discards what it makes.
            asked = rows if len(rows) else np.zeros(1, dtype=rows.dtype)
            condition = Condition([c.detach()[asked] for c in conditions], classes[asked])
            noise, stages = tile_noise(0, [(0, 0)] * len(asked)), config.stages or None
            quantizer, options = self.tokenizer.quantizer, SamplingOptions()
            *_, last = sample(self.transformer, quantizer, ladder, condition, options, noise=noise, stages=stages)
            for ids, chosen in zip(others, last.codes.steps, strict=True):
                ids[rows] = chosen[: len(rows)]
            share[rows] = 1
        return others, share

    def _history(
        self, latents: list[Tensor], others: list[Tensor], share: np.ndarray, places: range, ladder: Ladder, seed: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The codes that the model should choose at each step, and the input map of each step but the first.

        Args:
            latents: of the photographs, B Z h w per stage.
            others: ids B rho rho per step, the input's or those that the model chooses.
            share: per sample, of its places on the canvas that hold the other code instead of the photograph's.
            places: of the samples in the stream, which key the choice of places.

        Returns:
            ids B rho rho per step, and maps B Z rho rho of the steps from the second on.
        """
        scan = Scan(self.tokenizer.quantizer, ladder)
        codes: list[Tensor] = []
        maps: list[Tensor] = []
        for stage, latent in enumerate(latents):
            for k in ladder.steps_of(stage):
                if k:
                    maps.append(scan.input())
                codes.append(self.tokenizer.quantizer.nearest(scan.residual(latent)))
                pushed = codes[-1]
                if share.any():
                    wrong = np.zeros(pushed.shape, dtype=bool)
                    for i in np.flatnonzero(share):
                        draw = np.random.default_rng((seed, 9, places[i], k)).random(pushed.shape[1:])
                        wrong[i] = draw < share[i]
                    pushed = torch.where(torch.from_numpy(wrong).to(self.device), others[k], pushed)
                scan.push(pushed)
        return codes, maps

    @torch.no_grad()
    def validation_pictures(self, average: nn.Module) -> list[Tensor]:
        """The validation photographs restored by the averaged transformer, from codes alone."""
        assert self.validation is not None
        assert isinstance(average, Transformer)
        inputs = self.validation.inputs
        ladder = self.tokenizer.ladder.for_input(inputs.shape[-1])
        codes = predict(average, self.tokenizer, ladder, inputs, self.validation.classes, self.restorer)
        return [
            self.tokenizer.decode_canvas(f, stage).float().clamp(-1, 1)
            for stage, f in enumerate(self.tokenizer.canvases(codes))
        ]


def _by_step(log_p: Tensor, hr_ids: Tensor, hr_log_p: Tensor, hr_codes: list[Tensor]) -> dict[str, float | Tensor]:
    """Cross-entropy, accuracy and mean probability of the likeliest code, of each step."""
    likeliest = log_p.max(-1)
    correct = (likeliest.indices == hr_ids).float()
    confidence = likeliest.values.exp()
    numbers: dict[str, float | Tensor] = {}
    for k, end in enumerate(np.cumsum([ids[0].numel() for ids in hr_codes])):
        tokens = slice(end - hr_codes[k][0].numel(), end)
        numbers[f"cross_entropy_{k + 1}"] = -hr_log_p[:, tokens].mean()
        numbers[f"accuracy_{k + 1}"] = correct[:, tokens].mean()
        numbers[f"confidence_{k + 1}"] = confidence[:, tokens].mean()
    return numbers


def _distance(condition: Tensor, latent: Tensor) -> Tensor:
    """Squared distance of the first channels of a condition B D h w to latents B Z h w, over their own squares."""
    difference = condition[:, : latent.shape[1]].float() - latent
    apart, size = (x.square().mean(dim=(1, 2, 3)) for x in (difference, latent))
    return (apart / size.clamp(min=1e-6)).mean()


@torch.no_grad()
def predict(
    transformer: Transformer,
    tokenizer: Tokenizer,
    ladder: Ladder,
    inputs: Tensor,
    classes: Tensor,
    restorer: Restorer | None = None,
) -> Codes:
    """The transformer's greedy codes of input photographs B 3 h h in [-1, 1]."""
    latents = condition_latents(tokenizer, transformer, restorer, ladder, inputs)
    noise = tile_noise(0, [(0, 0)] * len(inputs))
    condition = Condition(latents, classes)
    *_, last = sample(transformer, tokenizer.quantizer, ladder, condition, SamplingOptions(), noise=noise)
    return last.codes
