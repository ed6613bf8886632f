"""Colors on tensors: matching them to the input's, and flat places that stay flat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wavelet_color(images: Tensor, source: Tensor, levels: int = 5) -> Tensor:
    """High bands of the images with the lowest band of the source (StableSR's wavelet color correction).

    Args:
        images, source: B 3 H W of equal size.
    """
    return images - _low_band(images - source, levels)


def _low_band(x: Tensor, levels: int) -> Tensor:
    row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    for level in range(levels):
        step = 2**level
        for kernel, pad in ((row.view(1, 1, 3, 1), (0, 0, step, step)), (row.view(1, 1, 1, 3), (step, step, 0, 0))):
            padded = F.pad(x, pad, mode="replicate")
            x = F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape[2:]), dilation=step, groups=channels)
    return x


def adain_color(images: Tensor, source: Tensor) -> Tensor:
    """The images with the source's mean and spread per channel. B 3 H W each, sizes may differ."""
    spread, mean = torch.var_mean(images, dim=(2, 3), keepdim=True)
    wanted_spread, wanted_mean = torch.var_mean(source, dim=(2, 3), keepdim=True)
    return (images - mean) / (spread + 1e-5).sqrt() * (wanted_spread + 1e-5).sqrt() + wanted_mean


FLAT_RADIUS = 3
"""Input pixels around a flat place over which the input's colors take over from the image's."""
FLAT_RANGE = 2.5 / 255
"""In [-1, 1], by how much a flat place may change: one level of 8 bits, as JPEG and dithering leave it."""


def keep_flat(images: Tensor, inputs: Tensor) -> Tensor:
    """The images, where the input is flat, within the input's own colors around that place.

    Networks pad with zeros, so they answer to the border of a tile as to an edge in the picture: flat areas came out
    with specks there. What does not change within some pixels needs no restoring.

    Args:
        images: B 3 H H.
        inputs: B 3 s s, where H is a multiple of s.
    """
    weight = inputs.new_zeros(len(inputs), 1, *inputs.shape[-2:])
    around = torch.cat([inputs, -inputs], dim=1)
    limits: list[Tensor] = []
    for _ in range(FLAT_RADIUS):
        # Axis by axis, each radius from the one before. Padding is minus infinity: beyond the edge nothing differs.
        around = F.max_pool2d(F.max_pool2d(around, (1, 3), 1, (0, 1)), (3, 1), 1, (1, 0))
        highest, lowest = around.chunk(2, dim=1)
        limits = limits or [highest, -lowest]
        weight += (highest + lowest <= FLAT_RANGE).all(1, keepdim=True).to(weight) / FLAT_RADIUS
    if not weight.any():
        return images
    size = images.shape[-2:]
    highest, lowest, weight = (F.interpolate(x, size=size, mode="nearest-exact").to(images) for x in (*limits, weight))
    return torch.lerp(images, images.clamp(lowest, highest), weight)
