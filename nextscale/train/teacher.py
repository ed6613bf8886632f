"""Real-ESRGAN x4plus as a teacher: of fine detail that can be known from the input, where the photograph's cannot."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextscale.data.degrade import filter2d, gaussian_kernel
from nextscale.evaluate.realesrgan import RealEsrgan


class Teacher:
    """What the teacher makes of inputs, each computed once.

    Args:
        folder: keeps its pictures between runs, as PNG named by what they were made of (None: in memory alone).

    Raises:
        NextScaleError: the extra `peers` is not installed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.network = RealEsrgan()
        self.folder = folder
        self.known: dict[str, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def picture(self, inputs: Tensor) -> Tensor:
        """An input 3 h w in [-1, 1] -> 3 4h 4w, uint8, on the CPU."""
        pixels = ((inputs.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        name = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:32]
        if name not in self.known:
            self.known[name] = torch.from_numpy(self._made(name, pixels)).permute(2, 0, 1)
        return self.known[name]

    def _made(self, name: str, pixels: np.ndarray) -> np.ndarray:
        file = None if self.folder is None else self.folder / f"{name}.png"
        if file is not None and file.exists():
            with Image.open(file) as kept:
                return np.array(kept)
        made = self.network.enlarged(pixels)
        if file is not None:
            unfinished = file.with_suffix(f".{os.getpid()}")
            Image.fromarray(made).save(unfinished, format="PNG", compress_level=1)
            unfinished.replace(file)
        return made


def with_detail_of(photographs: Tensor, taught: Tensor, sigma: float) -> Tensor:
    """Photographs B 3 H H whose detail finer than a Gaussian of `sigma` px is that of other pictures.

    What is coarser stays the photographs': a teacher that errs in colours and shapes passes on its texture alone.
    """
    kernel = gaussian_kernel(2 * round(3 * sigma) + 1, sigma, sigma)
    return taught + filter2d(photographs - taught, kernel)
