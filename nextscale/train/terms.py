"""The loss of a factor's pictures against their targets: the restorer and the fusion train with the same terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import OptionError
from nextscale.evaluate.metrics.lpips import Lpips, Vgg19Features
from nextscale.train.adversarial import Adversary
from nextscale.train.config import RestorationConfig


@dataclass(frozen=True)
class Activations:
    """What a critic compares: maps B C h w, finest first."""

    made: list[Tensor]
    """Of a factor's pictures."""
    real: list[Tensor]
    """Of their targets."""


class Terms:
    """Pixel, LPIPS-squeeze and VGG19 terms, and the generator's loss against a critic if the config gives it a weight.

    Args:
        config: weights of the terms.
        factors: how many factors the model gives.

    Raises:
        OptionError: there are more factors than weights.
    """

    LAYERS = ("conv1_2", "conv2_2", "conv3_1")
    CHANNELS = (3, 128, 256)
    """Of the activations that a critic reads: the pixels replace the first layer."""

    def __init__(self, config: RestorationConfig, factors: int, device: torch.device) -> None:
        self.config = config
        self.factor_weights = _factor_weights(config, factors)
        """Smallest factor first."""
        self.adversary: Adversary | None = None
        """One critic per factor; the loop takes its step."""
        if config.adversarial:
            self.adversary = Adversary(factors, self.CHANNELS, config.critic_lr, device, by_accuracy=True)
        layout = torch.channels_last
        self.vgg: Vgg19Features | None = None
        if config.feature or config.adversarial:
            self.vgg = Vgg19Features(self.LAYERS).to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.lpips: Lpips | None = None
        if config.lpips:
            self.lpips = Lpips("squeeze").to(device).to(memory_format=layout)  # type: ignore[call-overload]

    def loss(
        self, number: int, picture: Tensor, target: Tensor, chance: np.ndarray, smooth: Tensor, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of a factor's pictures, and the numbers to log.

        The smallest factor has no critic: it mostly removes noise.

        Args:
            number: of the factor, from 0 for the smallest.
            picture: B 3 H H in [-1, 1].
            target: B 3 H H.
            chance: three uniform numbers per sample, B 3: the place of its window, and its size for LPIPS.
            smooth: B, true for smooth ramps, on which only pixels count.
            step: optimizer steps so far; the critic learns alone at first.
        """
        terms, activations = self.terms(number, picture, target, chance, smooth)
        numbers: dict[str, float] = {}
        if self.adversary is not None and activations is not None and number:
            value, numbers[f"g_loss_{number + 1}"] = self.adversary.generator_loss(number, activations.made)
            if step >= self.config.adversarial_from:
                terms["adversarial"] = value
            self.adversary.keep(number, activations.made, activations.real)
        weighted = torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum()
        # The value of the adversarial term means nothing, only its gradient.
        numbers |= {f"{n}_{number + 1}": float(term.detach()) for n, term in terms.items() if n != "adversarial"}
        return self.factor_weights[number] * weighted, numbers

    def terms(
        self, number: int, picture: Tensor, target: Tensor, chance: np.ndarray, smooth: Tensor
    ) -> tuple[dict[str, Tensor], Activations | None]:
        """The unweighted terms of a factor's pictures, and the activations for its critic; arguments as for `loss`."""
        config = self.config
        difference = (picture - target).abs().mean(dim=(1, 2, 3))
        textured = (~smooth).nonzero().flatten()
        terms = {"pixel": difference[textured].sum() / len(difference)}
        if len(textured) < len(difference):
            terms["smooth"] = difference[smooth].sum() / len(difference)
            picture, target, chance = picture[textured], target[textured], chance[textured.cpu().numpy()]
        if not len(picture):
            return terms, None
        if self.lpips is not None:
            low, high = config.lpips_scale if number else (0.8, 1.6)
            terms["lpips"] = resampled_lpips(self.lpips, picture, target, low + (high - low) * chance[:, 2])
        if self.vgg is None:
            return terms, None
        window, target_window = (windows(images, chance, config.window) for images in (picture, target))
        with torch.no_grad():
            real = self.vgg((target_window / 2 + 0.5).contiguous(memory_format=torch.channels_last))
        made = self.vgg((window / 2 + 0.5).contiguous(memory_format=torch.channels_last))
        terms["feature"] = feature_distance(made, real)
        return terms, Activations([window, *made[1:]], [target_window, *real[1:]])


def _factor_weights(config: RestorationConfig, factors: int) -> tuple[float, ...]:
    weights = config.factor_weights
    if len(weights) < factors:
        raise OptionError(f"--restoration.factor-weights: {len(weights)} given, the model has {factors} factors")
    return weights[-factors:]


def feature_distance(made: list[Tensor], real: list[Tensor]) -> Tensor:
    """Mean distance of activation maps B C h w, finest first.

    The finest map counts by its mean absolute difference, which sees hatching of single pixels. The others are
    normalized over the channels at each place, as in LPIPS; otherwise the strong edges of a few pictures outweigh all
    texture.
    """
    terms = [0.5 * (made[0] - real[0]).abs().mean()]
    for x, y in zip(made[1:], real[1:], strict=True):
        apart = F.normalize(x, dim=1, eps=1e-3) - F.normalize(y, dim=1, eps=1e-3)
        terms.append(apart.square().sum(dim=1).mean())
    return torch.stack(terms).mean()


def windows(images: Tensor, chance: np.ndarray, size: int) -> Tensor:
    """A square window of each image B 3 H H, placed by two uniform numbers per image: B 3 size size.

    The perceptual networks see only these windows, since they cost more than the model that is trained.
    """
    side = images.shape[-1]
    size = min(size, side)
    corners = (chance[:, :2] * (side - size + 1)).astype(int)
    cut = [x[:, top : top + size, left : left + size] for x, (top, left) in zip(images, corners.tolist(), strict=True)]
    return torch.stack(cut)


def resampled_lpips(lpips: Lpips, pictures: Tensor, targets: Tensor, scales: np.ndarray) -> Tensor:
    """Mean LPIPS of pictures B 3 H H, each resampled with its target by its own factor, antialiased.

    The sides are rounded to eighths of H.

    SqueezeNet's strides of two see some phases of a fine grid and not others: on pictures as they are, its distance
    falls as dots of two pixels appear, and LPIPS-alex rises.
    """
    full = pictures.shape[-1]
    cell = max(8, full // 8)  # few sizes, so that the pictures of one size go through the network together
    sides = np.maximum(24, np.round(full * scales / cell).astype(int) * cell)
    distances = []
    for side in np.unique(sides).tolist():
        rows = torch.from_numpy(np.flatnonzero(sides == side)).to(pictures.device)
        both = torch.cat([pictures[rows], targets[rows]])
        small = F.interpolate(both, size=(side, side), mode="bilinear", antialias=True)
        first, second = small.contiguous(memory_format=torch.channels_last).chunk(2)
        distances.append(lpips(first, second).sum())
    return torch.stack(distances).sum() / len(pictures)
