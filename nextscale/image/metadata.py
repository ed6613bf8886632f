"""EXIF, XMP and print size: what describes the photograph is kept, what describes one file is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from PIL import Image

from nextscale.image.directory import is_sound_exif
from nextscale.image.guard import MAX_PROFILE, quiet
from nextscale.image.picture import TURNS, Description, Picture

ORIENTATION, _EXIF_IFD, _GPS_IFD, _INTEROP_IFD, _MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
_PIXEL_WIDTH, _PIXEL_HEIGHT, _RESOLUTION_X, _RESOLUTION_Y, _RESOLUTION_UNIT = 0xA002, 0xA003, 0x011A, 0x011B, 0x0128
# What IFD 0 says about the photograph; the rest describes how one file stored its pixels.
EXIF_KEEP: Final = (
    *(0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298, 0x4746, 0x4749),
    *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, _EXIF_IFD, _GPS_IFD),
)


def exif_of(im: Image.Image) -> tuple[int, bytes | None]:
    """`read_exif` of an opened image, whose block is not read where that would take more time than its bytes."""
    block = im.info.get("exif")
    if block and not is_sound_exif(bytes(block)):
        return xmp_orientation(im.info.get("xmp")), None
    return read_exif(im.getexif)


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
    for tag in EXIF_KEEP:
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


def exif_to_write(picture: Picture, limit: int | None = None, *, with_dpi: bool = False) -> Image.Exif | None:
    """The picture's EXIF with its sizes brought up to date, without maker note where it would exceed `limit` bytes.

    Args:
        with_dpi: hold the picture's resolution even where its EXIF did not, for formats with no other place for it.
    """
    exif = Image.Exif()
    try:
        with quiet():
            if picture.exif:
                exif = _copy_exif(parse_exif(picture.exif))
            _update_sizes(exif, picture, with_dpi)
            if limit is not None and len(exif.tobytes()) > limit:
                exif.get(_EXIF_IFD, {}).pop(_MAKER_NOTE, None)
            fits = limit is None or len(exif.tobytes()) <= limit
            return exif if fits and len(exif) else None
    except Exception:  # as in read_exif: a malformed block is no reason to lose the picture
        return None


def _update_sizes(exif: Image.Exif, picture: Picture, with_dpi: bool) -> None:
    directory = exif.get(_EXIF_IFD, {})
    if _PIXEL_WIDTH in directory or _PIXEL_HEIGHT in directory:
        directory[_PIXEL_WIDTH], directory[_PIXEL_HEIGHT] = picture.size
    if picture.dpi is not None and (with_dpi or _RESOLUTION_X in exif):
        exif[_RESOLUTION_X], exif[_RESOLUTION_Y], exif[_RESOLUTION_UNIT] = *picture.dpi, 2


def exif_dpi(block: bytes | None) -> tuple[float, float] | None:
    """Pixels per inch by an EXIF block."""
    if block is None:
        return None
    exif = parse_exif(block)
    across, down = exif.get(_RESOLUTION_X), exif.get(_RESOLUTION_Y)
    scale = {2: 1.0, 3: 2.54}.get(exif.get(_RESOLUTION_UNIT, 2))
    if scale is None or across is None or down is None:
        return None
    return sound_dpi((float(across) * scale, float(down) * scale))


def sound_dpi(dpi: Any) -> tuple[float, float] | None:
    """A resolution as Pillow gives it, or None where it is none that a print could have."""
    try:
        across, down = float(dpi[0]), float(dpi[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (across, down) if 1 <= across <= 1e6 and 1 <= down <= 1e6 else None


# ---- XMP ----

_XMP_ORIENTATION: Final = re.compile(rb"(tiff:Orientation(?:=[\"']|>))([0-9])")
# What is said of parts that are not read (gain maps, depth maps, the bits of a panorama) would be said of nothing.
_XMP_PARTS: Final = (b"hdrgm:", b"Container:Directory", b"GDepth:", b"GImage:", b"apdi:AuxiliaryImageType")


def clean_xmp(xmp: bytes | str | None) -> bytes | None:
    """A packet as it holds for the upright picture: orientation 1; None for one about parts that are not read."""
    packet = xmp.encode() if isinstance(xmp, str) else bytes(xmp or b"")
    packet = packet.strip(b"\0")
    if not packet or len(packet) > MAX_PROFILE or any(part in packet for part in _XMP_PARTS):
        return None
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet)


def xmp_orientation(xmp: bytes | None) -> int:
    """The orientation that an XMP packet states, which holds where EXIF states none; 1 without one."""
    found = _XMP_ORIENTATION.search(xmp or b"")
    return int(found[2]) if found and int(found[2]) in TURNS else 1


def describe(im: Image.Image, icc: bytes | None, exif: bytes | None) -> Description:
    """What Pillow's reader found to describe a picture; a resolution that only EXIF states counts, too."""
    dpi = sound_dpi(im.info.get("dpi")) or exif_dpi(exif)
    return Description(icc=icc, exif=exif, dpi=dpi, xmp=clean_xmp(im.info.get("xmp")))
