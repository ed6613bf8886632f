"""Photographs -> shards of sharp training crops, near-duplicates dropped, each with its source and license.

A window is kept at the smallest reduction at which it is sharp, measured by two numbers of its luma: `detail`, the mean
difference of pixels from the mean of their 2 x 2 block, in 8-bit levels, which flat windows lack; and `sharpness`, that
number over the same one of the window at half the size, which blurred or enlarged windows lack.

The crops wait in one file beside the shards, so that memory holds one photograph, and the finished folder takes its
name in one step.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale import image as images
from nextscale.data.crops import DataError
from nextscale.data.options import PackOptions
from nextscale.errors import ImageError, OptionError

Pixels = NDArray[np.uint8]
REDUCTIONS = (1, 2, 3, 4)
EVERY = 10.0
"""Seconds between two lines about the progress."""
LICENSE_NAMES = re.compile(r"(licen[cs]es?|copying)(\.(txt|md))?", re.IGNORECASE)
_BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass
class Summary:
    """What a run has read, dropped and written."""

    photos: int = 0
    damaged: int = 0
    duplicate_photos: int = 0
    unsharp: int = 0
    """Photographs without a single sharp window (or smaller than one)."""
    duplicate_crops: int = 0
    crops: int = 0
    unlicensed: int = 0
    """Crops whose license is not known."""
    shards: int = 0
    bytes: int = 0

    def line(self) -> str:
        return (
            f"{self.photos} photographs read ({self.damaged} damaged, {self.duplicate_photos} near-duplicates, "
            f"{self.unsharp} without a sharp window): {self.crops} crops kept, {self.duplicate_crops} near-duplicate "
            f"crops dropped, {self.unlicensed} without a license; {self.shards} shards, {self.bytes / 1e6:.1f} MB"
        )


def pack(
    folders: Sequence[Path],
    out: Path,
    options: PackOptions,
    *,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> Summary:
    """Cut crops from every picture of the folders (with subfolders) and write `out/train-NNNN.tar`.

    The same photographs and options give the same bytes. Damaged photographs are named by `complain` and left out.

    Raises:
        OptionError: the folders cannot be used so. DataError: no crop is left, or the shards cannot be written.
    """
    photos = _find(folders)
    # An empty folder is replaced, which the one without a name, where the user is, cannot be.
    if out.exists() and (not out.name or not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out}: is there already; name a new folder")
    summary = Summary()
    part = out.with_name(f".{out.name}-{secrets.token_hex(8)}.part")
    try:
        part.mkdir(parents=True)
        spool = part / "crops"
        with spool.open("w+b") as file:
            entries = []
            for data, about in _crops(photos, options, summary, say, complain):
                text = json.dumps(about, ensure_ascii=False, sort_keys=True).encode()
                entries.append(Entry(file.tell(), len(data), text))
                file.write(data)
            if not entries:
                raise DataError(f"{summary.line()}; give sharper or larger photographs, or lower --min-sharpness")
            order = np.random.default_rng((options.seed, 4)).permutation(len(entries))
            sizes = _write_shards(part, file, [entries[i] for i in order], options.shard_mb * 1e6)
            summary.shards, summary.bytes = len(sizes), sum(sizes)
        spool.unlink()
        if out.exists():
            out.rmdir()  # empty, as checked above
        part.rename(out)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); free some space or choose another"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return summary


def _find(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(folder, picture) of every picture, each once; the largest file first, as the one to keep of near-duplicates."""
    found: dict[str, tuple[Path, Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise OptionError(f"{folder}: no such folder of photographs; check the name")
        for photo in images.find_pictures(folder, recursive=True):
            found.setdefault(os.path.realpath(photo), (folder, photo))
    return sorted(found.values(), key=lambda pair: (-pair[1].stat().st_size, pair[1].relative_to(pair[0]).as_posix()))


def _crops(
    photos: Sequence[tuple[Path, Path]],
    options: PackOptions,
    summary: Summary,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """JPEG file and description of each crop, photograph by photograph."""
    seen_photos, seen_crops = Seen(options.near), Seen(options.near)
    said = time.monotonic()
    for folder, photo in photos:
        if time.monotonic() - said > EVERY:
            said = time.monotonic()
            say(f"{summary.photos + summary.damaged} of {len(photos)} photographs, {summary.crops} crops")
        try:
            rgb = images.rgb8(images.read(photo))
        except ImageError as error:
            summary.damaged += 1
            complain(f"{photo}: {error}")
            continue
        summary.photos += 1
        whole = dhash(rgb)
        if whole in seen_photos:
            summary.duplicate_photos += 1
            continue
        windows = sharp_windows(rgb, options)
        summary.unsharp += not windows
        if windows:
            # Only now: what gives no crop must not keep its larger copy from giving some.
            seen_photos.add(whole)
            source, license = provenance(photo, folder, options)
        for window in windows:
            crop = window.cut(rgb)
            mark = dhash(crop)
            if mark in seen_crops:
                summary.duplicate_crops += 1
                continue
            seen_crops.add(mark)
            summary.crops += 1
            summary.unlicensed += license is None
            yield (
                images.encode_bytes(images.Picture(crop), ".jpg", quality=options.quality),
                {
                    "source": source,
                    "license": license,
                    "photo": _text(photo.relative_to(folder)),
                    "reduction": window.reduction,
                    "sharpness": round(window.sharpness, 3),
                    "detail": round(window.detail, 2),
                },
            )


def _text(path: Path) -> str:
    """A path that JSON can hold, whatever its bytes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "replace")


# ---- sharp windows ----


@dataclass(frozen=True)
class Window:
    """A square of a photograph, in its own pixels, that becomes a crop of `side / reduction`."""

    left: int
    top: int
    side: int
    reduction: int
    detail: float
    sharpness: float

    def overlaps(self, other: Window) -> bool:
        return (
            self.left < other.left + other.side
            and other.left < self.left + self.side
            and self.top < other.top + other.side
            and other.top < self.top + self.side
        )

    def cut(self, rgb: Pixels) -> Pixels:
        """The crop: the window's area means."""
        square = rgb[self.top : self.top + self.side, self.left : self.left + self.side]
        return np.array(Image.fromarray(np.ascontiguousarray(square)).reduce(self.reduction))


def sharp_windows(rgb: Pixels, options: PackOptions) -> list[Window]:
    """At most `per_photo` sharp windows that do not overlap: the smallest reductions, there those of most detail."""
    luma = Image.fromarray(rgb).convert("L")
    chosen: list[Window] = []
    for reduction in REDUCTIONS:
        for window in sorted(_windows(luma, options.side, reduction), key=lambda w: (-w.detail, w.top, w.left)):
            good = window.detail >= options.min_detail and window.sharpness >= options.min_sharpness
            if good and len(chosen) < options.per_photo and not any(window.overlaps(other) for other in chosen):
                chosen.append(window)
    return chosen


def _windows(luma: Image.Image, side: int, reduction: int) -> Iterator[Window]:
    """The windows of a centered grid over the reduced photograph, measured."""
    columns, rows = luma.width // reduction // side, luma.height // reduction // side
    stride = side * reduction
    left, top = (luma.width - columns * stride) // 2, (luma.height - rows * stride) // 2
    for row in range(rows if columns else 0):
        # Row by row, since floats take four times the memory.
        box = (left, top + row * stride, left + columns * stride, top + (row + 1) * stride)
        strip = np.asarray(luma.crop(box).reduce(reduction), np.float32)
        fine, halved = _detail(strip, side)
        coarse, _ = _detail(halved, side // 2)
        for column in range(columns):
            detail, sharpness = float(fine[column]), float(fine[column] / max(coarse[column], 1e-6))
            yield Window(box[0] + column * stride, box[1], stride, reduction, detail, sharpness)


def _detail(strip: NDArray[np.float32], side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean difference from 2 x 2 block means for each square of a strip (side, N * side): N, and the block means."""
    blocks = strip.reshape(side // 2, 2, -1, 2)
    means = blocks.mean(axis=(1, 3), keepdims=True)
    differences = np.abs(blocks - means).mean(axis=(1, 3))
    return differences.reshape(side // 2, -1, side // 2).mean(axis=(0, 2)), means[:, 0, :, 0]


# ---- near-duplicates ----


def dhash(rgb: Pixels) -> Pixels:
    """Difference hash, 8 bytes: whether luma rises from each of 8 x 9 areas to its right neighbor."""
    small = np.asarray(Image.fromarray(rgb).convert("L").resize((9, 8), Image.Resampling.BOX))
    return np.packbits(small[:, 1:] > small[:, :-1])


class Seen:
    """The hashes met so far; one is `in` them if it is within `near` bits of any."""

    def __init__(self, near: int) -> None:
        self.near = near
        self.count = 0
        self.hashes = np.empty((1024, 8), np.uint8)

    def add(self, mark: Pixels) -> None:
        if self.count == len(self.hashes):
            self.hashes = np.concatenate([self.hashes, np.empty_like(self.hashes)])
        self.hashes[self.count] = mark
        self.count += 1

    def __contains__(self, mark: Pixels) -> bool:
        distances = _BITS[self.hashes[: self.count] ^ mark].sum(axis=1, dtype=np.int64)
        return bool((distances <= self.near).any())


# ---- source and license ----


def provenance(photo: Path, root: Path, options: PackOptions) -> tuple[str, str | None]:
    """Source and license of a photograph: from the options, its own JSON file, a license file above it, in this order.

    The JSON is `a.json` or `a.jpg.json` with `source` and `license` (or `licence`). A license file (LICENSE, COPYING,
    LICENSES.md ...) in the picture's folder or one above it, up to `root`, gives the line that names the picture, else
    its first line.
    """
    beside = _sidecar(photo)
    source = options.source or beside.get("source") or _text(Path(root.resolve().name))
    license = options.license or beside.get("license") or beside.get("licence")
    folder = photo.parent
    while license is None:
        license = _license_in(folder, photo.name)
        if folder == root:
            break
        folder = folder.parent
    return source, license


def _sidecar(photo: Path) -> dict[str, str]:
    for path in (photo.with_suffix(".json"), photo.with_name(photo.name + ".json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict):
            return {str(key): value for key, value in data.items() if isinstance(value, str) and value}
    return {}


def _license_in(folder: Path, name: str) -> str | None:
    for path in sorted(path for path in folder.iterdir() if LICENSE_NAMES.fullmatch(path.name) and path.is_file()):
        lines = [
            line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        own = [line for line in lines if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", line)]
        if own or lines:
            cells = [cell.strip() for cell in (own or lines)[0].strip("#| ").split("|")]
            return "; ".join(cell for cell in cells if cell)[:300]
    return None


# ---- shards ----


@dataclass(frozen=True)
class Entry:
    """A crop that waits in the file of crops, and the text of its description."""

    offset: int
    size: int
    text: bytes

    @property
    def blocks(self) -> int:
        """Bytes that it takes in a tar: a header and whole blocks for each of its two files."""
        return sum(tarfile.BLOCKSIZE * (1 - -length // tarfile.BLOCKSIZE) for length in (self.size, len(self.text)))


def _write_shards(folder: Path, crops: BinaryIO, entries: Sequence[Entry], largest: float) -> list[int]:
    """Tars `train-NNNN.tar` of KEY.jpg and KEY.json, without dates and owners; their sizes, at most `largest` bytes."""
    shards: list[list[tuple[int, Entry]]] = [[]]
    filled = 0
    for key, entry in enumerate(entries):
        if filled + entry.blocks + tarfile.RECORDSIZE > largest and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append((key, entry))
        filled += entry.blocks
    sizes = []
    for number, shard in enumerate(shards):
        path = folder / f"train-{number:04d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, entry in shard:
                crops.seek(entry.offset)
                for suffix, data in ((".jpg", crops.read(entry.size)), (".json", entry.text)):
                    member = tarfile.TarInfo(f"{key:06d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        sizes.append(path.stat().st_size)
    return sizes
