"""Optional packages that decode more than 8 bits per channel."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Final

import numpy as np

from nextscale.errors import ImageError
from nextscale.image.guard import DAMAGED, RARE_LAYOUT
from nextscale.image.picture import Array
from nextscale.install import how_to_install

_OPENCV_SIDE: Final = 1 << 20


def extra(name: str) -> ModuleType:
    """An optional package, or `ImageError` that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        remedy = how_to_install("depth16")
        raise ImageError(f"pictures of more than 8 bits per channel need packages more; {remedy}") from None


def by_opencv(cv2: ModuleType, data: bytes, size: tuple[int, int], channels: int) -> Array:
    """uint16 H W C in RGB(A) order, or `ImageError` where OpenCV gives anything else."""
    if max(size) > _OPENCV_SIDE:
        raise ImageError(f"16-bit pictures are read up to {_OPENCV_SIDE} pixels a side; crop it first")
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        log.setLogLevel(level)
    if decoded is None:
        raise ImageError(DAMAGED)
    samples: Array = decoded.reshape(*decoded.shape[:2], -1)
    if samples.dtype != np.uint16 or samples.shape != (size[1], size[0], channels):
        raise ImageError(RARE_LAYOUT)
    return samples if channels == 1 else samples[..., [2, 1, 0, 3][:channels]]
