"""JPEG: its markers are read here, before Pillow decodes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from nextscale.errors import ImageError
from nextscale.image.directory import is_sound_exif
from nextscale.image.guard import MAX_PROFILE, TRUNCATED

MAX_SCANS: Final = 100
"""Scans of one JPEG. Encoders write about ten, and at most some dozens; a decoder goes over all pixels for each."""
_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not what stands for 255, fills, or restarts
_SCAN, _END = 0xDA, 0xD9
_BARE: Final = (0xD8, 0x01)
_APPS: Final = range(0xE0, 0xF0)
_COMMENT: Final = 0xFE
_HUFFMAN: Final = (0xC0, 0xC1, 0xC2)
_ARITHMETIC: Final = (0xC9, 0xCA, 0xCB)
_EXIF: Final = b"Exif\0\0"
_KEPT: Final = {
    0xE0: (b"JFIF",),
    0xE1: (_EXIF, b"http://ns.adobe.com/xap/1.0/\0"),
    0xE2: (b"ICC_PROFILE\0",),
    0xEE: (b"Adobe",),
}


def lean_jpeg(data: bytes) -> bytes:
    """The first picture of a JPEG with no more of its segments than describe it; time linear in the file's bytes.

    Raises:
        ImageError: it has more than `MAX_SCANS` scans, or fewer bytes than its size takes at the very least.
    """
    kept: list[bytes | memoryview] = [data[:2]]
    view, first_scan, scans, frame, end = memoryview(data), 0, 0, b"", 0
    sizes = dict.fromkeys(_KEPT, 0)
    for marker, at, end in _segments(data):
        if marker == _SCAN:
            scans, first_scan = scans + 1, first_scan or at
            if scans > MAX_SCANS:
                raise ImageError(f"it has over {MAX_SCANS} scans; save it again as JPEG or PNG")
        elif marker not in (*_BARE, _END) and not first_scan and _is_kept(data, at, end, sizes):
            kept.append(view[at:end])
        frame = frame or (data[at + 1 : end] if marker in _HUFFMAN else b"")
    if not first_scan:
        raise ImageError(TRUNCATED)
    _check_length(frame, end - first_scan)
    return b"".join([*_sound(kept), view[first_scan:end]])


def padded_scans(data: bytes, padding: bytes) -> tuple[bytes, int]:
    """A JPEG with bytes between the codes of each scan and the marker behind them, and the number of its scans.

    A decoder passes over them where the scan is whole, and takes them for codes where it ends early. Of arithmetic
    codes the last may be left out; such a file comes back as it is, with 0 for its scans.
    """
    parts, done, scans, in_scan = list[bytes](), 0, 0, False
    for marker, at, _ in _segments(data):
        if marker in _ARITHMETIC:
            return data, 0
        if in_scan:
            parts += [data[done:at], padding]
            done, scans = at, scans + 1
        in_scan = marker == _SCAN
    return b"".join([*parts, data[done:]]), scans


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the segments; the last is the end marker, empty where the file has none."""
    at = 2
    while found := _MARKER.search(data, at):
        at, marker = found.start(), data[found.start() + 1]
        if marker == _END:
            break
        end = at + 2 if marker in _BARE else at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data) or (marker not in _BARE and end < at + 4):
            raise ImageError(TRUNCATED)
        yield marker, at, end
        at = end
    yield (_END, found.start(), found.start() + 2) if found else (_END, len(data), len(data))


def _is_kept(data: bytes, at: int, end: int, sizes: dict[int, int]) -> bool:
    """Whether a segment before the pixels is one to keep; `sizes` counts what was kept of each kind."""
    marker = data[at + 1]
    if marker not in _APPS and marker != _COMMENT:
        return True
    if not data.startswith(_KEPT.get(marker, ()), at + 4):
        return False
    sizes[marker] += end - at
    return sizes[marker] <= (MAX_PROFILE if marker == 0xE2 else 1 << 20)


def _sound(kept: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """The segments without EXIF where its parts together are no block that can be read in linear time."""
    others = [part for part in kept if bytes(part[4:10]) != _EXIF]
    exif = b"".join(bytes(part[10:]) for part in kept if bytes(part[4:10]) == _EXIF)
    return kept if not exif or is_sound_exif(exif) else others


def _check_length(frame: bytes, length: int) -> None:
    """Every block of 8 x 8 pixels takes a bit at least, where the codes are Huffman's."""
    if len(frame) >= 8:
        height, width = int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[6:8], "big")
        if -(-height // 8) * -(-width // 8) > length * 8:
            raise ImageError(TRUNCATED)
