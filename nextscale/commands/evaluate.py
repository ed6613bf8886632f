"""The `nextscale evaluate` command: plain settings, free of torch until it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextscale import image as images
from nextscale.commands.cli_types import BenchFlags
from nextscale.console import complain, counted, note, say
from nextscale.errors import NextScaleError, OptionError
from nextscale.evaluate.options import BenchOptions, ScoreOptions
from nextscale.evaluate.sets import SETS
from nextscale.evaluate.summary import Summary
from nextscale.files import begins, check_report

if TYPE_CHECKING:
    from nextscale.evaluate.scores import OnPicture


@dataclass(frozen=True)
class Evaluate:
    """Score pictures: nextscale evaluate --pred DIR --target DIR, or a model: nextscale evaluate --bench DIR"""

    pred: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Pictures to score, matched with those of --target by name."""
    target: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The true pictures."""
    bench: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A set of small and large pictures (LR, HR; DIV2K, RealSR, DRealSR, Set5 ...), on which to run the model."""
    sets: bool = False
    """Print the public sets by name and how to get each, and measure nothing."""
    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    """With --bench: a shipped model's name, a model folder, or a hub id (owner/name)."""
    score: Annotated[ScoreOptions, tyro.conf.arg(name="")] = field(default_factory=ScoreOptions)
    pairs: Annotated[BenchOptions, tyro.conf.arg(name="")] = field(default_factory=BenchOptions)
    upscale: Annotated[BenchFlags, tyro.conf.arg(name="")] = field(default_factory=BenchFlags)
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """With --bench: folder for what is done so far and the tables (default: one under evaluation/); a stopped run goes
    on from it."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the means, intervals and the numbers of every picture as JSON."""
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the numbers of every picture as CSV."""
    markdown: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the table that is also printed."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    fp32: bool = False
    """With --bench: compute in float32 even where 16 bit is faster."""

    def run(self) -> int:
        if self.sets:
            for line in (line for public in SETS.values() for line in public.recipe()):
                say(line)
            return 0
        if self.bench is not None and not self.bench.is_dir() and (public := SETS.get(self.bench.name.lower())):
            complain(f"{self.bench}: no such folder; this is how to get it")
            for line in public.recipe():
                note(line)
            return 1
        if self.bench is not None and self.pred is None and self.target is None:
            return self._bench(self.bench)
        if self.bench is None and self.pred is not None and self.target is not None:
            return self._folders(self.pred, self.target)
        raise OptionError("evaluate needs either --pred and --target, or --bench alone")

    def _folders(self, pred: Path, target: Path) -> int:
        from nextscale.evaluate.scores import score_folders
        from nextscale.evaluate.table import csv_text, folders_json, folders_markdown

        default = {field.name: getattr(Evaluate(), field.name) for field in dataclasses.fields(self)}
        odd = [name for name in ("model", "pairs", "upscale", "out", "fp32") if getattr(self, name) != default[name]]
        if odd:
            given = _changed(getattr(self, odd[0]), default[odd[0]], odd[0])
            raise OptionError(f"only --bench takes options of a model or a set; leave out {given} here")
        self._check_files()
        with progress() as done:
            scores = score_folders(pred, target, self.score, device=self.device, on_picture=done)
        about = dataclasses.asdict(self.score) | {"pred": str(pred), "target": str(target)}
        about = {key: value for key, value in about.items() if key not in ("metrics", "download")} | {
            "pictures": len(scores.images)
        }
        markdown = folders_markdown(scores.metrics, len(scores.images))
        self._write(markdown, folders_json(scores.metrics, scores.images, **about), csv_text(scores.images))
        return warn(scores.metrics)

    def _bench(self, bench: Path) -> int:
        from nextscale.evaluate.benchmark import default_out, evaluate_model
        from nextscale.evaluate.table import csv_text, evaluation_json, evaluation_markdown, picture_rows

        self._check_files()
        kept = (self.upscale, self.pairs.factors, self.pairs.bench_factor, self.score.channel, self.score.border)
        out = self.out or default_out(
            self.model, bench, *kept, self.pairs.crop, self.score.lpips_net, self.device, self.fp32
        )
        with progress() as done:
            evaluation = evaluate_model(
                self.model, bench, upscale=self.upscale, score=self.score, options=self.pairs, out=out,
                device=self.device, fp32=self.fp32, on_picture=done,
            )  # fmt: skip
        markdown = evaluation_markdown(evaluation)
        self._write(markdown, evaluation_json(evaluation), csv_text(picture_rows(evaluation)))
        say(f"Tables, numbers of every picture and what a next run needs: {out}")
        return warn(evaluation.rows[-1].metrics)

    def _check_files(self) -> None:
        """Before hours of work: the files that are asked for can be written, and replace nothing but reports."""
        from nextscale.evaluate.table import STARTS
        from nextscale.model.checkpoint import local_folder

        model = local_folder(self.model) if self.bench is not None else None
        owners: dict[Path, str] = {}
        for option, file in (("--json", self.json), ("--csv", self.csv), ("--markdown", self.markdown)):
            if file is None:
                continue
            if str(file) == "-":
                raise OptionError(f"{option} -: a report is a file; name one")
            if (owner := owners.setdefault(file.resolve(), option)) != option:
                raise OptionError(f"{file}: {owner} writes this file, too; name another file with {option}")
            with named(file):
                images.check_folder(file)
            earlier = partial(begins, starts=STARTS[option[2:]])
            check_report(file, option, "report of evaluate", earlier, inputs=[] if model is None else [model])

    def _write(self, markdown: str, json: str, csv: str) -> None:
        for file, text in ((self.json, json), (self.csv, csv), (self.markdown, markdown)):
            if file is not None:
                with named(file):
                    images.write_bytes(file, text.encode())
        for line in markdown.splitlines():
            say(line)


def _changed(value: Any, default: Any, name: str) -> str:
    """The option that was given, as it is written; a group of them has its first one."""
    if dataclasses.is_dataclass(value):
        name = next(
            field.name
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != getattr(default, field.name)
        )
    return f"--{name.replace('_', '-')}"


def warn(metrics: dict[str, Summary]) -> int:
    """Complain about every metric without a number; the exit status is 1 if none has one."""
    lacking = {name: summary.unavailable for name, summary in metrics.items() if summary.unavailable}
    for name, reason in lacking.items():
        complain(f"{name} is unavailable: {reason}")
    return 1 if len(lacking) == len(metrics) else 0


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Errors begin with the file's name."""
    try:
        yield
    except NextScaleError as error:
        # What the disk refuses is named already.
        text = str(error)
        raise type(error)(text if text.startswith(f"{file}: ") else f"{file}: {text}") from None


@contextmanager
def progress(every: float = 10.0) -> Iterator[OnPicture]:
    """A bar on stderr where that is a terminal, else a line on stderr every so many seconds."""
    with counted("pictures", complain, every=every) as advance:
        yield lambda done, total, name, resumed: advance(done, total, name, resumed=resumed)
