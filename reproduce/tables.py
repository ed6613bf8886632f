"""Measures the paper's tables: tokenizers on photographs, models and their variants on pairs, beside published rows.

Everything is a `Method` on pairs and goes through `evaluate_methods`. Where the paper does not say, these choices hold:
codes alone (fidelity 0, no color matching), exact area means as targets of x1 and x2, channel Y, no border.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale import __version__
from nextscale import image as images
from nextscale.data.degrade import PRESETS, degrade, sample_recipe
from nextscale.device import pick_device
from nextscale.errors import ImageError, ModelError, OptionError
from nextscale.evaluate.benchmark import OURS, Restorer, evaluate_methods, weights_digest
from nextscale.evaluate.datasets import Pair, size_of
from nextscale.evaluate.methods import Method, Pixels, peers
from nextscale.evaluate.options import BenchOptions, ScoreOptions
from nextscale.evaluate.scores import OnPicture, area_mean, read_pixels, to_tensor
from nextscale.evaluate.table import TITLES, Evaluation, cell, markdown_table
from nextscale.model.checkpoint import find_folder, read_kind
from nextscale.model.config import Ladder
from nextscale.model.tokenizer import Codes, Tokenizer
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from reproduce.published import PublishedRow, Table, published, set_of

CODES_ALONE = UpscaleOptions(fidelity=0.0, color_fix="none")
"""The paper's decoder: nothing but the codes."""
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "fidelity 0.75": {"fidelity": 0.75},
    "fidelity 0.5": {"fidelity": 0.5},
    "fidelity 0.25": {"fidelity": 0.25},
    "codes alone": {"fidelity": 0.0},
    "codes alone, class 1 (clean)": {"fidelity": 0.0, "input_class": "clean"},
    "codes alone, guidance 1": {"fidelity": 0.0, "cfg": 1.0},
    "codes alone, temperature 1": {"fidelity": 0.0, "temperature": 1.0},
    "codes alone, temperature 1, top-k 10": {"fidelity": 0.0, "temperature": 1.0, "top_k": 10},
}
"""Settings of inference, each a difference from the options given. Class, guidance and temperature change the codes,
which a fusion may not read."""
ON_CLEAN = ("default", "codes alone", "codes alone, class 1 (clean)")
"""Those that are also run on clean inputs."""


@dataclass(frozen=True)
class Setting:
    """Settings that all tables share."""

    score: ScoreOptions = field(default_factory=ScoreOptions)
    options: BenchOptions = field(default_factory=BenchOptions)
    out: Path | None = None
    """Folder of the results; a stopped run resumes from it."""
    device: str = "auto"
    fp32: bool = False
    on_picture: OnPicture | None = None

    def load(self, name: str | Path) -> NextScale:
        """A model on the device.

        Raises:
            ModelError: in one line, what is wrong with it.
        """
        return NextScale.from_pretrained(name, device=self.device, fp32=self.fp32)

    def run(self, methods: Sequence[Method], found: Sequence[Pair], bench: str, about: Mapping[str, Any]) -> Evaluation:
        """Score methods on pairs; `about` is what the numbers depend on.

        Raises:
            OptionError: there is no method.
        """
        if not methods:
            raise OptionError("there is no row: name models, and factors that they have")
        about = {"version": __version__, "device": pick_device(self.device).type, "fp32": self.fp32, **about}
        return evaluate_methods(
            methods, found, bench, score=self.score, options=self.options, about=about, out=self.out,
            device=self.device, on_picture=self.on_picture,
        )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """A tokenizer and how it reads a photograph: a row of Table 1a."""

    name: str
    tokenizer: Tokenizer
    """Its ladder decodes the codes."""
    codes: Ladder
    """The ladder by which the photograph is quantized."""


class Reconstruction:
    """A reading as a method on photographs: its own codes, decoded at every stage, in float32 at fidelity 0.

    Raises:
        ImageError: the photograph is no square of a side that the ladder takes.
    """

    def __init__(self, reading: Reading, factor: float = 4.0) -> None:
        """`factor` is what the largest stage counts as."""
        self.name, self.reading, self.factor = reading.name, reading, factor

    @torch.no_grad()
    def __call__(self, photo: Path, /) -> dict[float, Pixels]:
        tokenizer, pixels = self.reading.tokenizer, read_pixels(photo)
        decoded, quantized = (_grown(ladder, photo, pixels) for ladder in (tokenizer.ladder, self.reading.codes))
        image = torch.from_numpy(images.to_float(pixels)).permute(2, 0, 1)[None]
        codes = tokenizer.encode(image.to(tokenizer.quant_conv.weight.device), ladder=quantized)
        return _decoded(tokenizer, Codes(codes.steps, decoded), self.factor)


class FlatBaseline:
    """The baseline of Table 2: a transformer of flat codes, whose prefixes are decoded as if they were hierarchical.

    It predicts ten steps on the largest canvas. The steps of each stage are then added up on that stage's canvas (8,
    16, 32 latents) and decoded by its decoder D_n, at fidelity 0.

    Raises:
        ModelError: the model's steps are not the tokenizer's, or it has several stages.
        ImageError: a picture is not one tile.
    """

    def __init__(self, flat: NextScale, tokenizer: Tokenizer, name: str, *, tile: int = 0) -> None:
        ladder = flat.tokenizer.ladder
        if ladder.num_stages != 1 or (ladder.sides, ladder.phi) != (tokenizer.ladder.sides, tokenizer.ladder.phi):
            raise ModelError(f"{name}: a baseline has one stage and the steps of the tokenizer that decodes it")
        self.name, self.model, self.tokenizer = name, flat, tokenizer
        self.options = dataclasses.replace(CODES_ALONE, scale=max(ladder.factors), tile=tile)

    @torch.no_grad()
    def __call__(self, lr: Path, /) -> dict[float, Pixels]:
        side = self.model.ladder_for(self.options).input_side
        if size_of(lr) != (side, side):
            raise ImageError(f"the baseline takes pictures of one tile, {side} x {side}; set --tile to their side")
        (codes,) = self.model.upscale(lr, self.options).codes.values()
        steps = [ids.to(self.tokenizer.quant_conv.weight.device) for ids in codes.steps]
        return _decoded(self.tokenizer, Codes(steps, self.tokenizer.ladder.for_input(side)), max(codes.ladder.factors))


class FromPhotograph:
    """A model on clean inputs: the photograph itself, reduced bilinearly as in training."""

    def __init__(self, restorer: Restorer, factor: int) -> None:
        self.name, self.restorer, self.factor = restorer.name, restorer, factor

    def __call__(self, photo: Path, /) -> dict[float, Pixels]:
        pixels = read_pixels(photo)
        height, width = (length - length % self.factor for length in pixels.shape[:2])
        image = torch.from_numpy(pixels[:height, :width]).permute(2, 0, 1)[None].float() / 255
        recipe = sample_recipe(PRESETS["bilinear"], random.Random(0))
        small = degrade(image, [recipe])[0].permute(1, 2, 0)
        lr = images.from_float(small.numpy() * 2 - 1, np.uint8)
        result = self.restorer.model.upscale(lr, self.restorer.options)
        return {factor: images.rgb8(result.images[factor]) for factor in self.restorer.factors}


def _grown(ladder: Ladder, photo: Path, pixels: Pixels) -> Ladder:
    """The ladder for tiles whose largest stage is the photograph."""
    height, width = pixels.shape[:2]
    try:
        if height != width:
            raise OptionError("it is no square")
        grown = ladder.for_input(width * ladder.input_side // ladder.image_sides[-1])
        if grown.image_sides[-1] != width:
            raise OptionError("its side does not fit this ladder")
    except OptionError as error:
        sides = f"{ladder.image_sides[-1]} x {ladder.image_sides[-1]} pixels, for one"
        raise ImageError(f"{photo}: {width} x {height} cannot be tokenized ({error}); use {sides}") from None
    return grown


def _decoded(tokenizer: Tokenizer, codes: Codes, factor: float) -> dict[float, Pixels]:
    """Factor -> picture of every stage; the last one counts as `factor`."""
    canvases = codes.ladder.canvases
    out = {}
    for stage, f in enumerate(tokenizer.canvases(codes)):
        out[factor * canvases[stage] / canvases[-1]] = _pixels(tokenizer.decode_canvas(f, stage))
    return out


def _pixels(image: Tensor) -> Pixels:
    """1 3 H W in [-1, 1] -> H W 3."""
    pixels: Pixels = images.from_float(image[0].permute(1, 2, 0).float().clamp(-1, 1).cpu().numpy(), np.uint8)
    return pixels


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a folder that holds one, or a whole model.

    Raises:
        ModelError: in one line, what is wrong with the folder.
    """
    folder = find_folder(name)
    if read_kind(folder) == "model":
        return NextScale.from_pretrained(folder, device="cpu", fp32=True).tokenizer
    return Tokenizer.from_pretrained(folder)


def flat_of(ladder: Ladder) -> Ladder:
    """A ladder with the same steps in one stage."""
    return dataclasses.replace(ladder, stage_ends=(ladder.num_steps,))


def readings_of_table_1a(model: str | Path, flat_trained: str | Path | None = None) -> list[Reading]:
    """The rows of Table 1a, of a hierarchical tokenizer and, if there is one, the flat one it was trained from.

    The last two have no row in the paper: the hierarchical tokenizer read flat (what its hierarchy costs at x4), and
    those flat codes' prefixes at every stage (what Table 2's baseline would give if it predicted all codes right).
    """
    own = load_tokenizer(model)
    flat = flat_of(own.ladder)
    rows = []
    if flat_trained is not None:
        other = load_tokenizer(flat_trained)
        plain = other.ladder if other.ladder.num_stages == 1 else flat_of(other.ladder)
        rows.append(Reading("flat-trained, read flat", other.with_ladder(plain), plain))
        rows.append(Reading("flat-trained, read by Algorithm 1", other.with_ladder(own.ladder), own.ladder))
    rows.append(Reading("hierarchical, read by Algorithm 1", own, own.ladder))
    rows.append(Reading("hierarchical, read flat", own.with_ladder(flat), flat))
    rows.append(Reading("hierarchical, prefixes of flat codes", own, flat))
    return rows


def reconstruct(readings: Sequence[Reading], photos: Path, setting: Setting, about: Mapping[str, Any]) -> Evaluation:
    """Every reading of every photograph of a folder, scored at every stage.

    Raises:
        ImageError: there is no photograph, or one is no square of a side that a ladder takes.
    """
    found = images.find_pictures(photos) if photos.is_dir() else []
    if not found:
        raise ImageError(f"{photos}: no pictures in such a folder; check its name")
    device = pick_device(setting.device)
    for reading in readings:
        reading.tokenizer.to(device)
    # The photograph is both: what the method reads, and what its results are compared with.
    pairs = [Pair(path.stem, path, path) for path in found]
    methods = [Reconstruction(reading, setting.options.bench_factor) for reading in readings]
    whole = photos.resolve()
    return setting.run(methods, pairs, f"{whole.parent.name}/{whole.name}", about)


def compare_models(
    models: Mapping[str, str],
    baselines: Mapping[str, str],
    found: Sequence[Pair],
    bench: str,
    setting: Setting,
    upscale: UpscaleOptions = CODES_ALONE,
) -> Evaluation:
    """Models side by side, each at those of the wanted factors that it has.

    Args:
        models: the name of a row -> a model.
        baselines: the same for transformers of flat codes, decoded by the tokenizer of the first of `models`.

    Raises:
        ModelError: in one line, what is wrong with a model.
    """
    methods: list[Method] = []
    tokenizer = None
    for name, folder in models.items():
        model = setting.load(folder)
        tokenizer = tokenizer or model.tokenizer
        native = model.ladder_for(upscale).factors
        factors = tuple(factor for factor in setting.options.factors if factor in native)
        if factors:
            methods.append(Restorer(model, upscale, factors, name))
    for name, folder in baselines.items():
        if tokenizer is None:
            raise OptionError("a baseline needs a model whose tokenizer decodes it")
        methods.append(FlatBaseline(setting.load(folder), tokenizer, name, tile=upscale.tile))
    about = {"models": digests(models), "baselines": digests(baselines), **dataclasses.asdict(upscale)}
    return setting.run(methods, found, bench, about)


def compare_peers(
    model: str | Path, found: Sequence[Pair], bench: str, setting: Setting, upscale: UpscaleOptions
) -> Evaluation:
    """A model as it is used, with codes alone, and its peers: Table 3."""
    factors = setting.options.factors
    loaded = setting.load(model)
    methods: list[Method] = list(peers(setting.options.peers, factors))
    methods.append(Restorer(loaded, upscale, factors))
    alone = dataclasses.replace(upscale, fidelity=0.0, color_fix="none")
    methods.append(Restorer(loaded, alone, factors, f"{OURS}, codes alone"))
    about = {"models": digests({OURS: model}), **dataclasses.asdict(upscale)}
    return setting.run(methods, found, bench, about)


def compare_variants(
    model: str | Path,
    found: Sequence[Pair],
    bench: str,
    setting: Setting,
    upscale: UpscaleOptions,
    variants: Mapping[str, dict[str, Any]] = VARIANTS,
) -> tuple[Evaluation, Evaluation]:
    """One model under several settings on degraded inputs, and under those of `ON_CLEAN` on clean ones.

    Settings that differ in fidelity alone are left out where `upscale` has it at 0: a model without a trained fusion
    has none.
    """
    loaded, factors = setting.load(model), setting.options.factors
    restorers = {
        name: Restorer(loaded, dataclasses.replace(upscale, **change), factors, name)
        for name, change in variants.items()
        if upscale.fidelity or set(change) != {"fidelity"}
    }
    about = {"models": digests({OURS: model}), **dataclasses.asdict(upscale)}
    degraded = _within(setting, "degraded").run(list(restorers.values()), found, bench, about | {"inputs": "LR"})
    whole = setting.options.bench_factor
    clean = [FromPhotograph(restorers[name], whole) for name in ON_CLEAN if name in restorers]
    photos = [Pair(pair.name, pair.hr, pair.hr) for pair in found]
    return degraded, _within(setting, "clean").run(clean, photos, bench, about | {"inputs": "HR reduced bilinearly"})


def stage_pictures(
    model: NextScale, baseline: NextScale | None, found: Sequence[Pair], upscale: UpscaleOptions = CODES_ALONE
) -> tuple[list[str], list[list[dict[float, Pixels]]]]:
    """The paper's figure 2: labels of its columns, and per pair and column the picture of every factor.

    With a baseline both models restore LR; without, the photograph's own codes are decoded, flat and hierarchical.

    Raises:
        ImageError: a picture is not one tile, or no square.
    """
    factors = model.tokenizer.ladder.factors
    if baseline is not None:
        both: list[Method] = [
            FlatBaseline(baseline, model.tokenizer, "baseline", tile=upscale.tile),
            Restorer(model, upscale, factors),
        ]
        labels = ["LR", "(b) baseline: flat codes", "(c) hierarchical codes", "truth"]
        made = [[method(pair.lr) for method in both] for pair in found]
    else:
        tokenizer, largest = model.tokenizer, factors[-1]
        flat = Reading("flat", tokenizer, flat_of(tokenizer.ladder))
        readings = (flat, Reading("hierarchical", tokenizer, tokenizer.ladder))
        labels = ["LR", "(b) photograph's flat codes", "(c) its hierarchical codes", "truth"]
        made = [[Reconstruction(reading, largest)(pair.hr) for reading in readings] for pair in found]
    pictures = []
    for pair, columns in zip(found, made, strict=True):
        lr, truth = read_pixels(pair.lr), to_tensor(read_pixels(pair.hr))
        true = {factor: area_mean(truth, round(factors[-1] / factor))[0] for factor in factors}
        pixels = {f: (t.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for f, t in true.items()}
        pictures.append([dict.fromkeys(factors, lr), *columns, pixels])
    return labels, pictures


def _within(setting: Setting, name: str) -> Setting:
    return dataclasses.replace(setting, out=None if setting.out is None else setting.out / name)


def digests(models: Mapping[str, str | Path]) -> dict[str, str]:
    """The digest of each model's config and weights."""
    return {name: weights_digest(folder) for name, folder in models.items()}


def report_markdown(evaluation: Evaluation, table: Table | None = None, bench: str = "") -> str:
    """The rows of an evaluation by factor, below them the published ones of the same set, marked as such.

    Args:
        table: which of the paper's tables to put beside; None for no published rows.
        bench: the published set; empty for that of the evaluation's name (Table 1a has one set only).
    """
    name = bench or set_of(evaluation.bench)
    theirs = published(table, name) if table else []
    metrics = list(evaluation.rows[0].metrics)
    lines = []
    for factor in sorted({row.factor for row in evaluation.rows}):
        for row in evaluation.rows:
            if row.factor == factor:
                numbers = [cell(metric, row.metrics[metric]) for metric in metrics]
                lines.append([f"x{factor:g}", row.method, "measured", *numbers])
        lines += [_published_line(row, f"published, Table {table}", metrics) for row in theirs if row.factor == factor]
    header = ["factor", "method", "source", *(TITLES[metric] for metric in metrics)]
    notes = [f"Measured on {evaluation.pictures} pictures of {evaluation.bench}, 95% bootstrap intervals in brackets."]
    if theirs:
        where = "ImageNet-512" if table == "1a" else name
        notes.append(f"Published rows: the paper's Table {table} on {where}, on its own pictures and settings.")
    notes += dict.fromkeys(_lacking(evaluation))
    return f"{markdown_table(header, lines)}\n{' '.join(notes)}\n"


def _published_line(row: PublishedRow, source: str, metrics: Sequence[str]) -> list[str]:
    formats = {"psnr": ".2f", "fid": ".2f"}
    numbers = [format(row.metrics[m], formats.get(m, "g")) if m in row.metrics else "-" for m in metrics]
    return [f"x{row.factor:g}", row.method, source, *numbers]


def _lacking(evaluation: Evaluation) -> Iterator[str]:
    """Notes on metrics that have no number or need an explanation."""
    for row in evaluation.rows:
        for name, summary in row.metrics.items():
            if summary.unavailable:
                yield f"{TITLES[name]} is unavailable: {summary.unavailable}."
            elif summary.note:
                yield f"{TITLES[name]}: {summary.note}."
