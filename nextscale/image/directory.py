"""Directories of TIFF and EXIF: where each tag's value lies. Nothing is copied, and nothing is read twice.

A directory may name any number of tags that all point at the same bytes; to read them all without looking first
needs the product of tags and bytes. This module looks first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from nextscale.errors import ImageError
from nextscale.image.guard import TRUNCATED

MAX_ENTRIES: Final = 1000
"""Tags of one directory. The format allows 65,535; pictures have a few dozen."""
_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS: Final = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_EXIF_DIRECTORIES: Final = (0x8769, 0x8825, 0xA005)


@dataclass(frozen=True)
class Entry:
    """One tag: its type, how many values, where they lie, and its own 12 (or 20) bytes."""

    tag: int
    kind: int
    count: int
    at: int
    size: int
    raw: bytes


@dataclass(frozen=True)
class Layout:
    """Byte order and width of a file's directories, plain or big."""

    order: str
    big: bool

    @classmethod
    def of(cls, data: bytes) -> Layout:
        """By the first four bytes."""
        return cls("<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+"))

    @property
    def word(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def first(self) -> int:
        """Where the file says where its first directory is."""
        return 8 if self.big else 4

    def directory(self, data: bytes, at: int, *, cut: bool = False) -> tuple[dict[int, Entry], int]:
        """The entries of the directory at an offset, by tag (the first of several counts), and the next one's offset.

        Values that do not lie in the file are left out.

        Args:
            cut: take the entries that are there where the file ends within the directory; the next offset is then 0.

        Raises:
            ImageError: the directory does not lie in the file, or has over `MAX_ENTRIES` tags.
        """
        step, width = (20, 8) if self.big else (12, 4)
        head = self.order + ("Q" if self.big else "H")
        if at + struct.calcsize(head) > len(data):
            raise ImageError(TRUNCATED)
        (number,) = struct.unpack_from(head, data, at)
        if number > MAX_ENTRIES:
            raise ImageError(f"its directory has {number} tags, over the limit of {MAX_ENTRIES}; save it again as PNG")
        start = at + struct.calcsize(head)
        there = (len(data) - start) // step
        if start + number * step + width > len(data) and not cut:
            raise ImageError(TRUNCATED)
        entries: dict[int, Entry] = {}
        for place in range(start, start + min(number, there) * step, step):
            tag, kind, count = struct.unpack_from(self.order + "HH" + self.word[1], data, place)
            size, where = count * _SIZES.get(kind, 0), place + step - width
            if size > width:
                (where,) = struct.unpack_from(self.word, data, where)
            if size and where + size <= len(data):
                entries.setdefault(tag, Entry(tag, kind, count, where, size, data[place : place + step]))
        if start + number * step + width > len(data):
            return entries, 0
        (after,) = struct.unpack_from(self.word, data, start + number * step)
        return entries, after

    def numbers(self, data: bytes, entry: Entry) -> Any:
        """An entry's integers as an array of the file's own type; empty where it holds none."""
        if entry.kind not in _NUMBERS:
            return np.empty(0, np.uint8)
        return np.frombuffer(data, self.order + _NUMBERS[entry.kind], entry.count, entry.at)

    def pack(self, entries: Iterable[Entry]) -> bytes:
        """A directory of these entries, the last one of its file; their values stay where they are."""
        rows = [entry.raw for entry in sorted(entries, key=lambda entry: entry.tag)]
        return b"".join([struct.pack(self.order + ("Q" if self.big else "H"), len(rows)), *rows, bytes(8)])


def is_sound_exif(block: bytes) -> bool:
    """Whether an EXIF block (with or without "Exif\\0\\0") can be read in time linear in its length."""
    block = block.removeprefix(b"Exif\0\0")
    layout = Layout.of(block)
    if block[:2] not in (b"II", b"MM") or len(block) < 8 or layout.big:
        return False
    (at,) = struct.unpack_from(layout.word, block, layout.first)
    return sound_directories(block, layout, at)


def sound_directories(data: bytes, layout: Layout, at: int) -> bool:
    """The same for the directory at an offset and the EXIF, GPS and interoperability directories that it points to."""
    left, waiting, seen = 2 * len(data) + 65536, [at], 0
    while waiting:
        seen += 1
        try:
            entries, _ = layout.directory(data, waiting.pop(), cut=True)
        except ImageError:
            return False
        left -= sum(entry.size for entry in entries.values())
        if left < 0 or seen > len(_EXIF_DIRECTORIES) + 1:
            return False
        waiting += [int(layout.numbers(data, entries[tag])[0]) for tag in _EXIF_DIRECTORIES if is_number(entries, tag)]
    return True


def is_number(entries: dict[int, Entry], tag: int) -> bool:
    """Whether a directory has this tag, as integers."""
    return tag in entries and entries[tag].kind in _NUMBERS
