"""BMP: its header is read here for what Pillow passes over, its colors, and for the bound of its run lengths."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from nextscale.errors import ImageError
from nextscale.image.color import from_png_numbers
from nextscale.image.guard import MAX_PROFILE, TRUNCATED

_RUN_LENGTHS: Final = (1, 2)
_MAX_RUN: Final = 128
"""Pixels a byte of run lengths: two bytes stand for at most 255."""
_HEADER: Final = 14
"""Bytes before the header of the picture, which begins with its own length."""
_VERSION_4, _VERSION_5 = 108, 124
_BY_NUMBERS, _EMBEDDED = bytes(4), b"DEBM"


def check_runs(data: bytes, size: tuple[int, int]) -> None:
    """Run lengths can skip any number of pixels, which Pillow fills one by one."""
    if int.from_bytes(data[30:34], "little") in _RUN_LENGTHS and size[0] * size[1] > len(data) * _MAX_RUN:
        raise ImageError(TRUNCATED)


def bmp_profile(data: bytes, *, gray: bool) -> bytes | None:
    """The ICC profile that is in the file, or one of the primaries and gamma that its header states; None for sRGB."""
    length, kind = int.from_bytes(data[_HEADER : _HEADER + 4], "little"), data[_HEADER + 56 : _HEADER + 60]
    if len(data) < _HEADER + length:
        return None
    if length >= _VERSION_5 and kind == _EMBEDDED:
        at, size = struct.unpack_from("<II", data, _HEADER + 112)
        return data[_HEADER + at : _HEADER + at + size] if size <= MAX_PROFILE else None
    if length < _VERSION_4 or kind != _BY_NUMBERS:
        return None
    corners = np.array(struct.unpack_from("<9i", data, _HEADER + 60)).reshape(3, 3) / 2**30
    _, gamma, _ = struct.unpack_from("<3I", data, _HEADER + 96)
    points = np.concatenate([corners.sum(0, keepdims=True), corners])  # white is the sum of the primaries
    sums = points.sum(1, keepdims=True)
    if (sums <= 0).any():  # written by programs that state nothing
        return None
    chromaticities = (points / sums)[:, :2].flatten().tolist()
    return from_png_numbers(65536 / gamma if gamma else None, chromaticities, gray=gray)
