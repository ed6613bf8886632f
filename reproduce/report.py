"""`python -m reproduce report`: the paper's tables and figure 2, ablations, confidence. Torch-free until run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextscale import image as images
from nextscale.commands.cli_types import UpscaleFlags
from nextscale.commands.evaluate import progress
from nextscale.console import say
from nextscale.errors import NextScaleError, OptionError
from nextscale.evaluate.datasets import Pair, pairs
from nextscale.evaluate.options import BenchOptions, Factors, Names, ScoreOptions
from nextscale.files import check_earlier

if TYPE_CHECKING:
    from nextscale.evaluate.scores import OnPicture
    from nextscale.upscale.nextscale import NextScale
    from reproduce.published import Table
    from reproduce.tables import Setting

REPORT = "report.md"
"""The table of each report, in the folder named by --out."""
STARTS = ("| factor | method | source |", "| factor | map |", "| step | side |", "Degraded inputs:")
"""What these begin with."""
Model = Annotated[str, tyro.conf.arg(aliases=["-n"])]
Bench = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Named = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FOLDER ...")]


def _codes_alone() -> UpscaleFlags:
    return UpscaleFlags(fidelity=0.0, color_fix="none")


@dataclass(frozen=True)
class RunOptions:
    """Output, pictures and device of a report."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder (created) for report.md, table.json, images.csv and the rows so far, from which a stopped run resumes;
    without it the report is only printed."""
    limit: int = 0
    """Only the first pictures by name (0: all)."""
    crop: bool = False
    """Cut HR that is up to three pixels too wide or high, right and below."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    fp32: bool = False
    """Compute in float32 even where 16 bit is faster."""

    def bench(self, factors: tuple[float, ...], peers: tuple[str, ...] = ()) -> BenchOptions:
        """As `nextscale evaluate` takes them."""
        return BenchOptions(factors=factors, peers=peers, limit=self.limit, crop=self.crop)

    def setting(
        self,
        score: ScoreOptions,
        done: OnPicture,
        factors: tuple[float, ...] = (1.0, 2.0, 4.0),
        peers: tuple[str, ...] = (),
    ) -> Setting:
        """The settings that the tables share."""
        from reproduce.tables import Setting

        return Setting(score, self.bench(factors, peers), self.out, self.device, self.fp32, done)

    def pairs(self, bench: Path) -> list[Pair]:
        """The pairs of a set."""
        return pairs(bench, crop=self.crop)

    def give(self, markdown: str) -> int:
        """Print a report, and keep it."""
        if self.out is not None:
            images.write_bytes(self.out / REPORT, markdown.encode())
        for line in markdown.splitlines():
            say(line)
        return 0


Score = Annotated[ScoreOptions, tyro.conf.arg(name="")]
Run = Annotated[RunOptions, tyro.conf.arg(name="")]
Upscaling = Annotated[UpscaleFlags, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A report with scores."""

    score: Score = field(default_factory=ScoreOptions)
    run_options: Run = field(default_factory=RunOptions)


@dataclass(frozen=True, kw_only=True)
class OnSet:
    """A report on a set of pictures."""

    bench: Bench
    """A set of small and large pictures."""
    upscale: Upscaling = field(default_factory=UpscaleFlags)
    run_options: Run = field(default_factory=RunOptions)


@dataclass(frozen=True, kw_only=True)
class ScoredSet(OnSet):
    """A report with scores on a set of pictures."""

    score: Score = field(default_factory=ScoreOptions)

    def compare(
        self,
        models: dict[str, str],
        baselines: dict[str, str],
        table: Table | None = None,
        *,
        factors: Factors = (1.0, 2.0, 4.0),
    ) -> int:
        """Score models and baselines of flat codes; print and keep the rows, with the published ones of a table."""
        from reproduce.tables import compare_models, report_markdown

        with progress() as done:
            setting = self.run_options.setting(self.score, done, factors)
            found = self.run_options.pairs(self.bench)
            evaluation = compare_models(models, baselines, found, self.bench.name, setting, self.upscale)
        return self.run_options.give(report_markdown(evaluation, table))


@dataclass(frozen=True, kw_only=True)
class Table1a(Scored):
    """Table 1a: photographs' own codes decoded at every stage, read flat and by Algorithm 1."""

    photos: Bench
    """Square photographs of the last stage's side (512 px)."""
    model: Model = "tiny"
    """The hierarchical tokenizer: its folder, or a whole model's."""
    flat_trained: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A tokenizer trained without the hierarchy, for the first two rows (a checkpoint converted with --steps, say)."""

    def run(self) -> int:
        from reproduce.tables import digests, readings_of_table_1a, reconstruct, report_markdown

        folders = {"tokenizer": self.model} | ({} if self.flat_trained is None else {"flat": str(self.flat_trained)})
        readings = readings_of_table_1a(self.model, self.flat_trained)
        with progress() as done:
            setting = self.run_options.setting(self.score, done)
            evaluation = reconstruct(readings, self.photos, setting, {"models": digests(folders)})
        return self.run_options.give(report_markdown(evaluation, "1a"))


@dataclass(frozen=True, kw_only=True)
class Reconstructions(Scored):
    """Several tokenizers, each on its own ladder: photographs' own codes decoded at every stage."""

    photos: Bench
    """Square photographs of the last stage's side (512 px)."""
    models: Named
    """Rows: a name and the folder of a tokenizer or a whole model."""

    def run(self) -> int:
        from reproduce.tables import Reading, digests, load_tokenizer, reconstruct, report_markdown

        folders = named(self.models)
        tokenizers = {name: load_tokenizer(folder) for name, folder in folders.items()}
        readings = [Reading(name, tokenizer, tokenizer.ladder) for name, tokenizer in tokenizers.items()]
        with progress() as done:
            setting = self.run_options.setting(self.score, done)
            evaluation = reconstruct(readings, self.photos, setting, {"models": digests(folders)})
        return self.run_options.give(report_markdown(evaluation))


@dataclass(frozen=True, kw_only=True)
class Table1b(ScoredSet):
    """Table 1b: a model trained with the preference term (DPO) and one trained without."""

    without: Annotated[str, tyro.conf.arg(metavar="MODEL")]
    """The model trained with --codes.preference 0."""
    model: Model = "tiny"
    """The model trained with it."""
    upscale: Upscaling = field(default_factory=_codes_alone)

    def run(self) -> int:
        return self.compare({"without DPO": self.without, "with DPO": self.model}, {}, "1b")


@dataclass(frozen=True, kw_only=True)
class Table2(ScoredSet):
    """Table 2: the model per factor, against the paper's baseline: flat codes decoded after every stage's steps."""

    bench: Bench
    """A set of small and large pictures, the small ones of one tile (128 px)."""
    model: Model = "tiny"
    """The hierarchical model."""
    baseline: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """A model trained on flat codes of the same tokenizer (`train transformer --config runs/ablations/one-stage.json
    --codes.preference 0`)."""
    upscale: Upscaling = field(default_factory=_codes_alone)

    def run(self) -> int:
        from nextscale.evaluate.benchmark import OURS

        return self.compare({OURS: self.model}, {} if self.baseline is None else {"baseline": self.baseline}, "2")


@dataclass(frozen=True, kw_only=True)
class Models(ScoredSet):
    """Any models side by side, each at the factors that it has: the rows of an ablation."""

    models: Named
    """Rows: a name and a model."""
    baselines: Named = ()
    """Rows: a name and a model of flat codes, decoded as Table 2's baseline by the first model's tokenizer."""
    factors: Factors = (1.0, 2.0, 4.0)
    """Factors to score."""
    upscale: Upscaling = field(default_factory=_codes_alone)

    def run(self) -> int:
        return self.compare(named(self.models), named(self.baselines), factors=self.factors)


@dataclass(frozen=True, kw_only=True)
class Table3(ScoredSet):
    """Table 3: the model as it is used, and from codes alone, against peers."""

    model: Model = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    peers: Names = ("bicubic", "lanczos")
    """Methods for rows beside the model's."""
    factors: Factors = (4.0,)
    """Factors to score."""

    def run(self) -> int:
        from reproduce.tables import compare_peers, report_markdown

        with progress() as done:
            setting = self.run_options.setting(self.score, done, self.factors, self.peers)
            found = self.run_options.pairs(self.bench)
            evaluation = compare_peers(self.model, found, self.bench.name, setting, self.upscale)
        return self.run_options.give(report_markdown(evaluation, "3"))


@dataclass(frozen=True, kw_only=True)
class Inference(ScoredSet):
    """Compares settings of inference: class on degraded and clean inputs, guidance, temperature, top-k, fidelity."""

    model: Model = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    factors: Factors = (1.0, 2.0, 4.0)
    """Factors to score."""
    upscale: Upscaling = field(default_factory=UpscaleFlags)
    """Options from which the variants differ."""

    def run(self) -> int:
        from reproduce.tables import compare_variants, report_markdown

        with progress() as done:
            setting = self.run_options.setting(self.score, done, self.factors)
            found = self.run_options.pairs(self.bench)
            degraded, clean = compare_variants(self.model, found, self.bench.name, setting, self.upscale)
        parts = ["Degraded inputs:\n", report_markdown(degraded), "Clean inputs (HR reduced bilinearly):\n"]
        return self.run_options.give("\n".join([*parts, report_markdown(clean)]))


@dataclass(frozen=True, kw_only=True)
class Confidence(OnSet):
    """Rank correlation of the confidence map (or expected error) with the true error, and the error by fifths."""

    model: Model = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    factors: Factors = (1.0, 2.0, 4.0)
    """Factors to look at."""

    def run(self) -> int:
        from nextscale.evaluate.table import csv_text, dump
        from reproduce.confidence import confidence_markdown, study_confidence

        run = self.run_options
        if run.out is not None:
            for name, start in (("table.json", '{\n "bench": '), ("images.csv", "name,map,factor,")):
                check_earlier(run.out / name, "table of report confidence", (start,))
        with progress() as done:
            study = study_confidence(
                load(run, self.model), run.pairs(self.bench), self.bench.name, upscale=self.upscale,
                options=run.bench(self.factors), on_picture=done,
            )  # fmt: skip
        if run.out is not None:
            images.write_bytes(run.out / "table.json", dump({"bench": study.bench, "rows": study.rows}).encode())
            images.write_bytes(run.out / "images.csv", csv_text(study.rows).encode())
        return run.give(confidence_markdown(study))


@dataclass(frozen=True, kw_only=True)
class CodesByStep:
    """Usage, perplexity and bits of photographs' codes, and by step how often they are predicted and how surely."""

    bench: Bench
    """A set of small and large pictures, one tile each (128 and 512 px)."""
    model: Model = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    run_options: Run = field(default_factory=RunOptions)

    def run(self) -> int:
        from reproduce.codes import codes_markdown, study_codes

        run = self.run_options
        model, found = load(run, self.model), run.pairs(self.bench)
        with progress() as done:
            steps = study_codes(model, found, limit=run.limit, on_picture=done)
        pictures = len(found[: run.limit or None])
        return run.give(codes_markdown(steps, model.tokenizer.ladder, pictures, self.bench.name))


@dataclass(frozen=True, kw_only=True)
class Figure(OnSet):
    """A sheet of pictures: LR, bicubic, peers, the model at x1, x2, x4, truth, confidence; below each a crop."""

    model: Model = "tiny"
    """A shipped model's name, a model folder, or a hub id (owner/name)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The PNG to write."""
    pictures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Names of the set's pictures (default: its first --limit, or three)."""
    peers: Names = ("bicubic",)
    """Methods shown beside the model."""
    crop_at: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="LEFT TOP SIDE")] = None
    """The crop in pixels of HR (default: where bicubic loses most detail)."""
    crop_side: int = 96
    """Side of the crop that is chosen, in pixels of HR."""
    side: int = 256
    """Pixels of each panel's longer side."""

    def run(self) -> int:
        from nextscale.evaluate.methods import peers
        from nextscale.evaluate.scores import read_pixels
        from reproduce.figures import Crop, Strip, figure, gray, most_lost

        check_output(self.output)
        run = self.run_options
        methods, model, strips = peers(self.peers), load(run, self.model), []
        factors = [factor for factor in (1.0, 2.0, 4.0) if factor in model.ladder_for(self.upscale).factors]
        settings = dataclasses.replace(self.upscale, scale=max(factors), all_factors=True, confidence=True)
        (bicubic,) = peers(("bicubic",))
        for pair in chosen(run.pairs(self.bench), self.pictures, run.limit or 3):
            truth, result = read_pixels(pair.hr), model.upscale(pair.lr, settings)
            lost = (
                most_lost(bicubic(pair.lr)[4.0], truth, self.crop_side) if self.crop_at is None else Crop(*self.crop_at)
            )
            ours = [images.rgb8(result.images[factor]) for factor in factors]
            shown = [max(method(pair.lr).items())[1] for method in methods]
            sureness = gray(result.maps[max(factors)])
            strips.append(Strip(pair.name, [read_pixels(pair.lr), *shown, *ours, truth, sureness], lost))
        columns = ["LR", *(method.name for method in methods), *(f"ours x{factor:g}" for factor in factors)]
        return write_figure(self.output, figure(strips, [*columns, "truth", "confidence"], self.side))


@dataclass(frozen=True, kw_only=True)
class Figure2(OnSet):
    """The paper's figure 2: the 128, 256 and 512 px that flat codes give on the way, and hierarchical ones."""

    bench: Bench
    """A set of small and large pictures, the small ones of one tile (128 px)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The PNG to write."""
    model: Model = "tiny"
    """The hierarchical model."""
    baseline: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """A model trained on flat codes of the same tokenizer. Without one, both columns show the photograph's own codes,
    as if all had been predicted right."""
    pictures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Names of the set's pictures (default: its first --limit, or one)."""
    side: int = 320
    """Pixels of each panel's longer side."""
    upscale: Upscaling = field(default_factory=_codes_alone)

    def run(self) -> int:
        from reproduce.figures import fitted, grid
        from reproduce.tables import stage_pictures

        check_output(self.output)
        run, lines, names = self.run_options, [], []
        found = chosen(run.pairs(self.bench), self.pictures, run.limit or 1)
        models = [load(run, name) for name in (self.model, self.baseline) if name is not None]
        columns, pictures = stage_pictures(models[0], models[1] if models[1:] else None, found, self.upscale)
        for pair, columns_of in zip(found, pictures, strict=True):
            for factor in columns_of[0]:
                lines.append([fitted(column[factor], self.side) for column in columns_of])
                names.append(f"{pair.name} x{factor:g}")
        return write_figure(self.output, grid(lines, columns, names, self.side))


@dataclass(frozen=True)
class Page:
    """Put tables into a page: what stands between <!-- NAME --> and <!-- end NAME --> becomes TABLES/NAME/report.md."""

    page: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The Markdown file."""
    tables: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder with a folder per report, as --out left it; blocks without one stay as they are."""

    def run(self) -> int:
        try:
            text = self.page.read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise OptionError(f"{self.page}: no such page, or not UTF-8") from None
        filled, put = fill(text, self.tables)
        if not put:
            raise OptionError(f"{self.page}: none of its blocks has a {REPORT} under {self.tables}")
        images.write_bytes(self.page, filled.encode())
        say(f"{self.page}: {', '.join(put)}")
        return 0


def fill(text: str, tables: Path) -> tuple[str, list[str]]:
    """A page with its blocks replaced by the reports that there are, and their names."""
    put: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        file = tables / match["name"] / REPORT
        if not file.is_file():
            return match[0]
        put.append(match["name"])
        return f"{match['start']}\n{file.read_text(encoding='utf-8').strip()}\n{match['end']}"

    pattern = r"(?P<start><!-- (?P<name>[\w.-]+) -->)\n.*?(?P<end><!-- end (?P=name) -->)"
    return re.sub(pattern, replaced, text, flags=re.DOTALL), put


def named(words: Sequence[str]) -> dict[str, str]:
    """NAME=FOLDER ... -> {name: folder}.

    Raises:
        OptionError: a word has another form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        if not (name and sign and folder) or name in found:
            raise OptionError(f"rows are given as NAME=FOLDER, each name once; got {word}")
        found[name] = folder
    return found


def chosen(found: Sequence[Pair], wanted: Sequence[str], count: int) -> list[Pair]:
    """The pairs of these names, in this order, or the first ones.

    Raises:
        OptionError: the set has no picture of a name.
    """
    by_name = {pair.name: pair for pair in found}
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise OptionError(f"no picture {', '.join(unknown)} in this set; it has {', '.join(list(by_name)[:10])} ...")
    return [by_name[name] for name in wanted] or list(found)[:count]


def load(run: RunOptions, name: str) -> NextScale:
    """A model on the device of a report."""
    from nextscale.upscale.nextscale import NextScale

    return NextScale.from_pretrained(name, device=run.device, fp32=run.fp32)


def check_output(file: Path) -> None:
    """Check before the work that the figure can be written."""
    if file.suffix.lower() != ".png":
        raise OptionError(f"-o {file}: figures are PNG files; name one that ends with .png")
    try:
        images.check_folder(file)
    except NextScaleError as error:
        raise type(error)(f"{file}: {error}") from None


def write_figure(file: Path, sheet: Any) -> int:
    """Write a Pillow image and say where."""
    from nextscale.image import from_pil

    images.write(file, from_pil(sheet))
    say(f"{file}: {sheet.width} x {sheet.height}")
    return 0


Part = (
    Annotated[Table1a, tyro.conf.subcommand("table-1a")]
    | Annotated[Table1b, tyro.conf.subcommand("table-1b")]
    | Annotated[Table2, tyro.conf.subcommand("table-2")]
    | Annotated[Table3, tyro.conf.subcommand("table-3")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Reconstructions, tyro.conf.subcommand("reconstructions")]
    | Annotated[Inference, tyro.conf.subcommand("inference")]
    | Annotated[Confidence, tyro.conf.subcommand("confidence")]
    | Annotated[CodesByStep, tyro.conf.subcommand("codes")]
    | Annotated[Figure, tyro.conf.subcommand("figure")]
    | Annotated[Figure2, tyro.conf.subcommand("figure-2")]
    | Annotated[Page, tyro.conf.subcommand("page")]
)


@dataclass(frozen=True)
class Report:
    """The paper's tables and figure 2, ablations, and whether confidence tells the error, beside published numbers."""

    part: Part
    """What to report."""

    def run(self) -> int:
        out = None if isinstance(self.part, Page) else self.part.run_options.out
        if out is not None:  # before hours of work
            check_earlier(out / REPORT, "report", STARTS)
        return self.part.run()
