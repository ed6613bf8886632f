"""Any picture in, pictures out: files, bytes and float arrays. The only module that knows file formats.

- `read` / `decode_bytes` give a `Picture`: upright (EXIF orientation applied), grey or RGB, 8 or 16 bits, alpha apart.
- `write` / `encode_bytes` keep bit depth, grey, alpha, ICC profile and EXIF, or refuse what a format cannot hold.
- 16-bit files are recognised by their own header: Pillow alone would reduce 16-bit RGB to 8 bits without a word.
- Whatever the bytes, the outcome is a `Picture` or an `ImageError`: one line "reason; remedy", without the file name.

Shapes: H W C with C = 1 (grey) or 3 (RGB); sizes are (width, height).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import logging
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from nextscale.errors import ImageError, OptionError
from nextscale.files import check_writable, write_atomic
from nextscale.install import how_to_install

Array = NDArray[Any]
Filter = Literal["bicubic", "lanczos", "bilinear", "box"]

WRITE_FORMATS: Final = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
}
SUFFIXES: Final = (*WRITE_FORMATS, ".gif")
MAX_PIXELS: Final = 512_000_000


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture in memory, upright, colours not premultiplied by alpha.

    rgb: H W 3, or H W 1 for grey; uint8 or uint16.
    alpha: H W of the same dtype (0 = transparent), or None.
    icc: a profile that fits the pixels (grey or RGB), or None for sRGB.
    exif: "Exif\\0\\0" + TIFF block with orientation 1 and without thumbnail, or None.
    lossless: whether the source file kept its pixels exactly.
    format: name of the source format ("PNG", "JPEG", "WebP", "TIFF", "BMP", "AVIF", "GIF").
    """

    rgb: Array
    alpha: Array | None = None
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    lossless: bool = True
    format: str = "PNG"

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] not in (1, 3) or not self.rgb.size:
            raise ValueError(f"rgb must be H W 3 or H W 1, got {self.rgb.shape}")
        if self.rgb.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"rgb must be uint8 or uint16, got {self.rgb.dtype}")
        if self.alpha is not None and (self.alpha.shape, self.alpha.dtype) != (self.rgb.shape[:2], self.rgb.dtype):
            raise ValueError(f"alpha {self.alpha.shape} {self.alpha.dtype} does not fit rgb {self.rgb.shape}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def bits(self) -> int:
        """Bits per channel: 8 or 16."""
        return self.rgb.dtype.itemsize * 8

    @property
    def is_grey(self) -> bool:
        """Whether there is one colour channel."""
        return bool(self.rgb.shape[2] == 1)


# ---- reading ----


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
        raise ImageError(_NO_MEMORY) from None
    except (OSError, ValueError) as error:
        raise ImageError(f"it cannot be read ({_one_line(error)}); check the name and the disk") from error
    return decode_bytes(data, max_pixels=max_pixels)


def decode_bytes(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the bytes of one picture file; see `read`."""
    return _guarded(lambda: _decode(data, max_pixels))


def from_pil(im: Image.Image) -> Picture:
    """A Pillow image, as if read from a file: upright, with its alpha, ICC profile and EXIF."""

    def convert() -> Picture:
        im.load()
        if im.mode in ("I", "F"):
            raise ImageError(f"a Pillow image of mode {im.mode} has no fixed range; convert it to I;16, L or RGB first")
        rgb, alpha, icc = _samples(im, im.info.get("icc_profile"))
        orientation, exif = _read_exif(im.getexif)
        return _upright(rgb, alpha, orientation, icc, exif, True, im.format or "Pillow")

    return _guarded(convert)


def _guarded(decode: Callable[[], Picture]) -> Picture:
    try:
        with _quiet():
            return decode()
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(_NO_MEMORY) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"it is too large ({_one_line(error)}); crop or shrink it first") from error
    except Exception as error:  # decoders raise anything at all on damaged bytes
        reason = _one_line(error)
        if any(word in reason.lower() for word in ("truncated", "not enough image data", "unexpected end")):
            raise ImageError(_TRUNCATED) from error
        raise ImageError(f"the file is damaged or of a rare kind ({reason}); save it again as PNG or JPEG") from error


_NO_MEMORY: Final = "there is not enough memory for it; close other programs or use a smaller picture"
_TRUNCATED: Final = "the file is truncated; copy or download it again"

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it finds odd is no news to the user

_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters = contextlib.ExitStack()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Mute Python warnings while any thread decodes (a bare `catch_warnings` per thread would leave them muted)."""
    global _quiet_depth
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_filters.close()


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:160] or type(error).__name__


def _extra(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImageError(f"16-bit pictures need packages more; {how_to_install('depth16')}") from None


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
    raise ImageError("this is not a picture; give a JPEG, PNG, WebP, TIFF, BMP, AVIF or GIF file")


_PLUGINS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # also a phone's JPEG with gain maps behind it (MPO): the first picture
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}


def _decode(data: bytes, max_pixels: int) -> Picture:
    form = _sniff(data)
    if form == "TIFF":
        return _decode_tiff(data, max_pixels)
    if form == "PNG" and data[24:25] == b"\x10":
        return _decode_png16(data, max_pixels)
    im = _open(form, data, max_pixels)
    im.load()
    depth = data[24] if form == "PNG" else 8
    rgb, alpha, icc = _samples(im, im.info.get("icc_profile"), depth)
    orientation, exif = _read_exif(im.getexif)
    lossless = form in ("PNG", "BMP", "GIF") or (form == "WebP" and _is_lossless_webp(data))
    return _upright(rgb, alpha, orientation, icc, exif, lossless, form)


def _open(form: str, data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Parse the header by the format's own class: `Image.open` would check the size against a global."""
    if form in ("WebP", "AVIF") and not features.check(form.lower()):
        raise ImageError(f"this Pillow was built without {form}; pip install --upgrade pillow")
    try:
        im = _PLUGINS[form](io.BytesIO(data))
    except Exception:
        if form != "AVIF" or b"Exif" not in data:
            raise
        im = _PLUGINS[form](io.BytesIO(data.replace(b"Exif", b"none")))  # libavif fails on a malformed EXIF item
    _check_size(im.size, max_pixels)
    if form != "TIFF" and getattr(im, "is_animated", False):
        raise ImageError(f"this {form} is animated; save one frame of it as a picture")
    return im


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise ImageError(f"{width} x {height} pixels are over the limit of {limit}; crop or shrink it first")


def _samples(im: Image.Image, icc: bytes | None, depth: int = 8) -> tuple[Array, Array | None, bytes | None]:
    """Pillow image -> (rgb H W C, alpha H W | None, profile that fits). `depth` is a PNG's own bit depth."""
    key = im.info.get("transparency") if im.mode in ("1", "L", "RGB") else None
    if im.mode in ("P", "PA"):
        im = im.convert("RGBA" if im.has_transparency_data else "RGB")
    elif im.mode == "1":
        im = im.convert("L")
    elif im.mode in ("CMYK", "LAB"):
        im, icc = _to_srgb(im, icc), None
    elif im.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B"):
        im = im.convert({"La": "LA", "RGBa": "RGBA"}.get(im.mode, "RGB"))
    samples = np.array(im, np.uint16 if im.mode.startswith("I;16") else np.uint8)
    samples = samples.reshape(*samples.shape[:2], -1)
    if key is not None and im.mode == "L" and depth < 8:
        key = min(key * 255 // (2**depth - 1), 255)  # Pillow spreads the samples over eight bits, but not the key
    return _split(samples, icc, key)


def _split(samples: Array, icc: bytes | None, key: Any = None) -> tuple[Array, Array | None, bytes | None]:
    """H W 1..4 -> rgb, alpha, profile; `key` is the colour that a PNG without alpha declares transparent."""
    channels = samples.shape[2]
    colours = 3 if channels >= 3 else 1
    rgb = np.ascontiguousarray(samples[..., :colours])
    alpha = np.ascontiguousarray(samples[..., -1]) if channels in (2, 4) else None
    if key is not None:
        full = np.iinfo(rgb.dtype).max
        alpha = np.where((rgb == np.asarray(key)).all(axis=2), 0, full).astype(rgb.dtype)
    return rgb, alpha, icc if _icc_fits(icc, colours) else None


def _icc_fits(icc: bytes | None, colours: int) -> bool:
    return icc is not None and icc[36:40] == b"acsp" and icc[16:20] == {1: b"GRAY", 3: b"RGB "}[colours]


def _to_srgb(im: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK through its own profile where that is sound, else plainly; Lab by definition. The result is sRGB."""
    srgb = ImageCms.createProfile("sRGB")
    if im.mode == "LAB":
        converted = ImageCms.profileToProfile(im, ImageCms.createProfile("LAB"), srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if icc and icc[16:20] == b"CMYK":
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(
                im,
                profile,
                srgb,
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            if converted is not None:
                return converted
    return im.convert("RGB")


def _is_lossless_webp(data: bytes) -> bool:
    at = 12
    while at + 8 <= len(data):
        if data[at : at + 4] == b"VP8L":
            return True
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + (size & 1)
    return False


def _upright(
    rgb: Array,
    alpha: Array | None,
    orientation: int,
    icc: bytes | None,
    exif: bytes | None,
    lossless: bool,
    form: str,
) -> Picture:
    turn = _TURNS.get(orientation)
    if turn is not None:
        rgb = np.ascontiguousarray(turn(rgb))
        alpha = None if alpha is None else np.ascontiguousarray(turn(alpha))
    return Picture(rgb, alpha, icc, exif, lossless, form)


_TURNS: Final[dict[int, Callable[[Array], Array]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


# ---- EXIF ----

_ORIENTATION, _EXIF_IFD, _GPS_IFD, _INTEROP_IFD, _MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
# What IFD 0 says about the photograph; the rest describes how one file stored its pixels.
_EXIF_KEEP: Final = (
    *(0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298, 0x4746, 0x4749),
    *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, _EXIF_IFD, _GPS_IFD),
)


def _read_exif(load: Callable[[], Image.Exif]) -> tuple[int, bytes | None]:
    """(orientation 1..8, EXIF block to keep); what cannot be parsed counts as absent."""
    orientation = 1
    try:
        source = load()
        value = source.get(_ORIENTATION, 1)
        orientation = value if value in _TURNS else 1
        kept = _copy_exif(source)
        return orientation, kept.tobytes() if len(kept) else None
    except Exception:  # Pillow's parser raises anything at all on malformed blocks
        return orientation, None


def _copy_exif(source: Image.Exif) -> Image.Exif:
    """The descriptive tags with their sub-directories as plain dictionaries; orientation, if any, becomes 1."""
    kept = Image.Exif()
    kept.endian = source.endian
    if _ORIENTATION in source:
        kept[_ORIENTATION] = 1
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


def _parse_exif(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


def _exif_to_write(picture: Picture, limit: int | None = None) -> Image.Exif | None:
    """The picture's EXIF with its size brought up to date, without maker note where it would exceed `limit` bytes."""
    if not picture.exif:
        return None
    try:
        with _quiet():
            exif = _copy_exif(_parse_exif(picture.exif))
            directory = exif.get(_EXIF_IFD, {})
            if _PIXEL_WIDTH in directory or _PIXEL_HEIGHT in directory:
                directory[_PIXEL_WIDTH], directory[_PIXEL_HEIGHT] = picture.size
            if limit is not None and len(exif.tobytes()) > limit:
                directory.pop(_MAKER_NOTE, None)
            fits = limit is None or len(exif.tobytes()) <= limit
            return exif if fits and len(exif) else None
    except Exception:  # as in _read_exif: a malformed block is no reason to lose the picture
        return None


# ---- 16-bit PNG ----


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        size = int.from_bytes(view[at : at + 4], "big")
        kind, body, crc = (
            bytes(view[at + 4 : at + 8]),
            view[at + 8 : at + 8 + size],
            view[at + 8 + size : at + 12 + size],
        )
        if len(crc) < 4:
            raise ImageError(_TRUNCATED)
        if kind in (b"IHDR", b"IDAT", b"tRNS") and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(crc, "big"):
            raise ImageError(f"the file is damaged (checksum of {kind.decode()}); copy or download it again")
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + size
    raise ImageError(_TRUNCATED)


def _png_chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _decode_png16(data: bytes, max_pixels: int) -> Picture:
    """Pixels by OpenCV (grey without alpha by Pillow, which keeps that one), metadata by Pillow."""
    chunks = list(_png_chunks(data))
    ahead = b"".join(_png_chunk(kind, body) for kind, body in chunks if kind not in (b"IDAT", b"IEND"))
    header = data[:8] + ahead + _png_chunk(b"IDAT", b"")
    im = _open("PNG", header, max_pixels)
    orientation, exif = _read_exif(lambda: Image.Image.getexif(im))
    key = next((np.frombuffer(body, ">u2") for kind, body in chunks if kind == b"tRNS"), None)
    if data[25] == 0:
        whole = PngImagePlugin.PngImageFile(io.BytesIO(data))
        samples = np.array(whole).astype(np.uint16)[..., None]
    else:
        samples = _png16_by_opencv(data[:8], chunks, im.size)
        if data[25] == 4:  # OpenCV spreads grey + alpha over four channels
            samples = samples[..., [0, 3]]
    rgb, alpha, icc = _split(samples, im.info.get("icc_profile"), key if data[25] in (0, 2) else None)
    return _upright(rgb, alpha, orientation, icc, exif, True, "PNG")


def _png16_by_opencv(signature: bytes, chunks: list[tuple[bytes, memoryview]], size: tuple[int, int]) -> Array:
    """H W 3 or 4 uint16, in RGB(A) order. OpenCV returns half a picture for half a stream, so the stream is checked."""
    cv2 = _extra("cv2")
    pixels = b"".join(body for kind, body in chunks if kind == b"IDAT")
    stream, rest = zlib.decompressobj(), pixels
    while rest and not stream.eof:
        stream.decompress(rest, 1 << 20)
        rest = stream.unconsumed_tail
    if not stream.eof or size[0] * size[1] > len(pixels) * _MAX_RATIO[8]:
        raise ImageError(_TRUNCATED)
    bare = signature + _png_chunk(b"IHDR", chunks[0][1]) + _png_chunk(b"IDAT", pixels) + _png_chunk(b"IEND", b"")
    return _by_opencv(cv2, bare, size, 4 if chunks[0][1][9] in (4, 6) else 3)


def _by_opencv(cv2: ModuleType, data: bytes, size: tuple[int, int], channels: int) -> Array:
    """uint16 H W C in RGB(A) order, or `ImageError` where OpenCV gives anything else."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        log.setLogLevel(level)
    if decoded is None:
        raise ImageError("the file is damaged; copy or download it again")
    samples: Array = decoded.reshape(*decoded.shape[:2], -1)
    if samples.dtype != np.uint16 or samples.shape != (size[1], size[0], channels):
        raise ImageError("16-bit samples are laid out in a rare way; save it again as a plain 16-bit PNG")
    return samples if channels == 1 else samples[..., [2, 1, 0, 3][:channels]]


# ---- TIFF ----

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SPP, _STRIP_ROWS = 256, 257, 258, 259, 262, 273, 277, 278
_PLANAR, _TILE_WIDTH, _TILE_HEIGHT = 284, 322, 323
_STRIP_BYTES, _PREDICTOR, _TILES, _TILE_BYTES, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _ICC = (
    279,
    317,
    324,
    325,
    338,
    339,
    34675,
)
_TIFF_TYPES: Final = {1: "B", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TIFF_LOSSY: Final = (6, 7, 33003, 33005, 34712, 34892, 50001)  # JPEG of two kinds, JPEG 2000, lossy DNG, WebP
_MAX_RATIO: Final = {1: 1, 5: 2000, 8: 1100, 32946: 1100}  # none, LZW, Deflate: no stream expands further
_TIFF_COLOURS: Final = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}

Tags = dict[int, tuple[Any, ...]]


def _tiff_pages(data: bytes) -> list[Tags]:
    """The tags of every page (integers and bytes only), of plain and big TIFF in both byte orders."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count_format, entry, word = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    width = struct.calcsize(word)
    (at,) = struct.unpack_from(word, data, 8 if big else 4)
    pages: list[Tags] = []
    seen: set[int] = set()
    while at and at not in seen and len(pages) < 1000:
        seen.add(at)
        if at + 8 > len(data):
            raise ImageError(_TRUNCATED)
        (entries,) = struct.unpack_from(count_format, data, at)
        at += struct.calcsize(count_format)
        if at + entries * entry + width > len(data):
            raise ImageError(_TRUNCATED)
        tags: Tags = {}
        for start in range(at, at + entries * entry, entry):
            tag, kind, count = struct.unpack_from(order + "HH" + word[1], data, start)
            size = count * struct.calcsize(_TIFF_TYPES.get(kind, "0s"))
            where = start + 4 + width
            if size > width:
                (where,) = struct.unpack_from(word, data, where)
            if kind in _TIFF_TYPES and count and where + size <= len(data):
                tags[tag] = struct.unpack_from(f"{order}{count}{_TIFF_TYPES[kind]}", data, where)
        pages.append(tags)
        (at,) = struct.unpack_from(word, data, at + entries * entry)
    return pages


def _is_thumbnail(tags: Tags) -> bool:
    return bool(tags.get(254, (0,))[0] & 5) or tags.get(255, (1,))[0] == 2


def _decode_tiff(data: bytes, max_pixels: int) -> Picture:
    pages = _tiff_pages(data)
    full = [tags for tags in pages if not _is_thumbnail(tags)]
    if not full or full[0] is not pages[0] or 0xC612 in pages[0]:
        raise ImageError("this is a camera raw file or holds only a thumbnail; develop it to a plain TIFF or PNG")
    if len(full) > 1:
        raise ImageError(f"this TIFF holds {len(full)} pages; save each page as a file of its own")
    tags = full[0]
    _check_tiff(tags, len(data), max_pixels)
    icc = tags[_ICC][0] if _ICC in tags and isinstance(tags[_ICC][0], bytes) else None
    _, exif = _read_exif(lambda: _parse_exif(data))
    orientation = tags.get(_ORIENTATION, (1,))[0]
    lossless = tags.get(_COMPRESSION, (1,))[0] not in _TIFF_LOSSY
    if tags.get(_BITS, (1,))[0] == 16 and (tags.get(_SPP, (1,))[0], tags.get(_PHOTOMETRIC, (1,))[0]) != (1, 1):
        rgb, alpha, icc = _tiff16(data, tags, icc)
    else:
        im = _open("TIFF", data, max_pixels)
        im.load()
        rgb, alpha, icc = _samples(im, icc)
        # Pillow turns a TIFF upright as it loads it, and then forgets the tag.
        orientation, _ = _read_exif(im.getexif)
    return _upright(rgb, alpha, orientation, icc, exif, lossless, "TIFF")


def _check_tiff(tags: Tags, length: int, max_pixels: int) -> None:
    """Refuse by name what would be reduced or misread: floats, other depths, missing pixels, huge sizes."""
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise ImageError("the file is damaged (no size); save it again as PNG or TIFF")
    _check_size((tags[_WIDTH][0], tags[_HEIGHT][0]), max_pixels)
    bits = tags.get(_BITS, (1,))
    number = {2: "signed", 3: "floating-point"}.get(tags.get(_SAMPLE_FORMAT, (1,))[0])
    if number or len(set(bits)) > 1 or bits[0] not in (1, 2, 4, 8, 16):
        depth = "/".join(str(bit) for bit in sorted(set(bits)))
        kind = f"{depth}-bit {number}" if number else f"{depth}-bit"
        raise ImageError(f"{kind} TIFF is not read; save it with 8 or 16 bits per channel, unsigned")
    _check_tiff_data(tags, length)


def _check_tiff_data(tags: Tags, length: int) -> None:
    """Every strip or tile must lie in the file and hold something: decoders fill what is missing with black."""
    (width,), (height,), planes = tags[_WIDTH][:1], tags[_HEIGHT][:1], 1
    samples, depth = tags.get(_SPP, (1,))[0], tags.get(_BITS, (1,))[0]
    if tags.get(_PLANAR, (1,))[0] == 2:
        planes = samples
    if _TILES in tags:
        across, down = tags.get(_TILE_WIDTH, (0,))[0], tags.get(_TILE_HEIGHT, (0,))[0]
        offsets, counts = tags[_TILES], tags.get(_TILE_BYTES)
    else:
        across, down = width, min(tags.get(_STRIP_ROWS, (height,))[0], height)
        offsets, counts = tags.get(_STRIPS, ()), tags.get(_STRIP_BYTES)
    if not (across and down) or len(offsets) < -(-width // across) * -(-height // down) * planes:
        raise ImageError("the file is damaged (pixels are missing); copy or download it again")
    if counts is None:
        counts = (length - min(offsets),)
    if min(counts) <= 0 or max(at + size for at, size in zip(offsets, counts, strict=False)) > length:
        raise ImageError(_TRUNCATED)
    ratio = _MAX_RATIO.get(tags.get(_COMPRESSION, (1,))[0])
    is_subsampled = tags.get(_PHOTOMETRIC, (1,))[0] == 6
    if ratio and not is_subsampled and width * height * samples * depth // 8 > sum(counts) * ratio:
        raise ImageError(_TRUNCATED)


def _tiff16(data: bytes, tags: Tags, icc: bytes | None) -> tuple[Array, Array | None, bytes | None]:
    """16-bit pixels by tifffile; LZW, which it cannot do alone, by OpenCV. (Pillow does plain grey and only that.)"""
    photometric, samples = tags.get(_PHOTOMETRIC, (1,))[0], tags.get(_SPP, (1,))[0]
    colours = {0: 1, 1: 1, 2: 3}.get(photometric, 0)
    if not colours or samples < colours:
        kind = _TIFF_COLOURS.get(photometric, "this kind of")
        raise ImageError(f"16-bit {kind} TIFF with {samples} channels is not read; convert it to 16-bit RGB first")
    values = _tiff16_by_tifffile(data, tags, samples)
    if values.shape != (tags[_HEIGHT][0], tags[_WIDTH][0], samples):
        raise ImageError("16-bit samples are laid out in a rare way; save it again as a plain 16-bit PNG")
    if photometric == 0:
        values = np.concatenate([65535 - values[..., :1], values[..., 1:]], axis=2)
    rgb, alpha, extra = values[..., :colours], None, tags.get(_EXTRA_SAMPLES, (2,) * (samples - colours))
    if samples > colours and extra and extra[0] != 0:
        alpha = np.ascontiguousarray(values[..., colours])
        if extra[0] == 1:
            rgb = _unpremultiply(rgb, alpha)
    return np.ascontiguousarray(rgb), alpha, icc if _icc_fits(icc, colours) else None


def _tiff16_by_tifffile(data: bytes, tags: Tags, samples: int) -> Array:
    tifffile = _extra("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        try:
            values: Array = page.asarray()
        except (ValueError, RuntimeError) as error:
            if "imagecodecs" not in str(error):
                raise
            if samples not in (1, 3, 4) or page.planarconfig != 1:
                raise ImageError("this compression is not read; save it uncompressed or with Deflate") from None
            return _by_opencv(_extra("cv2"), data, (tags[_WIDTH][0], tags[_HEIGHT][0]), samples)
        if samples > 1 and page.planarconfig == 2:
            values = np.moveaxis(values, 0, -1)
    values = values.reshape(*values.shape[:2], -1)
    if values.dtype != np.uint16:
        raise ImageError("16-bit samples are laid out in a rare way; save it again as a plain 16-bit PNG")
    return values


def _unpremultiply(rgb: Array, alpha: Array) -> Array:
    """uint16 H W C that was stored times alpha -> its own colour; black where alpha is 0."""
    divisor = np.maximum(alpha, 1)[..., None].astype(np.uint64)
    whole = (rgb.astype(np.uint64) * 65535 + divisor // 2) // divisor
    return np.where(alpha[..., None] == 0, 0, np.minimum(whole, 65535)).astype(np.uint16)


# ---- writing ----

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
            return _encode_tiff(picture)
        if form == "PNG" and picture.bits == 16:
            return _encode_png16(picture)
        return _encode_by_pillow(picture, form, quality, lossless)
    except MemoryError:
        raise ImageError("there is not enough memory to write it; close other programs") from None
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        raise ImageError(f"{form} cannot be written ({_one_line(error)}); write .png") from error


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


def _stacked(picture: Picture) -> Array:
    """H W 1..4: colours, then alpha."""
    if picture.alpha is None:
        return picture.rgb
    return np.concatenate([picture.rgb, picture.alpha[..., None]], axis=2)


def _encode_by_pillow(picture: Picture, form: str, quality: int, lossless: bool) -> bytes:
    if form in ("WebP", "AVIF") and not features.check(form.lower()):
        raise ImageError(f"this Pillow was built without {form}; pip install --upgrade pillow")
    samples, colours = _stacked(picture), picture.rgb.shape[2]
    if picture.is_grey and form in ("WebP", "AVIF"):
        samples, colours = samples[..., [0, 0, 0, 1][: 2 + samples.shape[2]]], 3
    options: dict[str, Any] = {}
    if form != "BMP":
        exif = _exif_to_write(picture, 65533 if form == "JPEG" else None)
        options |= {"exif": exif.tobytes()} if exif is not None else {}
        options |= {"icc_profile": picture.icc} if _icc_fits(picture.icc, colours) else {}
    if form == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
    elif form == "WebP":
        options |= {"lossless": True, "exact": True} if lossless else {"quality": quality}
    elif form == "AVIF":
        options |= {"quality": quality, "subsampling": "4:4:4"}
    out = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))
    with _quiet():
        image.save(out, form.upper(), **options)
    return out.getvalue()


def _encode_png16(picture: Picture) -> bytes:
    """Every row is stored as differences from the pixel to its left ("Sub"), in bands, so memory stays small."""
    samples = _stacked(picture)
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
        _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
    ]
    if picture.icc is not None and _icc_fits(picture.icc, picture.rgb.shape[2]):
        parts.append(_png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    exif = _exif_to_write(picture)
    if exif is not None:
        parts.append(_png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    parts += [_png_chunk(b"IDAT", part) for part in pixels if part]
    return b"".join([*parts, _png_chunk(b"IEND", b"")])


def _encode_tiff(picture: Picture) -> bytes:
    """Strips of Deflate over differences from the left pixel; the directory and its EXIF by Pillow."""
    samples = _stacked(picture).astype(picture.rgb.dtype.newbyteorder("<"), copy=False)
    height, width, channels = samples.shape
    rows = max(1, (1 << 20) // (width * channels * samples.itemsize))
    strips = []
    for top in range(0, height, rows):
        band = samples[top : top + rows].copy()
        band[:, 1:] -= samples[top : top + rows, :-1]
        strips.append(zlib.compress(band.tobytes(), 6))
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    exif = _exif_to_write(picture)
    for tag, value in exif.items() if exif is not None else ():
        directory[tag] = value
    directory[_WIDTH], directory[_HEIGHT] = width, height
    directory[_BITS] = (samples.itemsize * 8,) * channels
    directory[_COMPRESSION], directory[_PREDICTOR] = 8, 2
    directory[_PHOTOMETRIC] = 1 if picture.is_grey else 2
    directory[_SPP], directory[_STRIP_ROWS] = channels, min(rows, height)
    if picture.alpha is not None:
        directory[_EXTRA_SAMPLES] = 2
    if picture.icc is not None and _icc_fits(picture.icc, picture.rgb.shape[2]):
        directory.tagtype[_ICC] = 7
        directory[_ICC] = picture.icc
    ends = np.cumsum([0, *map(len, strips)])
    if ends[-1] > 0xF0000000:
        raise ImageError("the file would exceed the 4 GB of a TIFF; write .png")
    directory.tagtype[_STRIPS] = directory.tagtype[_STRIP_BYTES] = 4
    directory[_STRIPS] = tuple(ends[:-1].tolist())  # Pillow adds where the directory ends
    directory[_STRIP_BYTES] = tuple(map(len, strips))
    return b"".join([b"II*\0\x08\0\0\0", directory.tobytes(8), *strips])


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
        reason = _REMEDIES.get(error.errno or 0, f"it cannot be written ({_one_line(error)}); choose another folder")
        raise ImageError(reason) from error


# ---- arrays ----


def to_float(array: Array) -> NDArray[np.float32]:
    """uint8 or uint16 of any shape (H W C) -> float32 of that shape in [-1, 1]."""
    full = np.iinfo(array.dtype).max
    out = array.astype(np.float32)
    out *= np.float32(2 / full)
    out -= 1
    return out


def from_float(array: Array, dtype: DTypeLike) -> Array:
    """Finite floats, [-1, 1] and what overshoots it -> uint8 or uint16 of that shape; clamped, rounded to nearest.

    Exact halves go to the even neighbour (`np.rint`). `from_float(to_float(x), x.dtype)` is `x`.
    """
    full = np.iinfo(np.dtype(dtype)).max
    out: NDArray[np.float32] = array.astype(np.float32)
    out += 1
    out *= np.float32(full / 2)
    np.rint(out, out=out)
    np.clip(out, 0, full, out=out)
    return out.astype(dtype)


def rgb8(picture: Picture) -> NDArray[np.uint8]:
    """A picture as 8-bit RGB, H W 3: grey repeated, 16 bits rounded to 8, what is transparent laid on white."""
    rgb = _eight_bits(picture.rgb)
    if picture.alpha is not None:
        opacity = _eight_bits(picture.alpha).astype(np.uint16)[..., None]
        rgb = ((rgb * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(rgb) if rgb.shape[2] == 3 else np.repeat(rgb, 3, axis=2)


def _eight_bits(array: Array) -> NDArray[np.uint8]:
    return array if array.dtype == np.uint8 else ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def bleed(rgb: Array, alpha: Array) -> Array:
    """Give fully transparent pixels the colour of their visible neighbours, so that enlarging makes no halo.

    rgb H W C and alpha H W, both uint8 or uint16 -> H W C of rgb's dtype; pixels with alpha > 0 are returned exactly.
    Push-pull over a pyramid: alpha-weighted means going down, filled from the next coarser level coming up.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return rgb
    weight = alpha.astype(np.float32)[..., None] / np.float32(np.iinfo(alpha.dtype).max)
    out: Array = rgb.copy()
    out[hidden] = np.rint(_fill(np.concatenate([rgb * weight, weight], axis=2), hidden)).astype(rgb.dtype)
    return out


def _fill(weighted: NDArray[np.float32], empty: NDArray[np.bool_]) -> NDArray[np.float32]:
    """H W C+1 (colours times weight, then weight) -> N C colours for the N pixels that are `empty` (weight 0)."""
    coarse = _halve(weighted)
    colour, weight = coarse[..., :-1], coarse[..., -1:]
    holes = weight[..., 0] == 0
    colour = np.divide(colour, weight, out=np.zeros_like(colour), where=~holes[..., None])
    if holes.any():
        colour[holes] = _fill(coarse, holes)
    return _double(colour, *empty.shape)[empty]


def _halve(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half size (rounded up) by overlapping 1 3 3 1 kernels: each coarse pixel reaches into its neighbours' blocks."""
    for axis in (0, 1):
        length = values.shape[axis]
        values = values.swapaxes(0, axis)
        padded = np.zeros((length + length % 2 + 2, *values.shape[1:]), np.float32)
        padded[1 : 1 + length] = values
        values = (padded[1:-2:2] + padded[2:-1:2]) * np.float32(3 / 8)
        values += (padded[0:-3:2] + padded[3::2]) * np.float32(1 / 8)
        values = values.swapaxes(0, axis)
    return values


def _double(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Double size by linear interpolation between pixel centres, cut to height x width."""
    for axis, length in ((0, height), (1, width)):
        values = values.swapaxes(0, axis)
        padded = np.concatenate([values[:1], values, values[-1:]])
        out = np.empty((2 * len(values), *values.shape[1:]), np.float32)
        near = values * np.float32(0.75)
        out[0::2] = near + padded[:-2] * np.float32(0.25)
        out[1::2] = near + padded[2:] * np.float32(0.25)
        values = out[:length].swapaxes(0, axis)
    return values


_FILTERS: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
_BAND_FLOATS = 1 << 22


def resize(array: Array, size: tuple[int, int], *, filter: Filter = "bicubic") -> Array:
    """H W or H W C, uint8 or uint16 -> the same with H, W replaced by `size` = (width, height); antialiased.

    8 bits by Pillow's fixed point; 16 bits by Pillow's floats, one channel at a time. Channels do not mix: alpha is a
    channel like any other, so bleed colours first.
    """
    if filter not in _FILTERS:
        raise OptionError(f"unknown filter {filter!r}; use one of {' '.join(_FILTERS)}")
    width, height = size
    if array.ndim == 3 and (array.dtype != np.uint8 or array.shape[2] != 3):
        return np.stack([resize(array[..., c], size, filter=filter) for c in range(array.shape[2])], axis=2)
    if array.dtype == np.uint8:
        return np.array(Image.fromarray(np.ascontiguousarray(array)).resize((width, height), _FILTERS[filter]))
    return _resize16(array, width, height, _FILTERS[filter])


def _resize16(plane: Array, width: int, height: int, kind: Image.Resampling) -> Array:
    """uint16 H W -> height x width: along rows, then along columns, as Pillow does, but in bands of bounded memory.

    Each pass is one-dimensional, so no band knows of the others and the result equals the unbanded one bit by bit.
    """
    source_height, source_width = plane.shape
    wide = np.empty((source_height, width), np.float32)
    rows = max(1, _BAND_FLOATS // max(width, source_width))
    for top in range(0, source_height, rows):
        band = plane[top : top + rows].astype(np.float32)
        wide[top : top + rows] = np.asarray(Image.fromarray(band).resize((width, len(band)), kind))
    out = np.empty((height, width), np.uint16)
    columns = max(1, _BAND_FLOATS // max(height, source_height))
    for left in range(0, width, columns):
        band = np.ascontiguousarray(wide[:, left : left + columns])
        tall = np.array(Image.fromarray(band).resize((band.shape[1], height), kind))
        out[:, left : left + columns] = np.clip(np.rint(tall), 0, 65535)
    return out


# ---- folders ----


def is_picture_path(path: str | os.PathLike[str]) -> bool:
    """Whether the name has a picture's suffix and is not hidden; nothing is opened."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_pictures(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """The picture files in a folder, sorted by path; hidden files and hidden folders are skipped, links to folders too.

    Raises `ImageError` where the folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(f"the folder cannot be listed ({_one_line(error)}); check its name and permissions")

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [Path(parent, name) for name in files if is_picture_path(name)]
    return sorted(path for path in found if path.is_file())
