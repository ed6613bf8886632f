"""From one number per picture to a mean with its 95% interval; the only bootstrap. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
SEED = 0
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Summary:
    """What a metric says about a set of pictures."""

    mean: float | None = None
    """Over the pictures with a finite value; infinite where every PSNR is; None where there is no value."""
    ci95: tuple[float, float] | None = None
    """Percentile bootstrap of the mean over pictures; None for a single one, or where `note` says why."""
    count: int = 0
    """Pictures with a value, infinite ones too; not those too small for the metric or, for NIQE, blank."""
    infinite: int = 0
    """Pictures equal to their target, whose PSNR is infinite and not in the mean."""
    note: str = ""
    """A note on the number for its reader."""
    unavailable: str = ""
    """Why there is no number, with the remedy."""

    def as_json(self) -> dict[str, Any]:
        """For JSON: an infinite mean as the text "inf"; what is empty is left out, except the interval."""
        if self.unavailable:
            return {"unavailable": self.unavailable}
        row: dict[str, Any] = {"mean": json_number(self.mean), "ci95": list(self.ci95) if self.ci95 else None}
        row["count"] = self.count
        return row | {key: value for key in ("infinite", "note") if (value := getattr(self, key))}


def json_number(value: float | None) -> float | str | None:
    """JSON knows neither infinity, the text "inf" here, which float() reads back, nor NaN, which is null."""
    if value is None or math.isnan(value):
        return None
    return "inf" if value == math.inf else value


def summarize(values: Sequence[float]) -> Summary:
    """Mean and interval of one value per picture; the same values in the same order give the same interval.

    NaN stands for a picture without a value.
    """
    some = [value for value in values if not math.isnan(value)]
    if not some:
        return Summary(unavailable="every picture is too small for it or blank; leave it out or take larger pictures")
    finite = [value for value in some if math.isfinite(value)]
    infinite, lacking = len(some) - len(finite), len(values) - len(some)
    note = f"pictures left out, too small for it or blank: {lacking}" if lacking else ""
    if not finite:
        return Summary(math.inf, None, len(some), infinite, note)
    return Summary(float(np.mean(finite)), bootstrap(finite), len(some), infinite, note)


def bootstrap(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentile of the means of resampled values (as many, with replacement).

    None for fewer than two values, which say nothing about their spread.
    """
    if len(values) < 2:
        return None
    array, draw = np.asarray(values, np.float64), np.random.default_rng(seed)
    means: list[np.ndarray] = []
    rows = max(1, _CHUNK // len(array))
    for start in range(0, resamples, rows):
        chosen = draw.integers(0, len(array), (min(rows, resamples - start), len(array)))
        means.append(array[chosen].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
