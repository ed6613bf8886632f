"""Metrics of pictures alone that pyiqa computes: MUSIQ, MANIQA and CLIPIQA; higher is better for all of them.

pyiqa is no dependency, not even an extra: its license (PolyForm-Noncommercial) and those of its weights are for whoever
installs it to judge. It downloads the weights by itself, into torch's hub cache or its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nextscale.device import is_out_of_memory
from nextscale.evaluate.weights import MissingWeights


class Unreferenced:
    """One of pyiqa's metrics: called with 1 x 3 x H x W in [0, 1], a number; NaN if it is too small."""

    def __init__(self, name: str, device: torch.device) -> None:
        """
        Raises:
            MissingWeights: pyiqa is not installed, or cannot get its weights.
        """
        try:
            import pyiqa
        except ImportError as error:
            why = "" if isinstance(error, ModuleNotFoundError) and error.name == "pyiqa" else f" ({_line(error)})"
            raise MissingWeights(
                f"{name} is computed by pyiqa, which does not load here{why}: run `pip install pyiqa`; its license is "
                "non-commercial, and it downloads the weights"
            ) from None
        try:
            self.metric = pyiqa.create_metric(name, as_loss=False, device=device)
        except Exception as error:  # its networks and downloads raise all kinds
            raise MissingWeights(
                f"pyiqa cannot load {name} ({_line(error)}): check the connection, or its cache"
            ) from None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> float:
        """The score of one picture."""
        try:
            return float(self.metric(image.float()))
        except (AssertionError, RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            # How its networks refuse a picture below their input size.
            return math.nan


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
