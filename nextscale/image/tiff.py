"""TIFF: its directory is read here, its pixels by Pillow (8 bits) or tifffile (16 bits)."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Final

import numpy as np
from PIL import ImageFile, TiffImagePlugin

from nextscale.errors import ImageError
from nextscale.image.color import from_png_numbers
from nextscale.image.directory import Entry, Layout, sound_directories
from nextscale.image.extras import by_opencv, extra
from nextscale.image.guard import MAX_PROFILE, MAX_RATIO, RARE_LAYOUT, TRUNCATED, check_size
from nextscale.image.metadata import (
    EXIF_KEEP,
    ORIENTATION,
    clean_xmp,
    exif_dpi,
    exif_to_write,
    parse_exif,
    read_exif,
    xmp_orientation,
)
from nextscale.image.picture import Array, Description, Picture, icc_fits, stacked, upright
from nextscale.image.pillow import open_by_pillow, samples_of

MAX_STRIPS: Final = 1 << 18
"""Strips or tiles of one TIFF."""
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SPP, _STRIP_ROWS = 256, 257, 258, 259, 262, 273, 277, 278
_STRIP_BYTES, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 279, 284, 317, 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _XMP, _EXIF, _GPS, _ICC, _RAW = 338, 339, 700, 0x8769, 0x8825, 34675, 0xC612
_WHITE_POINT, _PRIMARIES, _RATIONAL = 318, 319, 5
_SMALL: Final = (
    *(254, 255, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, ORIENTATION, _SPP, _STRIP_ROWS, 282, 283),
    *(_PLANAR, 292, 293, 296, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, 332, _EXTRA_SAMPLES, _SAMPLE_FORMAT),
    *(512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
)
"""Tags by which decoders go, of a few numbers each."""
_CAPS: Final = (
    dict.fromkeys(_SMALL, 64)
    | dict.fromkeys((_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES), MAX_STRIPS * 8)
    | {320: 3 * 2**16 * 2, 347: 2**16}  # a palette, tables of JPEG
)
"""Bytes that a tag may take by which the pixels are decoded; a file with more is refused."""
_DESCRIPTIONS: Final = dict.fromkeys(EXIF_KEEP, 2**16) | {_ICC: MAX_PROFILE, _XMP: MAX_PROFILE}
"""The same of tags that describe the picture; what is larger is left out."""
_MAX_PAGES: Final = 100
_MAX_SAMPLES: Final = 6
_TIFF_LOSSY: Final = (6, 7, 33003, 33005, 34712, 34892, 50001)  # JPEG of two kinds, JPEG 2000, lossy DNG, WebP
_TIFF_COLORS: Final = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}

Entries = dict[int, Entry]
Tags = dict[int, tuple[Any, ...]]


def _pages(data: bytes, layout: Layout) -> list[Entries]:
    """The directories of the first pages; a file of more than two is refused in any case."""
    (at,) = struct.unpack_from(layout.word, data, layout.first)
    pages: list[Entries] = []
    seen: set[int] = set()
    while at and at not in seen and len(pages) < _MAX_PAGES:
        seen.add(at)
        entries, at = layout.directory(data, at)
        pages.append(entries)
    return pages


def _tags(data: bytes, layout: Layout, entries: Entries) -> Tags:
    """The numbers by which the pixels are decoded.

    Raises:
        ImageError: one has more values than any picture needs.
    """
    tags: Tags = {}
    for tag, cap in _CAPS.items():
        entry = entries.get(tag)
        if entry is None:
            continue
        if entry.size > cap:
            raise ImageError(f"tag {tag} has {entry.count} values, more than a picture needs; save it again as PNG")
        if len(values := layout.numbers(data, entry)):
            tags[tag] = tuple(values.tolist())
    return tags


def _lean(data: bytes, layout: Layout, entries: Entries) -> bytes:
    """The file with a directory of only the tags that are in use: decoders copy every value that a directory names."""
    kept = []
    for entry in entries.values():
        directory = entry.tag in (_EXIF, _GPS)
        if directory and not sound_directories(data, layout, int(layout.numbers(data, entry)[:1].sum())):
            continue
        if entry.tag in _CAPS or entry.size <= _DESCRIPTIONS.get(entry.tag, 0):
            kept.append(entry)
    at = len(data) + len(data) % 2
    head = data[: layout.first] + struct.pack(layout.word, at)
    return b"".join([head, memoryview(data)[len(head) :], bytes(at - len(data)), layout.pack(kept)])


def _is_thumbnail(data: bytes, layout: Layout, entries: Entries) -> bool:
    kind, old = (layout.numbers(data, entries[tag])[:1] if tag in entries else [] for tag in (254, 255))
    return (len(kind) > 0 and bool(kind[0] & 5)) or (len(old) > 0 and old[0] == 2)


def decode_tiff(data: bytes, max_pixels: int) -> Picture:
    """The only picture of a TIFF, plain or big, at 8 or 16 bits.

    Work and memory are bounded by the file's bytes and the picture's pixels: of every directory only the tags in use
    are read, and decoders are given a directory of only these.
    """
    layout = Layout.of(data)
    pages = _pages(data, layout)
    full = [page for page in pages if not _is_thumbnail(data, layout, page)]
    if not full or full[0] is not pages[0] or _RAW in pages[0]:
        raise ImageError("this is a camera raw file or holds only a thumbnail; develop it to a plain TIFF or PNG")
    if len(full) > 1:
        number = f"{_MAX_PAGES} or more" if len(pages) == _MAX_PAGES else str(len(full))
        raise ImageError(f"this TIFF holds {number} pages; save each page as a file of its own")
    tags = _tags(data, layout, full[0])
    _check_tiff(tags, len(data), max_pixels)
    icc, xmp = (_bytes(data, full[0].get(tag)) for tag in (_ICC, _XMP))
    icc = icc or _profile_by_numbers(data, layout, full[0])
    data = _lean(data, layout, full[0])
    _, exif = read_exif(lambda: parse_exif(data))
    orientation, dpi = tags.get(ORIENTATION, (xmp_orientation(xmp),))[0], exif_dpi(exif)
    lossless = tags.get(_COMPRESSION, (1,))[0] not in _TIFF_LOSSY
    if tags.get(_BITS, (1,))[0] == 16 and (tags.get(_SPP, (1,))[0], tags.get(_PHOTOMETRIC, (1,))[0]) != (1, 1):
        rgb, alpha, icc = _tiff16(data, tags, icc)
    else:
        rgb, alpha, icc, orientation = _tiff8(data, icc, max_pixels)
        if dpi is not None and tags.get(ORIENTATION, (1,))[0] >= 5:
            dpi = dpi[::-1]  # Pillow has turned the pixels already
    about = Description(icc=icc, exif=exif, dpi=dpi, xmp=clean_xmp(xmp))
    return upright(rgb, alpha, orientation, about, lossless=lossless, form="TIFF")


def tiff_header(data: bytes) -> tuple[tuple[int, int], int]:
    """(width, height) and bits per channel of a whole file."""
    layout = Layout.of(data)
    tags = _tags(data, layout, _pages(data, layout)[0])
    _check_tiff(tags, len(data), 1 << 62)
    return (tags[_WIDTH][0], tags[_HEIGHT][0]), max(tags.get(_BITS, (1,))[0], 8)


def _bytes(data: bytes, entry: Entry | None) -> bytes | None:
    if entry is None or entry.size > _DESCRIPTIONS[entry.tag]:
        return None
    return data[entry.at : entry.at + entry.size]


def _profile_by_numbers(data: bytes, layout: Layout, entries: Entries) -> bytes | None:
    """A profile of the white point and primaries that the file states; None for sRGB's, or where it states none."""
    said = [entries[tag] for tag in (_WHITE_POINT, _PRIMARIES) if tag in entries and entries[tag].kind == _RATIONAL]
    if [entry.count for entry in said] != [2, 6]:
        return None
    pairs = (struct.unpack_from(f"{layout.order}{2 * entry.count}I", data, entry.at) for entry in said)
    values = [top / (bottom or 1) for pair in pairs for top, bottom in zip(pair[::2], pair[1::2], strict=True)]
    return from_png_numbers(None, values, gray=False)


def _tiff8(data: bytes, icc: bytes | None, max_pixels: int) -> tuple[Array, Array | None, bytes | None, int]:
    """Pixels by Pillow, and the orientation that is left to apply."""
    im = open_by_pillow("TIFF", data, max_pixels)
    premultiplied = _spread_premultiplied(im)
    im.load()
    rgb, alpha, icc = samples_of(im, icc)
    if premultiplied and alpha is not None:
        rgb = _unpremultiply(rgb, alpha)
    # Pillow turns a TIFF upright as it loads it, and then forgets the tag.
    return rgb, alpha, icc, read_exif(im.getexif)[0]


def _spread_premultiplied(im: ImageFile.ImageFile) -> bool:
    """Let Pillow hand out colors times alpha as they are stored: its own division cuts off instead of rounding."""
    plain = [tile._replace(args=_without_premultiplied(tile.args)) for tile in im.tile]
    changed = plain != im.tile
    im.tile = plain
    return changed


def _without_premultiplied(args: Any) -> Any:
    if isinstance(args, tuple):
        return ("RGBA", *args[1:]) if args[0] == "RGBa" else args
    return "RGBA" if args == "RGBa" else args


def _check_tiff(tags: Tags, length: int, max_pixels: int) -> None:
    """Refuse by name what would be reduced or misread: floats, other depths, missing pixels, huge sizes."""
    if min(tags.get(_WIDTH, (0,))[0], tags.get(_HEIGHT, (0,))[0]) <= 0:
        raise ImageError("the file is damaged (no size); save it again as PNG or TIFF")
    check_size((tags[_WIDTH][0], tags[_HEIGHT][0]), max_pixels)
    if not 1 <= tags.get(_SPP, (1,))[0] <= _MAX_SAMPLES:
        raise ImageError(f"a TIFF of {tags[_SPP][0]} channels is not read; save it as gray, RGB or RGBA")
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
    if len(offsets) > MAX_STRIPS:
        raise ImageError(f"it is cut into over {MAX_STRIPS} strips or tiles; save it again with larger ones")
    if not (across and down) or len(offsets) < -(-width // across) * -(-height // down) * planes:
        raise ImageError("the file is damaged (pixels are missing); copy or download it again")
    if counts is None:
        counts = (length - min(offsets),)
    if min(*offsets, *counts) <= 0 or max(at + size for at, size in zip(offsets, counts, strict=False)) > length:
        raise ImageError(TRUNCATED)
    if sum(counts) > length:
        raise ImageError("the file is damaged (its parts overlap); copy or download it again")
    ratio = MAX_RATIO.get(tags.get(_COMPRESSION, (1,))[0])
    is_subsampled = tags.get(_PHOTOMETRIC, (1,))[0] == 6
    if ratio and not is_subsampled and width * height * samples * depth // 8 > sum(counts) * ratio:
        raise ImageError(TRUNCATED)


def _tiff16(data: bytes, tags: Tags, icc: bytes | None) -> tuple[Array, Array | None, bytes | None]:
    """16-bit pixels by tifffile; LZW, which it cannot do alone, by OpenCV. (Pillow does plain gray and only that.)"""
    photometric, samples = tags.get(_PHOTOMETRIC, (1,))[0], tags.get(_SPP, (1,))[0]
    colors = {0: 1, 1: 1, 2: 3}.get(photometric, 0)
    if not colors or samples < colors:
        kind = _TIFF_COLORS.get(photometric, "this kind of")
        raise ImageError(f"16-bit {kind} TIFF with {samples} channels is not read; convert it to 16-bit RGB first")
    values = _tiff16_by_tifffile(data, tags, samples)
    if values.shape != (tags[_HEIGHT][0], tags[_WIDTH][0], samples):
        raise ImageError(RARE_LAYOUT)
    if photometric == 0:
        values = np.concatenate([65535 - values[..., :1], values[..., 1:]], axis=2)
    rgb, alpha, extra = values[..., :colors], None, tags.get(_EXTRA_SAMPLES, (2,) * (samples - colors))
    if samples > colors and extra and extra[0] != 0:
        alpha = np.ascontiguousarray(values[..., colors])
        if extra[0] == 1:
            rgb = _unpremultiply(rgb, alpha)
    return np.ascontiguousarray(rgb), alpha, icc if icc_fits(icc, colors) else None


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
        raise ImageError(RARE_LAYOUT)
    return values


def _unpremultiply(rgb: Array, alpha: Array) -> Array:
    """uint8 or uint16 H W C that was stored times alpha -> its own color to the nearest; black where alpha is 0."""
    full = int(np.iinfo(rgb.dtype).max)
    divisor = np.maximum(alpha, 1)[..., None].astype(np.uint64)
    whole = (rgb.astype(np.uint64) * full + divisor // 2) // divisor
    return np.where(alpha[..., None] == 0, 0, np.minimum(whole, full)).astype(rgb.dtype)


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
    exif = exif_to_write(picture, with_dpi=True)
    for tag, value in exif.items() if exif is not None else ():
        directory[tag] = value
    if picture.xmp is not None:
        directory.tagtype[_XMP] = 1
        directory[_XMP] = picture.xmp
    directory[_WIDTH], directory[_HEIGHT] = width, height
    directory[_BITS] = (samples.itemsize * 8,) * channels
    directory[_COMPRESSION], directory[_PREDICTOR] = 8, 2
    directory[_PHOTOMETRIC] = 1 if picture.is_gray else 2
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
