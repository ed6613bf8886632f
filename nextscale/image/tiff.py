"""TIFF: its directory is read here, its pixels by Pillow (8 bits) or tifffile (16 bits)."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Final

import numpy as np
from PIL import TiffImagePlugin

from nextscale.errors import ImageError
from nextscale.image.extras import by_opencv, extra
from nextscale.image.guard import MAX_RATIO, TRUNCATED, check_size
from nextscale.image.metadata import ORIENTATION, exif_to_write, parse_exif, read_exif
from nextscale.image.picture import Array, Picture, icc_fits, stacked, upright
from nextscale.image.pillow import open_by_pillow, samples_of

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SPP, _STRIP_ROWS = 256, 257, 258, 259, 262, 273, 277, 278
_PLANAR, _TILE_WIDTH, _TILE_HEIGHT = 284, 322, 323
_STRIP_BYTES, _PREDICTOR, _TILES, _TILE_BYTES, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _ICC = (
    279,
    317,
    324,
    325,
    338,
    339,
    34675,
)
_TIFF_TYPES: Final = {1: "B", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TIFF_LOSSY: Final = (6, 7, 33003, 33005, 34712, 34892, 50001)  # JPEG of two kinds, JPEG 2000, lossy DNG, WebP
_TIFF_COLOURS: Final = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
Tags = dict[int, tuple[Any, ...]]


def _tiff_pages(data: bytes) -> list[Tags]:
    """The tags of every page (integers and bytes only), of plain and big TIFF in both byte orders."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count_format, entry, word = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    width = struct.calcsize(word)
    (at,) = struct.unpack_from(word, data, 8 if big else 4)
    pages: list[Tags] = []
    seen: set[int] = set()
    while at and at not in seen and len(pages) < 1000:
        seen.add(at)
        if at + 8 > len(data):
            raise ImageError(TRUNCATED)
        (entries,) = struct.unpack_from(count_format, data, at)
        at += struct.calcsize(count_format)
        if at + entries * entry + width > len(data):
            raise ImageError(TRUNCATED)
        tags: Tags = {}
        for start in range(at, at + entries * entry, entry):
            tag, kind, count = struct.unpack_from(order + "HH" + word[1], data, start)
            size = count * struct.calcsize(_TIFF_TYPES.get(kind, "0s"))
            where = start + 4 + width
            if size > width:
                (where,) = struct.unpack_from(word, data, where)
            if kind in _TIFF_TYPES and count and where + size <= len(data):
                tags[tag] = struct.unpack_from(f"{order}{count}{_TIFF_TYPES[kind]}", data, where)
        pages.append(tags)
        (at,) = struct.unpack_from(word, data, at + entries * entry)
    return pages


def _is_thumbnail(tags: Tags) -> bool:
    return bool(tags.get(254, (0,))[0] & 5) or tags.get(255, (1,))[0] == 2


def decode_tiff(data: bytes, max_pixels: int) -> Picture:
    pages = _tiff_pages(data)
    full = [tags for tags in pages if not _is_thumbnail(tags)]
    if not full or full[0] is not pages[0] or 0xC612 in pages[0]:
        raise ImageError("this is a camera raw file or holds only a thumbnail; develop it to a plain TIFF or PNG")
    if len(full) > 1:
        raise ImageError(f"this TIFF holds {len(full)} pages; save each page as a file of its own")
    tags = full[0]
    _check_tiff(tags, len(data), max_pixels)
    icc = tags[_ICC][0] if _ICC in tags and isinstance(tags[_ICC][0], bytes) else None
    _, exif = read_exif(lambda: parse_exif(data))
    orientation = tags.get(ORIENTATION, (1,))[0]
    lossless = tags.get(_COMPRESSION, (1,))[0] not in _TIFF_LOSSY
    if tags.get(_BITS, (1,))[0] == 16 and (tags.get(_SPP, (1,))[0], tags.get(_PHOTOMETRIC, (1,))[0]) != (1, 1):
        rgb, alpha, icc = _tiff16(data, tags, icc)
    else:
        im = open_by_pillow("TIFF", data, max_pixels)
        im.load()
        rgb, alpha, icc = samples_of(im, icc)
        # Pillow turns a TIFF upright as it loads it, and then forgets the tag.
        orientation, _ = read_exif(im.getexif)
    return upright(rgb, alpha, orientation, icc, exif, lossless, "TIFF")


def _check_tiff(tags: Tags, length: int, max_pixels: int) -> None:
    """Refuse by name what would be reduced or misread: floats, other depths, missing pixels, huge sizes."""
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise ImageError("the file is damaged (no size); save it again as PNG or TIFF")
    check_size((tags[_WIDTH][0], tags[_HEIGHT][0]), max_pixels)
    bits = tags.get(_BITS, (1,))
    number = {2: "signed", 3: "floating-point"}.get(tags.get(_SAMPLE_FORMAT, (1,))[0])
    if number or len(set(bits)) > 1 or bits[0] not in (1, 2, 4, 8, 16):
        depth = "/".join(str(bit) for bit in sorted(set(bits)))
        kind = f"{depth}-bit {number}" if number else f"{depth}-bit"
        raise ImageError(f"{kind} TIFF is not read; save it with 8 or 16 bits per channel, unsigned")
    _check_tiff_data(tags, length)


def _check_tiff_data(tags: Tags, length: int) -> None:
    """Every strip or tile must lie in the file and hold something: decoders fill what is missing with black."""
    (width,), (height,), planes = tags[_WIDTH][:1], tags[_HEIGHT][:1], 1
    samples, depth = tags.get(_SPP, (1,))[0], tags.get(_BITS, (1,))[0]
    if tags.get(_PLANAR, (1,))[0] == 2:
        planes = samples
    if _TILES in tags:
        across, down = tags.get(_TILE_WIDTH, (0,))[0], tags.get(_TILE_HEIGHT, (0,))[0]
        offsets, counts = tags[_TILES], tags.get(_TILE_BYTES)
    else:
        across, down = width, min(tags.get(_STRIP_ROWS, (height,))[0], height)
        offsets, counts = tags.get(_STRIPS, ()), tags.get(_STRIP_BYTES)
    if not (across and down) or len(offsets) < -(-width // across) * -(-height // down) * planes:
        raise ImageError("the file is damaged (pixels are missing); copy or download it again")
    if counts is None:
        counts = (length - min(offsets),)
    if min(counts) <= 0 or max(at + size for at, size in zip(offsets, counts, strict=False)) > length:
        raise ImageError(TRUNCATED)
    ratio = MAX_RATIO.get(tags.get(_COMPRESSION, (1,))[0])
    is_subsampled = tags.get(_PHOTOMETRIC, (1,))[0] == 6
    if ratio and not is_subsampled and width * height * samples * depth // 8 > sum(counts) * ratio:
        raise ImageError(TRUNCATED)


def _tiff16(data: bytes, tags: Tags, icc: bytes | None) -> tuple[Array, Array | None, bytes | None]:
    """16-bit pixels by tifffile; LZW, which it cannot do alone, by OpenCV. (Pillow does plain grey and only that.)"""
    photometric, samples = tags.get(_PHOTOMETRIC, (1,))[0], tags.get(_SPP, (1,))[0]
    colours = {0: 1, 1: 1, 2: 3}.get(photometric, 0)
    if not colours or samples < colours:
        kind = _TIFF_COLOURS.get(photometric, "this kind of")
        raise ImageError(f"16-bit {kind} TIFF with {samples} channels is not read; convert it to 16-bit RGB first")
    values = _tiff16_by_tifffile(data, tags, samples)
    if values.shape != (tags[_HEIGHT][0], tags[_WIDTH][0], samples):
        raise ImageError("16-bit samples are laid out in a rare way; save it again as a plain 16-bit PNG")
    if photometric == 0:
        values = np.concatenate([65535 - values[..., :1], values[..., 1:]], axis=2)
    rgb, alpha, extra = values[..., :colours], None, tags.get(_EXTRA_SAMPLES, (2,) * (samples - colours))
    if samples > colours and extra and extra[0] != 0:
        alpha = np.ascontiguousarray(values[..., colours])
        if extra[0] == 1:
            rgb = _unpremultiply(rgb, alpha)
    return np.ascontiguousarray(rgb), alpha, icc if icc_fits(icc, colours) else None


def _tiff16_by_tifffile(data: bytes, tags: Tags, samples: int) -> Array:
    tifffile = extra("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        try:
            values: Array = page.asarray()
        except (ValueError, RuntimeError) as error:
            if "imagecodecs" not in str(error):
                raise
            if samples not in (1, 3, 4) or page.planarconfig != 1:
                raise ImageError("this compression is not read; save it uncompressed or with Deflate") from None
            return by_opencv(extra("cv2"), data, (tags[_WIDTH][0], tags[_HEIGHT][0]), samples)
        if samples > 1 and page.planarconfig == 2:
            values = np.moveaxis(values, 0, -1)
    values = values.reshape(*values.shape[:2], -1)
    if values.dtype != np.uint16:
        raise ImageError("16-bit samples are laid out in a rare way; save it again as a plain 16-bit PNG")
    return values


def _unpremultiply(rgb: Array, alpha: Array) -> Array:
    """uint16 H W C that was stored times alpha -> its own colour; black where alpha is 0."""
    divisor = np.maximum(alpha, 1)[..., None].astype(np.uint64)
    whole = (rgb.astype(np.uint64) * 65535 + divisor // 2) // divisor
    return np.where(alpha[..., None] == 0, 0, np.minimum(whole, 65535)).astype(np.uint16)


def encode_tiff(picture: Picture) -> bytes:
    """Strips of Deflate over differences from the left pixel; the directory and its EXIF by Pillow."""
    samples = stacked(picture).astype(picture.rgb.dtype.newbyteorder("<"), copy=False)
    height, width, channels = samples.shape
    rows = max(1, (1 << 20) // (width * channels * samples.itemsize))
    strips = []
    for top in range(0, height, rows):
        band = samples[top : top + rows].copy()
        band[:, 1:] -= samples[top : top + rows, :-1]
        strips.append(zlib.compress(band.tobytes(), 6))
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    exif = exif_to_write(picture)
    for tag, value in exif.items() if exif is not None else ():
        directory[tag] = value
    directory[_WIDTH], directory[_HEIGHT] = width, height
    directory[_BITS] = (samples.itemsize * 8,) * channels
    directory[_COMPRESSION], directory[_PREDICTOR] = 8, 2
    directory[_PHOTOMETRIC] = 1 if picture.is_grey else 2
    directory[_SPP], directory[_STRIP_ROWS] = channels, min(rows, height)
    if picture.alpha is not None:
        directory[_EXTRA_SAMPLES] = 2
    if picture.icc is not None and icc_fits(picture.icc, picture.rgb.shape[2]):
        directory.tagtype[_ICC] = 7
        directory[_ICC] = picture.icc
    ends = np.cumsum([0, *map(len, strips)])
    if ends[-1] > 0xF0000000:
        raise ImageError("the file would exceed the 4 GB of a TIFF; write .png")
    directory.tagtype[_STRIPS] = directory.tagtype[_STRIP_BYTES] = 4
    directory[_STRIPS] = tuple(ends[:-1].tolist())  # Pillow adds where the directory ends
    directory[_STRIP_BYTES] = tuple(map(len, strips))
    return b"".join([b"II*\0\x08\0\0\0", directory.tobytes(8), *strips])
