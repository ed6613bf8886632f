"""Pictures out: a `Picture` to bytes and files.

`write` / `encode_bytes` keep bit depth, gray, alpha, ICC profile and EXIF, or refuse what a format cannot hold.
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, features

from nextscale.errors import ImageError, OptionError
from nextscale.files import check_writable, write_together
from nextscale.image.color import to_srgb
from nextscale.image.guard import one_line, quiet
from nextscale.image.metadata import exif_to_write
from nextscale.image.picture import WRITE_FORMATS, Array, Picture, icc_fits, stacked
from nextscale.image.png import encode_png16, with_description
from nextscale.image.read import read_header
from nextscale.image.tiff import encode_tiff

# What decoders read: libjpeg, libwebp and libavif as Pillow and browsers have them. Encoders go further.
_SIDE_LIMIT: Final = {"JPEG": 65500, "WebP": 16383, "AVIF": 32768}
_PIXEL_LIMIT: Final = {"AVIF": 1 << 28}
_SEGMENT, _JPEG_XMP = 65533, 65500
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
    write_all([(path, data)])


def write_all(files: Iterable[tuple[str | os.PathLike[str], bytes]]) -> None:
    """Write several files, all of them or none; as `write_bytes`, links followed."""
    reached: list[str] = []

    def ready() -> Iterator[tuple[Path, bytes]]:
        for path, data in files:
            reached.append(os.fspath(path))
            yield _ready(path), data

    with _explained(reached):
        write_together(ready())


def encode_bytes(picture: Picture, suffix: str, *, quality: int = 95, lossless: bool = False) -> bytes:
    """The bytes of a file with that suffix (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif").

    PNG, TIFF and BMP are always exact; `quality` (1 to 100) is for JPEG (4:4:4), WebP and AVIF; `lossless` makes WebP
    exact and changes no other format. WebP and AVIF store gray as RGB; BMP holds neither EXIF nor XMP, and takes
    sRGB for a profile. The header is read back before the bytes are returned.
    Raises `ImageError` for 16 bits anywhere but in PNG and TIFF, for alpha in JPEG and BMP, for HDR anywhere but in
    PNG, and for sizes that decoders refuse; `OptionError` for a bad `quality`.
    """
    form = check_format(
        suffix,
        bits=picture.bits,
        has_alpha=picture.alpha is not None,
        size=picture.size,
        hdr=picture.cicp is not None,
    )
    if not 1 <= quality <= 100:
        raise OptionError(f"quality {quality} is out of range; use 1 to 100")
    try:
        data = _encode(picture, form, quality, lossless)
    except MemoryError:
        raise ImageError("there is not enough memory to write it; close other programs") from None
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        raise ImageError(f"{form} cannot be written ({one_line(error)}); write .png") from error
    if read_header(data) != (picture.size, picture.bits):
        raise ImageError(f"the {form} that was made does not hold the picture; write .png")
    return data


def check_format(suffix: str, *, bits: int, has_alpha: bool, size: tuple[int, int], hdr: bool = False) -> str:
    """The name of a suffix's format, or `ImageError` where it cannot hold such a picture."""
    form = WRITE_FORMATS.get(suffix.lower())
    if form is None:
        raise ImageError(f"cannot write {suffix or 'a name without suffix'!r}; use one of {' '.join(WRITE_FORMATS)}")
    if bits == 16 and form not in _DEEP:
        raise ImageError(f"{form} cannot hold 16 bits per channel; write .png or .tif, or reduce it to 8 bits")
    if has_alpha and form not in _ALPHA:
        raise ImageError(f"{form} cannot hold transparency; write .png, .webp, .tif or .avif, or drop it")
    if hdr and form != "PNG":
        raise ImageError(f"{form} cannot hold HDR colors as they are; write .png")
    if max(size) > _SIDE_LIMIT.get(form, 2**31 - 1):
        raise ImageError(f"{form} holds at most {_SIDE_LIMIT[form]} pixels a side; write .png or .tif")
    if size[0] * size[1] > _PIXEL_LIMIT.get(form, size[0] * size[1]):
        raise ImageError(f"{form} holds at most {_PIXEL_LIMIT[form] // 10**6} megapixels; write .png or .tif")
    return form


def _encode(picture: Picture, form: str, quality: int, lossless: bool) -> bytes:
    if form == "TIFF":
        return encode_tiff(picture)
    if form == "PNG":
        pixels = encode_png16(picture) if picture.bits == 16 else _by_pillow(stacked(picture), "PNG", {})
        return with_description(pixels, picture)
    samples, icc = stacked(picture), picture.icc
    if picture.icc is not None and (form == "BMP" or (picture.is_gray and form in ("WebP", "AVIF"))):
        samples, icc = stacked(replace(picture, rgb=to_srgb(picture))), None  # no place for such a profile
    options: dict[str, Any] = {}
    if form == "BMP":
        options["dpi"] = picture.dpi or (0, 0)  # Pillow would make up 96
    else:
        exif = exif_to_write(picture, _SEGMENT if form == "JPEG" else None, with_dpi=form != "JPEG")
        options |= {"exif": exif.tobytes()} if exif is not None else {}
        options |= {"icc_profile": icc} if icc_fits(icc, picture.rgb.shape[2]) else {}
        if picture.xmp is not None and (form != "JPEG" or len(picture.xmp) <= _JPEG_XMP):
            options["xmp"] = picture.xmp
    if form == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
        options |= {"dpi": picture.dpi} if picture.dpi is not None else {}
    elif form == "WebP":
        options |= {"lossless": True, "exact": True} if lossless else {"quality": quality}
    elif form == "AVIF":
        options |= {"quality": quality, "subsampling": "4:4:4"}
    return _by_pillow(samples, form, options)


def _by_pillow(samples: Array, form: str, options: dict[str, Any]) -> bytes:
    if form in ("WebP", "AVIF"):
        if not features.check(form.lower()):
            raise ImageError(f"this Pillow was built without {form}; pip install --upgrade pillow")
        if samples.shape[2] < 3:  # neither has gray
            samples = samples[..., [0, 0, 0, 1][: 2 + samples.shape[2]]]
    out = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))
    with quiet():
        image.save(out, form.upper(), **options)
    return out.getvalue()


_REMEDIES: Final = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file would exceed the size limit; raise it (ulimit -f) or write a smaller format",
    errno.EACCES: "no permission to write it; choose another folder",
    errno.EPERM: "no permission to write it; choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOTDIR: "a part of the folder's path is a file; choose another folder",
    errno.EEXIST: "a part of the folder's path is a file; choose another folder",
    errno.EISDIR: "a folder has that name; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def check_folder(path: str | os.PathLike[str]) -> None:
    """`ImageError` where `write` could make no file of that name; missing parent folders are made."""
    with _explained([os.fspath(path)]):
        _ready(path)


def _ready(named: str | os.PathLike[str]) -> Path:
    """The file that a name leads to, whose folder is there and can be written to."""
    path = Path(os.path.realpath(named))
    path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    return path


@contextmanager
def _explained(names: Sequence[str]) -> Iterator[None]:
    """Name the file in the errors of the disk: the last one that was reached."""
    try:
        yield
    except OSError as error:
        reason = _REMEDIES.get(error.errno or 0, f"it cannot be written ({one_line(error)}); choose another folder")
        raise ImageError(": ".join([*names[-1:], reason])) from error
