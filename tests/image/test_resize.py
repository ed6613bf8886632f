"""Resizing, and the colors of what is transparent."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextscale import image
from nextscale.errors import OptionError
from nextscale.image import Array, Filter
from tests.image.pictures import (
    noise,
)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bleed_leaves_no_halo(dtype: type) -> None:
    full = np.iinfo(dtype).max
    y, x = np.mgrid[:40, :50]
    alpha: Array = np.where((y - 20) ** 2 + (x - 25) ** 2 < 150, full, 0).astype(dtype)
    color: Array = np.array([full, full // 2, 7], dtype)
    for background in (0, full):
        rgb: Array = np.where(alpha[..., None] > 0, color, dtype(background)).astype(dtype)
        filled = image.bleed(rgb, alpha)
        assert np.ptp(filled.astype(int), axis=(0, 1)).max() == 0
        large = image.resize(filled, (200, 160), filter="lanczos")
        assert np.ptp(large.astype(int), axis=(0, 1)).max() == 0


def test_bleed_takes_the_nearest_colors_and_keeps_visible_pixels() -> None:
    rgb = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 4, (64, 64, 3)).copy()
    alpha = np.where(np.arange(64) < 32, 200, 0).astype(np.uint8) * np.ones((64, 1), np.uint8)
    hidden = alpha == 0
    rgb[hidden] = 255
    alpha[5, 5], rgb[5, 5] = 1, (1, 2, 3)
    filled = image.bleed(rgb, alpha)
    np.testing.assert_array_equal(filled[~hidden], rgb[~hidden])
    assert np.abs(filled[2:-2, 32].astype(int) - rgb[2:-2, 31]).max() <= 8  # two rows of the slope
    assert image.bleed(rgb, np.ones_like(alpha)) is rgb
    np.testing.assert_array_equal(image.bleed(rgb, np.zeros_like(alpha)), rgb)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 33), st.integers(1, 33), st.integers(0, 5), st.sampled_from([np.uint8, np.uint16]))
def test_bleed_stays_within_the_visible_colors(height: int, width: int, seed: int, dtype: type) -> None:
    rgb, alpha = noise(height, width, 3, dtype=dtype, seed=seed), noise(height, width, dtype=dtype, seed=seed + 1)
    alpha[alpha < np.iinfo(dtype).max * 0.8] = 0
    filled = image.bleed(rgb, alpha)
    seen = rgb[alpha > 0]
    np.testing.assert_array_equal(filled[alpha > 0], seen)
    if len(seen):
        assert (filled >= seen.min(axis=0)).all()
        assert (filled <= seen.max(axis=0)).all()


@pytest.mark.parametrize("filter", ["bicubic", "lanczos", "bilinear", "box"])
@pytest.mark.parametrize("size", [(101, 67), (7, 9), (40, 30), (13, 60)])
def test_banded_resize_equals_the_unbanded(
    filter: Filter, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    array = noise(30, 40, 2, dtype=np.uint16)
    monkeypatch.setattr(importlib.import_module("nextscale.image.resize"), "_BAND_FLOATS", 150)
    banded = image.resize(array, size, filter=filter)
    for channel in range(2):
        plane = Image.fromarray(array[..., channel].astype(np.float32))
        whole = np.array(plane.resize(size, getattr(Image.Resampling, filter.upper())))
        np.testing.assert_array_equal(banded[..., channel], np.clip(np.rint(whole), 0, 65535))


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 2), (30, 40, 3), (30, 40, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_keeps_shape_dtype_and_flat_fields(shape: tuple[int, ...], dtype: type) -> None:
    flat: Array = np.full(shape, np.iinfo(dtype).max - 3, dtype)
    out = image.resize(flat, (60, 11))
    assert out.shape == (11, 60, *shape[2:])
    assert out.dtype == dtype
    assert (out == flat.flat[0]).all()


def test_resize_of_8_bits_is_pillows_and_channels_do_not_mix() -> None:
    rgb = noise(30, 40, 3)
    want = np.array(Image.fromarray(rgb).resize((80, 60), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(image.resize(rgb, (80, 60), filter="lanczos"), want)
    rgba = np.dstack([rgb, np.zeros((30, 40), np.uint8)])
    np.testing.assert_array_equal(image.resize(rgba, (80, 60), filter="lanczos")[..., :3], want)
    with pytest.raises(OptionError, match="unknown filter"):
        image.resize(rgb, (8, 8), filter="nearest")  # type: ignore[arg-type]
