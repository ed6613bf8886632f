"""Training the restorer by itself: pixel, VGG19, LPIPS-squeeze and critic terms at every factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextscale.model.layers import area_downsample
from nextscale.model.restorer import Restorer
from nextscale.train.adversarial import Adversary
from nextscale.train.config import LoopConfig, RestorationConfig
from nextscale.train.distributed import positions
from nextscale.train.loop import decay_groups
from nextscale.train.pairs import draws
from nextscale.train.stream import Batch, Samples, Stream
from nextscale.train.terms import Terms, factor_weights, logged
from nextscale.train.validation import Validation

CRITIC = "critic.safetensors"
"""Beside a restorer's weights: the critic that it was trained against, from which a later run goes on."""


def save_critic(adversary: Adversary | None, path: Path) -> None:
    """Keep a critic, where there is one."""
    if adversary is not None:
        state = {name: value.contiguous() for name, value in adversary.critics.state_dict().items()}
        save_file(state | {"accuracies": torch.tensor(adversary.accuracies)}, path)


def load_critic(adversary: Adversary | None, path: Path) -> None:
    """Go on from a kept critic, where there are both."""
    if adversary is not None and path.exists():
        state = load_file(path)
        adversary.accuracies = state.pop("accuracies").tolist()
        adversary.critics.load_state_dict(state)


class RestorerTask:
    """The restorer against photographs at every factor, with the denoise dial as drawn."""

    def __init__(
        self, restorer: Restorer, samples: Samples, config: RestorationConfig, validation: Validation | None = None
    ) -> None:
        self.model: nn.Module = restorer
        self.restorer = restorer
        self.config = config
        self.validation = validation
        self.device = next(restorer.parameters()).device
        self.stream = Stream(samples, self.device)
        self.grad_accum_steps = 1
        self.terms = Terms(config, self.device)
        self.weights = factor_weights(config, len(restorer.config.factors))
        self.adversary = self.terms.critics(len(self.weights), self.device)
        restorer.requires_grad_(True)
        restorer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        self.grad_accum_steps = config.grad_accum_steps
        return decay_groups(self.model.named_parameters(), config.lr, config.weight_decay)

    def losses(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        samples = self.stream.batch(step, batch)
        done = step // self.grad_accum_steps
        seed, first = self.stream.samples.photographs.seed, positions(step, batch).start
        chance = draws(seed, 7, first, batch, 3 * len(self.weights)).reshape(batch, -1, 3)
        inputs = samples.inputs.contiguous(memory_format=torch.channels_last)
        pictures = self.restorer(inputs, samples.denoise if bool((samples.denoise < 1).any()) else 1.0)
        total = inputs.new_zeros(())
        numbers: dict[str, float] = {}
        for number, (picture, weight) in enumerate(zip(pictures, self.weights, strict=True)):
            # The perceptual networks cost as much as the restorer: the smaller factors take turns.
            if number < len(pictures) - 1 and done % (len(pictures) - 1) != number:
                continue
            target = target_at(samples, picture.shape[-1])
            terms, seen = self.terms(number, picture, target, chance[:, number], samples.smooth > 0)
            if self.adversary is not None and seen is not None and number:
                value, numbers[f"g_loss_{number + 1}"] = self.adversary.generator_loss(number, seen.made)
                if done >= config.adversarial_from:
                    terms["adversarial"] = value
                self.adversary.keep(number, seen.made, seen.real)
            total = total + weight * self.terms.weighted(terms)
            numbers |= logged(terms, number)
        numbers["loss"] = float(total.detach())
        return total, numbers

    @torch.no_grad()
    def validation_pictures(self, average: nn.Module) -> list[Tensor]:
        assert self.validation is not None
        inputs = self.validation.inputs.contiguous(memory_format=torch.channels_last)
        parts = [average(part) for part in torch.split(inputs, 4)]
        return [torch.cat(pictures).clamp(-1, 1) for pictures in zip(*parts, strict=True)]


def target_at(samples: Batch, side: int) -> Tensor:
    """The photographs at a factor's side, with the noise that the denoise dial lets through: B 3 side side."""
    grain = (
        F.interpolate(samples.grain, size=(side, side), mode="bicubic")
        if samples.grain.any()
        else samples.grain[:1, :, :1, :1]
    )
    return (area_downsample(samples.targets, side) + grain).clamp(-1, 1)
