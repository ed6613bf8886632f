"""The parts of the server: how work is counted, names cleaned, maps painted, views cut."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale import UpscaleOptions
from nextscale import image as images
from nextscale.errors import OptionError
from nextscale.image import Picture
from nextscale.model.config import Ladder
from nextscale.upscale.plan import plan_work
from nextscale.web import views
from nextscale.web.guard import client_of
from nextscale.web.jobs import stem_of
from nextscale.web.limits import FIXED, Limits, RefusedError, option_names, options_of, planned_work

LADDER = Ladder()
PHONES = {"12": (4000, 3000), "48": (8064, 6048)}


def work(size: tuple[int, int], has_alpha: bool = False, scale: float = 4, **options: float) -> float:
    plan = plan_work(size, scale, LADDER.factors, tile=128, unit=LADDER.unit, overlap=24, alpha=has_alpha)
    return planned_work(plan, UpscaleOptions(scale=scale, **options), LADDER)  # type: ignore[arg-type]


def test_work_is_counted_in_tiles() -> None:
    assert work((128, 128)) == pytest.approx(1)
    assert work((128, 232)) == pytest.approx(2)
    assert work((130, 130)) == pytest.approx((144 / 128) ** 2)  # a tile that grew, not four
    assert work((128, 128), has_alpha=True) == pytest.approx(2)
    assert work((128, 128), fast=True) < work((128, 128), scale=1) < work((128, 128), scale=2) < 1
    assert work((128, 128), cfg=1) > 1.8
    # x8: a pass at x2, then one at x4 over the result.
    assert work((128, 128), scale=8) == pytest.approx(work((128, 128), scale=2) + work((256, 256)))


@pytest.mark.parametrize(("phone", "scale"), [("12", 1), ("12", 2), ("12", 4), ("48", 1), ("48", 2)])
def test_the_default_limits_take_photographs_of_telephones(phone: str, scale: float) -> None:
    limits = Limits()
    limits.check_size(PHONES[phone], scale)
    limits.check_work(work(PHONES[phone], scale=scale))


def test_more_than_that_is_refused_with_a_remedy() -> None:
    with pytest.raises(
        RefusedError, match="32256 x 24192 pixels is over the limit of 205 megapixels; choose a smaller"
    ):
        Limits().check_size(PHONES["48"], 4)
    with pytest.raises(RefusedError, match="the work of 9000 tiles, and 6000 are the limit"):
        Limits().check_work(9000)


def test_a_factor_between_native_ones_counts_by_what_it_holds() -> None:
    def held(scale: float) -> int:
        return plan_work((8000, 6000), scale, LADDER.factors, tile=128, unit=LADDER.unit, overlap=24).pixels

    Limits().check_size((8000, 6000), 2.05)  # the result itself fits
    with pytest.raises(
        RefusedError, match=r"x2\.05 the model first makes 768 megapixels, .*205 megapixels; choose x2 or a smaller"
    ):
        Limits().check_held(held(2.05), 2.05, LADDER.factors)
    Limits().check_held(held(2), 2, LADDER.factors)


def test_options_come_from_fields_by_their_types() -> None:
    given = options_of({"scale": "2.5", "seed": "7", "confidence": "1", "input_class": "clean", "fast": "false"})
    assert given == UpscaleOptions(scale=2.5, seed=7, confidence=True, input_class="clean", all_factors=True)
    assert options_of({}) == UpscaleOptions(all_factors=True)
    assert not set(option_names()) & set(FIXED)


@pytest.mark.parametrize(
    "fields",
    [{"tile": "8"}, {"color_fix": "blue"}, {"seed": "1e3"}, {"scale": "inf"}, {"x": "1"}]
    + [{name: "9" * digits} for name in ("seed", "top_k", "scale") for digits in (400, 5000)],
)
def test_other_fields_are_refused_by_name(fields: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=next(iter(fields)).replace("_", "[-_]")):
        options_of(fields)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("beach.jpg", "beach"),
        ("photos\\beach.day.JPG", "beach.day"),
        ("../../etc/passwd.png", "passwd"),
        ("a\r\nSet-Cookie: x.png", "aSet-Cookie x"),
        ('a"b<c>.png', "abc"),
        ("\u202egpj.exe.png", "gpj.exe"),
        ("...", "photograph"),
        ("", "photograph"),
        ("x" * 300 + ".png", "x" * 80),
    ],
)
def test_names_are_made_safe(name: str, stem: str) -> None:
    assert stem_of(name) == stem


@pytest.mark.parametrize(
    ("host", "client"),
    [("10.0.0.7", "10.0.0.7"), ("2001:db8::1", "2001:db8::/64"), ("::ffff:10.0.0.7", "10.0.0.7"), ("unix", "unix")],
)
def test_a_client_is_an_address_or_a_network_of_ipv6(host: str, client: str) -> None:
    assert client_of({"client": (host, 5)}) == client


def painted(
    values: np.ndarray[tuple[int, int], np.dtype[np.uint8]], factor: float = 1, *, is_error: bool = True
) -> Image.Image:
    return Image.open(io.BytesIO(views.overlay(values, factor, is_error=is_error))).convert("RGBA")


def test_the_overlay_has_more_color_where_the_error_is_larger() -> None:
    alpha = [painted(np.full((8, 8), level, np.uint8)).getpixel((0, 0)) for level in (0, 8, 14, 20, 26, 200)]
    opacity = [pixel[3] for pixel in alpha if isinstance(pixel, tuple)]
    assert opacity[:2] == [0, 0]
    assert opacity[1:5] == sorted(set(opacity[1:5]))
    assert opacity[4:] == [217, 217]
    sure = painted(np.array([[255, 60]], np.uint8), is_error=False)
    assert (sure.getpixel((0, 0))[3], sure.getpixel((1, 0))[3]) == (0, 217)  # type: ignore[index]


def test_the_overlay_is_no_larger_than_it_must_be() -> None:
    assert painted(np.zeros((40, 80), np.uint8), 4).size == (20, 10)
    assert painted(np.zeros((10, 9000), np.uint8)).size == (1800, 2)


def test_small_views_are_lossless_and_large_ones_are_not(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 2100, 3), dtype=np.uint8)
    view = views.write_view(tmp_path / "small", Picture(pixels))
    assert (view.width, view.height, view.levels, view.suffix) == (2100, 30, 3, "png")
    tiles = [images.read(tmp_path / "small" / f"0_{column}_0.png").rgb for column in range(3)]
    np.testing.assert_array_equal(np.concatenate(tiles, axis=1), pixels)
    assert images.read(tmp_path / "small" / "2_0_0.png").size == (525, 8)
    assert views.write_view(tmp_path / "large", Picture(np.zeros((2000, 2001, 1), np.uint8))).suffix == "jpg"


def test_sixteen_bits_become_eight_with_all_that_describes_them(tmp_path: Path) -> None:
    deep = Picture(np.full((4, 4, 3), 0x8080, np.uint16), dpi=(300.0, 300.0), xmp=b"<x:xmpmeta/>")
    images.write(tmp_path / "deep.png", deep)
    got = images.decode_bytes(views.convert(tmp_path / "deep.png", "webp"))
    assert (got.bits, got.xmp) == (8, deep.xmp)
    assert got.dpi == pytest.approx(deep.dpi, abs=0.01)
    assert abs(got.rgb.astype(int) - 0x80).max() <= 2


def test_hdr_is_offered_as_png_alone(tmp_path: Path) -> None:
    bright = Picture(np.full((4, 4, 3), 40_000, np.uint16), cicp=(9, 16))
    assert views.formats_of(bright) == ["png"]
    images.write(tmp_path / "bright.png", bright)
    with pytest.raises(RefusedError, match="JPEG cannot hold HDR"):
        views.convert(tmp_path / "bright.png", "jpg")


def test_a_preview_is_small() -> None:
    data = views.preview(Picture(np.zeros((50, 5000, 3), np.uint8)))
    assert max(images.decode_bytes(data).size) <= views.PREVIEW_SIDE
