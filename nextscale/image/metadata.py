"""EXIF: what describes the photograph is kept, what describes one file is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from PIL import Image

from nextscale.image.guard import quiet
from nextscale.image.picture import TURNS, Picture

ORIENTATION, _EXIF_IFD, _GPS_IFD, _INTEROP_IFD, _MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
# What IFD 0 says about the photograph; the rest describes how one file stored its pixels.
_EXIF_KEEP: Final = (
    *(0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298, 0x4746, 0x4749),
    *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, _EXIF_IFD, _GPS_IFD),
)


def read_exif(load: Callable[[], Image.Exif]) -> tuple[int, bytes | None]:
    """(orientation 1..8, EXIF block to keep); what cannot be parsed counts as absent."""
    orientation = 1
    try:
        source = load()
        value = source.get(ORIENTATION, 1)
        orientation = value if value in TURNS else 1
        kept = _copy_exif(source)
        return orientation, kept.tobytes() if len(kept) else None
    except Exception:  # Pillow's parser raises anything at all on malformed blocks
        return orientation, None


def _copy_exif(source: Image.Exif) -> Image.Exif:
    """The descriptive tags with their sub-directories as plain dictionaries; orientation, if any, becomes 1."""
    kept = Image.Exif()
    kept.endian = source.endian
    if ORIENTATION in source:
        kept[ORIENTATION] = 1
    for tag in _EXIF_KEEP:
        if tag not in source:
            continue
        if tag not in (_EXIF_IFD, _GPS_IFD):
            kept[tag] = source[tag]
            continue
        directory = dict(source.get_ifd(tag))
        if _INTEROP_IFD in directory:
            directory[_INTEROP_IFD] = source.get_ifd(_INTEROP_IFD)
        if directory:
            kept[tag] = directory
    return kept


def parse_exif(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


def exif_to_write(picture: Picture, limit: int | None = None) -> Image.Exif | None:
    """The picture's EXIF with its size brought up to date, without maker note where it would exceed `limit` bytes."""
    if not picture.exif:
        return None
    try:
        with quiet():
            exif = _copy_exif(parse_exif(picture.exif))
            directory = exif.get(_EXIF_IFD, {})
            if _PIXEL_WIDTH in directory or _PIXEL_HEIGHT in directory:
                directory[_PIXEL_WIDTH], directory[_PIXEL_HEIGHT] = picture.size
            if limit is not None and len(exif.tobytes()) > limit:
                directory.pop(_MAKER_NOTE, None)
            fits = limit is None or len(exif.tobytes()) <= limit
            return exif if fits and len(exif) else None
    except Exception:  # as in read_exif: a malformed block is no reason to lose the picture
        return None
