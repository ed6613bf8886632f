"""TIFF in every layout."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest

from nextscale import image
from nextscale.image import Array
from tests.image.pictures import (
    H,
    W,
    assert_same,
    cv2,
    noise,
    picture,
    refusal,
    smooth,
    tiff,
    tifffile,
)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": 2}])
@pytest.mark.parametrize("kind", ["gray", "gray alpha", "rgb", "rgba", "planar", "tiled", "big"])
def test_16_bit_tiff_in_every_layout(order: str, options: dict[str, Any], kind: str) -> None:
    colors, alpha = 1 if "gray" in kind else 3, kind in ("gray alpha", "rgba")
    original = picture(colors, alpha, np.uint16)
    stored = original.rgb if original.alpha is None else np.dstack([original.rgb, original.alpha])
    layout: dict[str, Any] = {"photometric": "minisblack" if colors == 1 else "rgb", "byteorder": order} | options
    if alpha:
        layout |= {"extrasamples": ["unassalpha"], "planarconfig": "contig"}
    special: dict[str, dict[str, Any]] = {
        "planar": {"planarconfig": "separate"},
        "tiled": {"tile": (16, 16)},
        "big": {"bigtiff": True},
    }
    layout |= special.get(kind, {})
    if kind == "planar":
        stored = np.moveaxis(stored, 2, 0)
    assert_same(image.decode_bytes(tiff(stored[..., 0] if kind == "gray" else stored, **layout)), original)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_lzw_tiff(channels: int) -> None:
    samples = noise(H, W, channels, dtype=np.uint16)
    bgr = samples[..., [2, 1, 0, 3][:channels]] if channels > 1 else samples
    data = cv2.imencode(".tif", np.ascontiguousarray(bgr), [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    np.testing.assert_array_equal(image.decode_bytes(data).rgb, samples[..., :3])


def test_16_bit_tiff_with_white_at_zero_is_inverted() -> None:
    samples = noise(H, W, dtype=np.uint16)
    np.testing.assert_array_equal(
        image.decode_bytes(tiff(samples, photometric="miniswhite")).rgb[..., 0], 65535 - samples
    )


def test_premultiplied_16_bit_tiff_gets_its_color_back() -> None:
    color, alpha = noise(H, W, 3, dtype=np.uint16), noise(H, W, dtype=np.uint16) | np.uint16(0x4000)
    stored = np.rint(color * (alpha[..., None] / 65535)).astype(np.uint16)
    data = tiff(np.dstack([stored, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    back = image.decode_bytes(data)
    assert np.abs(back.rgb.astype(int) - color).max() <= 2
    np.testing.assert_array_equal(back.alpha, alpha)


def test_tiff_without_its_pixels_is_refused() -> None:
    whole = tiff(noise(H, W, 3, dtype=np.uint16), photometric="rgb", byteorder="<")

    def without(tag: int) -> bytes:
        at = whole.index(struct.pack("<HHI", tag, 4 if struct.pack("<HHI", tag, 4, 1) in whole else 3, 1))
        return whole[:at] + struct.pack("<H", 60000) + whole[at + 2 :]

    assert "pixels are missing" in refusal(without(273))
    assert image.decode_bytes(without(279)).bits == 16  # the byte counts of plain samples can be told


@pytest.mark.parametrize(
    ("array", "options", "reason"),
    [
        (np.zeros((4, 4), np.float32), {}, "32-bit floating-point TIFF"),
        (np.zeros((4, 4), np.float16), {}, "16-bit floating-point TIFF"),
        (np.zeros((4, 4), np.uint32), {}, "32-bit TIFF"),
        (np.zeros((4, 4), np.int16), {}, "16-bit signed TIFF"),
        (np.zeros((4, 4, 4), np.uint16), {"photometric": "separated"}, "16-bit CMYK TIFF"),
        (np.zeros((2, 4, 4), np.uint8), {"photometric": "minisblack"}, "2 pages"),
    ],
)
def test_other_tiffs_are_refused_by_name(array: Array, options: dict[str, Any], reason: str) -> None:
    assert reason in refusal(tiff(array, **options))


def test_a_thumbnail_behind_a_tiff_is_no_second_page() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(smooth(), photometric="rgb")
        writer.write(smooth(6, 8), photometric="rgb", subfiletype=1)
    assert image.decode_bytes(out.getvalue()).size == (64, 48)
