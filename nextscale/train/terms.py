"""The loss of a factor's pictures against their targets: the restorer and the fusion train with the same terms."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Those terms to which the config gives a weight: pixels, LPIPS, VGG19, a critic, and what an enlargement draws.

    Args:
        config: weights of the terms.
        factors: that the model gives, smallest first.
        seed: of the windows and sizes.

    Raises:
        OptionError: there are more factors than weights.
    """

    LAYERS = ("conv1_2", "conv2_2", "conv3_1")
    CHANNELS = (3, 128, 256)
    """Of the activations that a critic reads: the pixels replace the first layer."""

    def __init__(
        self, config: RestorationConfig, factors: Sequence[float], device: torch.device, seed: int = 0
    ) -> None:
        self.config = config
        self.factors = [int(factor) for factor in factors]
        self.seed = seed
        self.factor_weights = _factor_weights(config, len(factors))
        """Smallest factor first."""
        self.adversary: Adversary | None = None
        """One critic per factor; the loop takes its step."""
        if config.adversarial:
            self.adversary = Adversary(len(factors), self.CHANNELS, config.critic_lr, device, by_accuracy=True)
        layout = torch.channels_last
        self.vgg: Vgg19Features | None = None
        if config.feature or config.adversarial:
            self.vgg = Vgg19Features(self.LAYERS).to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.lpips: Lpips | None = None
        if config.lpips:
            self.lpips = Lpips("squeeze").to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.alex: Lpips | None = None
        if config.lpips_alex:
            self.alex = Lpips("alex").to(device).to(memory_format=layout)  # type: ignore[call-overload]

    def loss(
        self, number: int, picture: Tensor, target: Tensor, smooth: Tensor, step: int, *, given: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of a factor's pictures, and the numbers to log.

        The smallest factor has no critic: it mostly removes noise.

        Args:
            number: of the factor, from 0 for the smallest.
            picture: B 3 H H in [-1, 1].
            target: B 3 H H.
            smooth: B, true for smooth ramps, on which only pixels count; on the CPU.
            step: optimizer steps so far, which draw the window and the size for LPIPS; the critic learns alone at
                first.
            given: B, true for `pairs`, likewise (default: none).
        """
        chance = chances(self.seed, number, step)
        terms, activations = self.terms(number, picture, target, smooth, chance, given=given)
        numbers: dict[str, Tensor] = {}
        if self.adversary is not None and activations is not None and number:
            value, numbers[f"g_loss_{number + 1}"] = self.adversary.generator_loss(number, activations.made)
            if step >= self.config.adversarial_from:
                terms["adversarial"] = value
            self.adversary.keep(number, activations.made, activations.real)
        weighted = torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum()
        # The value of the adversarial term means nothing, only its gradient.
        numbers |= {f"{n}_{number + 1}": term.detach() for n, term in terms.items() if n != "adversarial"}
        return self.factor_weights[number] * weighted, numbers

    def terms(
        self,
        number: int,
        picture: Tensor,
        target: Tensor,
        smooth: Tensor,
        chance: Chances,
        *,
        given: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Activations | None]:
        """The unweighted terms of a factor's pictures, and the activations for its critic; arguments as for `loss`."""
        config = self.config
        difference = (picture - target).abs().mean(dim=(1, 2, 3))
        textured = (~smooth).nonzero().flatten()
        terms = {"pixel": difference[textured].sum() / len(difference)}
        terms |= self._terms_by_origin(picture, target, smooth, torch.zeros_like(smooth) if given is None else given)
        if len(textured) < len(difference):
            terms["smooth"] = difference[smooth].sum() / len(difference)
            picture, target = picture[textured], target[textured]
        if not len(picture):
            return terms, None
        # Means over all samples, as of the other terms, however many of a batch are smooth.
        share = len(picture) / len(difference)
        low, high = config.lpips_scale if number else (0.8, 1.6)
        scale = low + (high - low) * chance[2]
        if self.lpips is not None:
            terms["lpips"] = share * resampled_lpips(self.lpips, picture, target, scale)
        if self.alex is not None:
            # A few pixels less, from a place that moves: its strides of four see each pixel in turn.
            moved, aim = (window_of(images, chance, images.shape[-1] - 4) for images in (picture, target))
            terms["lpips_alex"] = share * resampled_lpips(self.alex, moved, aim, scale)
        factor = self.factors[number]
        if config.evenness and factor > 1:
            terms["evenness"] = share * unevenness(picture, factor, allowed=EVEN)
        if config.hatching and factor > 1:
            terms["hatching"] = share * F.relu(checkers(picture) - checkers(target)).mean()
        if config.gradients:
            apart = [(x - y).abs().mean() for x, y in zip(*map(gradient_strengths, (picture, target)), strict=True)]
            terms["gradients"] = share * torch.stack(apart).mean()
        if config.contrast:
            terms["contrast"] = share * faintness(picture, target)
        if config.raggedness:
            terms["raggedness"] = share * raggedness(picture, target)
        if self.vgg is None:
            return terms, None
        window, target_window = (window_of(images, chance, config.window) for images in (picture, target))
        with torch.no_grad():
            real = self.vgg((target_window / 2 + 0.5).contiguous(memory_format=torch.channels_last))
        made = self.vgg((window / 2 + 0.5).contiguous(memory_format=torch.channels_last))
        terms["feature"] = share * feature_distance(made, real)
        return terms, Activations([window, *made[1:]], [target_window, *real[1:]])

    def _terms_by_origin(self, picture: Tensor, target: Tensor, smooth: Tensor, given: Tensor) -> dict[str, Tensor]:
        """Those of `pairs` alone, and those of photographs and pages alone; means over all samples."""
        config, terms = self.config, {}
        weighted = (
            ("pairs_contrast", config.pairs_contrast, faintness, given),
            ("pairs_ripples", config.pairs_ripples, ripples, given),
            ("drift", config.drift, drift, ~(smooth | given)),
        )
        for name, weight, term, which in weighted:
            places = which.nonzero().flatten()
            if weight and len(places):
                terms[name] = len(places) / len(which) * term(picture[places], target[places])
        return terms


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


Chances = tuple[float, float, float]
"""Uniform numbers: the place of a window, and a size for LPIPS."""


def chances(seed: int, number: int, step: int) -> Chances:
    """What a factor's terms draw at an optimizer step: the same for all its samples, which then go through the
    perceptual networks together, and however they are split into batches."""
    first, second, third = np.random.default_rng((seed, 7, number, step)).random(3).tolist()
    return first, second, third


def window_of(images: Tensor, chance: Chances, size: int) -> Tensor:
    """The square window of images B 3 H H that two uniform numbers place: B 3 size size.

    VGG19 sees only windows, since it costs more than the model that is trained.
    """
    side = images.shape[-1]
    size = min(size, side)
    top, left = (int(draw * (side - size + 1)) for draw in chance[:2])
    return images[..., top : top + size, left : left + size]


EVEN = 0.015
"""About the unevenness of photographs, in windows of 96 px: what is below it does not count. Of the differences with
their signs a third of this: photographs had .003 to .004 on three kinds of inputs, and .009 on those of cameras."""


def checkers(pictures: Tensor, window: int = 24) -> Tensor:
    """The local strength of checkers of single pixels, in the unit of the pictures.

    Args:
        pictures: B 3 H H.
        window: side in pixels of the parts in which it is averaged; they overlap by half.

    Returns:
        B 1 h w.
    """
    x = pictures.float()
    checker = (x[..., 1:, 1:] - x[..., 1:, :-1] - x[..., :-1, 1:] + x[..., :-1, :-1]) / 4
    size = min(window, checker.shape[-1])
    return F.avg_pool2d(checker.abs().mean(dim=1, keepdim=True), size, stride=max(1, size // 2))


def gradient_strengths(pictures: Tensor, window: int = 8) -> list[Tensor]:
    """The local strength of differences of gray values one and two pixels apart, in the unit of the pictures.

    The root of the mean square: the mean of a step that rises over four pixels is that of one that rises at once.

    Args:
        pictures: B 3 H H.
        window: side in pixels of the parts in which it is taken; they overlap by half.

    Returns:
        Four maps B 1 h w: across and down, one and two pixels apart.
    """
    gray = pictures.float().mean(dim=1, keepdim=True)
    differences = [
        difference
        for apart in (1, 2)
        for difference in (gray[..., apart:] - gray[..., :-apart], gray[..., apart:, :] - gray[..., :-apart, :])
    ]
    # Half an 8-bit level more, where the root has a slope.
    return [
        (F.avg_pool2d(d.square(), min(window, *d.shape[-2:]), stride=window // 2) + (0.5 / 127.5) ** 2).sqrt()
        for d in differences
    ]


def faintness(pictures: Tensor, targets: Tensor, window: int = 17) -> Tensor:
    """The mean absolute difference, with four times the weight where a picture stands out less from the target's
    surroundings than the target does: the quantile loss of .8 of Koenker and Bassett (1978) for local contrast.

    Where it is open how dark a thin stroke was, the plain difference asks for the median, which is gray.

    Args:
        pictures: B 3 H H in [-1, 1].
        targets: B 3 H H.
        window: odd side in pixels of the surroundings.

    Returns:
        A scalar.
    """
    around = box(targets, window)
    # Toward 0 where the target does not stand out, by some levels or less.
    stronger = (pictures - targets) * torch.tanh((targets - around) / 0.08)
    return (1.6 * F.relu(-stronger) + 0.4 * F.relu(stronger)).mean()


FLAT = 6 / 127.5
"""Range of a target's window below which it is flat."""


def ripples(pictures: Tensor, targets: Tensor, window: int = 5) -> Tensor:
    """What pictures draw where their targets are flat: halos beside letters, scratches on cloth, worms.

    All of it is faint, so that a mean over all pixels hardly sees it beside the outlines. Another level is no ripple.

    Args:
        pictures: B 3 H H in [-1, 1].
        targets: B 3 H H.
        window: odd side in pixels of what must be flat around a place.

    Returns:
        The mean over all places, flat or not, of the absolute differences between flat ones that are one pixel and four
        apart, a scalar.
    """
    around = F.max_pool2d(torch.cat([targets, -targets]).float(), window, 1, window // 2)
    flat = (around[: len(targets)] + around[len(targets) :]).amax(dim=1, keepdim=True) < FLAT
    off = (pictures - targets).float() * flat
    apart = []
    for step in (1, 4):
        across = (off[..., step:] - off[..., :-step]).abs() * (flat[..., step:] & flat[..., :-step])
        down = (off[..., step:, :] - off[..., :-step, :]).abs() * (flat[..., step:, :] & flat[..., :-step, :])
        apart += [across.mean(), down.mean()]
    return torch.stack(apart).mean()


def drift(pictures: Tensor, targets: Tensor, window: int = 32) -> Tensor:
    """How far means of many pixels are from the targets': whole parts that are too dark, or tinted.

    Nobody sees a level, and no other term does, but it costs PSNR; the input, however noisy, tells such means well.

    Args:
        pictures: B 3 H H in [-1, 1].
        targets: B 3 H H.
        window: side in pixels of the parts that are averaged, half of it apart.

    Returns:
        The mean absolute difference of all parts and channels, a scalar.
    """
    size = min(window, pictures.shape[-1])
    return F.avg_pool2d((pictures - targets).float(), size, size // 2).abs().mean()


OUTLINE = 12 / 127.5
"""Root mean square of the gradients of a window at which it counts half as an outline."""


def raggedness(pictures: Tensor, targets: Tensor, window: int = 9) -> Tensor:
    """How ragged and how soft pictures are where their targets have outlines, in the unit of the pictures.

    An outline is where the gradients of a window share one direction, by the structure tensor (Bigün and Granlund
    1987). Gray values change across it and hardly along it. A ragged rim and a stroke of uneven ink do, which the pixel
    difference and LPIPS forgive where it is open where exactly the outline runs.

    Args:
        pictures: B 3 H H in [-1, 1].
        targets: B 3 H H.
        window: side in pixels of the windows; it and half of it, rounded up, are odd.

    Returns:
        The mean over all places of the differences along the outline beyond the target's, and of half of what is
        missing of those across it, a scalar.
    """
    right, down = gray_gradients(targets)
    xx, xy, yy = (box(product, window) for product in (right * right, right * down, down * down))
    energy = xx + yy
    one_direction = ((xx - yy).square() + 4 * xy.square()).sqrt() / (energy + 1e-8)
    weight = one_direction.pow(12) * energy / (energy + OUTLINE**2)
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    cosine, sine = angle.cos(), angle.sin()
    made_right, made_down = gray_gradients(pictures)
    near = (window + 1) // 2
    made_along, along, made_across, across = (
        box(difference.abs(), near)
        for difference in (
            cosine * made_down - sine * made_right,
            cosine * down - sine * right,
            cosine * made_right + sine * made_down,
            cosine * right + sine * down,
        )
    )
    return (weight * (F.relu(made_along - along) + 0.5 * F.relu(across - made_across))).mean()


def gray_gradients(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of the gray values of pictures B 3 H H to the right and down: B 1 H H each."""
    gray = F.pad(pictures.float().mean(dim=1, keepdim=True), (1,) * 4, mode="replicate")
    return (gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2]) / 2, (gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]) / 2


def box(maps: Tensor, window: int) -> Tensor:
    """The mean of the window of an odd side around each place of maps B C H W, which go on beyond their edges."""
    padded = F.pad(maps, (window // 2,) * 4, mode="replicate")
    # One axis after the other: a window of 17 in both costs five times as much.
    return F.avg_pool2d(F.avg_pool2d(padded, (window, 1), 1), (1, window), 1)


def unevenness(pictures: Tensor, factor: int, window: int = 96, allowed: float = 0.0) -> Tensor:
    """How much first and second differences of neighbors depend on their place in the input's pixels.

    A photograph's texture does not know the grid of the input. Blocks, dots and weaves that an enlargement draws
    repeat with that grid, whatever their signs: the variance of the differences' strength over the places, relative to
    its squared mean, tells them. So does the variance of the differences themselves: faint stripes, which lie in a
    stronger grain and change its strength nowhere.

    Args:
        pictures: B 3 H H in [-1, 1], enlarged by `factor`.
        window: side in pixels of the parts in which the differences are averaged; the parts overlap by half.
        allowed: so much of the strengths' does not count, in each part, and a third of it of the differences' own.

    Returns:
        The sum of both, each a mean over all parts and both directions, a scalar.
    """
    cells = max(1, min(window, pictures.shape[-1] - factor) // factor)
    size, step = (factor * cells, cells), (max(1, factor * cells // 2), max(1, cells // 2))

    def by_place(values: Tensor) -> Tensor:
        """The means B factor h w of B H W for each place in a cell, of each part."""
        rows, columns = values.shape[-2], values.shape[-1] // factor
        places = values[..., : columns * factor].view(-1, rows, columns, factor).permute(0, 3, 1, 2)
        return F.avg_pool2d(places, size, stride=step)

    terms = []
    for x in (pictures.float(), pictures.float().transpose(-1, -2)):
        first = x[..., 1:] - x[..., :-1]
        for difference in (first, first[..., 1:] - first[..., :-1]):
            strengths = by_place(difference.abs().mean(dim=1))
            mean = strengths.mean(dim=1, keepdim=True)
            signed = by_place(difference.mean(dim=1))
            for means, ignored in ((strengths, allowed), (signed, allowed / 3)):
                # Half an 8-bit level more, so that flat parts count little.
                relative = (means - means.mean(dim=1, keepdim=True)) / (mean + 0.5 / 127.5)
                terms.append(F.relu(relative.square().mean(dim=1) - ignored).mean())
    # The sum of two means: of the strengths, whose weight stays what it was, and of the differences themselves.
    return 2 * torch.stack(terms).mean()


def resampled_lpips(lpips: Lpips, pictures: Tensor, targets: Tensor, scale: float) -> Tensor:
    """Mean LPIPS of pictures B 3 H H, resampled with their targets by a factor, antialiased.

    SqueezeNet's strides of two see some phases of a fine grid and not others: on pictures as they are, its distance
    falls as dots of two pixels appear, and LPIPS-alex rises.
    """
    full = pictures.shape[-1]
    side = max(32, round(full * scale))  # AlexNet's poolings leave nothing of 30
    # As a product with the weights of one axis: on a GPU the gradient of the interpolation itself is slow.
    eye = torch.eye(full, device=pictures.device)[None, None]
    weights = F.interpolate(eye, size=(side, full), mode="bilinear", antialias=True)[0, 0]
    with torch.autocast(pictures.device.type, enabled=False):
        first, second = (
            (weights @ images.float() @ weights.T).contiguous(memory_format=torch.channels_last)
            for images in (pictures, targets)
        )
    mean: Tensor = lpips(first, second).mean()
    return mean
