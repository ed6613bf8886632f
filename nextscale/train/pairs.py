"""Training pairs: sharp crops and their degraded inputs, each drawn from its own position in the stream."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.data.crops import Crops, DataError, Source, load
from nextscale.data.degrade import PRESETS, Preset, degrade, sample_recipe, usm_sharpen
from nextscale.errors import ImageError, OptionError
from nextscale.evaluate.datasets import pairs as find_pairs
from nextscale.evaluate.datasets import size_of
from nextscale.model.config import Ladder
from nextscale.train.distributed import positions


def draws(seed: int, stream: int, first: int, batch: int, count: int) -> np.ndarray:
    """Uniform numbers of the samples from position `first` on: batch x count, float64 in [0, 1).

    Each sample has a generator of its own, so that its draws do not depend on how a batch is split among processes.
    """
    return np.stack([np.random.default_rng((seed, stream, first + i)).random(count) for i in range(batch)])


def whole_factor(ladder: Ladder) -> int:
    """The largest factor of a ladder: targets over inputs.

    Raises:
        OptionError: it is not a whole number.
    """
    factor = ladder.factors[-1]
    if factor != int(factor) or factor < 1:
        raise OptionError(f"this ladder enlarges by {factor:g}; training needs a whole factor")
    return int(factor)


def photographs(
    crops: Crops, step: int, batch: int, device: torch.device | None = None, *, soft: float = 0.0
) -> Tensor:
    """The sharp crops of one step, without degraded inputs: B 3 H H in [-1, 1].

    Args:
        soft: share of samples that show a part of the crop, enlarged 1.2 to 2.2 times.
    """
    position = positions(step, batch).start
    hr = torch.from_numpy(crops.batch(position, batch)).to(device).float() / 255
    chance = [random.Random(crops.seed * 1_000_003 + position + i) for i in range(batch)]
    return torch.cat([softened(hr[i : i + 1], draw, soft) for i, draw in enumerate(chance)]) * 2 - 1


def pairs(
    crops: Crops,
    places: Sequence[int],
    presets: Sequence[str],
    clean: float,
    device: torch.device | None = None,
    *,
    factor: int,
    soft: float = 0.0,
    sharpen: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training pairs at positions of the stream; they are degraded on the device where they are used (the CPU).

    Args:
        presets: names of degradations, one drawn uniformly per sample.
        clean: share of samples that are only reduced bilinearly.
        factor: side of the targets over that of the inputs.
        soft: share of samples whose target is a part of the crop, enlarged 1.2 to 2.2 times.
        sharpen: unsharp-mask the targets before they are degraded.

    Returns:
        targets B 3 H H in [-1, 1], inputs B 3 h h (H = factor h) in [-1, 1], classes B (0 degraded, 1 clean).
    """
    hr = torch.from_numpy(np.stack([crops.crop(place) for place in places])).permute(0, 3, 1, 2)
    hr = hr.contiguous().to(device).float() / 255
    chance = [random.Random(crops.seed * 1_000_003 + place) for place in places]
    labels = [int(draw.random() < clean) for draw in chance]
    # A single preset draws nothing.
    chosen = [presets[0] if len(presets) == 1 else draw.choice(presets) for draw in chance]
    kinds = [PRESETS["bilinear" if label else name] for label, name in zip(labels, chosen, strict=True)]
    hr = torch.cat(
        [softened(hr[i : i + 1], draw, soft, kind) for i, (draw, kind) in enumerate(zip(chance, kinds, strict=True))]
    )
    if sharpen:
        hr = usm_sharpen(hr)
    recipes = [sample_recipe(kind, draw) for kind, draw in zip(kinds, chance, strict=True)]
    hr = torch.cat([hr[i : i + 1] * recipe.exposure for i, recipe in enumerate(recipes)])
    recipes = [replace(recipe, exposure=1.0) for recipe in recipes]
    # The loop's autocast would run the codec's transforms in 16 bits.
    with torch.autocast(hr.device.type, enabled=False):
        return hr * 2 - 1, degrade(hr, recipes, factor=factor) * 2 - 1, torch.tensor(labels, device=device)


def softened(image: Tensor, draw: random.Random, share: float, preset: Preset | None = None) -> Tensor:
    """A random part of an image 1 3 H H in [0, 1], enlarged to its size: no longer sharp to the pixel, as most real
    photographs are not.

    Args:
        share: probability of it, enlarged 1.2 to 2.2 times.
        preset: if it says how much is enlarged, that always happens.
    """
    bounds = None if preset is None else preset.enlarged
    if bounds is None:
        # No share draws nothing.
        if not share or draw.random() >= share:
            return image
        bounds = (1.2, 2.2)
    side = image.shape[-1]
    part = round(side / draw.uniform(*bounds))
    top, left = draw.randint(0, side - part), draw.randint(0, side - part)
    window = image[..., top : top + part, left : left + part]
    return F.interpolate(window, size=(side, side), mode="bicubic").clamp(0, 1)


class GivenPairs:
    """Crops of pairs that exist: two photographs of a camera, or photographs and what another method makes of them.

    Args:
        folders: of pairs, in one of the layouts that `evaluate` reads.
        side: of the input crops in pixels; no input may be smaller.
        factor: the side of a target over that of its input.

    Raises:
        ImageError: a folder holds no pairs, or some do not fit each other.
        DataError: an input is smaller than a crop.
    """

    def __init__(self, folders: Sequence[str], side: int, factor: int) -> None:
        self.side, self.factor = side, factor
        self.found = [pair for folder in folders for pair in find_pairs(Path(folder), factor)]
        for pair in self.found:
            if min(size_of(pair.lr)) < side:
                raise DataError(f"{pair.lr}: smaller than a crop of {side} px; remove the pair or lower the side")

    def crop(self, draw: random.Random) -> tuple[Tensor, Tensor]:
        """A window of a pair, flipped and transposed at random: target 3 H H and input 3 h h in [0, 1]; H = factor h.

        Raises:
            DataError: a file cannot be decoded.
        """
        pair = draw.choice(self.found)
        try:
            large, small = (load(Source(str(path))) for path in (pair.hr, pair.lr))
        except (ImageError, OSError) as error:
            raise DataError(f"{pair.name}: {error}; remove or replace the pair") from None
        top, left = (draw.randint(0, length - self.side) for length in small.shape[:2])
        flipped, transposed = draw.random() < 0.5, draw.random() < 0.5
        target, image = (
            torch.from_numpy(pixels[scale * top :, scale * left :][: scale * self.side, : scale * self.side].copy())
            for pixels, scale in ((large, self.factor), (small, 1))
        )
        target, image = (x.permute(2, 1, 0) if transposed else x.permute(2, 0, 1) for x in (target, image))
        target, image = (x.flip(-1) if flipped else x for x in (target, image))
        return target.float() / 255, image.float() / 255
