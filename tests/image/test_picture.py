"""Claims about nextscale.image: what goes in comes out, and what cannot is refused in one line."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from nextscale.errors import ImageError, OptionError
from nextscale.image import Array, Picture
from nextscale.image import picture as image
from nextscale.install import how_to_install

tifffile = pytest.importorskip("tifffile")
cv2 = pytest.importorskip("cv2")

H, W = 13, 17
SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp", ".avif")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def smooth(height: int = 48, width: int = 64) -> Array:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([x * 255, y * 255, (x + y) * 127], axis=2).astype(np.uint8)


def picture(colours: int, alpha: bool, dtype: type, **more: Any) -> Picture:
    return Picture(noise(H, W, colours, dtype=dtype), noise(H, W, dtype=dtype, seed=1) if alpha else None, **more)


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


def png(array: Array, depth: int, colour_type: int, extra: bytes = b"", interlace: bool = False) -> bytes:
    """A PNG by hand, unfiltered; `array` is H W C of samples, for 8 or 16 bits, or H W of packed bytes below."""
    height, width = array.shape[0], array.shape[1] * (8 // depth if depth < 8 else 1)
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, across in passes:
        part = array[top::down, left::across].astype(">u2" if depth == 16 else "u1")
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlace)
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


# ---- round trips ----


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_png_and_tiff_keep_every_sample(suffix: str, dtype: type, colours: int, alpha: bool, tmp_path: Path) -> None:
    original = picture(colours, alpha, dtype)
    image.write(tmp_path / f"a{suffix}", original)
    back = image.read(tmp_path / f"a{suffix}")
    assert_same(back, original)
    assert (back.size, back.bits, back.is_grey) == ((W, H), 8 * np.dtype(dtype).itemsize, colours == 1)
    assert back.lossless
    assert back.exif is None
    assert back.icc is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_our_tiff_and_png_say_the_same_to_others(dtype: type, channels: int) -> None:
    original = picture(1 if channels < 3 else 3, channels % 2 == 0, dtype)
    want = original.rgb if original.alpha is None else np.dstack([original.rgb, original.alpha])
    seen = tifffile.imread(io.BytesIO(image.encode_bytes(original, ".tif")))
    np.testing.assert_array_equal(seen.reshape(want.shape), want)
    if channels >= 3:
        bgr = cv2.imdecode(np.frombuffer(image.encode_bytes(original, ".png"), np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(bgr[..., [2, 1, 0, 3][:channels]], want)


def test_large_pictures_cross_strips_and_bands() -> None:
    original = Picture(noise(700, 600, 3, dtype=np.uint16))
    for suffix in (".png", ".tif"):
        assert_same(image.decode_bytes(image.encode_bytes(original, suffix)), original)


@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_webp_is_exact_even_where_transparent(alpha: bool) -> None:
    original = picture(3, alpha, np.uint8)
    back = image.decode_bytes(image.encode_bytes(original, ".webp", lossless=True))
    assert_same(back, original)
    assert back.lossless


@pytest.mark.parametrize("colours", [1, 3])
def test_bmp_is_exact(colours: int) -> None:
    original = picture(colours, False, np.uint8)
    assert_same(image.decode_bytes(image.encode_bytes(original, ".bmp")), original)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".avif"])
def test_lossy_formats_are_near_and_say_so(suffix: str) -> None:
    back = image.decode_bytes(image.encode_bytes(Picture(smooth()), suffix))
    assert np.abs(back.rgb.astype(int) - smooth()).mean() < 2
    assert not back.lossless


def test_jpeg_keeps_grey_and_full_colour_resolution() -> None:
    grey = Picture(smooth()[..., :1])
    assert image.decode_bytes(image.encode_bytes(grey, ".jpg")).is_grey
    coloured = Image.open(io.BytesIO(image.encode_bytes(Picture(smooth()), ".jpg")))
    assert [layer[1:3] for layer in coloured.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".webp", ".avif"])
def test_grey_becomes_rgb_where_the_format_has_no_grey(suffix: str) -> None:
    grey = dataclasses.replace(picture(1, True, np.uint8), icc=GREY_PROFILE)
    back = image.decode_bytes(image.encode_bytes(grey, suffix, quality=100))
    assert back.rgb.shape == (H, W, 3)
    assert back.alpha is not None
    assert back.icc is None


# ---- modes ----


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


@pytest.mark.parametrize(("depth", "colour_type"), [(8, 0), (8, 2), (16, 0), (16, 2)])
def test_a_declared_transparent_colour_becomes_alpha(depth: int, colour_type: int) -> None:
    channels, dtype = (1, 3)[colour_type == 2], (np.uint8, np.uint16)[depth == 16]
    samples = noise(H, W, channels, dtype=dtype)
    samples[2:4] = samples[0, 0]
    key = samples[0, 0].astype(">u2").tobytes()
    back = image.decode_bytes(png(samples, depth, colour_type, chunk(b"tRNS", key)))
    np.testing.assert_array_equal(back.rgb, samples)
    assert back.alpha is not None
    want = np.where((samples == samples[0, 0]).all(axis=2), 0, np.iinfo(dtype).max)
    np.testing.assert_array_equal(back.alpha, want)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_of_grey_spread_over_eight(depth: int) -> None:
    packed = noise(H, 3)
    per_byte, top = 8 // depth, 2**depth - 1
    levels = (packed[..., None] >> (np.arange(per_byte)[::-1] * depth)).reshape(H, -1) & top
    back = image.decode_bytes(png(packed, depth, 0))
    np.testing.assert_array_equal(back.rgb[..., 0], levels * (255 // top))
    keyed = image.decode_bytes(png(packed, depth, 0, chunk(b"tRNS", b"\0\1")))
    assert keyed.alpha is not None
    np.testing.assert_array_equal(keyed.alpha == 0, levels == 1)


def test_one_bit_becomes_grey() -> None:
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
    back = image.decode_bytes(saved(cyan, "TIFF", icc_profile=cyan_is_grey_profile()))
    assert np.ptp(back.rgb) < 4  # by the profile neutral; the plain formula would give (0, 255, 255)
    assert 90 < back.rgb.mean() < 150
    assert back.icc is None


def cyan_is_grey_profile() -> bytes:
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


# ---- 16 bits ----


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": 2}])
@pytest.mark.parametrize("kind", ["grey", "grey alpha", "rgb", "rgba", "planar", "tiled", "big"])
def test_16_bit_tiff_in_every_layout(order: str, options: dict[str, Any], kind: str) -> None:
    colours, alpha = 1 if "grey" in kind else 3, kind in ("grey alpha", "rgba")
    original = picture(colours, alpha, np.uint16)
    stored = original.rgb if original.alpha is None else np.dstack([original.rgb, original.alpha])
    layout: dict[str, Any] = {"photometric": "minisblack" if colours == 1 else "rgb", "byteorder": order} | options
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
    assert_same(image.decode_bytes(tiff(stored[..., 0] if kind == "grey" else stored, **layout)), original)


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


def test_premultiplied_16_bit_tiff_gets_its_colour_back() -> None:
    colour, alpha = noise(H, W, 3, dtype=np.uint16), noise(H, W, dtype=np.uint16) | np.uint16(0x4000)
    stored = np.rint(colour * (alpha[..., None] / 65535)).astype(np.uint16)
    data = tiff(np.dstack([stored, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    back = image.decode_bytes(data)
    assert np.abs(back.rgb.astype(int) - colour).max() <= 2
    np.testing.assert_array_equal(back.alpha, alpha)


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
@pytest.mark.parametrize("interlace", [False, True])
def test_16_bit_png_of_every_colour_type(colour_type: int, interlace: bool) -> None:
    samples = noise(H, W, {0: 1, 2: 3, 4: 2, 6: 4}[colour_type], dtype=np.uint16)
    back = image.decode_bytes(png(samples, 16, colour_type, interlace=interlace))
    got = back.rgb if back.alpha is None else np.dstack([back.rgb, back.alpha])
    np.testing.assert_array_equal(got, samples)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_files_keep_icc_and_exif(suffix: str) -> None:
    original = picture(3, True, np.uint16, icc=SRGB, exif=exif_block())
    back = image.decode_bytes(image.encode_bytes(original, suffix))
    assert_same(back, original)
    assert back.icc == SRGB
    assert parsed(back.exif)[0x010F] == "Maker"


@pytest.mark.parametrize(("suffix", "missing"), [(".png", "cv2"), (".tif", "tifffile")])
def test_without_the_extra_16_bits_are_refused_with_the_remedy(
    suffix: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour = image.encode_bytes(picture(3, False, np.uint16), suffix)
    grey = image.encode_bytes(picture(1, False, np.uint16), suffix)
    monkeypatch.setitem(sys.modules, missing, None)
    assert how_to_install("depth16") in refusal(colour)
    assert image.decode_bytes(grey).bits == 16  # plain grey needs no extra


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".avif"])
def test_16_bits_are_never_reduced_by_writing(suffix: str) -> None:
    with pytest.raises(ImageError, match=r"cannot hold 16 bits per channel; write \.png or \.tif"):
        image.encode_bytes(picture(3, False, np.uint16), suffix)


# ---- metadata ----


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
    grey = tiff(stored[..., 0], photometric="minisblack", extratags=tag)
    np.testing.assert_array_equal(image.decode_bytes(grey).rgb[..., 0], stored[..., 0].reshape(-1)[order])


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


def test_a_profile_for_other_colours_is_dropped() -> None:
    grey, colour = Image.fromarray(smooth()[..., 0]), Image.fromarray(smooth())
    assert image.decode_bytes(saved(grey, "PNG", icc_profile=GREY_PROFILE)).icc == GREY_PROFILE
    assert image.decode_bytes(saved(grey, "PNG", icc_profile=SRGB)).icc is None
    assert image.decode_bytes(saved(colour, "JPEG", icc_profile=GREY_PROFILE)).icc is None
    assert image.decode_bytes(saved(colour, "JPEG", icc_profile=b"rubbish")).icc is None


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


# ---- refusals ----


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


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("colours", [1, 3])
def test_truncated_16_bit_pictures_are_refused(suffix: str, colours: int) -> None:
    whole = image.encode_bytes(Picture(noise(64, 64, colours, dtype=np.uint16)), suffix)
    assert "truncated" in refusal(whole[: len(whole) // 2])


def test_a_16_bit_png_with_half_a_stream_is_refused() -> None:
    stream = zlib.compress(noise(64, 64 * 6 + 1).tobytes())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0))
    half = chunk(b"IDAT", stream[: len(stream) // 2]) + chunk(b"IEND", b"")
    assert "truncated" in refusal(b"\x89PNG\r\n\x1a\n" + header + half)


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
    assert "megapixels" in refusal(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))


def test_pillows_own_limit_is_neither_asked_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in (".png", ".jpg", ".bmp"):
        image.decode_bytes(image.encode_bytes(Picture(smooth()), suffix))
    assert Image.MAX_IMAGE_PIXELS == 100


def samples_of_every_format() -> dict[str, bytes]:
    exif = exif_block(6)
    files = {f"rgb{suffix}": image.encode_bytes(picture(3, False, np.uint8, exif=exif), suffix) for suffix in SUFFIXES}
    for suffix in (".png", ".tif"):
        for colours in (1, 3):
            deep = picture(colours, True, np.uint16, exif=exif, icc=SRGB[:200] if colours == 3 else None)
            files[f"16 bit {colours}{suffix}"] = image.encode_bytes(deep, suffix)
    im = Image.fromarray(noise(H, W, 3))
    files["gif"] = saved(im.quantize(16), "GIF", transparency=3)
    files["palette"] = saved(im.quantize(16), "PNG", transparency=3)
    files["cmyk"] = saved(im.convert("CMYK"), "JPEG")
    files["lossless webp"] = saved(im, "WEBP", lossless=True)
    files["lzw"] = saved(im, "TIFF", compression="tiff_lzw")
    files["big tiff"] = tiff(noise(H, W, 3, dtype=np.uint16), photometric="rgb", bigtiff=True, tile=(16, 16))
    return files


@pytest.mark.parametrize("name", samples_of_every_format())
def test_damage_gives_a_picture_or_one_line(name: str) -> None:
    rng, whole = np.random.default_rng(0), samples_of_every_format()[name]
    for _ in range(40):
        data = bytearray(whole)
        if rng.random() < 0.3:
            del data[rng.integers(1, len(data)) :]
        for _ in range(rng.integers(0, 4)):
            data[rng.integers(0, min(len(data), 250 if rng.random() < 0.5 else 1 << 30))] = rng.integers(0, 256)
        reason = ""
        try:
            image.decode_bytes(bytes(data))
        except ImageError as error:
            reason = str(error)
        assert "\n" not in reason


def test_no_warning_filter_is_left_behind() -> None:
    before = list(warnings.filters)
    image.decode_bytes(saved(Image.fromarray(smooth()), "JPEG", exif=exif_block()[:40]))
    assert list(warnings.filters) == before


# ---- writing ----


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_refused_where_there_is_none(suffix: str) -> None:
    with pytest.raises(ImageError, match="cannot hold transparency; write"):
        image.encode_bytes(picture(3, True, np.uint8), suffix)


def test_bad_names_options_and_sizes_are_refused() -> None:
    small = Picture(smooth())
    with pytest.raises(ImageError, match="cannot write"):
        image.encode_bytes(small, ".gif")
    with pytest.raises(ImageError, match="a name without suffix"):
        image.encode_bytes(small, "")
    with pytest.raises(OptionError, match="quality 0"):
        image.encode_bytes(small, ".jpg", quality=0)
    with pytest.raises(ImageError, match="at most 16383 pixels"):
        image.encode_bytes(Picture(np.zeros((1, 16384, 3), np.uint8)), ".webp")
    for rgb, alpha in [(np.zeros((4, 4)), None), (np.zeros((4, 4, 3)), None), (smooth(), smooth()[..., 0] / 1.0)]:
        with pytest.raises(ValueError, match=r"rgb|alpha"):
            Picture(rgb, alpha)


def test_write_makes_parents_replaces_and_leaves_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / ("n" * 250 + ".png")
    image.write(target, Picture(smooth()))
    image.write(target, picture(1, True, np.uint8))
    assert_same(image.read(target), picture(1, True, np.uint8))
    assert os.listdir(target.parent) == [target.name]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_write_follows_a_link_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("real.png")
    image.write(tmp_path / "link.png", Picture(smooth()))
    assert (tmp_path / "link.png").is_symlink()
    assert image.read(tmp_path / "real.png").size == (64, 48)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failed_write_leaves_the_old_file(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ImageError, match="; "):
        image.write(tmp_path / "a.png", Picture(smooth()))
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        image.write(tmp_path / "a.png", Picture(smooth()))
    assert not os.listdir(tmp_path)


def test_impossible_targets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "file/a.png": "is a file",
        "folder.png": "a folder has that name",
        "x" * 300 + ".png": "too long",
    }.items():
        with pytest.raises(ImageError, match=reason):
            image.write(tmp_path / name, Picture(smooth()))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_a_file_size_limit_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    script = """
        import resource, sys
        import numpy as np
        from nextscale.errors import ImageError
        from nextscale.image import Picture, write
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for name in ("a.png", "b.tif", "c.bmp"):
            try:
                write(f"{sys.argv[1]}/{name}", Picture(noise))
            except ImageError as error:
                print(error)
    """
    command = [sys.executable, "-B", "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stderr == ""
    assert done.stdout.count("the file would exceed the size limit; ") == 3
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


# ---- arrays ----


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_survives_the_floats(dtype: type) -> None:
    values: Array = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(-1, 1, 1)
    floats = image.to_float(values)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(image.from_float(floats, dtype), values)


def test_floats_are_clamped_and_rounded() -> None:
    floats = np.array([-9, -1, 0.0039, 1, 9], np.float32)
    assert image.from_float(floats, np.uint8).tolist() == [0, 0, 128, 255, 255]
    assert image.from_float(floats, np.uint16).tolist() == [0, 0, 32895, 65535, 65535]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bleed_leaves_no_halo(dtype: type) -> None:
    full = np.iinfo(dtype).max
    y, x = np.mgrid[:40, :50]
    alpha: Array = np.where((y - 20) ** 2 + (x - 25) ** 2 < 150, full, 0).astype(dtype)
    colour: Array = np.array([full, full // 2, 7], dtype)
    for background in (0, full):
        rgb: Array = np.where(alpha[..., None] > 0, colour, dtype(background)).astype(dtype)
        filled = image.bleed(rgb, alpha)
        assert np.ptp(filled.astype(int), axis=(0, 1)).max() == 0
        large = image.resize(filled, (200, 160), filter="lanczos")
        assert np.ptp(large.astype(int), axis=(0, 1)).max() == 0


def test_bleed_takes_the_nearest_colours_and_keeps_visible_pixels() -> None:
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
def test_bleed_stays_within_the_visible_colours(height: int, width: int, seed: int, dtype: type) -> None:
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
    filter: image.Filter, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    array = noise(30, 40, 2, dtype=np.uint16)
    monkeypatch.setattr(image, "_BAND_FLOATS", 150)
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


# ---- folders ----


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
