"""Damaged files of every kind give a picture or one line, in bounded memory. `NEXTSCALE_FUZZ=5000` makes it long.

The draws are seeded by the kind's name, so a failure comes again; its bytes are the file `last` in the test's folder.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale import image
from nextscale.errors import ImageError
from tests.image.pictures import SRGB, SUFFIXES, H, W, exif_block, noise, picture, png, saved, tiff

FILES = int(os.environ.get("NEXTSCALE_FUZZ", "60"))
"""Damaged files of each kind."""
MAX_PIXELS = 1 << 18
EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def samples_of_every_format() -> dict[str, bytes]:
    exif = exif_block(6)
    files = {f"rgb{suffix}": image.encode_bytes(picture(3, False, np.uint8, exif=exif), suffix) for suffix in SUFFIXES}
    for suffix in (".png", ".tif"):
        for colors in (1, 3):
            deep = picture(colors, True, np.uint16, exif=exif, icc=SRGB[:200] if colors == 3 else None)
            files[f"16 bit {colors}{suffix}"] = image.encode_bytes(deep, suffix)
    im = Image.fromarray(noise(H, W, 3))
    files["gif"] = saved(im.quantize(16), "GIF", transparency=3)
    files["palette"] = saved(im.quantize(16), "PNG", transparency=3)
    files["cmyk"] = saved(im.convert("CMYK"), "JPEG")
    files["lossless webp"] = saved(im, "WEBP", lossless=True)
    files["lzw"] = saved(im, "TIFF", compression="tiff_lzw")
    files["interlaced"] = png(noise(H, W, 3), 8, 2, interlace=True)
    files["interlaced 16 bit"] = png(noise(H, W, 3, dtype=np.uint16), 16, 2, interlace=True)
    files["progressive"] = saved(im, "JPEG", progressive=True, exif=exif)
    files["runs"] = RUNS
    files["big tiff"] = tiff(noise(H, W, 3, dtype=np.uint16), photometric="rgb", bigtiff=True, tile=(16, 16))
    return files


RUNS = (
    b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 1078, 40, 16, 4, 1, 8, 1, 0, 0, 0, 256, 0)
    + bytes(range(256)) * 4
    + b"\x10\x05\0\0\0\x04abcd\x0c\x07\0\0\0\2\x04\0\x0c\1\0\0\x10\2\0\1"
)
"""A BMP of 16 x 4 px in run lengths: runs, literals, a jump."""


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, so that damage reaches what is behind them."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """A copy with a few faults: other bytes, extreme numbers, parts cut out, doubled or moved, the end missing."""
    data = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
        near = min(len(data), 250 if rng.random() < 0.5 else 1 << 30)
        at, length = int(rng.integers(0, near)), int(rng.integers(1, 40))
        fault = rng.integers(0, 7)
        if fault < 2:
            data[at] = rng.integers(0, 256)
        elif fault == 2:
            form = ("B", "<H", ">H", "<I", ">I")[rng.integers(0, 5)]
            value = EXTREMES[rng.integers(0, len(EXTREMES))] & ((1 << 8 * struct.calcsize(form)) - 1)
            data[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif fault == 3:
            del data[at : at + length]
        elif fault == 4:
            data[at:at] = data[at : at + length]
        elif fault == 5:
            source = int(rng.integers(0, len(data)))
            data[at : at + length] = data[source : source + length]
        elif rng.random() < 0.5:
            del data[max(1, at) :]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("name", samples_of_every_format())
def test_damage_gives_a_picture_or_one_line(name: str, tmp_path: Path) -> None:
    rng, whole = np.random.default_rng(list(name.encode())), samples_of_every_format()[name]
    assert image.decode_bytes(whole).size in ((W, H), (H, W), (16, 4))
    pictures, reasons = 0, []
    for _ in range(FILES):
        data = damaged(whole, rng)
        if whole.startswith(b"\x89PNG") and rng.random() < 0.7:
            data = with_checksums(data)
        (tmp_path / "last").write_bytes(data)
        try:
            back = image.decode_bytes(data, max_pixels=MAX_PIXELS)
        except ImageError as error:
            reasons.append(str(error))
            continue
        assert back.size[0] * back.size[1] <= MAX_PIXELS
        if pictures % 10 == 0:
            again = image.decode_bytes(image.encode_bytes(back, ".png"))
            np.testing.assert_array_equal(again.rgb, back.rgb)
        pictures += 1
    assert reasons
    assert all("; " in reason and "\n" not in reason for reason in reasons)
