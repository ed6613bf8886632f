"""High-resolution training crops from folders or tar shards: (seed, position) -> the same crops, on any machine.

Shards are plain tars in the WebDataset convention (`KEY.jpg` beside `KEY.json`). A position counts samples since the
start of training, so that it alone resumes the stream exactly.
"""

from __future__ import annotations

import glob
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nextscale.errors import NextScaleError

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


def find_sources(patterns: Sequence[str]) -> list[Source]:
    """Every photograph in folders, tar shards and globs of either, in a stable order.

    Raises:
        DataError: nothing is found, or a shard is not a readable tar.
    """
    out: list[Source] = []
    for pattern in patterns:
        paths = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not paths or not all(Path(p).exists() for p in paths):
            raise DataError(f"{pattern}: no such training data; name a folder, a .tar shard or a glob of them")
        for path in paths:
            out += _in_tar(path) if path.endswith(".tar") else _in_folder(Path(path))
    if not out:
        raise DataError(f"{', '.join(patterns)}: no pictures inside; expected {', '.join(SUFFIXES)}")
    return out


def _in_folder(folder: Path) -> list[Source]:
    if folder.is_file():
        return [Source(str(folder), name=folder.name)]
    tars = sorted(folder.glob("*.tar"))
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return [s for t in tars for s in _in_tar(str(t))] + [Source(str(p), name=str(p)) for p in files]


def _in_tar(path: str) -> list[Source]:
    try:
        with tarfile.open(path) as tar:
            members = [m for m in tar if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a readable tar shard ({error}); pack it again") from None
    return [Source(path, m.offset_data, m.size, f"{path}:{m.name}") for m in members]


class Crops:
    """Square crops of a fixed side, cut, scaled and flipped by (seed, position)."""

    def __init__(self, patterns: Sequence[str], side: int, *, seed: int = 0) -> None:
        self.sources = find_sources(patterns)
        self.side = side
        self.seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def _source(self, position: int) -> Source:
        epoch, place = divmod(position, len(self.sources))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.sources))
            self._order = (epoch, order)
        return self.sources[int(self._order[1][place])]

    def crop(self, position: int) -> np.ndarray:
        """The crop at a position of the stream: side side 3, uint8.

        The window's side is drawn log-uniformly between the crop's and the photograph's, then reduced by area: the same
        photograph shows coarse and fine texture.
        """
        source = self._source(position)
        rng = np.random.default_rng((self.seed, 2, position))
        try:
            photo = Image.open(io.BytesIO(source.read())).convert("RGB")
        except (OSError, ValueError) as error:
            raise DataError(f"{source.name}: damaged training picture ({error}); remove it") from None
        shortest = min(photo.size)
        if shortest < self.side:
            scale = self.side / shortest
            photo = photo.resize(
                (max(self.side, round(photo.width * scale)), max(self.side, round(photo.height * scale))),
                Image.Resampling.BICUBIC,
            )
            shortest = min(photo.size)
        window = round(float(np.exp(rng.uniform(np.log(self.side), np.log(shortest)))))
        left = int(rng.integers(0, photo.width - window + 1))
        top = int(rng.integers(0, photo.height - window + 1))
        box = (left, top, left + window, top + window)
        cut = (
            photo.crop(box) if window == self.side else photo.resize((self.side, self.side), Image.Resampling.BOX, box)
        )
        pixels = np.asarray(cut)
        if rng.integers(2):
            pixels = pixels[:, ::-1]
        if rng.integers(2):
            pixels = pixels.transpose(1, 0, 2)
        return np.ascontiguousarray(pixels)

    def batch(self, position: int, size: int) -> np.ndarray:
        """The crops at `size` consecutive positions: B 3 side side, uint8."""
        return np.stack([self.crop(p) for p in range(position, position + size)]).transpose(0, 3, 1, 2)
