"""The names of results: their folder, their suffix and format, and that none overwrites an input or another result."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from nextscale import image as images
from nextscale.errors import ImageError
from nextscale.files import Mark, canonical, make_folders, mark_of
from nextscale.image import Picture
from nextscale.upscale.options import UpscaleOptions, output_size

if TYPE_CHECKING:
    from nextscale.upscale.run import UpscaleResult

NameT = TypeVar("NameT", bound=PurePath)

LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes of formats that can hold a lossless result."""


class Targets:
    """The files that results go to, claimed picture by picture before any work is done for it."""

    def __init__(
        self,
        options: UpscaleOptions,
        output: Path,
        sources: Sequence[Path],
        roots: Sequence[Path] = (),
        *,
        suffix: str | None = None,
        ext: str = "auto",
        single: bool = False,
        unknown: Collection[Path] = (),
    ) -> None:
        """
        Args:
            output: the folder of the results, or the file of the only picture (`single`).
            sources: all pictures, none of which a result may overwrite.
            unknown: files with a result's name of which nobody knows where they are from: none is overwritten, either.
            roots: folders whose folders the output repeats.
            suffix: appended to each name in a folder (None: _x and the factor).
            ext: format in a folder, without dot; auto keeps the input's where it loses nothing.
        """
        self.options = options
        self.output = output
        self.single = single
        self.suffix = suffix
        self.ext = ext
        self.factors: list[float] = []
        self.roots = list(roots)
        self.inputs = {identity(source): source for source in sources}
        self.unknown = {identity(path) for path in unknown}
        places = [self._inside(source) / source.name for source in sources]
        self.stems = dict(zip(sources, result_stems(places), strict=True))
        self.taken: dict[Any, Path] = {}

    def claim(self, source: Path, picture: Picture) -> dict[str, Path]:
        """The file of each of a picture's results: x4, x2 ..., x4_confidence ...

        Raises:
            ImageError: a file would be an input or another picture's result, or cannot be written.
        """
        scale = self.options.scale
        largest = self._largest(source, picture)
        files: dict[str, Path] = {}
        for factor in reversed(self.factors):
            path = largest
            if factor != scale:
                path = largest.with_name(f"{largest.stem.removesuffix(f'_x{scale:g}')}_x{factor:g}{largest.suffix}")
            images.check_format(path.suffix, **traits(picture, factor))
            files[f"x{factor:g}"] = path
            if self.options.confidence:
                files[f"x{factor:g}_confidence"] = path.with_name(f"{path.stem}_confidence.png")
        for path in files.values():
            self._check(path)
        # A file is known by its name and, where names differ only in case or by a link, by its identity.
        self.taken |= {key: source for path in files.values() for key in (os.path.realpath(path), identity(path))}
        return files

    def _check(self, path: Path) -> None:
        if identity(path) in self.inputs:
            raise ImageError(f"the result {path} would overwrite an input; choose another -o or --suffix")
        if identity(path) in self.unknown:
            raise ImageError(would_overwrite_unknown(path, "-o or --suffix"))
        owner = self.taken.get(os.path.realpath(path)) or self.taken.get(identity(path))
        if owner is not None:
            raise ImageError(f"its result {path} would overwrite that of {owner}; write it to another folder")
        with contextlib.suppress(OSError):  # `check_folder` says why
            make_folders(Path(os.path.realpath(path)).parent)
        images.check_folder(path)

    def _largest(self, source: Path, picture: Picture) -> Path:
        if self.single:
            return self.output
        scale = self.options.scale
        ending = f"_x{scale:g}" if self.suffix is None else self.suffix
        suffix = f".{self.ext}" if self.ext != "auto" else own_suffix(source, picture, scale)
        return self.output / self._inside(source) / f"{self.stems[source]}{ending}{suffix}"

    def _inside(self, source: Path) -> Path:
        """Where in its folder a picture lies, for folders inside folders."""
        for root in self.roots:
            if source.is_relative_to(root):
                return source.relative_to(root).parent
        return Path()


def would_overwrite_unknown(path: Path | str, options: str) -> str:
    """What is said where a result would overwrite a file of unknown origin.

    Args:
        options: that give the result another name.
    """
    written = "a file that no earlier run is known to have written"
    return f"the result {path} would overwrite {written}; move it, or choose another {options}"


def result_stems(names: Sequence[PurePath]) -> list[str]:
    """The stem of each picture's results: its own, and with it its suffix where several differ in that alone.

    Of a.jpg, a.png and b.png: a_jpg, a_png and b. It depends on the names alone, not on what is in the pictures or was
    done before, so that a run that goes on finds the same names.
    """
    stems = [name.stem for name in names]
    longer = {name for group in _alike(names, stems) if len({n.suffix for n in group}) > 1 for name in group}
    while longer:
        stems = [f"{n.stem}_{n.suffix[1:]}" if n in longer and n.suffix else n.stem for n in names]
        # A picture may be called by now as another one is: a_jpg.jpg beside a.jpg and a.png.
        more = {name for group in _alike(names, stems) if longer & set(group) for name in group} - longer
        if not more:
            break
        longer |= more
    return stems


def _alike(names: Sequence[PurePath], stems: Sequence[str]) -> list[list[PurePath]]:
    """The pictures of a folder whose results share a stem, each group of two or more."""
    groups: dict[tuple[PurePath, str], list[PurePath]] = {}
    for name, stem in zip(names, stems, strict=True):
        groups.setdefault((name.parent, stem.casefold()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def earlier_results(
    names: Collection[NameT], stems: Collection[str], suffix: str | None, known: Collection[str] = ()
) -> set[NameT]:
    """Which files of the folder of the results are results and no photographs.

    A file is one if the manifest knows it, or if its name is that of a picture with the ending of a result: p_x2.jpg
    beside p.jpg.

    Args:
        names: paths in that folder.
        stems: of pictures in other folders.
        suffix: the ending that the run gives (None: _x and the factor).
        known: files that were written before, by their canonical paths (of local files) or by name.
    """
    endings = [r"_x[0-9.]+(?:e[+-]?[0-9]+)?", *([re.escape(suffix)] if suffix else [])]
    result = re.compile(rf"(.+)(?:{'|'.join(endings)})(?:_confidence)?")
    beside = {(name.parent, stem) for name, stem in zip(names, result_stems(list(names)), strict=True)}
    beside |= {(name.parent, name.stem) for name in names}
    return {
        name
        for name in names
        if (known and (str(name) in known or canonical(name) in known))
        or ((found := result.fullmatch(name.stem)) and (found[1] in stems or (name.parent, found[1]) in beside))
    }


def own_suffix(source: Path, picture: Picture, scale: float) -> str:
    """The suffix of the input's format, or .png where that would lose something."""
    suffix = source.suffix
    if suffix.lower() not in images.WRITE_FORMATS:
        suffix = next((s for s, form in images.WRITE_FORMATS.items() if form == picture.format), ".png")
    if picture.lossless and suffix.lower() not in LOSSLESS:
        return ".png"
    try:
        images.check_format(suffix, **traits(picture, scale))
    except ImageError:
        return ".png"
    return suffix


def traits(picture: Picture, factor: float) -> dict[str, Any]:
    """What a format must be able to hold for a picture's result."""
    return {
        "bits": picture.bits,
        "has_alpha": picture.alpha is not None,
        "size": output_size(picture.size, factor),
        "hdr": picture.cicp is not None,
    }


def identity(path: Path) -> Any:
    """Device and number of a file, the same by every name it has; the name itself where there is none."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def encode_results(result: UpscaleResult, suffix: str, *, lossless: bool) -> Iterator[tuple[str, str, bytes]]:
    """Encode a result's pictures in the suffix's format and its maps as PNG: (label, suffix, bytes) of each.

    Labels are x4, x4_confidence and so on.
    """
    for factor, picture in result.images.items():
        yield f"x{factor:g}", suffix, images.encode_bytes(picture, suffix, lossless=lossless)
    for factor, values in result.maps.items():
        yield f"x{factor:g}_confidence", ".png", images.encode_bytes(Picture(values[..., None]), ".png")


def write_results(result: UpscaleResult, files: dict[str, Path], *, lossless: bool) -> dict[str, Mark]:
    """Write every picture and map of a result to its file, all of them or none, on the disk before this returns.

    Args:
        files: by label, as `Targets.claim` gives them; all pictures have one suffix.

    Returns:
        What each file holds, by canonical path.
    """
    marks = {}

    def contents() -> Iterator[tuple[Path, bytes]]:
        for label, _, data in encode_results(result, next(iter(files.values())).suffix, lossless=lossless):
            marks[canonical(files[label])] = mark_of(data)
            yield files[label], data

    images.write_all(contents())
    return marks
