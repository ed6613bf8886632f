"""PNG of 16 bits per channel, which Pillow alone would reduce to 8 without a word."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

from nextscale.errors import ImageError
from nextscale.image.extras import by_opencv, extra
from nextscale.image.guard import MAX_RATIO, TRUNCATED
from nextscale.image.metadata import exif_to_write, read_exif
from nextscale.image.picture import Array, Picture, icc_fits, split_channels, stacked, upright
from nextscale.image.pillow import open_by_pillow


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        size = int.from_bytes(view[at : at + 4], "big")
        kind, body, crc = (
            bytes(view[at + 4 : at + 8]),
            view[at + 8 : at + 8 + size],
            view[at + 8 + size : at + 12 + size],
        )
        if len(crc) < 4:
            raise ImageError(TRUNCATED)
        if kind in (b"IHDR", b"IDAT", b"tRNS") and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(crc, "big"):
            raise ImageError(f"the file is damaged (checksum of {kind.decode()}); copy or download it again")
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + size
    raise ImageError(TRUNCATED)


def png_chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def decode_png16(data: bytes, max_pixels: int) -> Picture:
    """Pixels by OpenCV (grey without alpha by Pillow, which keeps that one), metadata by Pillow."""
    chunks = list(png_chunks(data))
    ahead = b"".join(png_chunk(kind, body) for kind, body in chunks if kind not in (b"IDAT", b"IEND"))
    header = data[:8] + ahead + png_chunk(b"IDAT", b"")
    im = open_by_pillow("PNG", header, max_pixels)
    orientation, exif = read_exif(lambda: Image.Image.getexif(im))
    key = next((np.frombuffer(body, ">u2") for kind, body in chunks if kind == b"tRNS"), None)
    if data[25] == 0:
        whole = PngImagePlugin.PngImageFile(io.BytesIO(data))
        samples = np.array(whole).astype(np.uint16)[..., None]
    else:
        samples = _png16_by_opencv(data[:8], chunks, im.size)
        if data[25] == 4:  # OpenCV spreads grey + alpha over four channels
            samples = samples[..., [0, 3]]
    rgb, alpha, icc = split_channels(samples, im.info.get("icc_profile"), key if data[25] in (0, 2) else None)
    return upright(rgb, alpha, orientation, icc, exif, True, "PNG")


def _png16_by_opencv(signature: bytes, chunks: list[tuple[bytes, memoryview]], size: tuple[int, int]) -> Array:
    """H W 3 or 4 uint16, in RGB(A) order. OpenCV returns half a picture for half a stream, so the stream is checked."""
    cv2 = extra("cv2")
    pixels = b"".join(body for kind, body in chunks if kind == b"IDAT")
    stream, rest = zlib.decompressobj(), pixels
    while rest and not stream.eof:
        stream.decompress(rest, 1 << 20)
        rest = stream.unconsumed_tail
    if not stream.eof or size[0] * size[1] > len(pixels) * MAX_RATIO[8]:
        raise ImageError(TRUNCATED)
    bare = signature + png_chunk(b"IHDR", chunks[0][1]) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return by_opencv(cv2, bare, size, 4 if chunks[0][1][9] in (4, 6) else 3)


def encode_png16(picture: Picture) -> bytes:
    """Every row is stored as differences from the pixel to its left ("Sub"), in bands, so memory stays small."""
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
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [
        b"\x89PNG\r\n\x1a\n",
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
    ]
    if picture.icc is not None and icc_fits(picture.icc, picture.rgb.shape[2]):
        parts.append(png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    exif = exif_to_write(picture)
    if exif is not None:
        parts.append(png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    parts += [png_chunk(b"IDAT", part) for part in pixels if part]
    return b"".join([*parts, png_chunk(b"IEND", b"")])
