"""16-bit PNG."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from nextscale import image
from tests.image.pictures import (
    H,
    W,
    chunk,
    noise,
    png,
    refusal,
)


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
@pytest.mark.parametrize("interlace", [False, True])
def test_16_bit_png_of_every_color_type(color_type: int, interlace: bool) -> None:
    samples = noise(H, W, {0: 1, 2: 3, 4: 2, 6: 4}[color_type], dtype=np.uint16)
    back = image.decode_bytes(png(samples, 16, color_type, interlace=interlace))
    got = back.rgb if back.alpha is None else np.dstack([back.rgb, back.alpha])
    np.testing.assert_array_equal(got, samples)


def test_a_16_bit_png_with_half_a_stream_is_refused() -> None:
    stream = zlib.compress(noise(64, 64 * 6 + 1).tobytes())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0))
    half = chunk(b"IDAT", stream[: len(stream) // 2]) + chunk(b"IEND", b"")
    assert "truncated" in refusal(b"\x89PNG\r\n\x1a\n" + header + half)
