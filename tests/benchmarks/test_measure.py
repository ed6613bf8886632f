"""Every part is measured on the real run, its limit follows from counted work, and what is too much is skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.measure import ModelReport, PictureRow, batches, measure
from benchmarks.peaks import PeakMemory, Peaks
from benchmarks.speed_options import SpeedOptions
from nextscale.device import Timer
from nextscale.errors import ModelError, NextScaleError
from nextscale.model.checkpoint import CONFIG
from nextscale.model.config import PRESETS, ModelConfig
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from nextscale.upscale.pipeline import TileStage
from tests.conftest import small_config

pytestmark = pytest.mark.integration

QUICK = SpeedOptions(sizes=(64, 200), batches=(1, 2), runs=1, fp32=True)
PARTS = [
    *("encode", "features", "prefix_and_step_1", "step_2", "step_3", "decode_1", "color"),
    *("step_4", "step_5", "step_6", "decode_2", "step_7", "step_8", "step_9", "step_10", "decode_3"),
]


@pytest.fixture(scope="module")
def report(model_folder: Path) -> ModelReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Peaks, "measure", quick_peaks)
        return measure(str(model_folder), "cpu", QUICK)


def quick_peaks(_: Timer, dtypes: list[torch.dtype]) -> Peaks:
    return Peaks({str(dtype).removeprefix("torch."): 1e11 for dtype in dtypes}, 1e10)


@pytest.fixture(autouse=True)
def no_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peaks, "measure", quick_peaks)


def test_every_part_of_the_run_has_a_row_in_order(report: ModelReport) -> None:
    assert [row.batch for row in report.tiles] == [1, 2]
    for row in report.tiles:
        assert [part.name for part in row.parts] == PARTS
        assert all(part.seconds > 0 and part.peak_bytes > 0 for part in row.parts)


def test_work_is_that_of_the_plan(report: ModelReport, model: NextScale) -> None:
    """Steps attend over all keys so far: two products of each query with each key, in every layer."""
    config, ladder = model.config.transformer, model.tokenizer.ladder
    width, depth = config.width, config.depth
    tokens = [side * side for side in ladder.sides]
    done = {part.name: part.work.all_flops for part in report.tiles[0].parts}
    for step in (1, 9):
        count = tokens[step]
        keys = 32 * 32 + sum(tokens[: step + 1])
        blocks = depth * (2 * count * (4 + 2 * round(config.mlp_ratio)) * width**2 + 4 * count * keys * width)
        head = 2 * count * width * model.config.tokenizer.codebook_size
        assert blocks + head < done[f"step_{step + 1}"] < 1.25 * (blocks + head) + 2e7


def test_work_of_two_tiles_is_twice_that_of_one(report: ModelReport) -> None:
    for one, two in zip(report.tiles[0].parts, report.tiles[1].parts, strict=True):
        assert two.work.all_flops == pytest.approx(2 * one.work.all_flops, rel=0.01)
        assert one.work.least_bytes < two.work.least_bytes <= 2 * one.work.least_bytes


def test_limits_follow_from_the_peaks_of_the_run(report: ModelReport) -> None:
    assert report.peaks == Peaks({"float32": 1e11}, 1e10)
    for part in report.tiles[0].parts:
        compute, memory = part.work.all_flops / 1e11, part.work.least_bytes / 1e10
        assert part.limit_seconds == pytest.approx(max(compute, memory))
        assert part.bound == ("compute" if compute >= memory else "memory")
        assert part.ratio == pytest.approx(part.seconds / part.limit_seconds)


def test_a_pictures_limit_is_that_of_its_batches(report: ModelReport) -> None:
    one, two = (sum(part.limit_seconds for part in row.parts) for row in report.tiles)
    limits = {(row.size, row.batch): row.limit_seconds for row in report.pictures}
    assert limits == pytest.approx({(64, 1): one, (200, 1): 4 * one, (200, 2): 2 * two}, rel=1e-6)


def test_a_picture_takes_no_larger_batch_than_a_row_of_its_tiles(report: ModelReport) -> None:
    assert [(row.size, row.batch, row.tiles) for row in report.pictures] == [(64, 1, 1), (200, 1, 4), (200, 2, 4)]


@pytest.mark.parametrize(("size", "batch"), [(40, 4), (200, 1), (300, 2)])
def test_batches_are_those_that_upscaling_runs(
    model: NextScale, size: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    restore = model.pipeline.restore_tiles

    def note(inputs: Tensor, *arguments: Any, **named: Any) -> Iterator[TileStage]:
        ran.append(len(inputs))
        return restore(inputs, *arguments, **named)

    monkeypatch.setattr(model.pipeline, "restore_tiles", note)
    model.upscale(np.zeros((size, size, 3), np.uint8), UpscaleOptions(scale=1, tile_batch=batch))
    assert ran == batches(size, batch, model.tokenizer.ladder)


def test_the_report_is_strict_json(report: ModelReport) -> None:
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert content["tiles"][0]["parts"][0]["name"] == "encode"
    assert content["tiles"][0]["parts"][0]["ratio"] == report.tiles[0].parts[0].ratio
    assert content["pictures"][0]["ratio"] == report.pictures[0].ratio
    assert content["peaks"] == {"flops": {"float32": 1e11}, "bandwidth": 1e10}


def test_what_was_skipped_is_null_in_json() -> None:
    row = PictureRow(64, 1, 1, skipped="too long")
    report = ModelReport("tiny", "trained", "cpu", 1, 1, 128, pictures=[row])
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert content["pictures"][0]["seconds"] is None
    assert content["peaks"] is None


def test_what_takes_longer_than_allowed_is_skipped_with_the_reason(
    model_folder: Path,
) -> None:
    # A few seconds for the small one, however busy the machine is; the large one has a thousand times its work.
    options = SpeedOptions(sizes=(64, 2048), batches=(1,), runs=1, max_minutes=0.2, fp32=True)
    report = measure(str(model_folder), "cpu", options)
    small, large = report.pictures
    assert not small.skipped
    assert small.runs == 1
    assert "more than --max-minutes 0.2" in large.skipped
    assert math.isnan(large.seconds)


def test_what_needs_more_memory_than_is_free_is_skipped(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeakMemory, "free", lambda _: 1000.0)
    report = measure(str(model_folder), "cpu", QUICK)
    assert "GiB, 0.0 are free" in report.skipped
    assert report.peaks is None
    assert not report.tiles


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError, "out of memory"),
        (lambda: NextScaleError("out of memory with a tile"), "out of memory with a tile"),
    ],
)
def test_running_out_of_memory_skips_the_row(
    model_folder: Path,
    error: Callable[[], Exception],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error()

    monkeypatch.setattr(NextScale, "upscale", fail)
    report = measure(str(model_folder), "cpu", SpeedOptions(sizes=(64,), batches=(1,), runs=1, fp32=True))
    assert [row.skipped for row in report.pictures] == [reason]
    assert not report.tiles[0].skipped


def test_other_errors_are_not_hidden(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(NextScale, "upscale", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure(str(model_folder), "cpu", SpeedOptions(sizes=(64,), batches=(1,), runs=1, fp32=True))


def test_a_preset_without_weights_runs_on_the_same_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    create = NextScale.create

    def remember(config: ModelConfig) -> NextScale:
        model = create(config)
        if model.transformer.position.device.type != "meta":
            drawn.append(model.transformer.position.detach().clone())
        return model

    monkeypatch.setitem(PRESETS, "small", small_config)
    monkeypatch.setattr(NextScale, "create", remember)
    options = SpeedOptions(sizes=(64,), batches=(1,), runs=1, fp32=True)
    reports = [measure("small", "cpu", options) for _ in range(2)]
    assert [report.weights for report in reports] == ["random", "random"]
    assert reports[0].parameters == sum(p.numel() for p in create(small_config()).parameters())
    assert torch.equal(drawn[0], drawn[1])


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=CONFIG):
        measure(str(tmp_path), "cpu", QUICK)
