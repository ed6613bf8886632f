"""Resizing at 8 and 16 bits, and colors for what is transparent so that resizing makes no halo."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale.errors import OptionError
from nextscale.image.picture import Array

Filter = Literal["bicubic", "lanczos", "bilinear", "box"]


def bleed(rgb: Array, alpha: Array) -> Array:
    """Give fully transparent pixels the color of their visible neighbors, so that enlarging makes no halo.

    rgb H W C and alpha H W, both uint8 or uint16 -> H W C of rgb's dtype; pixels with alpha > 0 are returned exactly.
    Push-pull over a pyramid: alpha-weighted means going down, filled from the next coarser level coming up.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return rgb
    weight = alpha.astype(np.float32)[..., None] / np.float32(np.iinfo(alpha.dtype).max)
    out: Array = rgb.copy()
    out[hidden] = np.rint(_fill(np.concatenate([rgb * weight, weight], axis=2), hidden)).astype(rgb.dtype)
    return out


def _fill(weighted: NDArray[np.float32], empty: NDArray[np.bool_]) -> NDArray[np.float32]:
    """H W C+1 (colors times weight, then weight) -> N C colors for the N pixels that are `empty` (weight 0)."""
    coarse = _halve(weighted)
    color, weight = coarse[..., :-1], coarse[..., -1:]
    holes = weight[..., 0] == 0
    color = np.divide(color, weight, out=np.zeros_like(color), where=~holes[..., None])
    if holes.any():
        color[holes] = _fill(coarse, holes)
    return _double(color, *empty.shape)[empty]


def _halve(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half size (rounded up) by overlapping 1 3 3 1 kernels: each coarse pixel reaches into its neighbors' blocks."""
    for axis in (0, 1):
        length = values.shape[axis]
        values = values.swapaxes(0, axis)
        padded = np.zeros((length + length % 2 + 2, *values.shape[1:]), np.float32)
        padded[1 : 1 + length] = values
        values = (padded[1:-2:2] + padded[2:-1:2]) * np.float32(3 / 8)
        values += (padded[0:-3:2] + padded[3::2]) * np.float32(1 / 8)
        values = values.swapaxes(0, axis)
    return values


def _double(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Double size by linear interpolation between pixel centers, cut to height x width."""
    for axis, length in ((0, height), (1, width)):
        values = values.swapaxes(0, axis)
        padded = np.concatenate([values[:1], values, values[-1:]])
        out = np.empty((2 * len(values), *values.shape[1:]), np.float32)
        near = values * np.float32(0.75)
        out[0::2] = near + padded[:-2] * np.float32(0.25)
        out[1::2] = near + padded[2:] * np.float32(0.25)
        values = out[:length].swapaxes(0, axis)
    return values


_FILTERS: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
_BAND_FLOATS = 1 << 22


def resize(array: Array, size: tuple[int, int], *, filter: Filter = "bicubic") -> Array:
    """H W or H W C, uint8 or uint16 -> the same with H, W replaced by `size` = (width, height); antialiased.

    8 bits by Pillow's fixed point; 16 bits by Pillow's floats, one channel at a time. Channels do not mix: alpha is a
    channel like any other, so bleed colors first.
    """
    if filter not in _FILTERS:
        raise OptionError(f"unknown filter {filter!r}; use one of {' '.join(_FILTERS)}")
    width, height = size
    if array.ndim == 3 and (array.dtype != np.uint8 or array.shape[2] != 3):
        return np.stack([resize(array[..., c], size, filter=filter) for c in range(array.shape[2])], axis=2)
    if array.dtype == np.uint8:
        return np.array(Image.fromarray(np.ascontiguousarray(array)).resize((width, height), _FILTERS[filter]))
    return _resize16(array, width, height, _FILTERS[filter])


def _resize16(plane: Array, width: int, height: int, kind: Image.Resampling) -> Array:
    """uint16 H W -> height x width: along rows, then along columns, as Pillow does, but in bands of bounded memory.

    Each pass is one-dimensional, so no band knows of the others and the result equals the unbanded one bit by bit.
    """
    source_height, source_width = plane.shape
    wide = np.empty((source_height, width), np.float32)
    rows = max(1, _BAND_FLOATS // max(width, source_width))
    for top in range(0, source_height, rows):
        band = plane[top : top + rows].astype(np.float32)
        wide[top : top + rows] = np.asarray(Image.fromarray(band).resize((width, len(band)), kind))
    out = np.empty((height, width), np.uint16)
    columns = max(1, _BAND_FLOATS // max(height, source_height))
    for left in range(0, width, columns):
        band = np.ascontiguousarray(wide[:, left : left + columns])
        tall = np.array(Image.fromarray(band).resize((band.shape[1], height), kind))
        out[:, left : left + columns] = np.clip(np.rint(tall), 0, 65535)
    return out
