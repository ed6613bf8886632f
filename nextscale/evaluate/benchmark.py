"""Restores and scores every pair of a set by every method; a stopped run resumes.

The target of a factor below the set's is the exact area mean of HR. Each (picture, method) becomes a line of
`rows.jsonl` as soon as it is done; a later run with the same settings takes it from there.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nextscale import __version__
from nextscale import image as images
from nextscale.errors import ImageError, OptionError
from nextscale.evaluate.datasets import Pair, pairs, size_of
from nextscale.evaluate.methods import Method, Pixels, peers
from nextscale.evaluate.options import BenchOptions, ScoreOptions
from nextscale.evaluate.scores import Features, OnPicture, Scorer, area_mean, read_pixels, to_tensor
from nextscale.evaluate.summary import json_number
from nextscale.evaluate.table import Evaluation, Row, csv_text, dump, evaluation_json, evaluation_markdown, picture_rows
from nextscale.files import JsonLines, check_free, keep_json_lines, read_json_lines
from nextscale.model.checkpoint import CONFIG, WEIGHTS, find_folder
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions

OURS = "nextscale"
"""The row of the model."""
_TARGET = "target"
"""The method under whose name the features of the targets are kept."""
_BY_FACTORS = ("scale", "all_factors", "confidence")
"""Options of upscaling that follow from the factors to score."""
ROWS, SETTINGS = "rows.jsonl", "settings.json"
TABLES = ("table.md", "table.json", "images.csv")
StoredRow = dict[str, Any]


class Restorer:
    """A model as a method: one pass gives all wanted factors.

    Raises:
        OptionError: the model lacks a factor, or the options ask for what the factors decide.
    """

    def __init__(self, model: NextScale, options: UpscaleOptions, factors: tuple[float, ...], name: str = OURS) -> None:
        if any(getattr(options, name) != getattr(UpscaleOptions, name) for name in _BY_FACTORS):
            raise OptionError("evaluate takes --factors instead of --scale, --all-factors and --confidence")
        self.name, self.model, self.factors = name, model, factors
        self.options = dataclasses.replace(options, scale=max(factors), all_factors=len(factors) > 1)
        native = model.ladder_for(self.options).factors
        if not set(factors) <= set(native):
            raise OptionError(f"this model has the factors {' '.join(f'{f:g}' for f in native)}; change --factors")

    def __call__(self, lr: Path, /) -> dict[float, Pixels]:
        result = self.model.upscale(lr, self.options)
        return {factor: images.rgb8(result.images[factor]) for factor in self.factors}


def evaluate_model(
    name: str | Path,
    bench: Path,
    *,
    upscale: UpscaleOptions | None = None,
    score: ScoreOptions | None = None,
    options: BenchOptions | None = None,
    out: Path | None = None,
    device: str = "auto",
    fp32: bool = False,
    on_picture: OnPicture | None = None,
) -> Evaluation:
    """A model (a shipped name, a folder, a hub id) and its peers on a set of pairs; see `evaluate_methods`.

    Raises:
        ModelError: in one line, what is wrong with the model.
        And what `evaluate_methods` raises.
    """
    upscale, score, options = upscale or UpscaleOptions(), score or ScoreOptions(), options or BenchOptions()
    found = pairs(bench, options.bench_factor, crop=options.crop)
    others = peers(options.peers, options.factors)
    model = NextScale.from_pretrained(name, device=device, fp32=fp32)
    methods: list[Method] = [*others, Restorer(model, upscale, options.factors)]
    about = {
        "model": str(name),
        "weights": weights_digest(name),
        "version": __version__,
        "device": model.device.type,
        "precision": str(model.dtype).removeprefix("torch."),
        **{key: value for key, value in dataclasses.asdict(upscale).items() if key not in _BY_FACTORS},
    }
    return evaluate_methods(
        methods, found, bench.name, score=score, options=options, about=about, out=out, device=device,
        on_picture=on_picture,
    )  # fmt: skip


def evaluate_methods(
    methods: Sequence[Method],
    found: Sequence[Pair],
    bench: str,
    *,
    score: ScoreOptions | None = None,
    options: BenchOptions | None = None,
    about: Mapping[str, Any] | None = None,
    out: Path | None = None,
    device: str = "auto",
    on_picture: OnPicture | None = None,
) -> Evaluation:
    """Score methods on pairs at every factor that they give of those wanted.

    Args:
        found: the pairs, of which `options.limit` takes the first.
        bench: the set's name, for the tables.
        about: what the numbers depend on besides the pictures and the options of scoring; plain JSON.
        out: folder (created) for rows.jsonl, from which the next call goes on, settings.json, and at the end
            table.md, table.json and images.csv; None keeps everything in memory.

    Raises:
        ImageError: a picture cannot be read or written, or has another size than its pair's or method's factor says.
        OptionError: `out` holds rows of other settings or files of another origin, or the device is not there.
    """
    score, options = score or ScoreOptions(), options or BenchOptions()
    settings = {
        **(about or {}),
        "bench": bench,
        "bench_factor": options.bench_factor,
        "pairs": pairs_digest(found),
        "factors": sorted(options.factors),
        **{key: value for key, value in dataclasses.asdict(score).items() if key not in ("metrics", "download")},
    }
    run = _Run(Scorer(score, device=device), options, _Store(out, settings), out)
    chosen = list(found)[: options.limit or None]
    for number, pair in enumerate(chosen, 1):
        resumed = run.restore(pair, methods)
        if on_picture is not None:
            on_picture(number, len(chosen), pair.name, resumed)
    rows = [row for method in methods for row in run.rows(method.name, chosen)]
    evaluation = Evaluation(bench, len(chosen), rows, settings)
    if out is not None:
        write_evaluation(evaluation, out)
    return evaluation


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """table.md, table.json and images.csv in a folder; each appears whole or not at all.

    Raises:
        ImageError: the folder cannot be written.
    """
    texts = evaluation_markdown(evaluation), evaluation_json(evaluation), csv_text(picture_rows(evaluation))
    for name, text in zip(TABLES, texts, strict=True):
        images.write_bytes(folder / name, text.encode())


class _Run:
    """Restores and scores picture by picture, unless the store has the numbers."""

    def __init__(self, scorer: Scorer, options: BenchOptions, store: _Store, out: Path | None) -> None:
        self.scorer, self.options, self.store = scorer, options, store
        self.pictures = out / "pictures" if out is not None and options.pictures else None

    def restore(self, pair: Pair, methods: Sequence[Method]) -> bool:
        """Fill the store with all rows of a pair; whether it had them."""
        missing = [method for method in methods if not self._has(pair, method.name)]
        if not missing and self._has(pair, _TARGET):
            return True
        targets = self._targets(pair)
        for method in missing:
            self.store.put(self._measure(pair, method, targets))
        if not self._has(pair, _TARGET):
            kept = {_key(f): self._kept_features(target) for f, target in targets.items()}
            self.store.put({"name": pair.name, "method": _TARGET, "factors": kept})
        return False

    def rows(self, method: str, found: Sequence[Pair]) -> list[Row]:
        """The rows of a table: a method at each of its factors."""
        stored = [self.store.rows[pair.name, method] for pair in found]
        rows = []
        for key in stored[0]["factors"] if stored else ():
            scores = [self._scores(row, key) for row in stored]
            ours = [_features(row["factors"][key]) for row in stored] if self.scorer.wants_features else []
            true = [_features(self.store.rows[p.name, _TARGET]["factors"][key]) for p in found] if ours else []
            seconds = [float(row["seconds"]) for row in stored]
            named = [
                {"name": row["name"]} | score | {"seconds": time}
                for row, score, time in zip(stored, scores, seconds, strict=True)
            ]
            summaries = self.scorer.summaries(scores, ours, true)
            rows.append(
                Row(method, float(key), summaries, named, statistics.median(seconds), statistics.fmean(seconds))
            )
        return rows

    def _scores(self, row: StoredRow, key: str) -> dict[str, float]:
        """The numbers of a stored row as `Scorer.score` gave them."""
        stored = {name: row["factors"][key][name] for name in self.scorer.names}
        return {name: math.nan if value is None else float(value) for name, value in stored.items()}

    def _has(self, pair: Pair, method: str) -> bool:
        """Whether the store has every number of a pair by a method, and the pictures lie there if they are wanted."""
        needed = {*self.scorer.names} if method != _TARGET else set()
        needed |= {"features"} if self.scorer.wants_features else set()
        if method == _TARGET and not needed:
            return True
        row = self.store.rows.get((pair.name, method))
        if row is None or not all(needed <= set(numbers) for numbers in row["factors"].values()):
            return False
        if self.pictures is None or method == _TARGET:
            return True
        return all(self._file(pair, method, key).exists() for key in row["factors"])

    def _targets(self, pair: Pair) -> dict[float, Tensor]:
        """Factor -> what a method should give: 1 3 H W in [0, 1]."""
        width, height = size_of(pair.lr)
        whole = self.options.bench_factor
        truth = to_tensor(read_pixels(pair.hr)[: height * whole, : width * whole])
        return {factor: area_mean(truth, round(whole / factor)) for factor in sorted(self.options.factors)}

    def _measure(self, pair: Pair, method: Method, targets: Mapping[float, Tensor]) -> StoredRow:
        try:
            started = time.perf_counter()
            restored = method(pair.lr)
            seconds = time.perf_counter() - started
        except ImageError as error:
            raise ImageError(f"{pair.lr}: {error}") from None
        factors: dict[str, Any] = {}
        for factor in (f for f in targets if f in restored):
            image = to_tensor(restored[factor])
            try:
                scores = self.scorer.score(image, targets[factor])
            except ImageError as error:
                raise ImageError(f"{pair.lr}, {method.name} x{factor:g}: {error}") from None
            numbers = {name: json_number(value) for name, value in scores.items()}
            factors[_key(factor)] = numbers | self._kept_features(image)
            if self.pictures is not None:
                file = self._file(pair, method.name, _key(factor))
                images.write(file, images.Picture(restored[factor]))
        return {"name": pair.name, "method": method.name, "seconds": round(seconds, 4), "factors": factors}

    def _kept_features(self, image: Tensor) -> dict[str, str]:
        """The features as text of little-endian float32, if FID wants them."""
        if not self.scorer.wants_features:
            return {}
        return {"features": base64.b64encode(self.scorer.features(image).astype("<f4").tobytes()).decode()}

    def _file(self, pair: Pair, method: str, key: str) -> Path:
        assert self.pictures is not None
        return self.pictures / method / f"x{key}" / f"{pair.name}.png"


class _Store:
    """The rows that a run has so far, in memory and, in a folder, line by line.

    Raises:
        OptionError: the folder holds rows of other settings, or files of another origin under the tables' names.
        ImageError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.rows: dict[tuple[str, str], StoredRow] = {}
        self.file = folder / ROWS if folder is not None else None
        if folder is None or self.file is None:
            return
        about = folder / SETTINGS
        if self.file.exists() or about.exists():
            self._check(folder, json.loads(dump(settings)))
        else:
            check_free(folder, (*TABLES, "pictures"))
            images.write_bytes(about, dump(settings).encode())
        try:
            keep_json_lines(self.file, lambda row: {"name", "method", "factors"} <= set(row))
            self.rows = {(row["name"], row["method"]): row for row in read_json_lines(self.file)}
        except OSError as error:
            raise self._refused(error) from None

    @staticmethod
    def _check(folder: Path, settings: dict[str, Any]) -> None:
        try:
            earlier = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = {}
        different = [
            f"{key} {earlier.get(key)}, not {settings.get(key)}"
            for key in sorted({*earlier, *settings})
            if earlier.get(key) != settings.get(key)
        ]
        if different:
            raise OptionError(
                f"{folder} holds an evaluation of other settings ({'; '.join(different)}); choose another --out"
            )

    def put(self, row: StoredRow) -> None:
        """Store a row, on the disk at once."""
        self.rows[row["name"], row["method"]] = row
        if self.file is None:
            return
        try:
            with closing(JsonLines(self.file)) as lines:
                lines.write(row)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> ImageError:
        return ImageError(f"{self.file}: cannot be written ({error.strerror}); free space or choose --out")


def weights_digest(name: str | Path) -> str:
    """16 hex digits that change with a model's configuration or weights."""
    folder, digest = find_folder(name), hashlib.sha256()
    for file in (CONFIG, WEIGHTS):
        digest.update((folder / file).read_bytes())
    return digest.hexdigest()[:16]


def pairs_digest(found: Sequence[Pair]) -> str:
    """16 hex digits that change with any picture of a set or its name, not with where the set lies."""
    digest = hashlib.sha256()
    for pair in found:
        digest.update(pair.name.encode())
        for path in (pair.lr, pair.hr):
            try:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise ImageError(f"{path}: it cannot be read ({error.strerror}); check its permissions") from None
    return digest.hexdigest()[:16]


def default_out(name: str, bench: Path, *settings: Any) -> Path:
    """A folder of its own for each set, model and settings: evaluation/SET-MODEL-DIGEST."""
    digest = hashlib.sha256(repr([str(bench.resolve()), name, *settings]).encode()).hexdigest()[:8]
    parts = [re.sub(r"[^\w.]+", "_", part) for part in (bench.resolve().name, Path(name).name or "model")]
    return Path("evaluation") / "-".join([*parts, digest])


def _key(factor: float) -> str:
    return f"{factor:g}"


def _features(numbers: Mapping[str, Any]) -> Features:
    return np.frombuffer(base64.b64decode(numbers["features"]), "<f4").astype(np.float32)
