"""AVIF: its boxes are read here for what Pillow does not say (depth, colors); Pillow or OpenCV decodes the pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from nextscale.errors import ImageError
from nextscale.image.directory import is_sound_exif
from nextscale.image.guard import TRUNCATED

MAX_ITEMS_BYTES: Final = 1 << 18
"""Bytes of the tables of items. The decoder searches them item by item; those of a picture take a few hundred."""
_TABLES: Final = (b"iinf", b"iloc", b"iref", b"ipma", b"grpl", b"idat")
_CONTAINERS: Final = {b"meta": 4, b"iprp": 0, b"ipco": 0}
_TIFF_MAGIC: Final = re.compile(rb"II\*\0|MM\0\*")
_MAX_BLOCKS: Final = 16


def check_avif(data: bytes) -> None:
    """Refuse tables over the limit, since decoders take time by their length's square.

    Raises:
        ImageError: as said, or a box ends outside of the file.
    """
    tables = sum(end - at for kind, at, end in _boxes(data) if kind in _TABLES)
    if tables > MAX_ITEMS_BYTES:
        raise ImageError(f"its tables of parts take {tables} bytes, over the limit; save it again as PNG")


def depth_of(data: bytes) -> int:
    """Bits per channel, 8, 10 or 12, the largest of its parts."""
    flags = [data[at + 2] for kind, at, end in _boxes(data) if kind == b"av1C" and end - at >= 3]
    return max(((12 if flag & 0x20 else 10) if flag & 0x40 else 8 for flag in flags), default=8)


def code_points(data: bytes) -> tuple[int, int] | None:
    """Color primaries and transfer function by H.273, where the file states them."""
    for kind, at, _ in _boxes(data):
        if kind == b"colr" and data[at : at + 4] == b"nclx":
            return int.from_bytes(data[at + 4 : at + 6], "big"), int.from_bytes(data[at + 6 : at + 8], "big")
    return None


def without_bad_exif(data: bytes) -> bytes:
    """The file without its EXIF where that cannot be read in linear time: Pillow reads it as it opens the file."""
    for number, found in enumerate(_TIFF_MAGIC.finditer(data)):
        if number == _MAX_BLOCKS or not is_sound_exif(data[found.start() : found.start() + (1 << 24)]):
            return data.replace(b"Exif", b"none")
    return data


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the boxes' contents, of the file and of its description of items."""
    waiting = [(0, len(data))]
    while waiting:
        at, end = waiting.pop()
        while at + 8 <= end:
            size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
            if size == 1:
                size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
            stop = at + size if size else end
            if stop > end or stop < at + head:
                raise ImageError(TRUNCATED)
            yield kind, at + head, stop
            if kind in _CONTAINERS:
                waiting.append((at + head + _CONTAINERS[kind], stop))
            at = stop
