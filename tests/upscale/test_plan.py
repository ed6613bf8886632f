"""Claims about nextscale.upscale.plan: what a picture takes is known before, and grows with what is asked for."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.errors import NextScaleError, OptionError
from nextscale.upscale.plan import WorkPlan, plan_work

NATIVE = (1.0, 2.0, 4.0)
sides = st.integers(1, 3000)


def plan(width: int, height: int, scale: float, **more: Any) -> WorkPlan:
    """With the shipped model's factors and tiles."""
    return plan_work((width, height), scale, NATIVE, **{"tile": 128, "unit": 16, "overlap": 24, **more})


@pytest.mark.parametrize(
    ("size", "scale", "tiles", "pixels"),
    [
        ((128, 128), 4, 1, 512 * 512),
        ((130, 130), 4, 1, 520 * 520),
        ((192, 192), 4, 1, 768 * 768),
        ((193, 193), 4, 4, 772 * 772),
        ((232, 232), 4, 4, 928 * 928),
        ((233, 233), 4, 4, 932 * 932),
        ((130, 60), 4, 1, 520 * 240),
        ((1951, 1951), 4, 361, 7804 * 7804),
        ((1951, 1951), 4.1, 361, 7999 * 7999),
        ((1951, 1951), 5, 361, 9755 * 9755),
        ((1951, 1951), 6, 361 + 784, 11708 * 11708),
        ((128, 128), 8, 1 + 4, 1024 * 1024),
        ((1, 1), 8000, 3, 8000 * 8000),
        ((64, 64), 64, 1 + 4 + 100, 4096 * 4096),
        ((100, 100), 0.5, 1, 100 * 100),
    ],
)
def test_the_work_for_sizes_that_people_ask_for(size: tuple[int, int], scale: float, tiles: int, pixels: int) -> None:
    got = plan(*size, scale)
    assert (got.tiles, got.pixels) == (tiles, pixels)


def test_two_pixels_more_cost_a_larger_tile_rather_than_three_more() -> None:
    small, large = plan(128, 128, 4).passes[0], plan(130, 130, 4).passes[0]
    assert large.work / small.work == (144 / 128) ** 2
    assert plan(130, 130, 4, unit=0).passes[0].work / small.work == 4


@given(sides, sides)
def test_tiles_grow_only_where_that_saves_a_quarter(width: int, height: int) -> None:
    grown, fixed = plan(width, height, 4).passes[0], plan(width, height, 4, unit=0).passes[0]
    if grown.tiles.tile == 128:
        assert grown == fixed
    else:
        assert grown.tiles.tile in (144, 160, 176, 192)
        assert grown.work <= 0.75 * fixed.work


@given(sides, sides, st.floats(0.01, 100))
def test_every_plan_comes_out_at_the_scale(width: int, height: int, scale: float) -> None:
    got = plan(width, height, scale)
    assert got.passes[0].size == (width, height)
    assert len(got.passes) <= 3
    for before, after in zip(got.passes, got.passes[1:], strict=False):
        assert all(a <= b for a, b in zip(after.size, before.result, strict=True))
    last = got.passes[-1]
    if len(got.passes) > 1 and last.reach == scale:
        assert all(0 <= out - exact < 16 for out, exact in zip(last.result, got.result, strict=True))
    assert sum(got.shares) == pytest.approx(1)
    assert got.pixels >= prod(got.result)


@given(st.integers(200, 3000))
def test_a_little_more_than_four_costs_what_four_does(side: int) -> None:
    assert plan(side, side, 4.1).tiles == plan(side, side, 4).tiles


def test_the_first_pass_is_the_small_one() -> None:
    got = plan(1000, 1000, 8)
    assert [(run.size, run.factor, run.reach) for run in got.passes] == [((1000, 1000), 2, 2), ((2000, 2000), 4, 8)]
    six = plan(1000, 1000, 6)
    assert [(run.size, run.factor, run.reach) for run in six.passes] == [((1000, 1000), 2, 2), ((1500, 1500), 4, 6)]


def test_alpha_is_a_pass_of_its_own() -> None:
    got = plan(300, 100, 8, alpha=True)
    assert got.alpha is not None
    assert (got.alpha.factor, got.runs[0]) == (4, got.alpha)
    assert got.tiles == plan(300, 100, 8).tiles + 3


def test_a_plan_is_bounded_by_whoever_asks() -> None:
    got = plan(1951, 1951, 4.1)
    got.check()
    got.check(tiles=361, pixels=7999 * 7999)
    with pytest.raises(NextScaleError) as caught:
        got.check(tiles=360)
    assert str(caught.value) == (
        "1951 x 1951 -> 7999 x 7999 pixels in 361 tiles is more than the 360 that are allowed; "
        "use a smaller scale or a smaller picture"
    )
    with pytest.raises(NextScaleError, match="more than the 63 million pixels that are allowed"):
        got.check(pixels=63_000_000)


def test_a_model_of_one_factor_makes_one_pass() -> None:
    got = plan_work((50, 50), 10, (1.0,), tile=64, unit=16, overlap=8)
    assert [(run.factor, run.reach) for run in got.passes] == [(1, 1)]
    assert got.result == (500, 500)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="tile-overlap"):
        plan(100, 100, 4, overlap=100)
