"""Smooth ramps under noise, and faint lines on them.

Ramps alone teach that whatever is weak may go. Vessels, leaf veins, cracks and distant wires are weak, too.
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from nextscale.data.degrade import coarse_noise, jpeg, quantize_8bit

LEVEL = 1 / 255


def smooth_ramp(draw: random.Random, side: int) -> Tensor:
    """Colors between four random ones at the corners: 1 3 side side in [0, 1]."""
    corners = torch.tensor([[draw.random() for _ in range(4)] for _ in range(3)]).reshape(1, 3, 2, 2)
    flatter = draw.random() ** 2
    mean = corners.mean((2, 3), keepdim=True)
    return F.interpolate(mean + flatter * (corners - mean), size=(side, side), mode="bilinear", align_corners=True)


def with_faint_lines(image_13HH: Tensor, draw: random.Random, noise: float) -> Tensor:
    """One to eight curves, sharp or blurred, most of them darker, above noise of so many 8-bit levels.

    Returns:
        1 3 H H in [0, 1], as the image.
    """
    side = image_13HH.shape[-1]
    for _ in range(draw.randint(1, 8)):
        # Of an input reduced by 4 a line is from half a pixel to three pixels wide.
        line = _line(draw, side, width=2 * 6 ** draw.random(), blur=draw.choice((0.0, 6 * draw.random())))
        contrast = 2.5 * noise + 3 * 12 ** (draw.random() ** 1.5)
        tint = torch.tensor([draw.uniform(0.4, 1.0) for _ in range(3)]).reshape(1, 3, 1, 1)
        image_13HH = image_13HH - draw.choice((1, 1, 1, -1)) * contrast * LEVEL * tint * line
    return image_13HH.clamp(0, 1)


def noisy_input(
    image_13HH: Tensor,
    draw: random.Random,
    factor: int,
    sigma: float,
    *,
    coded: bool,
    quality: tuple[float, float] = (70, 97),
) -> Tensor:
    """Reduced by an area mean, under Gaussian noise of sigma 8-bit levels whose grains measure 1 to 5 pixels.

    Returns:
        1 3 H/factor H/factor in [0, 1], of a file of 8 bits: as it is, or (`coded`) a JPEG of a quality in that range.
    """
    generator = torch.Generator().manual_seed(draw.getrandbits(62))
    small = F.avg_pool2d(image_13HH, factor)
    shape = (draw.choice((1, 3)), small.shape[-2], small.shape[-1])
    small = small + sigma * LEVEL * coarse_noise(shape, 5 ** draw.random(), generator)
    small = quantize_8bit(small)
    return quantize_8bit(jpeg(small, draw.uniform(*quality))) if coded else small


def _line(draw: random.Random, side: int, *, width: float, blur: float) -> Tensor:
    """A Bezier curve across the picture: 1 1 side side, 1 on it and 0 beside it."""
    points = np.array([[draw.uniform(-0.2, 1.2) * side for _ in range(2)] for _ in range(4)])
    t = np.linspace(0, 1, 48)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)
    # Drawn at twice the size, as Pillow draws lines of whole pixels with hard edges.
    canvas = Image.new("L", (2 * side, 2 * side))
    curve = [(float(x), float(y)) for x, y in 2 * weights @ points]
    ImageDraw.Draw(canvas).line(curve, fill=255, width=max(1, round(2 * width)), joint="curve")
    line = canvas.resize((side, side), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(blur))
    return torch.from_numpy(np.array(line)).float()[None, None] / 255
