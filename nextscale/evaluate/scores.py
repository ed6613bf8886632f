"""The metrics of one run: loaded once, then number by number for pairs of pictures, and a folder against a folder.

Pixels are 8-bit RGB, H W 3; tensors are 1 3 H W in [0, 1], float64, so that PSNR, SSIM and NIQE are exact. A metric
without its weights has no number but a remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nextscale import image as images
from nextscale.device import exact_float32, pick_device
from nextscale.errors import ImageError, NextScaleError
from nextscale.evaluate.datasets import match_folders
from nextscale.evaluate.metrics.dists import Dists
from nextscale.evaluate.metrics.fid import Gaussian, Inception, frechet
from nextscale.evaluate.metrics.lpips import Lpips
from nextscale.evaluate.metrics.niqe import Niqe
from nextscale.evaluate.metrics.psnr_ssim import psnr, ssim
from nextscale.evaluate.metrics.unreferenced import Unreferenced
from nextscale.evaluate.options import UNREFERENCED, ScoreOptions
from nextscale.evaluate.summary import Summary, summarize
from nextscale.evaluate.weights import MissingWeights

Features = NDArray[np.float32]
OnPicture = Callable[[int, int, str, bool], None]
"""Pictures done, pictures in all, the name of the one just done, and whether an earlier run had done it."""
FEW_FOR_FID = 2048
"""Below so many pictures FID's covariances are singular and its value is too large."""
_SMALLEST = {"ssim": 11, "lpips": 32, "dists": 16}
"""Pixels a side that a metric's window or poolings need; NIQE says so itself."""


@dataclass(frozen=True)
class FolderScores:
    """What `score_folders` returns."""

    metrics: dict[str, Summary]
    """In the order asked for."""
    images: list[dict[str, Any]]
    """Per picture "name" and the numbers of `Scorer.score`."""


class Scorer:
    """The metrics that options name, on a device.

    Raises:
        OptionError: the device is not there.
    """

    def __init__(self, options: ScoreOptions | None = None, *, device: str = "auto") -> None:
        self.options = options or ScoreOptions()
        self.device = pick_device(device)
        # MPS has no float64.
        self.exact_device = torch.device("cpu") if self.device.type == "mps" else self.device
        if self.device.type == "cuda":
            exact_float32()
        self.unavailable: dict[str, str] = {}
        download = self.options.download
        self._lpips = self._load("lpips", lambda: Lpips(self.options.lpips_net, download=download).to(self.device))
        self._dists = self._load("dists", lambda: Dists(download=download).to(self.device))
        self._niqe = self._load("niqe", Niqe)
        self._inception = self._load("fid", lambda: Inception(download=download).to(self.device))
        self._unreferenced = {name: self._load(name, partial(Unreferenced, name, self.device)) for name in UNREFERENCED}

    def _load(self, name: str, load: Callable[[], Any]) -> Any:
        if name not in self.options.metrics:
            return None
        try:
            return load()
        except MissingWeights as error:
            self.unavailable[name] = str(error)
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """The available metrics that give one number per picture."""
        return tuple(n for n in self.options.metrics if n != "fid" and n not in self.unavailable)

    @property
    def wants_features(self) -> bool:
        """Whether `features` works and FID needs it."""
        return self._inception is not None

    @torch.no_grad()
    def score(self, pred: Tensor, target: Tensor) -> dict[str, float]:
        """One number per metric for two pictures, 1 3 H W in [0, 1].

        The PSNR of equal pictures is infinite. A metric for which a picture is too small, or NIQE of a blank one, is
        NaN.

        Raises:
            ImageError: they differ in size, or the border leaves nothing of them.
        """
        options = self.options
        if pred.shape != target.shape:
            sizes = [f"{shape[-1]} x {shape[-2]}" for shape in (pred.shape, target.shape)]
            raise ImageError(f"a picture of {sizes[0]} cannot be compared with one of {sizes[1]}")
        exact = [image.to(self.exact_device, torch.float64) for image in (pred, target)]
        scores: dict[str, float] = {}
        for name in self.names:
            edge = options.border if name in ("psnr", "ssim", "niqe") else 0
            side = min(pred.shape[-2:]) - 2 * edge
            if side < 1:
                raise ImageError(f"a border of {edge} leaves nothing of {pred.shape[-1]} x {pred.shape[-2]} pixels")
            if side < _SMALLEST.get(name, 1):
                scores[name] = math.nan
            elif name == "lpips":
                pair = [image.to(self.device, torch.float32) * 2 - 1 for image in (pred, target)]
                scores[name] = float(self._lpips(*pair))
            elif name == "dists":
                scores[name] = float(self._dists(*(image.to(self.device, torch.float32) for image in (pred, target))))
            elif name in UNREFERENCED:
                scores[name] = self._unreferenced[name](pred.to(self.device, torch.float32))
            elif name == "niqe":
                scores[name] = self._niqe_of(exact[0])
            else:
                metric = psnr if name == "psnr" else ssim
                scores[name] = float(metric(*exact, channel=options.channel, border=options.border))
        return scores

    def _niqe_of(self, image: Tensor) -> float:
        try:
            return float(self._niqe(image, border=self.options.border))
        except NextScaleError:
            return math.nan

    @torch.no_grad()
    def features(self, image: Tensor) -> Features:
        """What FID compares: 2048 numbers for 1 3 H W in [0, 1]."""
        features: Features = self._inception(image.to(self.device, torch.float32))[0].float().cpu().numpy()
        return features

    def summaries(
        self,
        rows: Sequence[dict[str, Any]],
        features: Sequence[Features] = (),
        target_features: Sequence[Features] = (),
    ) -> dict[str, Summary]:
        """Every metric asked for, over rows of `score`, and FID between two sets of `features`."""
        summaries = {}
        for name in self.options.metrics:
            if name in self.unavailable:
                summaries[name] = Summary(unavailable=self.unavailable[name])
            elif name == "fid":
                summaries[name] = fid(features, target_features)
            else:
                summaries[name] = summarize([row[name] for row in rows])
        return summaries


def fid(features: Sequence[Features], target_features: Sequence[Features]) -> Summary:
    """FID of two sets of 2048 numbers per picture, without an interval.

    A bootstrap would not do: resampling repeats pictures, which alone raises FID.
    """
    count = min(len(features), len(target_features))
    if count < 2:
        return Summary(unavailable="FID compares distributions; it needs at least two pictures on either side")
    both = []
    for vectors in (features, target_features):
        both.append(Gaussian())
        both[-1].add(torch.from_numpy(np.stack(vectors)))
    note = "no interval: resampling repeats pictures and so raises FID"
    if count < FEW_FOR_FID:
        note += f"; of {count} pictures: compare it only with FID of as many"
    return Summary(frechet(*both), count=count, note=note)


def score_folders(
    pred: Path,
    target: Path,
    options: ScoreOptions | None = None,
    *,
    device: str = "auto",
    on_picture: OnPicture | None = None,
) -> FolderScores:
    """Compare the pictures of two folders, matched as `match_folders` says, at their 8-bit values.

    Raises:
        ImageError: names or sizes do not match, or a picture cannot be read or is smaller than its borders.
        OptionError: the device is not there.
    """
    found = match_folders(Path(pred), Path(target))
    scorer = Scorer(options, device=device)
    rows: list[dict[str, Any]] = []
    features: tuple[list[Features], list[Features]] = ([], [])
    for number, (name, *paths) in enumerate(found, 1):
        pair = [to_tensor(read_pixels(path)) for path in paths]
        try:
            rows.append({"name": name} | scorer.score(*pair))
        except ImageError as error:
            raise ImageError(f"{paths[0]}: {error}") from None
        if scorer.wants_features:
            for vectors, image in zip(features, pair, strict=True):
                vectors.append(scorer.features(image))
        if on_picture is not None:
            on_picture(number, len(found), name, False)
    return FolderScores(scorer.summaries(rows, *features), rows)


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """A file's picture as 8-bit RGB, H W 3: upright, gray repeated, what is transparent laid on white.

    Raises:
        ImageError: beginning with the path.
    """
    try:
        return images.rgb8(images.read(path))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """H W 3, uint8 -> 1 3 H W in [0, 1], float64."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].double() / 255


def area_mean(image: Tensor, times: int) -> Tensor:
    """Exact mean over squares of times x times pixels: B C H W -> B C H/times W/times."""
    return F.avg_pool2d(image, times) if times > 1 else image
