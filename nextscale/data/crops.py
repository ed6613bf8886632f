"""High-resolution training crops from folders or tar shards: (seed, position) -> the same crops, on any machine.

Shards are plain tars in the WebDataset convention (`KEY.jpg` beside `KEY.json`), on a disk or behind an address. A
position counts samples since the start of training, over all ranks, so that it alone resumes the stream exactly.
"""

from __future__ import annotations

import glob
import hashlib
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale import image as images
from nextscale.addresses import is_address, shown, store_reason
from nextscale.console import complain
from nextscale.errors import ImageError, NextScaleError
from nextscale.files import write_atomic
from nextscale.install import how_to_install

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class DataError(NextScaleError):
    """Training data that cannot be found or read."""


@dataclass(frozen=True)
class Source:
    """Where one encoded photograph lies: a file, or a range of bytes within a tar."""

    path: str
    offset: int = 0
    size: int | None = None
    name: str = ""

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.size is None else file.read(self.size)


# ---- finding photographs ----


def default_cache() -> Path:
    """Where shards from the net are kept, unless the user says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nextscale" / "shards"


def find_sources(patterns: Sequence[str], cache: str | os.PathLike[str] | None = None) -> list[Source]:
    """Every photograph in folders, tar shards, globs of either and addresses of shards, in a stable order.

    Addresses (https://, s3://, gs://, hf:// ...) are of tar shards; each is fetched once, whole, into the folder
    `cache`. `{0000..0010}` and `{a,b}` in a pattern stand for several; so does `*`, also where a store can list.

    Raises:
        DataError: nothing is found, a shard cannot be fetched or is not a readable tar.
    """
    out: list[Source] = []
    for pattern in patterns:
        for single in _without_braces(pattern):
            if is_address(single):
                for address in _listed(single):
                    out += _in_tar(str(_fetched(address, Path(cache or default_cache()))), shown(address))
            else:
                out += _local(single)
    if not out:
        raise DataError(f"{', '.join(patterns)}: no pictures inside; expected {', '.join(SUFFIXES)}")
    return out


def _without_braces(pattern: str) -> list[str]:
    if "{" not in pattern or os.path.exists(pattern):
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise DataError(f"{pattern}: braces need a package more; {how_to_install('data')}") from None
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern}: {error}; close every brace") from None


def _local(pattern: str) -> list[Source]:
    # A name with brackets may be a glob or just a name.
    is_glob = glob.has_magic(pattern) and not os.path.exists(pattern)
    paths = sorted(glob.glob(pattern)) if is_glob else [pattern]
    if not paths or not all(Path(p).exists() for p in paths):
        raise DataError(f"{pattern}: no such training data; name a folder, a .tar shard or a glob of them")
    return [s for path in paths for s in (_in_tar(path, path) if path.endswith(".tar") else _in_folder(Path(path)))]


def _in_folder(folder: Path) -> list[Source]:
    if folder.is_file():
        return [Source(str(folder), name=str(folder))]
    tars = sorted(folder.glob("*.tar"))
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return [s for t in tars for s in _in_tar(str(t), str(t))] + [Source(str(p), name=str(p)) for p in files]


def _in_tar(path: str, name: str) -> list[Source]:
    try:
        # Only a tar without compression has its members at known offsets.
        with tarfile.open(path, "r:") as tar:
            members = [m for m in tar if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{name}: not a readable tar shard ({error}); pack it again") from None
    return [Source(path, m.offset_data, m.size, f"{name}:{m.name}") for m in members]


def load(source: Source) -> NDArray[np.uint8]:
    """A whole photograph, H W 3; `ImageError` or `OSError` if it is damaged or gone."""
    return images.rgb8(images.decode_bytes(source.read()))


def damage(source: Source) -> str | None:
    """Why a photograph cannot be used for training; None if it can."""
    try:
        load(source)
    except (ImageError, OSError) as error:
        return str(error)
    return None


# ---- shards behind an address ----


def _listed(address: str) -> list[str]:
    """The addresses that match a `*`."""
    if "*" not in address:
        return [address]
    try:
        system, path = _file_system(address)
        found = sorted(str(system.unstrip_protocol(p)) for p in system.glob(path))
    except DataError:
        raise
    except Exception as error:  # each store has errors of its own
        raise _unreachable(address, error) from error
    if not found:
        raise DataError(f"{shown(address)}: nothing there has such a name; check the address")
    return found


def _fetched(address: str, cache: Path) -> Path:
    """The local copy of a shard: fetched whole or not at all, by one process at a time, and never again."""
    name = shown(address).rstrip("/").rpartition("/")[2]
    target = cache / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name[-100:]}"
    if target.exists():
        return target
    try:
        system, path = _file_system(address)
        from filelock import FileLock

        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if not target.exists():
                write_atomic(target, lambda part: system.get_file(path, str(part)))
    except DataError:
        raise
    except Exception as error:
        raise _unreachable(address, error) from error
    return target


def _file_system(address: str) -> tuple[Any, str]:
    """The store of an address and the path in it."""
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(address)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{shown(address)}: reading it needs a package more ({reason}); {how_to_install('data')}"
        ) from None
    return system, str(path)


def _unreachable(address: str, error: Exception) -> DataError:
    reason = store_reason(address, error)
    return DataError(f"{shown(address)}: cannot be fetched ({reason}); check the address, the connection and the disk")


# ---- crops ----


class Crops:
    """Square crops of a fixed side, cut, scaled and flipped by (seed, position).

    A source that cannot be decoded is replaced by another, which follows from (seed, position) too, and named once on
    stderr. `damaged` holds those met so far: name -> reason.

    Args:
        patterns: See `find_sources`.
        side: Of the crops, in pixels.
        max_damaged: Share of the sources that may be damaged; one always may.
        cache: Folder for shards from the net (default: `default_cache()`).
    """

    def __init__(
        self,
        patterns: Sequence[str],
        side: int,
        *,
        seed: int = 0,
        max_damaged: float = 0.01,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.sources = find_sources(patterns, cache)
        self.side = side
        self.seed = seed
        self.max_damaged = max_damaged
        self.damaged: dict[str, str] = {}
        self._num_names = len({source.name for source in self.sources})
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, position: int, size: int) -> NDArray[np.uint8]:
        """The crops from a position on: B 3 side side, uint8, with B = `size`."""
        return np.stack([self.crop(p) for p in range(position, position + size)]).transpose(0, 3, 1, 2)

    def crop(self, position: int) -> NDArray[np.uint8]:
        """The crop at a position of the stream of all ranks: side side 3, uint8.

        The window's side is drawn log-uniformly between the crop's and the photograph's, then reduced by area: the same
        photograph shows coarse and fine texture.

        Raises:
            DataError: more sources are damaged than `max_damaged` allows.
        """
        photo = self._decoded(self._source(position))
        attempt = 0
        while photo is None:
            attempt += 1
            other = np.random.default_rng((self.seed, 3, position, attempt)).integers(len(self.sources))
            photo = self._decoded(self.sources[int(other)])
        return _cut(photo, self.side, np.random.default_rng((self.seed, 2, position)))

    def _source(self, position: int) -> Source:
        epoch, place = divmod(position, len(self.sources))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.sources))
            self._order = (epoch, order)
        return self.sources[int(self._order[1][place])]

    def _decoded(self, source: Source) -> NDArray[np.uint8] | None:
        """A whole photograph, H W 3, or None if it is damaged."""
        if source.name in self.damaged:
            return None
        try:
            return load(source)
        except (ImageError, OSError) as error:
            self.damaged[source.name] = str(error)
        complain(f"{source.name}: {self.damaged[source.name]} (training goes on without it)")
        num, total = len(self.damaged), self._num_names
        if num > max(1, int(self.max_damaged * total)) or num == total:
            named = ", ".join(list(self.damaged)[:3]) + ", ..." * (num > 3)
            share = f"{num / total:.1%}, allowed are {self.max_damaged:.1%}"
            raise DataError(
                f"{num} of {total} training pictures are damaged ({share}): {named}; remove or replace them"
            )
        return None


def _cut(photo: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random window of a photograph (H W 3), reduced to side side 3, flipped and transposed at random."""
    height, width = photo.shape[:2]
    if min(height, width) < side:
        scale = side / min(height, width)
        width, height = (max(side, round(length * scale)) for length in (width, height))
        photo = images.resize(photo, (width, height))
    window = round(float(np.exp(rng.uniform(np.log(side), np.log(min(height, width))))))
    left = int(rng.integers(0, width - window + 1))
    top = int(rng.integers(0, height - window + 1))
    if window == side:
        pixels = photo[top : top + window, left : left + window]
    else:
        box = (left, top, left + window, top + window)
        pixels = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BOX, box))
    if rng.integers(2):
        pixels = pixels[:, ::-1]
    if rng.integers(2):
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels)
