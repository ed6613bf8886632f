"""What describes a picture is kept, converted or refused by name: the table of docs/formats.md, line by line."""

from __future__ import annotations

import dataclasses
import io
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from nextscale import image
from nextscale.errors import ImageError
from nextscale.image import Array, Picture
from nextscale.image.avif import depth_of
from nextscale.install import how_to_install
from tests.image.pictures import (
    SRGB,
    chunk,
    cv2,
    exif_block,
    noise,
    parsed,
    png,
    refusal,
    saved,
    smooth,
    tiff,
    tifffile,
)

P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
P3_RED = (0.515121, 0.241196, -0.001053)  # of Apple's Display P3.icc
EXACT = (".png", ".tif")
EVERY = (".png", ".jpg", ".webp", ".tif", ".avif", ".bmp")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="boat"/></x:xmpmeta>'


def chrm(values: tuple[float, ...] = P3) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in values)))


def through(picture: Picture, suffix: str) -> Picture:
    return image.decode_bytes(image.encode_bytes(picture, suffix))


def red_of(icc: bytes | None) -> tuple[float, ...]:
    """X Y Z of a profile's red."""
    assert icc is not None
    red = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.red_colorant
    assert red is not None
    return red[0]


def as_srgb(icc: bytes | None, pixels: Array) -> Array:
    """Pixels with a profile as a color-managed program shows them on an sRGB screen."""
    assert icc is not None
    profile, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    shown = ImageCms.profileToProfile(Image.fromarray(pixels), profile, srgb, outputMode="RGB")
    assert shown is not None
    return np.array(shown)


# ---- print size ----


@pytest.mark.parametrize("suffix", EVERY)
def test_print_size_is_kept(suffix: str) -> None:
    back = through(Picture(smooth(), dpi=(300.0, 150.0)), suffix)
    assert back.dpi == pytest.approx((300, 150), rel=1e-4)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP"])
def test_print_size_is_read_as_others_write_it(form: str) -> None:
    data = saved(Image.fromarray(smooth()), form, dpi=(300, 300))
    assert image.decode_bytes(data).dpi == pytest.approx((300, 300), rel=1e-4)
    assert through(Picture(smooth()), {"JPEG": ".jpg", "TIFF": ".tif"}.get(form, f".{form.lower()}")).dpi is None


def test_print_size_turns_with_the_picture_and_reaches_others() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.decode_bytes(saved(Image.fromarray(smooth()), "JPEG", dpi=(300, 150), exif=exif))
    assert (turned.size, turned.dpi) == ((48, 64), (150, 300))
    stored = Image.fromarray(smooth())
    tiffs = [saved(stored, "TIFF", dpi=(300, 150), tiffinfo={274: number}) for number in (1, 3, 6)]
    turned_tiffs = [image.decode_bytes(data) for data in tiffs]
    assert [(t.size, t.dpi) for t in turned_tiffs] == [((64, 48), (300, 150))] * 2 + [((48, 64), (150, 300))]
    seen = Image.open(io.BytesIO(image.encode_bytes(turned, ".jpg")))
    assert seen.info["dpi"] == (150, 300)
    assert tifffile.TiffFile(io.BytesIO(image.encode_bytes(turned, ".tif"))).pages[0].tags[282].value == (150, 1)


@pytest.mark.parametrize("body", [struct.pack(">IIB", 300, 300, 0), struct.pack(">IIB", 0, 0, 1), b"short"])
def test_what_is_no_print_size_is_none(body: bytes) -> None:
    assert image.decode_bytes(png(smooth(), 8, 2, chunk(b"pHYs", body))).dpi is None


def test_exif_says_the_same_print_size() -> None:
    exif = Image.Exif()
    exif[0x011A], exif[0x011B], exif[0x0128] = 72, 72, 2
    back = through(Picture(smooth(), exif=exif.tobytes(), dpi=(300.0, 300.0)), ".jpg")
    assert parsed(back.exif)[0x011A] == 300


# ---- color ----


@pytest.mark.parametrize("suffix", [s for s in EVERY if s != ".bmp"])
@pytest.mark.parametrize("source", ["cHRM", "cICP"])
def test_display_p3_by_numbers_is_kept_in_every_format(suffix: str, source: str) -> None:
    said = chrm() if source == "cHRM" else chunk(b"cICP", bytes([12, 13, 0, 1]))
    picture = image.decode_bytes(png(smooth(), 8, 2, said))
    assert red_of(picture.icc) == pytest.approx(P3_RED, abs=2e-4)
    assert red_of(through(picture, suffix).icc) == pytest.approx(P3_RED, abs=2e-4)


def test_bmp_has_no_profile_so_the_pixels_take_on_srgb() -> None:
    picture = image.decode_bytes(png(smooth(), 8, 2, chrm()))
    np.testing.assert_array_equal(through(picture, ".bmp").rgb, as_srgb(picture.icc, smooth()))
    assert np.abs(through(picture, ".bmp").rgb.astype(int) - smooth()).max() > 10


def bmp_of(kind: bytes, corners: tuple[float, ...] = (0.0,) * 9, gamma: float = 0.0, profile: bytes = b"") -> bytes:
    """A BMP of version 5 with these colors in its header."""
    plain = saved(Image.fromarray(smooth()), "BMP")
    pixels = plain[54:]
    colors = (
        kind + struct.pack("<9i", *(round(x * 2**30) for x in corners)) + struct.pack("<3I", *[int(gamma * 65536)] * 3)
    )
    masks = bytes(16)
    about = struct.pack("<IIII", 4, 124 + len(pixels), len(profile), 0)
    header = struct.pack("<I", 124) + plain[18:54] + masks + colors + about
    assert len(header) == 124
    return b"BM" + struct.pack("<IHHI", 14 + 124 + len(pixels) + len(profile), 0, 0, 138) + header + pixels + profile


def test_colors_of_a_bmp_are_kept() -> None:
    assert image.decode_bytes(bmp_of(b"DEBM", profile=SRGB)).icc == SRGB
    for silent in (bmp_of(b"BGRs"), bmp_of(b"KNIL"), bmp_of(bytes(4)), bmp_of(b"DEBM")):
        assert image.decode_bytes(silent).icc is None
    xyz = (0.48657, 0.22897, 0.0, 0.26567, 0.69174, 0.04511, 0.19822, 0.07929, 1.04394)  # of Display P3
    picture = image.decode_bytes(bmp_of(bytes(4), xyz, 2.2))
    assert red_of(picture.icc) == pytest.approx(P3_RED, abs=1e-3)
    np.testing.assert_array_equal(picture.rgb, smooth())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_primaries_of_a_tiff_are_kept(order: Any, dtype: type) -> None:
    def with_primaries(chromaticities: tuple[float, ...]) -> bytes:
        numbers = [part for value in chromaticities for part in (round(value * 10_000), 10_000)]
        more = [(318, "2I", 2, tuple(numbers[:4]), True), (319, "2I", 6, tuple(numbers[4:]), True)]
        return tiff(noise(8, 9, 3, dtype=dtype), photometric="rgb", byteorder=order, extratags=more)

    assert red_of(image.decode_bytes(with_primaries(P3)).icc) == pytest.approx(P3_RED, abs=2e-4)
    assert image.decode_bytes(with_primaries((0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06))).icc is None


def test_the_table_of_the_docs_covers_every_format() -> None:
    """Both tables name the formats that are read, and no cell is left open."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    tables = [[[cell.strip() for cell in row.split("|")[1:-1]] for row in part.splitlines() if row.startswith("|")]
              for part in text.split("\n\n") if part.startswith("|")]  # fmt: skip
    formats = {*image.WRITE_FORMATS.values(), "GIF"}
    assert {row[0] for row in tables[0][2:]} == formats == set(tables[1][0][1:])
    for row in tables[1][2:]:
        assert len(row) == len(formats) + 1
        assert all(row), row[0]


def test_gamma_is_kept() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    linear = chunk(b"gAMA", struct.pack(">I", 100_000))
    gray, color = (image.decode_bytes(png(x, 8, kind, linear)) for x, kind in ((ramp, 0), (np.dstack([ramp] * 3), 2)))
    want = 255 * np.where(ramp / 255 <= 0.0031308, ramp / 255 * 12.92, 1.055 * (ramp / 255) ** (1 / 2.4) - 0.055)
    for icc, pixels in ((gray.icc, ramp), (color.icc, np.dstack([ramp] * 3))):
        shown = as_srgb(icc, pixels)[..., 1].astype(float)
        assert np.abs(shown - want)[ramp > 20].max() < 1.5


@pytest.mark.parametrize(
    "said",
    [
        b"",
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"gAMA", struct.pack(">I", 45455)) + chrm((0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)),
        chunk(b"sRGB", b"\0") + chrm(),
        chunk(b"cICP", bytes([1, 13, 0, 1])) + chrm(),
        chunk(b"gAMA", bytes(4)),
        chunk(b"gAMA", b"short"),
        chrm((0,) * 8),
        chrm((0.3, 0.3) * 4),
    ],
)
def test_numbers_for_srgb_or_for_nothing_are_no_profile(said: bytes) -> None:
    assert image.decode_bytes(png(smooth(), 8, 2, said)).icc is None


def test_a_profile_goes_before_numbers() -> None:
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(SRGB))
    assert image.decode_bytes(png(smooth(), 8, 2, chrm() + profile)).icc == SRGB


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
@pytest.mark.parametrize("depth", [8, 16])
def test_hdr_is_kept_in_png_and_refused_elsewhere(transfer: int, name: str, depth: int) -> None:
    samples = noise(8, 9, 3, dtype=np.uint16 if depth == 16 else np.uint8)
    picture = image.decode_bytes(png(samples, depth, 2, chunk(b"cICP", bytes([9, transfer, 0, 1]))))
    assert (picture.cicp, picture.icc) == ((9, transfer), None), name
    assert through(picture, ".png").cicp == (9, transfer)
    for suffix in EVERY[1:]:
        if depth == 8 or suffix == ".tif":
            with pytest.raises(ImageError, match=r"cannot hold HDR.*; write \.png"):
                image.encode_bytes(picture, suffix)


def test_unknown_numbers_are_refused() -> None:
    assert "not known" in refusal(png(smooth(), 8, 2, chunk(b"cICP", bytes([99, 13, 0, 1]))))
    assert "as video" in refusal(png(smooth(), 8, 2, chunk(b"cICP", bytes([1, 13, 0, 0]))))


def with_nclx(primaries: int, transfer: int) -> bytes:
    """An AVIF that states its colors in numbers."""
    whole = saved(Image.fromarray(smooth()), "AVIF")
    at = whole.index(b"nclx") + 4
    return whole[:at] + struct.pack(">HH", primaries, transfer) + whole[at + 4 :]


def test_colors_of_an_avif_in_numbers_are_kept() -> None:
    assert image.decode_bytes(with_nclx(1, 13)).icc is None
    assert image.decode_bytes(with_nclx(2, 2)).icc is None
    assert red_of(image.decode_bytes(with_nclx(12, 13)).icc) == pytest.approx(P3_RED, abs=2e-4)
    assert image.decode_bytes(with_nclx(9, 16)).cicp == (9, 16)


# ---- XMP and texts ----


@pytest.mark.parametrize("suffix", [s for s in EVERY if s != ".bmp"])
def test_xmp_is_kept_upright(suffix: str) -> None:
    assert through(Picture(smooth(), xmp=XMP), suffix).size == (48, 64)  # where EXIF is silent, XMP turns the picture
    upright = XMP.replace(b'"6"', b'"1"')
    back = through(Picture(smooth(), xmp=upright), suffix)
    assert (back.size, back.xmp) == ((64, 48), upright)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_xmp_is_read_as_others_write_it(form: str) -> None:
    options: dict[str, Any] = {"xmp": XMP}
    if form == "PNG":
        data = png(smooth(), 8, 2, chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP))
    elif form == "TIFF":
        data = tiff(smooth(), photometric="rgb", extratags=[(700, "B", len(XMP), XMP, True)])
    else:
        data = saved(Image.fromarray(smooth()), form, **options)
    assert image.decode_bytes(data).xmp == XMP.replace(b'"6"', b'"1"')


def test_xmp_of_parts_that_are_not_read_is_dropped() -> None:
    gain = XMP.replace(b"dc:title", b"hdrgm:Version")
    assert image.decode_bytes(saved(Image.fromarray(smooth()), "JPEG", xmp=gain)).xmp is None


def test_xmp_too_long_for_a_jpeg_is_no_reason_to_fail() -> None:
    long = XMP.replace(b"boat", b"boat" * 20_000)
    assert through(Picture(smooth(), xmp=long), ".jpg").xmp is None
    assert through(Picture(smooth(), xmp=long.replace(b'"6"', b'"1"')), ".png").xmp is not None


def test_texts_of_a_png_are_kept_in_a_png() -> None:
    workflow = (b"tEXt", b"workflow\0" + b"{}" * 1_000_000)
    picture = image.decode_bytes(png(smooth(), 8, 2, chunk(*workflow) + chunk(b"tEXt", b"Raw profile type iptc\0x")))
    assert picture.texts == (workflow,)
    assert through(picture, ".png").texts == (workflow,)
    assert through(picture, ".jpg").texts == ()


def test_everything_at_once_stays_readable_to_others() -> None:
    texts = ((b"tEXt", b"Title\0boat"),)
    full = Picture(
        smooth(), icc=SRGB, exif=exif_block(), dpi=(300.0, 300.0), xmp=XMP.replace(b'"6"', b'"1"'), texts=texts
    )
    for picture in (full, dataclasses.replace(full, rgb=noise(8, 8, 3, dtype=np.uint16))):
        seen = Image.open(io.BytesIO(image.encode_bytes(picture, ".png")))
        seen.load()
        assert seen.info["Title"] == "boat"
        assert seen.info["icc_profile"] == SRGB
        assert seen.info["xmp"] == picture.xmp
        assert seen.getexif()[0x010F] == "Maker"


# ---- depth ----


def deep_avif(depth: int, alpha: bool) -> bytes:
    """Levels of that many bits by OpenCV, lossless (quality 100, 4:4:4)."""
    levels = noise(64, 48, 4 if alpha else 3, dtype=np.uint16) >> (16 - depth)
    done, data = cv2.imencode(".avif", levels, [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 100])
    assert done
    return bytes(data)


@pytest.mark.parametrize("depth", [10, 12])
@pytest.mark.parametrize("alpha", [False, True])
def test_deep_avif_becomes_16_bits(depth: int, alpha: bool) -> None:
    data = deep_avif(depth, alpha)
    assert depth_of(data) == depth
    picture = image.decode_bytes(data)
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    full = (1 << depth) - 1
    assert picture.bits == 16
    want = np.rint(stored[..., 2::-1].astype(float) * 65535 / full)
    np.testing.assert_array_equal(picture.rgb, want)
    assert picture.rgb.max() > 60000
    assert len(np.unique(picture.rgb)) > 256
    if alpha:
        np.testing.assert_array_equal(picture.alpha, np.rint(stored[..., 3].astype(float) * 65535 / full))
    through(picture, ".png")


def test_deep_avif_without_the_extra_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    data = deep_avif(10, False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert how_to_install("depth16") in refusal(data)


@pytest.mark.parametrize(
    ("suffix", "size", "reason"),
    [
        (".avif", (32769, 10), "32768 pixels"),
        (".avif", (20000, 20000), "268 megapixels"),
        (".webp", (16384, 1), "16383"),
    ],
)
def test_limits_are_those_of_decoders(suffix: str, size: tuple[int, int], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        image.check_format(suffix, bits=8, has_alpha=False, size=size)


def test_the_largest_avif_can_be_read_back() -> None:
    wide = Picture(np.zeros((1, 32768, 3), np.uint8))
    assert through(wide, ".avif").size == (32768, 1)


def test_what_was_written_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that gives another size than it was asked for is found out."""
    other = saved(Image.new("RGB", (3, 4)), "JPEG")
    monkeypatch.setattr(Image.Image, "save", lambda _, file, *__, **___: file.write(other))
    with pytest.raises(ImageError, match="does not hold the picture"):
        image.encode_bytes(Picture(smooth()), ".jpg")


# ---- alpha ----


def test_unpremultiplying_is_exact_down_to_the_faintest_alpha() -> None:
    alphas: Array = np.array([0, 1, 2, 3, 5, 100, 255, 256, 32767, 65534, 65535], np.uint16)
    alpha = np.repeat(alphas[:, None], 50, axis=1)
    stored = np.minimum(noise(len(alphas), 50, 3, dtype=np.uint16), alpha[..., None])
    stored[:, 0], stored[:, 1] = 0, alpha[:, :1]
    data = tiff(np.dstack([stored, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    back = image.decode_bytes(data)
    np.testing.assert_array_equal(back.alpha, alpha)
    for (row, column, channel), value in np.ndenumerate(stored):
        exact = Fraction(int(value) * 65535, max(int(alphas[row]), 1)) + Fraction(1, 2)
        assert back.rgb[row, column, channel] == (exact.__floor__() if alphas[row] else 0)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_8_bit_premultiplied_tiff_gets_its_color_back_to_the_nearest(compression: str | None) -> None:
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    stored = np.minimum(noise(16, 16, 3), alpha[..., None])
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["assocalpha"], "compression": compression}
    back = image.decode_bytes(tiff(np.dstack([stored, alpha]), **options))
    want = np.floor(stored.astype(float) * 255 / np.maximum(alpha, 1)[..., None] + 0.5)
    np.testing.assert_array_equal(back.rgb, np.where(alpha[..., None] == 0, 0, want))
    np.testing.assert_array_equal(back.alpha, alpha)
