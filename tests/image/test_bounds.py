"""Time and memory of any file are bounded by its bytes and pixels, and a stream that ends early is no picture.

No clock is read: work is counted in bytes that reach a decoder, memory by tracemalloc.
"""

from __future__ import annotations

import functools
import io
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale import image
from nextscale.image import Array, Picture
from nextscale.image.avif import MAX_ITEMS_BYTES
from nextscale.image.directory import MAX_ENTRIES
from nextscale.image.gif import lean_gif
from nextscale.image.guard import MAX_PROFILE
from nextscale.image.jpeg import MAX_SCANS, lean_jpeg, padded_scans
from nextscale.image.tiff import MAX_STRIPS
from tests.image.pictures import chunk, exif_block, noise, parsed, png, refusal, saved, smooth, tiff, tifffile

MIB = 1 << 20


@functools.cache
def packed_zeros(count: int) -> bytes:
    return zlib.compress(bytes(count))


def peak_of(action: Callable[[], object]) -> float:
    """The most memory, in MiB, that Python and numpy held during an action."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def hostile_exif(tags: int, size: int) -> bytes:
    """An EXIF block of many tags that all have the same bytes for their value."""
    maker = struct.pack("<HHI4s", 0x010F, 2, 4, b"abc\0")
    entries = [maker, *(struct.pack("<HHII", 0x9000 + number, 7, size, 8) for number in range(tags))]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8 + size) + bytes(size) + directory


# ---- TIFF ----


def tiff_of_tags(tags: int, count: int) -> bytes:
    """8 x 8 gray pixels and tags of that many bytes each, which all lie at the same place."""
    whole = bytearray(tiff(noise(8, 8), photometric="minisblack", byteorder="<"))
    (at,) = struct.unpack_from("<I", whole, 4)
    (number,) = struct.unpack_from("<H", whole, at)
    entries = bytes(whole[at + 2 : at + 2 + 12 * number])
    where = len(whole)
    whole += bytes(count)
    more = b"".join(struct.pack("<HHII", 50000 + tag, 1, count, where) for tag in range(tags))
    struct.pack_into("<I", whole, 4, len(whole))
    return bytes(whole + struct.pack("<H", number + tags) + entries + more + bytes(4))


def test_tags_that_share_their_bytes_take_no_memory() -> None:
    data = tiff_of_tags(600, 1_000_000)
    pictures: list[Picture] = []
    assert peak_of(lambda: pictures.append(image.decode_bytes(data))) < 4
    np.testing.assert_array_equal(pictures[0].rgb[..., 0], noise(8, 8))


def test_a_directory_over_the_limit_is_refused() -> None:
    assert f"over the limit of {MAX_ENTRIES}" in refusal(tiff_of_tags(MAX_ENTRIES, 10))


def test_a_tag_in_use_with_too_many_values_is_refused() -> None:
    whole = tiff(noise(8, 8), photometric="minisblack", byteorder="<")
    at = whole.index(struct.pack("<HHI", 258, 3, 1))
    many = whole[:at] + struct.pack("<HHII", 258, 3, 100_000, 0) + whole[at + 12 :] + bytes(200_000)
    assert "more than a picture needs" in refusal(many)


def test_strips_that_share_their_bytes_are_refused() -> None:
    strip = zlib.compress(bytes(64 * 64))
    out = io.BytesIO()
    with tifffile.TiffWriter(out, byteorder="<") as writer:
        writer.write(np.zeros((64, 64), np.uint8), photometric="minisblack", rowsperstrip=1)
    whole = bytearray(out.getvalue() + strip)
    page = tifffile.TiffFile(io.BytesIO(bytes(whole))).pages[0]
    for tag, value in ((273, page.dataoffsets[0]), (279, len(whole) // 8)):
        entry = page.tags[tag]
        kind = {3: "H", 4: "I"}[int(entry.dtype)]
        struct.pack_into(f"<64{kind}", whole, entry.valueoffset, *[value] * 64)
    assert "overlap" in refusal(bytes(whole))


def test_a_chain_of_directories_ends() -> None:
    """Every directory leads to the next; the file has more of them than anybody's patience."""
    whole = tiff(noise(8, 8), photometric="minisblack", byteorder="<")
    (at,) = struct.unpack_from("<I", whole, 4)
    (number,) = struct.unpack_from("<H", whole, at)
    directory = whole[at : at + 2 + 12 * number]
    links = b"".join(directory + struct.pack("<I", len(whole) + (i + 1) * (len(directory) + 4)) for i in range(3000))
    data = whole[:4] + struct.pack("<I", len(whole)) + whole[8:] + links
    assert "100 or more pages" in refusal(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_strip_that_ends_early_is_refused(dtype: type) -> None:
    samples = noise(64, 64, 3, dtype=dtype)
    whole = bytearray(tiff(samples, photometric="rgb", compression="zlib"))
    page = tifffile.TiffFile(io.BytesIO(bytes(whole))).pages[0]
    third = zlib.compress(samples.tobytes()[: samples.nbytes // 3])
    whole[page.dataoffsets[0] : page.dataoffsets[0] + len(third)] = third
    refusal(bytes(whole))


# ---- JPEG ----


def with_scans(number: int) -> bytes:
    """A progressive JPEG whose first scan comes that many times more, which changes nothing."""
    whole = saved(Image.fromarray(smooth()), "JPEG", progressive=True)
    first = whole.index(b"\xff\xda")
    end = whole.index(b"\xff\xc4", first)
    return whole[:end] + whole[first:end] * number + whole[end:]


def test_scans_are_counted_before_any_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert image.decode_bytes(with_scans(50)).size == (64, 48)
    many = with_scans(1000)
    monkeypatch.setattr(Image.Image, "load", None)  # whoever decodes now fails
    assert f"over {MAX_SCANS} scans" in refusal(many)


def test_a_jpeg_of_fewer_bits_than_blocks_is_refused() -> None:
    whole = bytearray(saved(Image.fromarray(smooth()), "JPEG"))
    at = whole.index(b"\xff\xc0")
    struct.pack_into(">HH", whole, at + 5, 20000, 20000)
    assert "truncated" in refusal(bytes(whole))


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}, {"subsampling": 2}])
def test_a_jpeg_whose_pixels_end_early_is_refused(options: dict[str, Any]) -> None:
    for bottom in (noise(64, 64, 3)[32:], np.full((32, 64, 3), 255, np.uint8)):
        pixels = np.concatenate([noise(32, 64, 3), bottom])
        whole = saved(Image.fromarray(pixels), "JPEG", quality=90, **options)
        assert image.decode_bytes(whole).size == (64, 64)
        start = whole.index(b"\xff\xda")
        assert "truncated" in refusal(whole[: start + (len(whole) - start) // 3] + b"\xff\xd9")


def test_a_scan_that_ends_early_is_refused_wherever_it_is() -> None:
    pixels = np.concatenate([noise(64, 64, 3), np.full((32, 64, 3), 255, np.uint8)])
    whole = saved(Image.fromarray(pixels), "JPEG", progressive=True, quality=90)
    assert image.decode_bytes(whole).size == (64, 96)
    padded, number = padded_scans(whole, b"padding")
    assert number == whole.count(b"\xff\xda") > 5
    ends = [found.start() - 7 * turn for turn, found in enumerate(re.finditer(b"padding", padded))]
    starts = [found.start() for found in re.finditer(b"\xff\xda", whole)]
    for start, end in zip(starts, ends, strict=True):
        assert "truncated" in refusal(whole[: start + (end - start) // 2] + whole[end:])


def test_arithmetic_codes_may_end_early() -> None:
    whole = saved(Image.fromarray(smooth()), "JPEG", progressive=True)
    assert padded_scans(whole.replace(b"\xff\xc2", b"\xff\xca"), b"x") == (whole.replace(b"\xff\xc2", b"\xff\xca"), 0)


def test_a_jpeg_loses_the_segments_that_say_nothing() -> None:
    whole = saved(Image.fromarray(smooth()), "JPEG", exif=exif_block())
    comment = b"\xff\xfe" + struct.pack(">H", 60000) + bytes(59998)
    lean = lean_jpeg(whole[:2] + comment * 20 + whole[2:] + b"behind it" * 1000)
    assert len(lean) == len(whole)
    assert image.decode_bytes(lean).exif is not None


# ---- PNG ----


@pytest.mark.parametrize(("depth", "color_type"), [(8, 2), (16, 0), (16, 2), (1, 0), (8, 3)])
@pytest.mark.parametrize("interlace", [0, 1])
def test_a_png_stops_at_the_size_in_its_header(depth: int, color_type: int, interlace: int) -> None:
    header = struct.pack(">IIBBBBB", 16, 16, depth, color_type, 0, 0, interlace)
    palette = chunk(b"PLTE", bytes(6)) if color_type == 3 else b""
    stream = packed_zeros(100 * MIB)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    pictures: list[Picture] = []
    assert peak_of(lambda: pictures.append(image.decode_bytes(data))) < 1
    assert pictures[0].size == (16, 16)
    assert not pictures[0].rgb.any()


@pytest.mark.parametrize("color_type", [0, 2])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_whose_stream_ends_early_is_refused(depth: int, color_type: int) -> None:
    """A whole stream with a right checksum, of rows for a part of the picture: no rows are invented."""
    dtype = np.uint16 if depth == 16 else np.uint8
    whole = png(noise(24, 24, 3 if color_type else 1, dtype=dtype), depth, color_type)
    tall = chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 1000, depth, color_type, 0, 0, 0))
    assert "truncated" in refusal(whole[:8] + tall + whole[33:])
    taller = chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 2_097_172, depth, color_type, 0, 0, 0))
    assert "truncated" in refusal(whole[:8] + taller + whole[33:])


def test_a_stream_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that go into the inflater: the stream's, and a little again for every megabyte that comes out."""
    fed = 0

    class Inflater:
        def __init__(self) -> None:
            self.stream = real()

        def decompress(self, data: bytes, room: int) -> bytes:
            nonlocal fed
            fed += len(data)
            return self.stream.decompress(data, room)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    real = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", Inflater)
    for samples in (noise(500, 700, 3, dtype=np.uint16), np.zeros((2000, 2000, 3), np.uint16)):
        data = image.encode_bytes(Picture(samples), ".png")
        fed = 0
        assert image.decode_bytes(data).bits == 16
        assert fed <= len(data) + samples.nbytes // 16


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_long_texts_neither_damage_a_png_nor_are_unpacked(kind: bytes) -> None:
    packed = packed_zeros(100 * MIB)
    key = b"XML:com.adobe.xmp\0\1\0\0\0" if kind == b"iTXt" else b"Raw profile type exif\0\0"
    texts = chunk(kind, key + packed) + chunk(b"tEXt", b"workflow\0" + b"x" * 3_000_000)
    data = png(smooth(), 8, 2, texts)
    pictures: list[Picture] = []
    assert peak_of(lambda: pictures.append(image.decode_bytes(data))) < 60
    np.testing.assert_array_equal(pictures[0].rgb, smooth())
    assert len(pictures[0].texts[0][1]) == 3_000_009


# ---- the others ----


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_whose_tags_share_their_bytes_counts_as_absent(form: str) -> None:
    kept = image.decode_bytes(saved(Image.fromarray(smooth()), form, exif=hostile_exif(2, 20_000)))
    assert parsed(kept.exif)[0x010F] == "abc"
    picture = image.decode_bytes(saved(Image.fromarray(smooth()), form, exif=hostile_exif(900, 20_000)))
    assert (picture.size, picture.exif) == ((64, 48), None)


def test_tables_of_an_avif_are_bounded() -> None:
    whole = saved(Image.fromarray(smooth()), "AVIF")
    start = whole.index(b"meta") - 4
    size = int.from_bytes(whole[start : start + 4], "big")
    table = struct.pack(">I4s", 8 + MAX_ITEMS_BYTES, b"iloc") + bytes(MAX_ITEMS_BYTES)
    grown = whole[:start] + struct.pack(">I", size + len(table)) + whole[start + 4 : start + size] + table
    assert "over the limit" in refusal(grown + whole[start + size :])


def test_runs_of_a_bmp_cannot_skip_a_picture() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 20000, 20000, 1, 8, 1, 4, 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header + bytes(1024) + b"\0\2\xff\xff\0\1"
    assert "truncated" in refusal(data)


def test_a_gif_loses_its_comments_and_keeps_its_picture() -> None:
    whole = saved(Image.fromarray(smooth()).quantize(16), "GIF", transparency=3)
    at = whole.index(b"\x2c", 13 + (3 << ((whole[10] & 7) + 1)))
    comment = b"\x21\xfe" + (b"\xff" + b"x" * 255) * 10_000 + b"\0"
    lean = lean_gif(whole[:at] + comment + whole[at:])
    assert len(lean) <= len(whole)
    np.testing.assert_array_equal(image.decode_bytes(lean).rgb, image.decode_bytes(whole).rgb)


@pytest.mark.parametrize("form", ["WEBP", "AVIF", "GIF", "BMP"])
def test_formats_that_state_their_size_are_bounded_by_it(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is read and refused before any pixel is decoded."""
    data = saved(Image.fromarray(noise(40, 50)), form)
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert "50 x 40 pixels are over the limit" in refusal(data, max_pixels=1999)


def test_libraries_write_nothing_to_stderr(tmp_path: Path) -> None:
    """What libtiff, libpng, libjpeg and libavif find wrong is raised; a process that reads damaged files is silent."""
    rng = np.random.default_rng(0)
    deep: Array = noise(40, 40, 3, dtype=np.uint16)
    files = [saved(Image.fromarray(noise(40, 40, 3)), "TIFF", compression=c) for c in ("tiff_lzw", "jpeg", "packbits")]
    files += [image.encode_bytes(Picture(deep), suffix) for suffix in (".png", ".tif")]
    files += [saved(Image.fromarray(noise(40, 40, 3)), form) for form in ("JPEG", "AVIF", "WEBP")]
    for number, whole in enumerate(files):
        for turn in range(6):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 3 * turn):
                data[at] = rng.integers(0, 256)
            (tmp_path / f"{number}_{turn}").write_bytes(data)
    script = "import sys, pathlib\nfrom nextscale import image\nfrom nextscale.errors import ImageError\n"
    script += "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
    script += "    try:\n        image.read(path)\n    except ImageError:\n        print('refused')\n"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("refused") > 10
    assert done.stderr == ""


def test_the_limits_that_are_documented_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    limits = (image.MAX_PIXELS, MAX_SCANS, MAX_ENTRIES, MAX_STRIPS, MAX_ITEMS_BYTES, MAX_PROFILE)
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")][2:]
    assert [int("".join(filter(str.isdigit, row))) for row in rows] == list(limits)
