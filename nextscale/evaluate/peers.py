"""Methods that a model is compared with, each a function from a small picture to large ones; torch-free.

A method has a name, the row of its table, and gives 8-bit RGB pictures by factor. What it leaves out, a table leaves
out, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale import image as images
from nextscale.errors import OptionError

Pixels = NDArray[np.uint8]


class Method(Protocol):
    """Whatever restores and enlarges one picture."""

    @property
    def name(self) -> str:
        """Its row in a table."""

    def __call__(self, lr: Path, /) -> dict[float, Pixels]:
        """Factor -> H W 3, with H and W the factor times the sides of the picture in the file `lr`.

        Raises:
            ImageError: the file is no picture.
        """


@dataclass(frozen=True)
class Interpolation:
    """Pillow's fixed-point interpolation; x1 is the picture itself."""

    name: Any
    factors: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __call__(self, lr: Path, /) -> dict[float, Pixels]:
        pixels = images.rgb8(images.read(lr))
        height, width = pixels.shape[:2]
        sizes = {factor: (round(width * factor), round(height * factor)) for factor in self.factors}
        return {factor: images.resize(pixels, size, filter=self.name) for factor, size in sizes.items()}


KNOWN = ("bicubic", "lanczos", "realesrgan")


def peers(names: Sequence[str], factors: tuple[float, ...] = (1.0, 2.0, 4.0)) -> list[Method]:
    """The methods of these names, in this order; `factors` are those that interpolation gives.

    Raises:
        OptionError: there is none of that name.
        NextScaleError: it needs an extra that is not installed.
    """
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise OptionError(f"unknown peer {', '.join(unknown)}; use some of {' '.join(KNOWN)}")
    return [_realesrgan() if name == "realesrgan" else Interpolation(name, factors) for name in names]


def _realesrgan() -> Method:
    from nextscale.evaluate.realesrgan import RealEsrgan

    return RealEsrgan()
