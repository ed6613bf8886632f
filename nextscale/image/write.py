"""Pictures out: a `Picture` to bytes and files.

`write` / `encode_bytes` keep bit depth, grey, alpha, ICC profile and EXIF, or refuse what a format cannot hold.
"""

from __future__ import annotations

import errno
import io
import os
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, features

from nextscale.errors import ImageError, OptionError
from nextscale.files import check_writable, write_atomic
from nextscale.image.guard import one_line, quiet
from nextscale.image.metadata import exif_to_write
from nextscale.image.picture import WRITE_FORMATS, Picture, icc_fits, stacked
from nextscale.image.png16 import encode_png16
from nextscale.image.tiff import encode_tiff

_SIDE_LIMIT: Final = {"JPEG": 65500, "WebP": 16383, "AVIF": 65536}
_DEEP: Final = ("PNG", "TIFF")
_ALPHA: Final = ("PNG", "TIFF", "WebP", "AVIF")


def write(path: str | os.PathLike[str], picture: Picture, *, quality: int = 95, lossless: bool = False) -> None:
    """Write `picture` in the format of the path's suffix, whole or not at all; missing parent folders are made.

    See `encode_bytes` for the options. Raises `ImageError` where the format cannot hold the picture or the disk
    cannot hold the file; then a file that was there before is still there, as it was.
    """
    write_bytes(path, encode_bytes(picture, Path(path).suffix, quality=quality, lossless=lossless))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write any file whole or not at all; missing parent folders are made, `ImageError` where the disk refuses."""
    _write_whole(path, data)


def encode_bytes(picture: Picture, suffix: str, *, quality: int = 95, lossless: bool = False) -> bytes:
    """The bytes of a file with that suffix (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif").

    PNG, TIFF and BMP are always exact; `quality` (1 to 100) is for JPEG (4:4:4), WebP and AVIF; `lossless` makes WebP
    exact and changes no other format. WebP and AVIF store grey as RGB; BMP holds neither ICC nor EXIF.
    Raises `ImageError` for 16 bits anywhere but in PNG and TIFF, for alpha in JPEG and BMP, and for sides that are
    too long; `OptionError` for a bad `quality`.
    """
    form = check_format(suffix, bits=picture.bits, has_alpha=picture.alpha is not None, size=picture.size)
    if not 1 <= quality <= 100:
        raise OptionError(f"quality {quality} is out of range; use 1 to 100")
    try:
        if form == "TIFF":
            return encode_tiff(picture)
        if form == "PNG" and picture.bits == 16:
            return encode_png16(picture)
        return _encode_by_pillow(picture, form, quality, lossless)
    except MemoryError:
        raise ImageError("there is not enough memory to write it; close other programs") from None
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        raise ImageError(f"{form} cannot be written ({one_line(error)}); write .png") from error


def check_format(suffix: str, *, bits: int, has_alpha: bool, size: tuple[int, int]) -> str:
    """The name of a suffix's format, or `ImageError` where it cannot hold such a picture."""
    form = WRITE_FORMATS.get(suffix.lower())
    if form is None:
        raise ImageError(f"cannot write {suffix or 'a name without suffix'!r}; use one of {' '.join(WRITE_FORMATS)}")
    if bits == 16 and form not in _DEEP:
        raise ImageError(f"{form} cannot hold 16 bits per channel; write .png or .tif, or reduce it to 8 bits")
    if has_alpha and form not in _ALPHA:
        raise ImageError(f"{form} cannot hold transparency; write .png, .webp, .tif or .avif, or drop it")
    if max(size) > _SIDE_LIMIT.get(form, 2**31 - 1):
        raise ImageError(f"{form} holds at most {_SIDE_LIMIT[form]} pixels a side; write .png or .tif")
    return form


def _encode_by_pillow(picture: Picture, form: str, quality: int, lossless: bool) -> bytes:
    if form in ("WebP", "AVIF") and not features.check(form.lower()):
        raise ImageError(f"this Pillow was built without {form}; pip install --upgrade pillow")
    samples, colours = stacked(picture), picture.rgb.shape[2]
    if picture.is_grey and form in ("WebP", "AVIF"):
        samples, colours = samples[..., [0, 0, 0, 1][: 2 + samples.shape[2]]], 3
    options: dict[str, Any] = {}
    if form != "BMP":
        exif = exif_to_write(picture, 65533 if form == "JPEG" else None)
        options |= {"exif": exif.tobytes()} if exif is not None else {}
        options |= {"icc_profile": picture.icc} if icc_fits(picture.icc, colours) else {}
    if form == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
    elif form == "WebP":
        options |= {"lossless": True, "exact": True} if lossless else {"quality": quality}
    elif form == "AVIF":
        options |= {"quality": quality, "subsampling": "4:4:4"}
    out = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))
    with quiet():
        image.save(out, form.upper(), **options)
    return out.getvalue()


_REMEDIES: Final = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file would exceed the size limit; raise it (ulimit -f) or write a smaller format",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOTDIR: "a part of the folder's path is a file; choose another folder",
    errno.EEXIST: "a part of the folder's path is a file; choose another folder",
    errno.EISDIR: "a folder has that name; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def check_folder(path: str | os.PathLike[str]) -> None:
    """`ImageError` where `write` could make no file of that name; missing parent folders are made."""
    _write_whole(path, None)


def _write_whole(named: str | os.PathLike[str], data: bytes | None) -> None:
    """Write a file, links followed (None: only see whether it could be written)."""
    path = Path(os.path.realpath(named))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
        if data is not None:
            write_atomic(path, data)
    except OSError as error:
        reason = _REMEDIES.get(error.errno or 0, f"it cannot be written ({one_line(error)}); choose another folder")
        raise ImageError(reason) from error
