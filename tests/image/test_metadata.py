"""What describes a picture is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from nextscale import image
from nextscale.image import Picture
from tests.image.pictures import (
    SRGB,
    H,
    W,
    assert_same,
    chunk,
    exif_block,
    noise,
    parsed,
    picture,
    png,
    saved,
    smooth,
    tiff,
)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_orientation_is_applied_once(form: str, orientation: int, tmp_path: Path) -> None:
    stored, exif = Image.fromarray(smooth()), Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    stored.getexif()[0x0112] = orientation
    want = np.array(ImageOps.exif_transpose(stored))
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {"quality": 95}
    once = image.decode_bytes(saved(stored, form, exif=exif, **options))
    assert once.rgb.shape == want.shape
    assert np.abs(once.rgb.astype(int) - want).mean() < (0.01 if once.lossless else 4)
    assert parsed(once.exif).get(0x0112, 1) == 1
    image.write(tmp_path / "once.png", once)
    assert_same(image.read(tmp_path / "once.png"), once)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bit_files_is_applied_once(orientation: int) -> None:
    stored = noise(H, W, 3, dtype=np.uint16)
    small = Image.fromarray(np.arange(H * W, dtype=np.int32).reshape(H, W))
    small.getexif()[0x0112] = orientation
    order = np.array(ImageOps.exif_transpose(small))
    tag = [(0x0112, "H", 1, orientation, True)]
    exif = chunk(b"eXIf", exif_block(orientation)[6:])
    for data in (png(stored, 16, 2, exif), tiff(stored, photometric="rgb", extratags=tag)):
        np.testing.assert_array_equal(image.decode_bytes(data).rgb, stored.reshape(-1, 3)[order])
    gray = tiff(stored[..., 0], photometric="minisblack", extratags=tag)
    np.testing.assert_array_equal(image.decode_bytes(gray).rgb[..., 0], stored[..., 0].reshape(-1)[order])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_icc_and_exif_are_kept(suffix: str) -> None:
    original = picture(3, False, np.uint8, icc=SRGB, exif=exif_block(6))
    back = image.decode_bytes(image.encode_bytes(original, suffix))
    assert back.size == original.size  # a stored orientation belongs to pixels that were turned already
    assert back.icc == SRGB
    exif = parsed(back.exif)
    assert exif[0x010F] == "Maker"
    assert exif.get(0x0112, 1) == 1
    details = exif.get_ifd(0x8769)
    assert details[0x9003] == "2020:01:02 03:04:05"
    assert details[0x927C] == b"note" * 9
    assert (details[0xA002], details[0xA003]) == original.size
    assert exif.get_ifd(0x8825)[2] == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0rubbish!", exif_block()[:40], exif_block()[:14] + b"\xff" * 60]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_does_not_fail_the_picture(block: bytes, form: str) -> None:
    back = image.decode_bytes(saved(Image.fromarray(smooth()), form, exif=block))
    assert back.size == (64, 48)
    assert image.encode_bytes(dataclasses.replace(back, exif=block), ".png")


def test_malformed_exif_does_not_fail_an_avif() -> None:
    whole = saved(Image.fromarray(smooth()), "AVIF", exif=exif_block())
    assert b"MM\0*" in whole
    back = image.decode_bytes(whole.replace(b"MM\0*", b"rubb"))
    assert (back.size, back.exif) == ((64, 48), None)


def test_exif_too_long_for_jpeg_loses_its_maker_note() -> None:
    exif = parsed(exif_block())
    exif.get_ifd(0x8769)[0x927C] = bytes(70_000)
    back = image.decode_bytes(image.encode_bytes(Picture(smooth(), exif=exif.tobytes()), ".jpg"))
    assert parsed(back.exif)[0x010F] == "Maker"
    assert 0x927C not in parsed(back.exif).get_ifd(0x8769)
