"""The numbers that say whether confidence tells the error: ranks with ties, fifths, blocks; and a run of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.evaluate.datasets import Pair
from nextscale.evaluate.options import BenchOptions
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from reproduce.confidence import (
    BASELINE,
    block_means,
    compare,
    confidence_markdown,
    fifths,
    smoothness,
    spearman,
    study_confidence,
)

pytestmark = pytest.mark.integration


def test_rank_correlation_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for levels in (3, 40, 10_000):
        first = draw.integers(0, levels, (20, 30)).astype(float)
        second = first + draw.normal(scale=levels / 4, size=first.shape).round()
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first.ravel(), second.ravel()).statistic)


def test_rank_correlation_sees_order_alone() -> None:
    values = np.random.default_rng(1).random((8, 9))
    assert spearman(values, np.exp(5 * values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)
    assert spearman(values, np.ones_like(values)) == 0


def test_fifths_are_the_means_at_both_ends() -> None:
    sureness = np.arange(100.0).reshape(10, 10)
    error = np.where(sureness < 20, 7.0, np.where(sureness >= 80, 1.0, 3.0))
    assert fifths(sureness, error) == (1.0, 7.0)


def test_equally_sure_places_count_by_their_share() -> None:
    sureness = np.zeros((5, 10))
    sureness[0, :5] = 1  # half of the surest fifth; the rest comes from the 45 others, all alike
    error = np.arange(50.0).reshape(5, 10)
    others = error[sureness == 0].mean()
    assert fifths(sureness, error) == pytest.approx(((error[0, :5].mean() + others) / 2, others))
    assert fifths(np.ones((5, 10)), error) == pytest.approx((error.mean(), error.mean()))


def test_blocks_are_exact_means() -> None:
    values = np.arange(8 * 8 * 6.0).reshape(16, 24)
    assert block_means(values).shape == (2, 3)
    assert block_means(values)[1, 2] == values[8:, 16:].mean()
    assert block_means(np.ones((9, 17))).shape == (1, 2)


def test_smoothness_is_low_where_there_is_contrast() -> None:
    lr = np.full((16, 16, 3), 100, np.uint8)
    lr[:, 8:] = 200
    found = smoothness(lr, (64, 64))
    assert found.shape == (64, 64)
    assert found[:, 30:34].max() < found[:, :16].min()


def test_a_map_that_knows_the_error_is_told_from_one_that_does_not() -> None:
    draw = np.random.default_rng(2)
    error = draw.random((4, 4)).repeat(8, axis=0).repeat(8, axis=1)
    knowing, guessing = compare(1 - error, error), compare(draw.random(error.shape), error)
    assert knowing["pixels"] == pytest.approx(1)
    assert knowing["blocks"] == pytest.approx(1)
    assert knowing["doubtful"] > knowing["error"] > knowing["surest"]
    assert abs(guessing["pixels"]) < 0.2


def test_a_models_maps_are_judged_at_every_factor(model: NextScale, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    for name, side in (("lr", 64), ("hr", 256)):
        Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    found = [Pair("a", tmp_path / "lr.png", tmp_path / "hr.png")]
    study = study_confidence(
        model, found, "noise", upscale=UpscaleOptions(tile=64), options=BenchOptions(factors=(1.0, 2.0))
    )
    assert [(row["factor"], row["map"]) for row in study.rows] == [
        (f, kind) for f in (1.0, 2.0) for kind in ("confidence", BASELINE)
    ]
    assert all(-1 <= row["pixels"] <= 1 and row["error"] > 0 for row in study.rows)
    # Both maps are compared with the same error.
    assert study.rows[0]["error"] == study.rows[1]["error"]
    assert confidence_markdown(study).count("\n| x") == 4
