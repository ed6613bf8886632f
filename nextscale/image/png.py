"""PNG: its chunks and its stream are read here, its pixels by Pillow (8 bits and less) or OpenCV (16 bits of color).

Pillow alone would reduce 16-bit RGB to 8 without a word, show rows that the stream does not hold, and take a long text
for damage. No decoder gets the file itself: each gets a bare one, of sound chunks and a stream of the right length.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image, PngImagePlugin

from nextscale.errors import ImageError
from nextscale.image.color import from_cicp, from_png_numbers
from nextscale.image.extras import by_opencv, extra
from nextscale.image.guard import DAMAGED, MAX_PROFILE, MAX_RATIO, TRUNCATED, check_size
from nextscale.image.metadata import clean_xmp, exif_of, exif_to_write, sound_dpi
from nextscale.image.picture import Array, Description, Picture, icc_fits, split_channels, stacked, upright
from nextscale.image.pillow import samples_of

Chunks = list[tuple[bytes, memoryview]]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PASSES: Final = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_PIXEL_CHUNKS: Final = (b"IHDR", b"PLTE", b"IDAT", b"tRNS")
_NUMBER_SIZES: Final = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}
_TEXT_CHUNKS: Final = (b"tEXt", b"zTXt", b"iTXt")
_XMP_KEY: Final = b"XML:com.adobe.xmp"
_RAW_EXIF: Final = (b"Raw profile type exif", b"Raw profile type APP1")
_SLICE: Final = 1 << 16
_INCH: Final = 0.0254
_IDAT: Final = 1 << 26
"""Bytes of one chunk of a bare file; a chunk may have 2 ** 31 at most."""


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks up to IEND; those that say nothing of the pixels are left out where their checksum is wrong.

    Raises:
        ImageError: the file ends before IEND, or a chunk that the pixels depend on is damaged.
    """
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        size, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        body, crc = view[at + 8 : at + 8 + size], view[at + 8 + size : at + 12 + size]
        if len(crc) < 4:
            raise ImageError(TRUNCATED)
        sound = zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(crc, "big")
        if kind in _PIXEL_CHUNKS and not sound:
            raise ImageError(f"the file is damaged (checksum of {kind.decode()}); copy or download it again")
        if sound:
            yield kind, body
        if kind == b"IEND":
            return
        at += 12 + size
    raise ImageError(TRUNCATED)


def png_chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    return b"".join([struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))])


@dataclass(frozen=True)
class _Header:
    """What IHDR says."""

    size: tuple[int, int]
    depth: int
    color_type: int
    interlaced: bool

    @classmethod
    def of(cls, chunks: Chunks, max_pixels: int) -> _Header:
        if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
            raise ImageError(DAMAGED)
        width, height, depth, color_type, method, filters, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
        if depth not in _DEPTHS.get(color_type, ()) or method or filters or interlace > 1 or not (width and height):
            raise ImageError(DAMAGED)
        check_size((width, height), max_pixels)
        return cls((width, height), depth, color_type, bool(interlace))

    def rows(self) -> list[tuple[int, int]]:
        """Of every pass (one without interlacing): bytes of a row with its filter, and number of rows."""
        found = []
        for top, left, down, across in _PASSES if self.interlaced else ((0, 0, 1, 1),):
            width, height = -(-(self.size[0] - left) // across), -(-(self.size[1] - top) // down)
            if width > 0 and height > 0:
                found.append((1 + (width * _CHANNELS[self.color_type] * self.depth + 7) // 8, height))
        return found


def decode_png(data: bytes, max_pixels: int) -> Picture:
    """A still PNG of any depth and color type.

    The stream is unpacked once, in slices, and only as far as the size in the header goes: time is linear in the file's
    bytes and the pixels, memory a few times the pixels.
    """
    chunks = list(png_chunks(data))
    header = _Header.of(chunks, max_pixels)
    if any(kind == b"acTL" and 1 < int.from_bytes(body[:4], "big") <= 1 << 31 for kind, body in chunks):
        raise ImageError("this PNG is animated; save one frame of it as a picture")
    gray = header.color_type in (0, 4)
    orientation, about = _describe(chunks, gray=gray)
    bare = _bare(chunks, header)
    if header.depth == 16:
        key = _first(chunks).get(b"tRNS", b"") if header.color_type in (0, 2) else b""
        rgb, alpha, icc = split_channels(_pixels16(bare, header), about.icc, np.frombuffer(key, ">u2") if key else None)
    else:
        im = PngImagePlugin.PngImageFile(io.BytesIO(bare))
        im.load()
        rgb, alpha, icc = samples_of(im, about.icc, header.depth)
    return upright(rgb, alpha, orientation, replace(about, icc=icc), lossless=True, form="PNG")


def _pixels16(bare: bytes, header: _Header) -> Array:
    """uint16 H W 1 to 4. Plain gray by Pillow, which keeps that one."""
    if header.color_type == 0:
        return np.array(PngImagePlugin.PngImageFile(io.BytesIO(bare))).astype(np.uint16)[..., None]
    samples = by_opencv(extra("cv2"), bare, header.size, 4 if header.color_type in (4, 6) else 3)
    return samples[..., [0, 3]] if header.color_type == 4 else samples  # OpenCV spreads gray and alpha over four


def png_header(data: bytes) -> tuple[tuple[int, int], int]:
    """(width, height) and bits per channel of a whole file."""
    header = _Header.of(list(png_chunks(data)), 1 << 62)
    return header.size, max(header.depth, 8)


def _unpack(chunks: Chunks, header: _Header) -> bytearray:
    """The rows of a stream, filters and all.

    Raises:
        ImageError: the stream is damaged, or ends before the last row.
    """
    parts, length = [body for kind, body in chunks if kind == b"IDAT"], sum(size * rows for size, rows in header.rows())
    if length > sum(map(len, parts)) * MAX_RATIO[8]:
        raise ImageError(TRUNCATED)
    raw, done, stream = bytearray(length), 0, zlib.decompressobj()
    try:
        for packed in (part[at : at + _SLICE] for part in parts for at in range(0, len(part), _SLICE)):
            rest: bytes | memoryview = packed
            while done < length and not stream.eof:
                room = min(length - done, 1 << 20)
                piece = stream.decompress(rest, room)
                raw[done : done + len(piece)] = piece
                done, rest = done + len(piece), stream.unconsumed_tail
                if not rest and len(piece) < room:
                    break
            if done == length or stream.eof:
                break
    except zlib.error:
        raise ImageError(DAMAGED) from None
    if done < length:
        raise ImageError(TRUNCATED)
    return raw


def _check_filters(raw: bytearray, header: _Header) -> None:
    view, at = np.frombuffer(raw, np.uint8), 0
    for size, rows in header.rows():
        if view[at : at + size * rows : size].max() > 4:
            raise ImageError(DAMAGED)
        at += size * rows


def _bare(chunks: Chunks, header: _Header) -> bytes:
    """A PNG of only what the pixels need, its rows stored without compression: decoders have nothing to unpack."""
    raw = _unpack(chunks, header)
    _check_filters(raw, header)
    stored = memoryview(zlib.compress(raw, 0))
    del raw
    parts = [_SIGNATURE, png_chunk(b"IHDR", chunks[0][1])]
    if header.depth < 16:
        first = _first(chunks)
        sizes = {0: (2,), 2: (6,), 3: range(257)}.get(header.color_type, ())
        if header.color_type == 3:
            palette = first.get(b"PLTE", b"")
            if not palette or len(palette) % 3 or len(palette) > 768:
                raise ImageError(DAMAGED)
            parts.append(png_chunk(b"PLTE", palette))
        if len(first.get(b"tRNS", b"")) in sizes and b"tRNS" in first:
            parts.append(png_chunk(b"tRNS", first[b"tRNS"]))
    parts += [png_chunk(b"IDAT", stored[at : at + _IDAT]) for at in range(0, len(stored), _IDAT)]
    return b"".join([*parts, png_chunk(b"IEND", b"")])


def _first(chunks: Chunks) -> dict[bytes, memoryview]:
    return dict(reversed(chunks))


# ---- what describes the picture ----


def _describe(chunks: Chunks, *, gray: bool) -> tuple[int, Description]:
    """(EXIF orientation, what describes the picture)."""
    first = _first(chunks)
    xmp: bytes | None = None
    exif = b"Exif\0\0" + bytes(first[b"eXIf"]) if b"eXIf" in first else None
    texts = []
    for kind, body in chunks:
        if kind not in _TEXT_CHUNKS:
            continue
        name = bytes(body[:80]).split(b"\0")[0]
        if name == _XMP_KEY:
            xmp = xmp or _text(kind, body)
        elif name in _RAW_EXIF:
            exif = exif or _raw_profile(_text(kind, body))
        elif name == b"exif":  # as some old writers have it
            exif = exif or _text(kind, body)
        elif not name.startswith(b"Raw profile type "):
            texts.append((kind, bytes(body)))
    carrier = Image.new("L", (1, 1))
    carrier.info = {"exif": exif or b"", "xmp": xmp or b""}
    orientation, exif = exif_of(carrier)
    icc, cicp = _colors(first, gray=gray)
    about = Description(icc=icc, exif=exif, dpi=_dpi(first), xmp=clean_xmp(xmp), cicp=cicp, texts=tuple(texts))
    return orientation, about


def _colors(first: dict[bytes, memoryview], *, gray: bool) -> tuple[bytes | None, tuple[int, int] | None]:
    """(ICC profile, code points of HDR) by the chunk that counts: cICP, then iCCP, sRGB, cHRM and gAMA."""
    numbers = {kind: first[kind] for kind, size in _NUMBER_SIZES.items() if len(first.get(kind, b"")) == size}
    code = bytes(first.get(b"cICP", b""))
    if len(code) == 4 and 2 not in code[:2]:
        if code[2:] != b"\0\1":
            raise ImageError("its colors are stored as video (cICP); convert it to sRGB first")
        return from_cicp(code[0], code[1], gray=gray)
    if b"iCCP" in first:
        _, _, packed = bytes(first[b"iCCP"]).partition(b"\0")
        profile = _inflate(packed[1:])
        if profile:
            return profile, None
    if b"sRGB" in numbers or not {b"gAMA", b"cHRM"} & set(numbers):
        return None, None
    gamma = int.from_bytes(numbers[b"gAMA"], "big") / 1e5 if b"gAMA" in numbers else None
    corners = [n / 1e5 for n in struct.unpack(">8i", numbers[b"cHRM"])] if b"cHRM" in numbers else None
    return from_png_numbers(gamma, corners, gray=gray), None


def _dpi(first: dict[bytes, memoryview]) -> tuple[float, float] | None:
    if len(first.get(b"pHYs", b"")) != 9 or first[b"pHYs"][8] != 1:  # without a unit it is no print size
        return None
    across, down = struct.unpack(">II", first[b"pHYs"][:8])
    return sound_dpi((across * _INCH, down * _INCH))


def _text(kind: bytes, body: memoryview) -> bytes | None:
    """The text of a text chunk, unpacked; None where it is malformed or longer than any description."""
    _, _, rest = bytes(body[: MAX_PROFILE + 1000]).partition(b"\0")
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    elif packed:
        rest = rest[1:]
    return _inflate(rest) if packed else rest


def _inflate(packed: bytes) -> bytes | None:
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(packed, MAX_PROFILE)
    except zlib.error:
        return None
    return out if stream.eof else None


def _raw_profile(text: bytes | None) -> bytes | None:
    """EXIF as ImageMagick writes it: in hexadecimal, after three lines."""
    try:
        return bytes.fromhex("".join((text or b"").decode("ascii").split("\n")[3:])) or None
    except ValueError:
        return None


# ---- writing ----


def with_description(data: bytes, picture: Picture) -> bytes:
    """A PNG of a picture's pixels with the chunks that describe it."""
    parts = []
    if picture.cicp is not None:
        parts.append(png_chunk(b"cICP", bytes([*picture.cicp, 0, 1])))
    if picture.icc is not None and icc_fits(picture.icc, picture.rgb.shape[2]):
        parts.append(png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    if picture.dpi is not None:
        parts.append(png_chunk(b"pHYs", struct.pack(">IIB", *(round(dpi / _INCH) for dpi in picture.dpi), 1)))
    exif = exif_to_write(picture)
    if exif is not None:
        parts.append(png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    if picture.xmp is not None:
        parts.append(png_chunk(b"iTXt", _XMP_KEY + bytes(5) + picture.xmp))
    parts += [png_chunk(*text) for text in picture.texts]
    start = len(_SIGNATURE) + 25  # behind IHDR
    return b"".join([data[:start], *parts, memoryview(data)[start:]])


def encode_png16(picture: Picture) -> bytes:
    """The pixels: every row as differences from the pixel to its left ("Sub"), in bands, so memory stays small."""
    samples = stacked(picture)
    height, width, channels = samples.shape
    step, squeeze, rows = channels * 2, zlib.compressobj(6), max(1, (1 << 22) // (width * channels * 2))
    pixels = []
    for top in range(0, height, rows):
        band = samples[top : top + rows].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        filtered = np.ones((len(band), 1 + band.shape[1]), np.uint8)  # the leading 1 names the filter
        filtered[:, 1:] = band
        filtered[:, 1 + step :] -= band[:, :-step]
        pixels.append(squeeze.compress(filtered.tobytes()))
    pixels.append(squeeze.flush())
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    parts = [_SIGNATURE, png_chunk(b"IHDR", header), *(png_chunk(b"IDAT", part) for part in pixels if part)]
    return b"".join([*parts, png_chunk(b"IEND", b"")])
