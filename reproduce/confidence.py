"""Rank correlation of a confidence map, or of the expected error, with the true error, picture by picture.

Maps are H W: sureness in any unit (higher is surer), errors as the mean absolute difference of R, G and B in 8 bits.
The baseline is a map that needs no model: the local contrast of the enlarged input, since detail is where errors are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale import image as images
from nextscale.errors import ImageError, OptionError
from nextscale.evaluate.datasets import Pair
from nextscale.evaluate.methods import Pixels
from nextscale.evaluate.options import BenchOptions
from nextscale.evaluate.scores import OnPicture, area_mean, read_pixels, to_tensor
from nextscale.evaluate.summary import Summary, summarize
from nextscale.evaluate.table import markdown_table
from nextscale.image.luma import BT601
from nextscale.upscale.nextscale import NextScale, UpscaleResult
from nextscale.upscale.options import UpscaleOptions

Map = NDArray[np.float64]
BLOCK = 8
"""Side in pixels of the blocks whose means are compared."""
BASELINE = "smoothness of the input"
"""The map that needs no model."""
NUMBERS = {
    "pixels": "rank correlation, pixels",
    "blocks": "rank correlation, 8 x 8 blocks",
    "error": "mean error",
    "surest": "error of the lowest fifth of the map",
    "doubtful": "error of its highest fifth",
}


@dataclasses.dataclass(frozen=True)
class ConfidenceStudy:
    """The study's rows on a set."""

    bench: str
    rows: list[dict[str, Any]]
    """Per picture, map and factor: "name", "map", "factor" and NUMBERS."""

    def summary(self, kind: str, factor: float) -> dict[str, Summary]:
        """Each of NUMBERS over the pictures."""
        rows = [row for row in self.rows if (row["map"], row["factor"]) == (kind, factor)]
        return {name: summarize([row[name] for row in rows]) for name in NUMBERS}


def study_confidence(
    model: NextScale,
    found: Sequence[Pair],
    bench: str,
    *,
    upscale: UpscaleOptions | None = None,
    options: BenchOptions | None = None,
    on_picture: OnPicture | None = None,
) -> ConfidenceStudy:
    """Restore pictures and compare their confidence maps with their errors, at every factor asked for.

    Raises:
        ImageError: a picture cannot be read or is smaller than a block.
        OptionError: the model lacks a factor.
    """
    options = options or BenchOptions()
    factors = sorted(options.factors)
    settings = dataclasses.replace(
        upscale or UpscaleOptions(), scale=max(factors), all_factors=len(factors) > 1, confidence=True
    )
    native = model.ladder_for(settings).factors
    if not set(factors) <= set(native):
        raise OptionError(f"this model has the factors {' '.join(f'{f:g}' for f in native)}; change --factors")
    chosen, rows = list(found)[: options.limit or None], []
    for number, pair in enumerate(chosen, 1):
        lr = read_pixels(pair.lr)
        result = model.upscale(lr, settings)
        whole = options.bench_factor
        truth = to_tensor(read_pixels(pair.hr)[: lr.shape[0] * whole, : lr.shape[1] * whole])
        for factor in factors:
            target = area_mean(truth, round(whole / factor))[0].permute(1, 2, 0).numpy() * 255
            error = np.abs(images.rgb8(result.images[factor]) - target).mean(axis=2)
            if min(error.shape) < BLOCK:
                raise ImageError(f"{pair.lr}: x{factor:g} is smaller than a block of {BLOCK} pixels; leave it out")
            for kind, sureness in (sureness_of(result, factor), (BASELINE, smoothness(lr, error.shape))):
                rows.append({"name": pair.name, "map": kind, "factor": factor} | compare(sureness, error))
        if on_picture is not None:
            on_picture(number, len(chosen), pair.name, False)
    return ConfidenceStudy(bench, rows)


def sureness_of(result: UpscaleResult, factor: float) -> tuple[str, Map]:
    """The model's own estimate and what it is: minus the expected error or, for models without one, the confidence."""
    expected = result.expected_error.get(factor)
    if expected is None:
        return "confidence", result.confidence[factor].astype(np.float64)
    return "expected error", -expected.astype(np.float64)


def compare(sureness: Map, error: Map) -> dict[str, float]:
    """NUMBERS of a map of sureness and one of errors, both H W with sides of at least BLOCK."""
    surest, doubtful = fifths(sureness, error)
    return {
        "pixels": spearman(-sureness, error),
        "blocks": spearman(-block_means(sureness), block_means(error)),
        "error": float(error.mean()),
        "surest": surest,
        "doubtful": doubtful,
    }


def spearman(first: Map, second: Map) -> float:
    """Rank correlation of two arrays of one shape in [-1, 1]; equal values share their mean rank.

    0 where either is constant.
    """
    ranks = [_ranks(values) for values in (first, second)]
    ranks = [values - values.mean() for values in ranks]
    length = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / length) if length else 0.0


def _ranks(values: Map) -> Map:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Map = (last - (counts - 1) / 2)[places.ravel()]
    return mean


def fifths(sureness: Map, error: Map) -> tuple[float, float]:
    """Mean error of the surest and of the most doubtful fifth of all places.

    Places that are equally sure at the edge of a fifth count by the share of them that it takes.
    """
    _, places, counts = np.unique(sureness, return_inverse=True, return_counts=True)
    sums: NDArray[Any] = np.bincount(places.ravel(), weights=error.ravel())
    size = sureness.size / 5

    def first(sums: NDArray[Any], counts: NDArray[Any]) -> float:
        before = np.cumsum(counts) - counts
        taken = np.clip(size - before, 0, counts)
        return float((sums / counts * taken).sum() / size)

    return first(sums[::-1], counts[::-1]), first(sums, counts)


def block_means(values: Map, side: int = BLOCK) -> Map:
    """Means over squares of H W; what does not fill a square at the right and below is left out."""
    height, width = (length // side for length in values.shape)
    squares = values[: height * side, : width * side].reshape(height, side, width, side)
    means: Map = squares.mean(axis=(1, 3))
    return means


def smoothness(lr: Pixels, shape: tuple[int, ...]) -> Map:
    """The baseline: minus the standard deviation of the enlarged input's luma around each pixel, H W."""
    luma = images.resize(lr, (shape[1], shape[0])).astype(np.float64) @ np.array(BT601)
    variance = np.maximum(_box(luma**2) - _box(luma) ** 2, 0)
    out: Map = -np.sqrt(variance)
    return out


def _box(values: Map, reach: int = BLOCK // 2) -> Map:
    """Means over the squares of 2 reach + 1 pixels around each place, mirrored at the edges."""
    side = 2 * reach + 1
    sums = np.pad(values, reach, mode="symmetric").cumsum(0).cumsum(1)
    sums = np.pad(sums, ((1, 0), (1, 0)))
    out: Map = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    return out


def confidence_markdown(study: ConfidenceStudy) -> str:
    """One line per factor and map: means over pictures with their 95% intervals."""
    header, lines = ["factor", "map", *NUMBERS.values()], []
    for factor in sorted({row["factor"] for row in study.rows}):
        for kind in dict.fromkeys(row["map"] for row in study.rows):
            found = study.summary(kind, factor)
            lines.append([f"x{factor:g}", kind, *(_cell(name, found[name]) for name in NUMBERS)])
    pictures = len({row["name"] for row in study.rows})
    note = (
        f"{pictures} pictures of {study.bench}; means with 95% bootstrap intervals. Spearman's rank correlation of "
        "the map and the true error; errors are mean absolute differences in 8-bit levels. The smoothness of the "
        "input (minus the local deviation of its luma) knows nothing of the model: what the other map has over it is "
        "its own."
    )
    return f"{markdown_table(header, lines)}\n{note}\n"


def _cell(name: str, summary: Summary) -> str:
    if summary.mean is None:
        return "-"
    digits = 3 if name in ("pixels", "blocks") else 2
    interval = f" ({summary.ci95[0]:.{digits}f} to {summary.ci95[1]:.{digits}f})" if summary.ci95 else ""
    return f"{summary.mean:.{digits}f}{interval}"
