"""Training the restorer by itself: pixel, VGG19, LPIPS-squeeze and critic terms at every factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextscale.evaluate.metrics.lpips import Lpips, Vgg19Features
from nextscale.model.layers import area_downsample
from nextscale.model.restorer import Restorer
from nextscale.train.adversarial import Adversary
from nextscale.train.config import LoopConfig, RestorationConfig
from nextscale.train.loop import decay_groups
from nextscale.train.stream import Batch, Samples, Stream
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


class Terms:
    """The terms of a picture's loss against its target, at one factor."""

    LAYERS = ("conv1_2", "conv2_2", "conv3_1")
    CHANNELS = (3, 128, 256)

    def __init__(self, config: RestorationConfig, factors: int, device: torch.device) -> None:
        self.config = config
        layout = torch.channels_last
        self.vgg: Vgg19Features | None = None
        if config.feature or config.adversarial:
            self.vgg = Vgg19Features(self.LAYERS).to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.lpips: Lpips | None = None
        if config.lpips:
            self.lpips = Lpips("squeeze").to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.adversary: Adversary | None = None
        if config.adversarial:
            self.adversary = Adversary(factors, self.CHANNELS, config.critic_lr, device, by_accuracy=True)

    def loss(
        self, step: int, number: int, picture: Tensor, target: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of a factor's terms, and their values; pictures B 3 H H in [-1, 1].

        The critic, where there is one, learns from the same pictures.
        """
        config = self.config
        terms = {"pixel": (picture - target).abs().mean()}
        numbers: dict[str, float] = {}
        window = random_window(picture.shape[-1], rng, config.window)
        near, true = picture[window], target[window]
        if self.lpips is not None:
            low, high = config.lpips_scale if number else (0.8, 1.6)
            scale = rng.uniform(low, high)
            terms["lpips"] = self.lpips(*resampled(picture, target, scale)).mean()
        if self.vgg is not None:
            layout = torch.channels_last
            with torch.no_grad():
                wanted = self.vgg((true / 2 + 0.5).contiguous(memory_format=layout))
            given = self.vgg((near / 2 + 0.5).contiguous(memory_format=layout))
            terms["feature"] = feature_distance(given, wanted)
            if self.adversary is not None and number:
                value, numbers[f"g_loss_{number + 1}"] = self.adversary.deceive(number, [near, *given[1:]])
                if step >= config.adversarial_from:
                    terms["adversarial"] = value
                numbers |= self.adversary.learn(number, [near, *given[1:]], [true, *wanted[1:]])
        total = torch.stack([getattr(config, name) * value for name, value in terms.items()]).sum()
        terms.pop("adversarial", None)  # its value means nothing, only its gradient
        return total, numbers | {f"{name}_{number + 1}": float(value.detach()) for name, value in terms.items()}


class RestorerTask:
    """The restorer against photographs at every factor, with the denoise plane as drawn."""

    def __init__(
        self, restorer: Restorer, samples: Samples, config: RestorationConfig, validation: Validation | None = None
    ) -> None:
        self.model: nn.Module = restorer
        self.restorer = restorer
        self.config = config
        self.validation = validation
        self.device = next(restorer.parameters()).device
        self.stream = Stream(samples, self.device)
        self.terms = Terms(config, len(restorer.config.factors), self.device)
        restorer.requires_grad_(True)
        restorer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        return decay_groups(self.model.named_parameters(), config.lr, config.weight_decay)

    def losses(self, step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        samples = self.stream.batch(step, batch)
        rng = np.random.default_rng((self.stream.samples.photographs.seed, 7, step))
        inputs = samples.inputs.contiguous(memory_format=torch.channels_last)
        pictures = self.restorer(inputs, samples.denoise)
        total = inputs.new_zeros(())
        numbers: dict[str, float] = {}
        for number, (picture, weight) in enumerate(zip(pictures, self.config.factor_weights, strict=True)):
            # The perceptual networks cost as much as the restorer: the smaller factors take turns.
            if number < len(pictures) - 1 and step % (len(pictures) - 1) != number:
                continue
            loss, values = self.terms.loss(step, number, picture, target_at(samples, picture.shape[-1]), rng)
            total = total + weight * loss
            numbers |= values
        numbers["loss"] = float(total.detach())
        return total, numbers

    def after(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        del step, optimiser
        if self.terms.adversary is not None:
            self.terms.adversary.step()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights: the critic."""
        return {} if self.terms.adversary is None else self.terms.adversary.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.terms.adversary is not None:
            self.terms.adversary.load_state_dict(state)

    @torch.no_grad()
    def _validation_pictures(self, average: nn.Module) -> list[Tensor]:
        assert self.validation is not None
        inputs = self.validation.inputs.contiguous(memory_format=torch.channels_last)
        parts = [average(part) for part in torch.split(inputs, 4)]
        return [torch.cat(pictures).clamp(-1, 1) for pictures in zip(*parts, strict=True)]

    def validate(self, average: nn.Module) -> dict[str, float]:
        """PSNR and LPIPS-alex of each factor's picture on the validation photographs, all noise removed."""
        return {} if self.validation is None else self.validation.scores(self._validation_pictures(average))

    def sheet(self, average: nn.Module, step: int) -> Image.Image | None:
        """Input | x1 | x2 | x4 | truth of the validation photographs."""
        del step
        return None if self.validation is None else self.validation.sheet(self._validation_pictures(average))


def feature_distance(given: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Distance of activation maps B C h w, finest first.

    The finest by mean absolute difference, which sees hatching of single pixels; the others relative to their length
    at each place, as LPIPS does: else the strong edges of a few pictures outweigh all texture.
    """
    terms = [0.5 * (given[0] - wanted[0]).abs().mean()]
    for x, y in zip(given[1:], wanted[1:], strict=True):
        apart = F.normalize(x, dim=1, eps=1e-3) - F.normalize(y, dim=1, eps=1e-3)
        terms.append(apart.square().sum(dim=1).mean())
    return torch.stack(terms).mean()


def target_at(samples: Batch, side: int) -> Tensor:
    """The photographs at a factor's side, with the noise that the denoise dial lets through: B 3 side side."""
    grain = (
        F.interpolate(samples.grain, size=(side, side), mode="bicubic")
        if samples.grain.any()
        else samples.grain[:1, :, :1, :1]
    )
    return (area_downsample(samples.targets, side) + grain).clamp(-1, 1)


def random_window(side: int, rng: np.random.Generator, size: int) -> tuple[Any, ...]:
    """A random square window: the perceptual networks cost more than the restorer."""
    size = min(size, side)
    top, left = (int(rng.integers(0, side - size + 1)) for _ in range(2))
    return (..., slice(top, top + size), slice(left, left + size))


def resampled(picture: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Both pictures resampled by a factor, antialiased."""
    side = max(24, round(picture.shape[-1] * scale))
    small = F.interpolate(torch.cat([picture, target]), size=(side, side), mode="bilinear", antialias=True)
    first, second = small.contiguous(memory_format=torch.channels_last).chunk(2)
    return first, second
