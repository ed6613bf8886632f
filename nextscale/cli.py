"""The `nextscale` command. Torch is imported inside the commands, so that help is instant."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nextscale import __version__
from nextscale.errors import ImageError, NextScaleError, OptionError
from nextscale.options import UpscaleOptions
from nextscale.train.commands import Train

if TYPE_CHECKING:
    from nextscale.image import Picture
    from nextscale.upscale import NextScale, Progress, UpscaleResult

LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".webp")
"""Formats that can hold a lossless result."""
Extension = Literal["auto", "png", "jpg", "webp", "tif", "bmp", "avif"]


@dataclass(frozen=True)
class Upscale:
    """Restore and enlarge pictures: nextscale upscale -i PHOTO.jpg -o PHOTO_x4.png"""

    pictures: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-i"], metavar="FILE|DIR ...")]
    """Pictures, or folders of pictures."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE|DIR")]
    """A file for one picture, else a folder (created)."""
    options: tyro.conf.OmitArgPrefixes[UpscaleOptions] = field(default_factory=UpscaleOptions)
    model: Annotated[str, tyro.conf.arg(name="model-name", aliases=["-n"])] = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    suffix: str | None = None
    """Appended to each name written to a folder (default: _x and the factor)."""
    ext: Extension = "auto"
    """Format of the outputs; auto keeps the input's (lossless stays lossless)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    fp32: bool = False
    """Compute in float32 even where 16 bit is faster."""
    json: bool = False
    """Print one JSON object per picture."""

    def run(self) -> int:
        sources, failed = list_inputs(self.pictures)
        if not sources and not failed:
            raise ImageError(
                f"{' '.join(map(str, self.pictures))}: no pictures; supported are JPEG, PNG, WebP, TIFF, BMP, AVIF"
            )
        for path, reason in failed:
            self._report({"input": str(path), "error": reason})
        if not sources:
            return 1
        targets = plan_outputs(sources, self)
        from nextscale.upscale import NextScale

        model = NextScale.from_pretrained(self.model, device=self.device, fp32=self.fp32)
        model.tokenizer.ladder.for_input(self.options.tile or model.tokenizer.ladder.input_side)
        errors = len(failed)
        with progress_bar(len(sources), quiet=self.json) as on_progress:
            for source, target in zip(sources, targets, strict=True):
                row = self._one(model, source, target, on_progress)
                errors += "error" in row
                self._report(row)
        return 1 if errors else 0

    def _one(self, model: NextScale, source: Path, target: Target | str, on_progress: ProgressBar) -> dict[str, Any]:
        from nextscale import image as images

        started = time.perf_counter()
        row: dict[str, Any] = {"input": str(source)}
        try:
            if isinstance(target, str):
                raise ImageError(target)
            picture = images.read(source)
            path = target.resolve_suffix(picture, self.ext)
            if path.exists() and source.exists() and os.path.samefile(path, source):
                raise ImageError("the output would overwrite the input; choose another output or --suffix")
            on_progress.start(source.name)
            result = model.upscale(picture, self.options, on_progress=on_progress)
            row["outputs"] = self._write(result, path, picture)
            row["size"] = list(picture.size)
            row["output_size"] = list(result.picture.size)
            row["seconds"] = round(time.perf_counter() - started, 3)
            row["timings"] = {name: round(value, 3) for name, value in result.timings.items()}
        except NextScaleError as error:
            row["error"] = str(error)
        except Exception as error:
            if os.environ.get("NEXTSCALE_DEBUG"):
                raise
            row["error"] = f"internal error ({type(error).__name__}: {error}); NEXTSCALE_DEBUG=1 shows where"
        finally:
            on_progress.finish()
        return row

    def _write(self, result: UpscaleResult, path: Path, picture: Picture) -> dict[str, str]:
        from nextscale import image as images

        written: dict[str, str] = {}
        for factor in sorted(result.images, reverse=True):
            name = path if factor == self.options.scale else sibling(path, self.options.scale, factor)
            images.write(name, result.images[factor], lossless=picture.lossless)
            written[f"x{factor:g}"] = str(name)
        if self.options.confidence:
            for factor, values in result.confidence.items():
                base = path if factor == self.options.scale else sibling(path, self.options.scale, factor)
                name = base.with_name(f"{base.stem}_confidence.png")
                images.write(
                    name,
                    images.Picture(rgb=values[..., None], alpha=None, icc=None, exif=None, lossless=True, format="PNG"),
                )
                written[f"x{factor:g}_confidence"] = str(name)
        return written

    def _report(self, row: dict[str, Any]) -> None:
        if self.json:
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
        if "error" in row:
            complain(f"{row['input']}: {row['error']}")
        elif not self.json:
            size, new = row["size"], row["output_size"]
            line = f"{row['input']}: {size[0]} x {size[1]} -> {new[0]} x {new[1]} in {row['seconds']:.1f} s -> "
            sys.stdout.write(line + ", ".join(row["outputs"].values()) + "\n")
            sys.stdout.flush()


@dataclass(frozen=True)
class Target:
    """Where a picture's result goes; the format may wait for the input's."""

    path: Path
    fixed: bool

    def resolve_suffix(self, picture: Picture, ext: Extension) -> Path:
        """The path with the suffix of the chosen or the input's own format."""
        from nextscale import image as images

        if self.fixed:
            return self.path
        suffix = f".{ext}" if ext != "auto" else self.path.suffix.lower()
        if suffix not in images.WRITE_FORMATS or (ext == "auto" and picture.lossless and suffix not in LOSSLESS):
            suffix = ".png"
        return self.path.with_suffix(suffix)


def list_inputs(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Every picture of the given files and folders, and those that are not to be had, with the reason."""
    from nextscale import image as images

    found: list[Path] = []
    failed: list[tuple[Path, str]] = []
    for path in paths:
        try:
            if path.is_dir():
                inside = images.find_pictures(path)
                if not inside:
                    failed.append((path, "no pictures in this folder; supported are JPEG, PNG, WebP, TIFF, BMP, AVIF"))
                found += inside
            else:
                found.append(path)
        except NextScaleError as error:
            failed.append((path, str(error)))
    return found, failed


def plan_outputs(sources: Sequence[Path], command: Upscale) -> list[Target | str]:
    """The target of each source, or why it has none."""
    from nextscale import image as images

    output = command.output
    single = len(sources) == 1 and len(command.pictures) == 1 and not command.pictures[0].is_dir()
    if single and output.suffix.lower() in images.WRITE_FORMATS and not output.is_dir():
        return [Target(output, fixed=True)]
    if output.exists() and not output.is_dir():
        raise OptionError(f"{output}: is a file, but several pictures need a folder")
    if single and output.suffix and not output.is_dir():
        raise OptionError(
            f"{output}: unknown format {output.suffix}; use one of {' '.join(images.WRITE_FORMATS)} or a folder"
        )
    ending = f"_x{command.options.scale:g}" if command.suffix is None else command.suffix
    taken: dict[str, Path] = {}
    targets: list[Target | str] = []
    for source in sources:
        suffix = source.suffix if command.ext == "auto" else f".{command.ext}"
        name = f"{source.stem}{ending}{suffix}"
        if name.lower() in taken:
            targets.append(f"its result would overwrite that of {taken[name.lower()]}; write it to another folder")
            continue
        taken[name.lower()] = source
        targets.append(Target(output / name, fixed=False))
    return targets


def sibling(path: Path, scale: float, factor: float) -> Path:
    """The name of a smaller factor's output beside the main one."""
    own = f"_x{scale:g}"
    stem = path.stem.removesuffix(own)
    return path.with_name(f"{stem}_x{factor:g}{path.suffix}")


@dataclass(frozen=True)
class Convert:
    """Convert an official VAR or Switti checkpoint to a model folder."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A .pth or .safetensors file."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The folder to write."""
    origin: Annotated[Literal["var", "switti", "varsr"], tyro.conf.arg(name="from")]
    """Whose checkpoint it is."""
    part: Literal["tokenizer", "transformer"] = "tokenizer"
    """Which part of it."""
    steps: str | None = None
    """Sides of a one-stage ladder, e.g. 1,2,3,4 (default: the preset's hierarchical ladder)."""

    def run(self) -> int:
        from nextscale.convert import convert

        for line in convert(self.source, self.target, self.origin, self.part, steps=self.steps):
            sys.stdout.write(line + "\n")
        return 0


@dataclass(frozen=True)
class Version:
    """Print the version."""

    def run(self) -> int:
        sys.stdout.write(f"nextscale {__version__}\n")
        return 0


Command = (
    Annotated[Upscale, tyro.conf.subcommand("upscale")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Version, tyro.conf.subcommand("version")]
)


class ProgressBar:
    """Files, tiles and steps with an ETA on a terminal; nothing in a pipe (each picture prints a line of its own)."""

    def __init__(self, files: int, bar: Any) -> None:
        self.bar = bar
        self.files = bar.add_task("pictures", total=files, visible=files > 1) if bar else None
        self.current: Any = None

    def start(self, name: str) -> None:
        """A new picture."""
        if self.bar:
            self.current = self.bar.add_task(name, total=1.0)

    def __call__(self, progress: Progress) -> None:
        """A step of the current picture is done."""
        if not self.bar or self.current is None:
            return
        share = (progress.tiles_done + progress.step / progress.steps) / progress.tiles
        text = f"tile {progress.tiles_done + 1}/{progress.tiles} step {progress.step}/{progress.steps}"
        self.bar.update(self.current, completed=(progress.passes_done + share) / progress.passes, detail=text)

    def finish(self) -> None:
        """The current picture is done."""
        if self.bar and self.current is not None:
            self.bar.remove_task(self.current)
            self.current = None
        if self.bar:
            self.bar.advance(self.files)


@contextmanager
def progress_bar(files: int, *, quiet: bool) -> Iterator[ProgressBar]:
    """A live bar on stderr when it is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield ProgressBar(files, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )

    class Bar(Progress):
        def add_task(self, *args: Any, **fields: Any) -> Any:
            return super().add_task(*args, **{"detail": "", **fields})

    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield ProgressBar(files, bar)


def complain(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write("nextscale: " + " ".join(text.split()) + "\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 if anything failed, or 2 for wrong usage."""
    try:
        command: Any = tyro.cli(
            Command,
            prog="nextscale",
            description="Restore and enlarge any photograph with one visual autoregressive model.",
            args=argv,
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
        return int(command.run())
    except OptionError as error:
        complain(str(error))
        return 2
    except NextScaleError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
