"""Any picture in: files and bytes to a `Picture`.

- `read` / `decode_bytes` give a `Picture`: upright (EXIF orientation applied), gray or RGB, 8 or 16 bits, alpha apart.
- 16-bit files are recognized by their own header: Pillow alone would reduce 16-bit RGB to 8 bits without a word.
- Whatever the bytes, the outcome is a `Picture` or an `ImageError`: one line "reason; remedy", without the file name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from PIL import Image

from nextscale.errors import ImageError
from nextscale.image.avif import code_points, depth_of
from nextscale.image.bmp import bmp_profile
from nextscale.image.color import from_cicp
from nextscale.image.extras import by_opencv, extra
from nextscale.image.guard import NO_MEMORY, TRUNCATED, one_line, quiet
from nextscale.image.metadata import describe, exif_of
from nextscale.image.picture import MAX_PIXELS, READABLE, SUFFIXES, Array, Picture, split_channels, upright
from nextscale.image.pillow import check_jpeg_end, open_by_pillow, samples_of
from nextscale.image.png import decode_png, png_header
from nextscale.image.tiff import decode_tiff, tiff_header

T = TypeVar("T")
_NO_LIMIT: Final = 1 << 62


def read(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read one picture file; `ImageError` for whatever is not a whole, single picture of at most `max_pixels`."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError("this is a folder; name a picture, or give the folder where folders are taken")
        if not stat.S_ISREG(mode):
            raise ImageError("this is not a regular file; save the picture to a file first")
        data = path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise ImageError("the link points to a missing file; mend the link or name the file itself") from None
        raise ImageError("no such file; check the name") from None
    except PermissionError:
        raise ImageError("no permission to read it; change its permissions (chmod +r)") from None
    except MemoryError:
        raise ImageError(NO_MEMORY) from None
    except (OSError, ValueError) as error:
        raise ImageError(f"it cannot be read ({one_line(error)}); check the name and the disk") from error
    return decode_bytes(data, max_pixels=max_pixels)


def decode_bytes(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the bytes of one picture file; see `read`."""
    return _guarded(lambda: _decode(data, max_pixels))


def read_header(data: bytes) -> tuple[tuple[int, int], int]:
    """(width, height) and bits per channel by the header of a file's bytes; `ImageError` as `decode_bytes`."""

    def look() -> tuple[tuple[int, int], int]:
        form = _sniff(data)
        if form == "TIFF":
            return tiff_header(data)
        if form == "PNG":
            return png_header(data)
        return open_by_pillow(form, data, _NO_LIMIT).size, depth_of(data) if form == "AVIF" else 8

    return _guarded(look)


def from_pil(im: Image.Image) -> Picture:
    """A Pillow image, as if read from a file: upright, with its alpha, ICC profile and EXIF."""

    def convert() -> Picture:
        im.load()
        if im.mode in ("I", "F"):
            raise ImageError(f"a Pillow image of mode {im.mode} has no fixed range; convert it to I;16, L or RGB first")
        rgb, alpha, icc = samples_of(im, im.info.get("icc_profile"))
        orientation, exif = exif_of(im)
        return upright(rgb, alpha, orientation, describe(im, icc, exif), lossless=True, form=im.format or "Pillow")

    return _guarded(convert)


def _guarded(decode: Callable[[], T]) -> T:
    try:
        with quiet():
            return decode()
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(NO_MEMORY) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"it is too large ({one_line(error)}); crop or shrink it first") from error
    except Exception as error:  # decoders raise anything at all on damaged bytes
        reason = one_line(error)
        if any(word in reason.lower() for word in ("truncated", "not enough image data", "unexpected end")):
            raise ImageError(TRUNCATED) from error
        raise ImageError(f"the file is damaged or of a rare kind ({reason}); save it again as PNG or JPEG") from error


_MAGIC: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)
_FOREIGN: Final = (
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\0\0\0\x0cJXL", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"v/1\x01", "OpenEXR"),
)


def _sniff(data: bytes) -> str:
    """The format's name by the first bytes, whatever the file's suffix says."""
    if not data:
        raise ImageError("the file is empty; copy or download it again")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        kind = "HEIC" if any(brand in brands for brand in (b"hei", b"hev", b"mif1")) else "video or camera raw"
        raise ImageError(f"{kind} files are not read; convert it to PNG, TIFF or JPEG first")
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    for magic, name in _FOREIGN:
        if data.startswith(magic):
            raise ImageError(f"{name} files are not read; convert it to PNG, TIFF or JPEG first")
    raise ImageError(f"this is not a picture; supported are {READABLE}")


def _decode(data: bytes, max_pixels: int) -> Picture:
    form = _sniff(data)
    if form == "TIFF":
        return decode_tiff(data, max_pixels)
    if form == "PNG":
        return decode_png(data, max_pixels)
    im = open_by_pillow(form, data, max_pixels)
    numbers = code_points(data) if form == "AVIF" else None
    orientation, exif = exif_of(im)
    if form == "AVIF" and depth_of(data) > 8:
        rgb, alpha, icc = _deep_avif(data, im)
    else:
        im.load()
        if form == "JPEG":
            check_jpeg_end(im, data)
        profile = bmp_profile(data, gray=im.mode in ("1", "L")) if form == "BMP" else im.info.get("icc_profile")
        rgb, alpha, icc = samples_of(im, profile)
    about = describe(im, icc, exif)
    if numbers and icc is None:
        profile, cicp = from_cicp(*numbers, gray=rgb.shape[2] == 1)
        about = replace(about, icc=profile, cicp=cicp)
    lossless = form in ("BMP", "GIF") or (form == "WebP" and _is_lossless_webp(data))
    return upright(rgb, alpha, orientation, about, lossless=lossless, form=form)


def _deep_avif(data: bytes, im: Image.Image) -> tuple[Array, Array | None, bytes | None]:
    """10 or 12 bits, which Pillow would reduce to 8, spread over 16."""
    full = (1 << depth_of(data)) - 1
    samples = by_opencv(extra("cv2"), data, im.size, len(im.getbands()))
    samples = ((samples.astype(np.uint32) * 65535 + full // 2) // full).astype(np.uint16)
    return split_channels(samples, im.info.get("icc_profile"))


def _is_lossless_webp(data: bytes) -> bool:
    at = 12
    while at + 8 <= len(data):
        if data[at : at + 4] == b"VP8L":
            return True
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + (size & 1)
    return False


def is_picture_path(path: str | os.PathLike[str], suffixes: Collection[str] = SUFFIXES) -> bool:
    """Whether the name has a picture's suffix and is not hidden; nothing is opened."""
    path = Path(path)
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def find_pictures(
    folder: str | os.PathLike[str], recursive: bool = False, *, suffixes: Collection[str] = SUFFIXES
) -> list[Path]:
    """The picture files in a folder, sorted by path; hidden files and hidden folders are skipped, links to folders too.

    Args:
        suffixes: which names are those of pictures.

    Raises:
        ImageError: the folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(f"the folder cannot be listed ({one_line(error)}); check its name and permissions")

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [Path(parent, name) for name in files if is_picture_path(name, suffixes)]
    return sorted(path for path in found if path.is_file())
