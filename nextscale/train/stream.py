"""Training samples of the restorer and the fusion, made in processes of their own while the training computes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from nextscale.data.crops import Crops
from nextscale.data.degrade import PRESETS, check_presets, degrade, sample_recipe, usm_sharpen
from nextscale.errors import NextScaleError
from nextscale.model.layers import area_downsample
from nextscale.train.config import RestorationConfig
from nextscale.train.distributed import positions
from nextscale.train.pairs import GivenPairs, softened
from nextscale.train.ramps import noisy_input, smooth_ramp, with_faint_lines


@dataclass(frozen=True)
class Batch:
    """Training samples, B of them."""

    targets: Tensor
    """B 3 H H in [-1, 1]: the photographs, without noise."""
    inputs: Tensor
    """B 3 h h in [-1, 1]: degraded."""
    grain: Tensor
    """B 3 h h: what noise adds to the inputs, as far as the target keeps it (zero where all of it goes)."""
    denoise: Tensor
    """On the CPU, as the marks after it: B in [0, 1]: the share of the noise that goes."""
    clean: Tensor
    """B: 1 where the input is not degraded, only reduced."""
    smooth: Tensor
    """B: 1 where the target is a smooth ramp without any texture."""
    given: Tensor
    """B: 1 where input and target come from a folder of pairs."""

    def target_at(self, side: int) -> Tensor:
        """The photographs at a factor's side, with the noise that the target keeps: B 3 side side in [-1, 1]."""
        grain = self.grain[:1, :, :1, :1]
        if bool((self.denoise < 1).any()):
            grain = F.interpolate(self.grain, size=(side, side), mode="bicubic")
        return (area_downsample(self.targets, side) + grain).clamp(-1, 1)


class Samples(Dataset[tuple[Tensor, ...]]):
    """The sample of a position in the stream: it depends on the seed and the position alone.

    Raises:
        OptionError: the config names a preset that does not exist.
    """

    def __init__(
        self,
        photographs: Crops,
        faces: Crops | None,
        pages: Crops | None,
        config: RestorationConfig,
        *,
        prints: Crops | None = None,
    ) -> None:
        check_presets(config.presets)
        self.photographs, self.faces, self.pages, self.prints = photographs, faces, pages, prints
        self.config = config
        self.factor = photographs.side // config.side
        self.given = GivenPairs(config.pairs, config.side, self.factor) if config.pairs else None

    def of_presets(self, presets: tuple[str, ...]) -> Samples:
        """Samples of the same photographs with these degradations alone."""
        alone = replace(self.config, presets=presets, clean=0.0, pairs=(), smooth_share=0.0, lines_share=0.0, grain=0.0)
        return Samples(self.photographs, self.faces, self.pages, alone)

    def __getitem__(self, position: int) -> tuple[Tensor, ...]:
        # A loop's autocast, which worker processes inherit, would run the codec's transforms in 16 bits.
        with torch.autocast("cpu", enabled=False):
            return self._sample(position)

    def _sample(self, position: int) -> tuple[Tensor, ...]:
        config = self.config
        draw = random.Random(self.photographs.seed * 1_000_003 + position)
        if self.given is not None and draw.random() < config.pairs_share:
            target, image = self.given.crop(draw)
            return target * 2 - 1, image * 2 - 1, torch.zeros_like(image), *_marks(given=1.0)
        if config.smooth_share and draw.random() < config.smooth_share:
            return self._ramp(draw)
        if config.lines_share and draw.random() < config.lines_share:
            return self._lined(draw)
        if self.prints is not None and draw.random() < config.prints_share:
            return self._print(self.prints.crop(position), draw)
        kind = draw.random()
        crops = self.photographs
        if self.pages is not None and kind < config.pages_share:
            crops = self.pages
        elif self.faces is not None and kind > 1 - config.faces_share:
            crops = self.faces
        hr = _unit(crops.crop(position))
        clean = draw.random() < config.clean
        preset = PRESETS["clean" if clean else draw.choice(config.presets)]
        if crops is not self.pages:
            hr = softened(hr, draw, config.soft, preset)
        if config.sharpen and crops is not self.pages:
            hr = usm_sharpen(hr)
        recipe = sample_recipe(preset, draw)
        hr, recipe = hr * recipe.exposure, replace(recipe, exposure=1.0)
        lr = degrade(hr, [recipe], factor=self.factor)
        denoise, grain = 1.0, torch.zeros_like(lr)
        if draw.random() < config.grain:
            denoise = draw.choice((0.0, draw.random(), draw.random()))
            noisy, quiet = recipe.without_compression(), recipe.without_noise()
            if noisy != quiet:
                grain = (1 - denoise) * (
                    degrade(hr, [noisy], factor=self.factor) - degrade(hr, [quiet], factor=self.factor)
                )
        return hr[0] * 2 - 1, lr[0] * 2 - 1, grain[0] * 2, *_marks(denoise, float(clean))

    def _ramp(self, draw: random.Random) -> tuple[Tensor, ...]:
        """A smooth ramp under strong noise, half of the time with a camera's blur and compression around it."""
        hr = smooth_ramp(draw, self.config.side * self.factor)
        if draw.random() < 0.5:
            lr = degrade(hr, [replace(sample_recipe(PRESETS["noisy"], draw), exposure=1.0)], factor=self.factor)
        else:
            sigma = 30 ** draw.random()  # as many below 6 levels as above
            lr = noisy_input(hr, draw, self.factor, sigma, coded=False)
        return hr[0] * 2 - 1, lr[0] * 2 - 1, torch.zeros_like(lr[0]), *_marks(smooth=1.0)

    def _lined(self, draw: random.Random) -> tuple[Tensor, ...]:
        """A smooth ramp with faint lines, under little noise. All terms count: pixels alone hardly ask for lines."""
        sigma = 0.2 * 10 ** draw.random()
        hr = with_faint_lines(smooth_ramp(draw, self.config.side * self.factor), draw, sigma)
        lr = noisy_input(hr, draw, self.factor, sigma, coded=draw.random() < 0.5)
        return hr[0] * 2 - 1, lr[0] * 2 - 1, torch.zeros_like(lr[0]), *_marks()

    def _print(self, page: NDArray[np.uint8], draw: random.Random) -> tuple[Tensor, ...]:
        """Small print as cameras and screens give it, most of it compressed. Its target is the plain enlargement."""
        hr = _unit(page)
        sigma = 0.2 * 10 ** draw.random()
        lr = noisy_input(hr, draw, self.factor, sigma, coded=draw.random() < 0.7, quality=(40, 95))
        target = F.interpolate(F.avg_pool2d(hr, self.factor), scale_factor=self.factor, mode="bicubic").clamp(0, 1)
        return target[0] * 2 - 1, lr[0] * 2 - 1, torch.zeros_like(lr[0]), *_marks()


def _unit(pixels: NDArray[np.uint8]) -> Tensor:
    """Of H W 3 in 0 to 255: 1 3 H W in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def _marks(denoise: float = 1.0, clean: float = 0.0, smooth: float = 0.0, given: float = 0.0) -> tuple[Tensor, ...]:
    """The marks of a sample, in the order of `Batch`."""
    return tuple(torch.tensor(mark) for mark in (denoise, clean, smooth, given))


class Stream:
    """Batches in order, ahead of their use."""

    def __init__(self, samples: Samples, device: torch.device) -> None:
        self.samples = samples
        self.device = device
        self.next: tuple[int, int] | None = None
        self.batches: Iterator[Any] = iter(())

    def batch(self, step: int, size: int) -> Batch:
        """The samples of this process at a step."""
        if self.next != (step, size):
            steps = _Steps(step, size)
            workers = self.samples.config.workers
            loader: DataLoader[Any] = DataLoader(
                _Told(self.samples),
                batch_sampler=steps,
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                worker_init_fn=_one_thread,
                collate_fn=_together,
            )
            self.batches = iter(loader)
        self.next = (step + 1, size)
        made = next(self.batches)
        if isinstance(made, NextScaleError):
            raise made
        targets, inputs, grain, *marks = made
        # The marks decide what is computed, and would have to be fetched back.
        return Batch(*(part.to(self.device) for part in (targets, inputs, grain)), *marks)


class _Told(Dataset[Any]):
    """Samples, where an error of ours is an item: a worker would wrap a raised one in its traceback."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, place: int) -> Any:
        try:
            return self.samples[place]
        except NextScaleError as error:
            return error


def _together(items: list[Any]) -> Any:
    """A batch of items, or the first error among them."""
    return next((item for item in items if isinstance(item, NextScaleError)), None) or default_collate(items)


class _Steps:
    """The positions of each step from one on, without end."""

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first
        while True:
            yield list(positions(step, self.size))
            step += 1


def _one_thread(worker: int) -> None:
    del worker
    torch.set_num_threads(1)
