"""Reading: every mode and format, and what cannot be read is refused in one line."""

from __future__ import annotations

import errno
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale import image
from nextscale.errors import ImageError
from nextscale.image import Picture
from tests.image.pictures import (
    GRAY_PROFILE,
    SRGB,
    SUFFIXES,
    H,
    W,
    chunk,
    exif_block,
    noise,
    png,
    refusal,
    saved,
    smooth,
)


def test_palette_becomes_rgb() -> None:
    im = Image.fromarray(smooth()).quantize(16)
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        back = image.decode_bytes(saved(im, form))
        np.testing.assert_array_equal(back.rgb, np.array(im.convert("RGB")))
        assert back.alpha is None
        assert back.format == form


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 7])])
def test_palette_with_transparency_becomes_rgba(transparency: int | bytes) -> None:
    im = Image.fromarray(smooth()).quantize(16)
    back = image.decode_bytes(saved(im, "PNG", transparency=transparency))
    table = np.full(256, 255, np.uint8)
    if isinstance(transparency, int):
        table[transparency] = 0
    else:
        table[: len(transparency)] = list(transparency)
    assert back.alpha is not None
    np.testing.assert_array_equal(back.alpha, table[np.array(im)])
    np.testing.assert_array_equal(back.rgb, np.array(im.convert("RGB")))


def test_transparent_gif_becomes_rgba() -> None:
    im = Image.fromarray(smooth()).quantize(16)
    back = image.decode_bytes(saved(im, "GIF", transparency=3))
    assert back.alpha is not None
    np.testing.assert_array_equal(back.alpha == 0, np.array(im) == 3)


@pytest.mark.parametrize(("depth", "color_type"), [(8, 0), (8, 2), (16, 0), (16, 2)])
def test_a_declared_transparent_color_becomes_alpha(depth: int, color_type: int) -> None:
    channels, dtype = (1, 3)[color_type == 2], (np.uint8, np.uint16)[depth == 16]
    samples = noise(H, W, channels, dtype=dtype)
    samples[2:4] = samples[0, 0]
    key = samples[0, 0].astype(">u2").tobytes()
    back = image.decode_bytes(png(samples, depth, color_type, chunk(b"tRNS", key)))
    np.testing.assert_array_equal(back.rgb, samples)
    assert back.alpha is not None
    want = np.where((samples == samples[0, 0]).all(axis=2), 0, np.iinfo(dtype).max)
    np.testing.assert_array_equal(back.alpha, want)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_of_gray_spread_over_eight(depth: int) -> None:
    packed = noise(H, 3)
    per_byte, top = 8 // depth, 2**depth - 1
    levels = (packed[..., None] >> (np.arange(per_byte)[::-1] * depth)).reshape(H, -1) & top
    back = image.decode_bytes(png(packed, depth, 0))
    np.testing.assert_array_equal(back.rgb[..., 0], levels * (255 // top))
    keyed = image.decode_bytes(png(packed, depth, 0, chunk(b"tRNS", b"\0\1")))
    assert keyed.alpha is not None
    np.testing.assert_array_equal(keyed.alpha == 0, levels == 1)


def test_one_bit_becomes_gray() -> None:
    bits = noise(H, W) > 127
    for form in ("PNG", "BMP", "TIFF"):
        back = image.decode_bytes(saved(Image.fromarray(bits), form))
        np.testing.assert_array_equal(back.rgb[..., 0], bits * np.uint8(255))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_without_profile_becomes_rgb(form: str) -> None:
    back = image.decode_bytes(saved(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), form, icc_profile=b"rubbish"))
    assert back.rgb.shape == (32, 32, 3)
    np.testing.assert_allclose(back.rgb[16, 16], (255, 0, 0), atol=4)
    assert back.icc is None


def test_cmyk_goes_through_its_own_profile() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    back = image.decode_bytes(saved(cyan, "TIFF", icc_profile=cyan_is_gray_profile()))
    assert np.ptp(back.rgb) < 4  # by the profile neutral; the plain formula would give (0, 255, 255)
    assert 90 < back.rgb.mean() < 150
    assert back.icc is None


def cyan_is_gray_profile() -> bytes:
    """A CMYK profile whose full cyan is L*a*b* (50, 0, 0) and whose other inks darken."""
    corners = [((255, 128, 128) if i == 0 else (128, 128, 128) if i == 8 else (0, 128, 128)) for i in range(16)]
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0\x04\x03\x02\0" + identity + ramp * 4 + bytes(sum(corners, ())) + ramp * 3
    header = struct.pack(">I4sI4s4s4s", 144 + len(table), b"none", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += (
        struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    )
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def test_lab_becomes_rgb() -> None:
    lab = Image.new("LAB", (8, 8), (255, 128, 128))
    assert image.decode_bytes(saved(lab, "TIFF")).rgb.min() > 250


def test_a_profile_for_other_colors_is_dropped() -> None:
    gray, color = Image.fromarray(smooth()[..., 0]), Image.fromarray(smooth())
    assert image.decode_bytes(saved(gray, "PNG", icc_profile=GRAY_PROFILE)).icc == GRAY_PROFILE
    assert image.decode_bytes(saved(gray, "PNG", icc_profile=SRGB)).icc is None
    assert image.decode_bytes(saved(color, "JPEG", icc_profile=GRAY_PROFILE)).icc is None
    assert image.decode_bytes(saved(color, "JPEG", icc_profile=b"rubbish")).icc is None


@pytest.mark.parametrize(
    ("form", "options", "lossless"),
    [
        ("PNG", {}, True),
        ("BMP", {}, True),
        ("GIF", {}, True),
        ("TIFF", {}, True),
        ("TIFF", {"compression": "tiff_lzw"}, True),
        ("TIFF", {"compression": "jpeg"}, False),
        ("WEBP", {"lossless": True}, True),
        ("WEBP", {}, False),
        ("JPEG", {}, False),
        ("AVIF", {}, False),
    ],
)
def test_lossless_says_what_the_file_was(form: str, options: dict[str, Any], lossless: bool) -> None:
    assert image.decode_bytes(saved(Image.fromarray(smooth()), form, **options)).lossless is lossless


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    cases = {
        "missing.png": "no such file",
        "dangling.png": "missing file",
        "empty.png": "empty",
        "pipe.png": "not a regular file",
        ".": "folder",
        "nul\0.png": "cannot be read",
        "x" * 300 + ".png": "cannot be read",
    }
    for name, reason in cases.items():
        with pytest.raises(ImageError, match=reason) as caught:
            image.read(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image.write(tmp_path / "a.png", Picture(smooth()))

    def deny(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(ImageError, match="no permission"):
        image.read(tmp_path / "a.png")


def test_what_is_no_picture_is_refused() -> None:
    assert "not a picture" in refusal(b"hello, world")
    assert "HEIC" in refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert "JPEG XL" in refusal(b"\xff\x0a" + bytes(20))
    assert "damaged" in refusal(b"BM" + bytes(60))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_pictures_are_refused(suffix: str) -> None:
    whole = image.encode_bytes(Picture(noise(64, 64, 3)), suffix)
    for length in (len(whole) // 2, 40, 12):
        refusal(whole[:length])


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "AVIF"])
def test_animations_are_refused(form: str) -> None:
    frames = [Image.fromarray(noise(16, 16, 3, seed=seed)) for seed in range(2)]
    assert "animated" in refusal(saved(frames[0], form, save_all=True, append_images=frames[1:]))


def test_a_picture_behind_a_jpeg_is_no_second_page() -> None:
    frames = [Image.fromarray(smooth()), Image.fromarray(smooth(6, 8))]
    assert image.decode_bytes(saved(frames[0], "MPO", save_all=True, append_images=frames[1:])).size == (64, 48)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_too_many_pixels_are_refused_by_the_header(suffix: str) -> None:
    data = image.encode_bytes(Picture(noise(40, 50, 3)), suffix)
    assert "50 x 40 pixels are over the limit" in refusal(data, max_pixels=1999)
    assert image.decode_bytes(data, max_pixels=2000).size == (50, 40)


def test_a_decompression_bomb_is_refused_before_it_unfolds() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    assert "megapixels" in refusal(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_pillows_own_limit_is_neither_asked_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in (".png", ".jpg", ".bmp"):
        image.decode_bytes(image.encode_bytes(Picture(smooth()), suffix))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_no_warning_filter_is_left_behind() -> None:
    before = list(warnings.filters)
    image.decode_bytes(saved(Image.fromarray(smooth()), "JPEG", exif=exif_block()[:40]))
    assert list(warnings.filters) == before


def test_folders_are_searched_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.txt", ".hidden.png", ".nextscale-1.tmp", "deep/d.webp", ".cache/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere")

    def names(recursive: bool) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in image.find_pictures(tmp_path, recursive)]

    assert names(False) == ["a.jpg", "b.PNG"]
    assert names(True) == ["a.jpg", "b.PNG", "deep/d.webp"]
    assert image.is_picture_path("x.JPEG")
    assert not image.is_picture_path("x.txt")
    with pytest.raises(ImageError, match="cannot be listed"):
        image.find_pictures(tmp_path / "nowhere")
