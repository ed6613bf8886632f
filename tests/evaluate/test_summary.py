"""Means with intervals: the bootstrap covers what it should, and infinities are counted, not averaged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from nextscale.evaluate.summary import RESAMPLES, Summary, bootstrap, summarize


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(10, 2, 400).tolist()
    interval = bootstrap(values)
    assert interval is not None
    half = 1.96 * np.std(values) / math.sqrt(len(values))
    assert interval == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.03)
    assert RESAMPLES >= 2000


def test_95_of_100_intervals_hold_the_true_mean() -> None:
    draw = np.random.default_rng(2)
    intervals = [bootstrap(draw.normal(0, 1, 50).tolist()) for _ in range(200)]
    share = np.mean([low <= 0 <= high for low, high in filter(None, intervals)])
    assert 0.9 <= share <= 0.99


def test_the_same_values_give_the_same_interval_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(30).tolist()
    whole = bootstrap(values)
    assert whole == bootstrap(values)
    assert whole != bootstrap(values, seed=1)
    monkeypatch.setattr("nextscale.evaluate.summary._CHUNK", 100)
    assert bootstrap(values) == whole


def test_one_value_has_a_mean_and_no_interval() -> None:
    assert summarize([3.0]) == Summary(3.0, None, 1)
    assert "leave it out" in summarize([math.nan]).unavailable


def test_pictures_without_a_value_are_left_out_and_noted() -> None:
    summary = summarize([1.0, math.nan, 3.0])
    assert (summary.mean, summary.ci95, summary.count) == (2.0, (1.0, 3.0), 2)
    assert summary.note.endswith("blank: 1")


def test_infinite_values_are_counted_and_left_out() -> None:
    summary = summarize([30.0, math.inf, 32.0])
    assert (summary.mean, summary.count, summary.infinite) == (31.0, 3, 1)
    assert summary.ci95 == (30.0, 32.0)
    every = summarize([math.inf, math.inf])
    assert (every.mean, every.ci95, every.infinite) == (math.inf, None, 2)


def test_json_is_strict() -> None:
    rows = [summarize([30.0, 32.0]), summarize([math.inf]), Summary(unavailable="fetch them"), summarize([1.0])]
    assert [json.loads(json.dumps(row.as_json(), allow_nan=False)) for row in rows] == [
        {"mean": 31.0, "ci95": [30.0, 32.0], "count": 2},
        {"mean": "inf", "ci95": None, "count": 1, "infinite": 1},
        {"unavailable": "fetch them"},
        {"mean": 1.0, "ci95": None, "count": 1},
    ]
