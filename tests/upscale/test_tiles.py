"""Claims about nextscale.upscale.tiles: tiles cover the picture, blend without a seam and without softening."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.errors import OptionError
from nextscale.upscale.color import adain_color, wavelet_color
from nextscale.upscale.tiles import RAMP, Band, FloatArray, Plan, Tile, axis_weights, plan_tiles

lengths = st.integers(1, 700)


@st.composite
def tilings(draw: st.DrawFn) -> tuple[int, int]:
    """A tile's side and an overlap that fits it."""
    tile = draw(st.sampled_from([16, 32, 64, 100, 128]))
    return tile, draw(st.integers(RAMP, tile // 2))


def blended(plan: Plan, factor: int, render: Callable[[Tile], FloatArray]) -> FloatArray:
    """The rendered tiles through a band, as one array; every row must come once, from top to bottom."""
    rows: list[FloatArray] = []

    def take(top: int, part: FloatArray) -> None:
        assert top == sum(map(len, rows))
        rows.append(part.copy())

    first = plan.rows[0][0]
    band = Band(plan, factor, render(first).shape[2], take)
    for row in plan.rows:
        for tile in row:
            band.add(tile, render(tile))
    whole = np.concatenate(rows)
    assert whole.shape[:2] == (plan.height * factor, plan.width * factor)
    return whole


def noise(tile: Tile, side: int, channels: int = 1) -> FloatArray:
    rng = np.random.default_rng((tile.row, tile.column))
    return rng.standard_normal((side, side, channels), np.float32)


# ---- the plan ----


@given(lengths, lengths, tilings())
def test_tiles_cover_every_pixel_and_share_the_overlap(height: int, width: int, tiling: tuple[int, int]) -> None:
    tile, overlap = tiling
    plan = plan_tiles(height, width, tile=tile, overlap=overlap)
    assert (plan.height, plan.width) == (max(height, tile), max(width, tile))
    for starts in (plan.tops, plan.lefts):
        assert starts[0] == 0
        assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))


@given(lengths, tilings())
def test_no_tile_is_superfluous(length: int, tiling: tuple[int, int]) -> None:
    tile, overlap = tiling
    count = len(plan_tiles(length, 1, tile=tile, overlap=overlap).tops)
    assert count == 1 or tile + (count - 2) * (tile - overlap) < length


def test_tiles_are_numbered_by_row_and_column() -> None:
    plan = plan_tiles(129, 300, tile=128, overlap=24)
    assert [[(t.row, t.column) for t in row] for row in plan.rows] == [
        [(0, 0), (0, 1), (0, 2)],
        [(1, 0), (1, 1), (1, 2)],
    ]
    assert {(t.top, t.left) for row in plan.rows for t in row} == {(y, x) for y in (0, 1) for x in (0, 86, 172)}


@pytest.mark.parametrize("overlap", [0, 1, RAMP - 1, 65])
def test_an_overlap_that_does_not_fit_is_refused_by_name(overlap: int) -> None:
    with pytest.raises(OptionError, match=f"tile-overlap must be from 8 to half a tile .64., got {overlap}"):
        plan_tiles(500, 500, tile=128, overlap=overlap)


# ---- the weights ----


@given(lengths, tilings(), st.sampled_from([1, 2, 4]))
def test_weights_sum_to_one_everywhere(length: int, tiling: tuple[int, int], factor: int) -> None:
    tile, overlap = tiling
    starts = plan_tiles(length, 1, tile=tile, overlap=overlap).tops
    total = np.zeros(max(length, tile) * factor)
    for index, start in enumerate(starts):
        weights = axis_weights(starts, index, tile, factor)
        assert weights.min() >= 0
        total[start * factor : (start + tile) * factor] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(st.integers(129, 700), st.integers(RAMP, 64))
def test_a_tiles_margin_is_never_shown_and_its_middle_never_blended(length: int, overlap: int) -> None:
    starts = plan_tiles(length, 1, tile=128, overlap=overlap).tops
    margin = (overlap - RAMP) // 2
    for index in range(len(starts)):
        weights = axis_weights(starts, index, 128, 1)
        assert index == 0 or not weights[:margin].any()
        assert index + 1 == len(starts) or not weights[128 - margin :].any()
        assert ((weights > 0) & (weights < 1)).sum() <= 2 * (RAMP + 1)


# ---- the band ----


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 2]))
def test_the_band_equals_the_unbanded_blend(height: int, width: int, factor: int) -> None:
    plan = plan_tiles(height, width, tile=32, overlap=12)
    whole = np.zeros((plan.height * factor, plan.width * factor, 2), np.float32)
    for tile in (tile for row in plan.rows for tile in row):
        down = axis_weights(plan.tops, tile.row, 32, factor)[:, None, None]
        across = axis_weights(plan.lefts, tile.column, 32, factor)[:, None]
        place = np.s_[tile.top * factor :, tile.left * factor :]
        whole[place][: 32 * factor, : 32 * factor] += noise(tile, 32 * factor, 2) * (down * across)
    np.testing.assert_allclose(blended(plan, factor, lambda t: noise(t, 32 * factor, 2)), whole, atol=1e-6)


def test_the_bands_memory_does_not_grow_with_height() -> None:
    held = {
        height: Band(plan_tiles(height, 300, tile=128, overlap=24), 4, 3, lambda *_: None).rows.nbytes
        for height in (1, 128, 4320, 100_000)
    }
    assert len(set(held.values())) == 1


@pytest.mark.parametrize("size", [(1, 1), (128, 128), (129, 127), (300, 1), (250, 400)])
def test_equal_tiles_blend_to_the_same_value(size: tuple[int, int]) -> None:
    plan = plan_tiles(*size, tile=128, overlap=24)
    whole = blended(plan, 2, lambda _: np.full((256, 256, 3), 0.7, np.float32))
    np.testing.assert_allclose(whole, 0.7, atol=1e-6)


# ---- what the eye sees ----


def test_what_a_tile_gets_wrong_at_its_edges_is_not_seen() -> None:
    """A tile lacks context at its edges; there the neighbor speaks."""
    plan = plan_tiles(300, 300, tile=128, overlap=24)
    y, x = np.mgrid[: plan.height, : plan.width].astype(np.float32)
    picture = (np.sin(x / 40) + np.cos(y / 30))[..., None]

    def render(tile: Tile) -> FloatArray:
        pixels: FloatArray = picture[tile.top : tile.top + 128, tile.left : tile.left + 128].copy()
        for axis, (start, end) in enumerate([(tile.top, plan.height), (tile.left, plan.width)]):
            sides = pixels.swapaxes(0, axis)
            if start:
                sides[:8] = 9
            if start + 128 < end:
                sides[-8:] = -9
        return pixels

    np.testing.assert_allclose(blended(plan, 1, render), picture, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_tiles_of_unequal_brightness_fade_into_each_other(factor: int) -> None:
    """The steepest place of the fade is half as steep again as a straight line over the ramp."""
    plan = plan_tiles(128, 400, tile=128, overlap=24)
    whole = blended(plan, factor, lambda t: np.full((128 * factor, 128 * factor, 1), t.column % 2, np.float32))
    assert np.abs(np.diff(whole[0, :, 0])).max() <= 1.5 / (RAMP * factor) + 1e-6


@pytest.mark.parametrize("factor", [1, 4])
def test_tiles_of_unlike_texture_are_not_softened(factor: int) -> None:
    """The worst case, textures that have nothing in common: averaging them must take no tenth of the detail."""
    plan = plan_tiles(128, 128 + 3 * 104, tile=128, overlap=24)
    whole = blended(plan, factor, lambda t: noise(t, 128 * factor))[..., 0]
    laplacian = np.abs(4 * whole[1:-1, 1:-1] - whole[:-2, 1:-1] - whole[2:, 1:-1] - whole[1:-1, :-2] - whole[1:-1, 2:])
    shared = np.zeros(plan.width * factor, bool)
    for left in plan.lefts[1:]:
        shared[left * factor : (left + 24) * factor] = True
    shared = shared[1:-1]
    assert laplacian[:, shared].mean() >= 0.9 * laplacian[:, ~shared].mean()


# ---- color ----


def test_color_fixes_equal_the_reference(fixtures: Path) -> None:
    reference = np.load(fixtures / "ref_ops.npz")
    target, source = (torch.from_numpy(reference[f"color_{name}"]) for name in ("target", "source"))
    np.testing.assert_allclose(adain_color(target, source), reference["color_adain"], atol=1e-5)
    np.testing.assert_allclose(wavelet_color(target, source), reference["color_wavelet"], atol=1e-5)


@pytest.mark.parametrize("fix", [wavelet_color, adain_color])
def test_color_fixes_leave_true_colors_alone(fix: Callable[..., torch.Tensor]) -> None:
    image = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fix(image, image), image, atol=1e-5, rtol=0)


def test_a_color_cast_is_removed() -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cast = image + torch.tensor([0.3, -0.2, 0.1])[:, None, None]
    for fix in (wavelet_color, adain_color):
        torch.testing.assert_close(fix(cast, image), image, atol=1e-4, rtol=0)
