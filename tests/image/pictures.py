"""Pictures and files for the tests of nextscale.image."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from nextscale import image
from nextscale.errors import ImageError
from nextscale.image import Array, Picture

tifffile = pytest.importorskip("tifffile")
cv2 = pytest.importorskip("cv2")

H, W = 13, 17
SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp", ".avif")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def smooth(height: int = 48, width: int = 64) -> Array:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([x * 255, y * 255, (x + y) * 127], axis=2).astype(np.uint8)


def picture(colors: int, alpha: bool, dtype: type, **more: Any) -> Picture:
    return Picture(noise(H, W, colors, dtype=dtype), noise(H, W, dtype=dtype, seed=1) if alpha else None, **more)


def saved(im: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    im.save(out, form, **options)
    return out.getvalue()


def tiff(array: Array, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(array: Array, depth: int, color_type: int, extra: bytes = b"", interlace: bool = False) -> bytes:
    """A PNG by hand, unfiltered; `array` is H W C of samples, for 8 or 16 bits, or H W of packed bytes below."""
    height, width = array.shape[0], array.shape[1] * (8 // depth if depth < 8 else 1)
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, across in passes:
        part = array[top::down, left::across].astype(">u2" if depth == 16 else "u1")
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlace)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif_block(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0xA002: 4000, 0xA003: 3000, 0x927C: b"note" * 9}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return exif.tobytes()


def parsed(block: bytes | None) -> Image.Exif:
    assert block is not None
    exif = Image.Exif()
    exif.load(block)
    return exif


def assert_same(got: Picture, want: Picture) -> None:
    assert got.rgb.dtype == want.rgb.dtype
    np.testing.assert_array_equal(got.rgb, want.rgb)
    assert (got.alpha is None) == (want.alpha is None)
    if got.alpha is not None and want.alpha is not None:
        np.testing.assert_array_equal(got.alpha, want.alpha)


def refusal(data: bytes, **options: Any) -> str:
    """The one-line reason for which these bytes are refused."""
    with pytest.raises(ImageError) as caught:
        image.decode_bytes(data, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message
