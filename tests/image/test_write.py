"""Writing: what goes out comes back, whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale import image
from nextscale.errors import ImageError, OptionError
from nextscale.image import Picture
from nextscale.install import how_to_install
from tests.image.pictures import (
    GRAY_PROFILE,
    SRGB,
    H,
    W,
    assert_same,
    cv2,
    exif_block,
    noise,
    parsed,
    picture,
    refusal,
    smooth,
    tifffile,
)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_png_and_tiff_keep_every_sample(suffix: str, dtype: type, colors: int, alpha: bool, tmp_path: Path) -> None:
    original = picture(colors, alpha, dtype)
    image.write(tmp_path / f"a{suffix}", original)
    back = image.read(tmp_path / f"a{suffix}")
    assert_same(back, original)
    assert (back.size, back.bits, back.is_gray) == ((W, H), 8 * np.dtype(dtype).itemsize, colors == 1)
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


@pytest.mark.parametrize("colors", [1, 3])
def test_bmp_is_exact(colors: int) -> None:
    original = picture(colors, False, np.uint8)
    assert_same(image.decode_bytes(image.encode_bytes(original, ".bmp")), original)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".avif"])
def test_lossy_formats_are_near_and_say_so(suffix: str) -> None:
    back = image.decode_bytes(image.encode_bytes(Picture(smooth()), suffix))
    assert np.abs(back.rgb.astype(int) - smooth()).mean() < 2
    assert not back.lossless


def test_jpeg_keeps_gray_and_full_color_resolution() -> None:
    gray = Picture(smooth()[..., :1])
    assert image.decode_bytes(image.encode_bytes(gray, ".jpg")).is_gray
    colored = Image.open(io.BytesIO(image.encode_bytes(Picture(smooth()), ".jpg")))
    assert [layer[1:3] for layer in colored.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".webp", ".avif"])
def test_gray_becomes_rgb_where_the_format_has_no_gray(suffix: str) -> None:
    gray = dataclasses.replace(picture(1, True, np.uint8), icc=GRAY_PROFILE)
    back = image.decode_bytes(image.encode_bytes(gray, suffix, quality=100))
    assert back.rgb.shape == (H, W, 3)
    assert back.alpha is not None
    assert back.icc is None


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".avif"])
def test_16_bits_are_never_reduced_by_writing(suffix: str) -> None:
    with pytest.raises(ImageError, match=r"cannot hold 16 bits per channel; write \.png or \.tif"):
        image.encode_bytes(picture(3, False, np.uint16), suffix)


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
    color = image.encode_bytes(picture(3, False, np.uint16), suffix)
    gray = image.encode_bytes(picture(1, False, np.uint16), suffix)
    monkeypatch.setitem(sys.modules, missing, None)
    assert how_to_install("depth16") in refusal(color)
    assert image.decode_bytes(gray).bits == 16  # plain gray needs no extra


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("colors", [1, 3])
def test_truncated_16_bit_pictures_are_refused(suffix: str, colors: int) -> None:
    whole = image.encode_bytes(Picture(noise(64, 64, colors, dtype=np.uint16)), suffix)
    assert "truncated" in refusal(whole[: len(whole) // 2])


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
