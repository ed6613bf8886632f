"""The `nextscale upscale` command: plain settings, free of torch until it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nextscale.commands.cli_types import UpscaleFlags
from nextscale.commands.progress import ProgressEvents, ProgressLines, progress
from nextscale.commands.streams import STANDARD, fetch, local_path, missing, report_unread, to_stdout
from nextscale.console import complain, lasting, say, say_row
from nextscale.errors import NextScaleError, OptionError
from nextscale.files import Mark, canonical, has_mark
from nextscale.upscale.manifest import Manifest, default_path, settings_key, stamp_of, unfinished
from nextscale.upscale.outputs import Targets, earlier_results, write_results

if TYPE_CHECKING:
    from nextscale.upscale.engine import Engine, Place
    from nextscale.upscale.run import Progress

ONLY_RESULTS = "nothing but results of earlier runs in this folder; name those that are to be restored again"
Extension = Literal["auto", "png", "jpg", "webp", "tif", "bmp", "avif"]


@dataclass(frozen=True)
class Upscale:
    """Restore and enlarge pictures: nextscale upscale PHOTO.jpg -o PHOTO_x4.png"""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE|DIR|-")]
    """A file for one picture, else a folder (created); - writes one picture to the standard output."""
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE|DIR|URL|- ...")] = ()
    """Pictures, or folders of pictures; addresses (https://, s3:// ...); - reads a picture from the standard input."""
    input: Annotated[
        tuple[tuple[str, ...], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(aliases=["-i"], metavar="FILE|DIR|URL|- ..."),
    ] = ()
    """The same as the pictures without a name."""
    options: Annotated[UpscaleFlags, tyro.conf.arg(name="")] = field(default_factory=UpscaleFlags)
    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    suffix: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Appended to each name written to a folder (default: _x and the factor)."""
    ext: Extension = "auto"
    """Format of the files in a folder; auto keeps the input's (lossless and transparent pictures stay so)."""
    max_tiles: int = 0
    """Refuse a picture that takes more tiles than this (0: any); a tile is about 128 px of the input a side."""
    device: Annotated[str, tyro.conf.arg(aliases=["-g"])] = "auto"
    """auto, cpu, cuda, cuda:1, mps; or a GPU's number (1 is cuda:1, -1 the CPU)."""
    fp32: bool = False
    """Compute in float32 even where 16 bit is faster."""
    json: bool = False
    """Print one JSON object per picture."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    progress_fd: Annotated[int | None, tyro.conf.arg(metavar="FD")] = None
    """Write every step and every picture's end as JSON lines to this open file descriptor (2: among the errors)."""
    recursive: Annotated[bool, tyro.conf.arg(aliases=["-r"])] = False
    """Take the pictures of folders inside the folders, too; the output keeps them apart the same way."""
    resume: bool = False
    """Continue an interrupted run: leave out the pictures that its manifest knows as finished."""
    manifest: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where the state of every picture of a folder is kept (default: a file of the user's, named by -o)."""

    def run(self) -> int:
        names = [*self.pictures, *(name for group in self.input for name in group)]
        if not names:
            raise OptionError("name at least one picture or folder")
        if self.max_tiles < 0:
            raise OptionError(f"max-tiles must be 0 or more, got {self.max_tiles}")
        if str(self.output) == STANDARD:
            return self._to_stdout(names)
        if (self.resume or self.manifest) and None in map(local_path, names):
            raise OptionError("--resume and --manifest are for local files; `nextscale batch` resumes stores")
        events = None if self.progress_fd is None else ProgressEvents(self.progress_fd)
        with tempfile.TemporaryDirectory(prefix="nextscale-") as fetched, _closing(events):
            named, given, unfetched = fetch(names, Path(fetched))
            return self._run(named, given, unfetched, events)

    def _to_stdout(self, names: list[str]) -> int:
        """One picture to the standard output, on which nothing else is said."""
        several = self.options.all_factors or self.options.confidence
        path = local_path(names[0])
        is_folder = path is not None and path.is_dir()
        if len(names) > 1 or several or is_folder or self.json or self.suffix is not None:
            raise OptionError(
                "-o - takes one picture and gives one: leave out further pictures, folders, --all-factors, "
                "--confidence, --suffix and --json (--progress-fd tells the same)"
            )
        if self.resume or self.manifest:
            raise OptionError("--resume and --manifest are for pictures that go to a folder; name one with -o")
        with tempfile.TemporaryDirectory(prefix="nextscale-") as folder:
            status = dataclasses.replace(self, output=Path(folder), quiet=True).run()
            for file in Path(folder).iterdir():
                to_stdout(file)
        return status

    def _run(
        self,
        named: list[Path],
        given: dict[Path, str],
        unfetched: list[tuple[str, str]],
        events: ProgressEvents | None,
    ) -> int:
        """The pictures of local files and folders.

        Args:
            given: of files that were fetched, the name each goes by.
            unfetched: what could not be fetched, with the reason.
        """
        for name, reason in unfetched:
            self._report({"input": name, "error": reason}, events)
        if not named:
            return 1
        folder = output_folder(self, named)
        started = time.perf_counter()
        manifest = self._manifest(folder, named)
        with contextlib.closing(manifest) if manifest else contextlib.nullcontext():
            known = manifest.results if manifest else ()
            inputs = list_inputs(named, recursive=self.recursive, without=folder, suffix=self.suffix, known=known)
            sources, refused = inputs.pictures, inputs.refused
            for path, reason in refused:
                self._report({"input": str(path), "error": reason}, events)
            if inputs.results:
                self._left_out(inputs.results)
            report_unread(inputs.unread)
            if not sources:
                return 1
            stamps = {source: stamp_of(source) for source in sources}
            todo = list(sources)
            if manifest is not None and self.resume:
                items = {canonical(s): (stamps[s], s) for s in sources}
                todo = unfinished(items, manifest, lambda path, mark: has_mark(Path(path), mark))
            unknown = [path for path in inputs.results if canonical(path) not in known]
            targets = self._targets(folder, sources, named, unknown)
            failed = self._restore(todo, targets, manifest, stamps, given, events) if todo else 0
        if manifest is not None:
            before = len(sources) - len(todo)
            failures = len(refused) + len(unfetched)
            self._summary(len(todo) - failed, before, failed + failures, time.perf_counter() - started)
        return 1 if failed or refused or unfetched else 0

    def _targets(self, folder: Path | None, sources: list[Path], named: list[Path], unknown: list[Path]) -> Targets:
        roots = [path for path in named if os.path.isdir(path)] if self.recursive else []
        return Targets(
            self.options,
            self.output,
            sources,
            roots,
            suffix=self.suffix,
            ext=self.ext,
            single=folder is None,
            unknown=unknown,
        )

    def _manifest(self, folder: Path | None, named: list[Path]) -> Manifest | None:
        """The list of finished pictures, if there is a folder of them."""
        if folder is None or not (self.resume or self.manifest or any(os.path.isdir(path) for path in named)):
            if self.resume or self.manifest:
                raise OptionError("--resume and --manifest are for pictures that go to a folder; name one with -o")
            return None
        from nextscale import __version__
        from nextscale.model.checkpoint import WEIGHTS, local_folder

        # Canonical paths, so that the same folder is found from elsewhere; a model folder by what is in it now.
        found = local_folder(self.model)
        model = [canonical(found), stamp_of(found / WEIGHTS)] if found else [self.model]
        key = settings_key(self.options, model, self.suffix, self.ext, self.fp32, __version__)
        path = self.manifest or default_path(os.path.realpath(folder))
        try:
            return Manifest(path, key, resume=self.resume)
        except NextScaleError as error:
            if self.resume or self.manifest:
                raise
            complain(f"{error}; going on without one, so --resume will not know of this run")
            return None

    def _restore(
        self,
        todo: list[Path],
        targets: Targets,
        manifest: Manifest | None,
        stamps: dict[Path, list[int]],
        given: dict[Path, str],
        events: ProgressEvents | None,
    ) -> int:
        """Restore pictures, several in flight; how many failed."""
        from nextscale.upscale.engine import Engine, run_all
        from nextscale.upscale.nextscale import NextScale

        model = NextScale.from_pretrained(self.model, device=self.device, fp32=self.fp32)
        targets.factors = self.options.factors(model.ladder_for(self.options).factors)
        failed, lost = 0, threading.Event()
        with progress(len(todo), quiet=self.json or self.quiet) as bars:

            def work(engine: Engine, place: Place, source: Path) -> dict[str, Any]:
                name = given.get(source, str(source))
                row, marks = self._one(engine, place, source, targets, bars, name, events)
                if manifest is not None and not lost.is_set():
                    try:
                        manifest.record(canonical(source), stamps[source], marks, row.get("error"))
                    except NextScaleError as error:
                        lost.set()
                        complain(str(error))
                return row

            engine = Engine(model)
            for row in run_all(engine, todo, work):
                failed += "error" in row
                self._report(row, events)
            engine.close()
        return failed

    def _one(
        self,
        engine: Engine,
        place: Place,
        source: Path,
        targets: Targets,
        bars: ProgressLines,
        name: str,
        events: ProgressEvents | None,
    ) -> tuple[dict[str, Any], dict[str, Mark]]:
        """Restore one picture, which goes by a name; the row to report, and what its files hold."""
        from nextscale import image as images

        row: dict[str, Any] = {"input": name}
        marks: dict[str, Mark] = {}
        try:
            started = time.perf_counter()
            picture = images.read(source)
            seconds = time.perf_counter() - started
            plan = engine.model.plan(picture, self.options)
            plan.check(tiles=self.max_tiles or None)
            place.wait()
            files = targets.claim(source, picture)
            place.leave()
            with bars.picture(source, plan.words()) as line:

                def on_progress(progress: Progress) -> None:
                    line(progress)
                    if events is not None:
                        events.step(name, progress)

                result = engine.upscale(picture, self.options, on_progress)
                started = time.perf_counter()
                marks = write_results(result, files, lossless=picture.lossless)
                seconds += result.timings["total"] + time.perf_counter() - started
            row["outputs"] = {label: str(path) for label, path in files.items()}
            row["size"] = list(picture.size)
            row["output_size"] = list(result.picture.size)
            row["seconds"] = round(seconds, 3)  # of its own, without waiting for others
            row["timings"] = {name: round(value, 3) for name, value in result.timings.items()}
        except NextScaleError as error:
            row["error"] = str(error)
        except Exception as error:
            if os.environ.get("NEXTSCALE_DEBUG"):
                raise
            row["error"] = f"internal error ({type(error).__name__}: {error}); NEXTSCALE_DEBUG=1 shows where"
        return row, marks

    def _left_out(self, results: list[Path]) -> None:
        """Say which files of the folders were not taken; a picture that is named by itself always is."""
        line = f"{results[0]}: left out as a result of an earlier run; name the file to restore it again"
        if len(results) > 1:
            line = f"{results[0]} and {len(results) - 1} more: left out as results of earlier runs; name the files"
        if not self.quiet:
            (complain if self.json else say)(line)

    def _summary(self, done: int, before: int, failed: int, seconds: float) -> None:
        if not self.json and not self.quiet and done + before + failed > 1:
            earlier = f", {before} finished before" if before else ""
            say(f"{done + before + failed} pictures: {done} done{earlier}, {failed} failed, in {lasting(seconds)}")

    def _report(self, row: dict[str, Any], events: ProgressEvents | None) -> None:
        if events is not None:
            events.end(row)
        if self.json:
            say_row(row)
        if "error" in row:
            complain(f"{row['input']}: {row['error']}")
        elif not self.json and not self.quiet:
            (width, height), (new_width, new_height) = row["size"], row["output_size"]
            sizes = f"{width} x {height} -> {new_width} x {new_height}"
            say(f"{row['input']}: {sizes} in {row['seconds']:.1f} s -> {', '.join(row['outputs'].values())}")


def _closing(events: ProgressEvents | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if events is None else contextlib.closing(events)


@dataclass(frozen=True)
class Inputs:
    """What the named files and folders hold."""

    pictures: list[Path]
    """Each once."""
    refused: list[tuple[Path, str]]
    """What is not to be had, with the reason."""
    results: list[Path]
    """Files of the folders that are results of earlier runs."""
    unread: list[str]
    """Files of the folders that are pictures, but of a kind that is not read."""


def list_inputs(
    named: Sequence[Path],
    *,
    recursive: bool = False,
    without: Path | None = None,
    suffix: str | None = None,
    known: Collection[str] = (),
) -> Inputs:
    """Every picture of the given files and folders.

    Args:
        without: the folder of the results, whose results are no pictures.
        suffix: the ending of results' names (None: _x and the factor).
        known: canonical paths of results of earlier runs.
    """
    from nextscale import image as images

    found: dict[str, Path] = {}
    beside: set[str] = set()
    explicit: set[str] = set()
    refused: list[tuple[Path, str]] = []
    unread: dict[str, str] = {}
    output = None if without is None else os.path.join(os.path.realpath(without), "")
    for path in named:
        inside, is_folder = [path], os.path.isdir(path)
        if is_folder:
            try:
                suffixes = (*images.SUFFIXES, *images.OTHER_SUFFIXES)
                there = images.find_pictures(path, recursive=recursive, suffixes=suffixes)
                inside = [file for file in there if images.is_picture_path(file)]
                other = [file for file in there if not images.is_picture_path(file)]
                unread |= {canonical(file): str(file) for file in other}
                if recursive and output is not None and output != os.path.join(os.path.realpath(path), ""):
                    inside = [file for file in inside if not canonical(file).startswith(output)]
                inside += [link for link in path.iterdir() if images.is_picture_path(link) and not os.path.exists(link)]
            except (NextScaleError, OSError) as error:
                refused.append((path, str(error)))
                continue
            if not inside:
                refused.append((path, f"no pictures in this folder; supported are {images.READABLE}"))
        elif (reason := missing(path)) is not None:  # now, not after seconds of loading
            refused.append((path, reason))
            continue
        for picture in sorted(inside):
            place = canonical(picture)
            found.setdefault(place, picture)
            if not is_folder:
                explicit.add(place)
            elif output is not None and place.startswith(output):
                beside.add(place)  # it lies where the results go, too
    beside -= explicit
    stems = {picture.stem for place, picture in found.items() if place not in beside}
    results = earlier_results([found[place] for place in beside], stems, suffix, known)
    pictures = [picture for picture in found.values() if picture not in results]
    if results and not pictures:
        refused += [(path, ONLY_RESULTS) for path in named]
    left_out = sorted(picture for picture in found.values() if picture in results)
    return Inputs(pictures, refused, left_out, sorted(unread.values()))


def output_folder(command: Upscale, named: Sequence[Path]) -> Path | None:
    """The folder that -o names, or None where it names the file of the only picture.

    Raises:
        OptionError: it names neither, or other options contradict it.
    """
    from nextscale.image import WRITE_FORMATS

    output, suffix = command.output, command.output.suffix.lower()
    if command.suffix and re.search(r"[/\\]", command.suffix):
        raise OptionError(f"--suffix {command.suffix}: must not hold a slash; name the folder with -o")
    if os.path.isdir(output):
        return output
    single = len(named) == 1 and not os.path.isdir(named[0])
    if suffix in WRITE_FORMATS and single:
        if command.ext != "auto" and WRITE_FORMATS[f".{command.ext}"] != WRITE_FORMATS[suffix]:
            raise OptionError(f"-o {output} and --ext {command.ext} contradict each other; leave one out")
        if command.suffix is not None:
            raise OptionError(f"--suffix is for names in a folder, but -o {output} names a file; leave one out")
        return None
    if suffix in WRITE_FORMATS or os.path.exists(output):
        why = "this is no picture's name" if single else "this is a file's name, but several pictures need a folder"
        raise OptionError(f"-o {output}: {why}; name a folder")
    if single and suffix:
        raise OptionError(f"-o {output}: unknown format; use one of {' '.join(WRITE_FORMATS)}, or name a folder")
    return output
