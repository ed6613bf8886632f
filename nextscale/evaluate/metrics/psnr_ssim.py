"""PSNR and SSIM as the super-resolution papers report them: BT.601 luma, range 255, batched, in float64.

Shapes: B images, C channels, H W pixels. Images are RGB in [0, 1]; nothing is clamped or rounded to 8 bits here.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.image.luma import BT601

Channel = Literal["y", "rgb"]

# From RGB in [0, 1] to luma in 16..235 (MATLAB's rgb2ycbcr, without its rounding).
_LUMA = tuple(219 * weight for weight in BT601)
_LUMA_OFFSET = 16.0
_RANGE = 255.0
_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * _RANGE) ** 2
_C2 = (0.03 * _RANGE) ** 2


def psnr(pred: Tensor, target: Tensor, *, channel: Channel = "y", border: int = 0) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, Tensor[B]; infinite where the two are equal.

    channel: "y" compares the luma, "rgb" all three channels. border: pixels left out on every side.
    """
    x_BCHW, y_BCHW = _comparable(pred, target, channel, border)
    error_B = (x_BCHW - y_BCHW).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(_RANGE**2 / error_B)


def ssim(pred: Tensor, target: Tensor, *, channel: Channel = "y", border: int = 0) -> Tensor:
    """Structural similarity of each image, Tensor[B]: 11 x 11 Gaussian window (sigma 1.5) where it fits whole.

    channel: "y" compares the luma, "rgb" averages the three channels. border: pixels left out on every side.
    """
    x_BCHW, y_BCHW = _comparable(pred, target, channel, border)
    if min(x_BCHW.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM needs at least {_WINDOW} pixels a side, got {tuple(x_BCHW.shape[-2:])}")
    mean_x, mean_y = _blur(x_BCHW), _blur(y_BCHW)
    var_x = _blur(x_BCHW.square()) - mean_x.square()
    var_y = _blur(y_BCHW.square()) - mean_y.square()
    covariance = _blur(x_BCHW * y_BCHW) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _comparable(pred: Tensor, target: Tensor, channel: Channel, border: int) -> tuple[Tensor, Tensor]:
    """Both batches in float64, range 255, reduced to the wanted channels and cropped."""
    if pred.shape != target.shape or pred.ndim != 4 or pred.shape[1] != 3:
        raise ValueError(f"expected two B x 3 x H x W batches alike, got {tuple(pred.shape)} and {tuple(target.shape)}")
    height, width = pred.shape[-2:]
    if border < 0 or 2 * border >= min(height, width):
        raise ValueError(f"border {border} leaves nothing of {height} x {width} pixels")
    inside = (..., slice(border, height - border), slice(border, width - border))
    x_BCHW, y_BCHW = pred[inside].double(), target[inside].double()
    if channel == "y":
        return luma(x_BCHW), luma(y_BCHW)
    if channel == "rgb":
        return x_BCHW * _RANGE, y_BCHW * _RANGE
    raise ValueError(f"channel must be 'y' or 'rgb', got {channel!r}")


def luma(image_BCHW: Tensor) -> Tensor:
    """B x 1 x H x W in 16..235, not rounded, of B x 3 x H x W in [0, 1]."""
    weights = image_BCHW.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (image_BCHW * weights).sum(dim=1, keepdim=True) + _LUMA_OFFSET


def _blur(image_BCHW: Tensor) -> Tensor:
    """The Gaussian mean around each pixel at which the whole window fits, one axis after the other."""
    num_channels = image_BCHW.shape[1]
    offset = torch.arange(_WINDOW, dtype=image_BCHW.dtype, device=image_BCHW.device) - _WINDOW // 2
    gauss = torch.exp(-offset.square() / (2 * _SIGMA**2))
    kernel = (gauss / gauss.sum()).expand(num_channels, 1, 1, _WINDOW)
    blurred = F.conv2d(image_BCHW, kernel, groups=num_channels)
    return F.conv2d(blurred, kernel.transpose(2, 3), groups=num_channels)
