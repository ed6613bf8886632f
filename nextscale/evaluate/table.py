"""Results as tables: Markdown to read, CSV per picture, JSON for programs. Torch-free."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nextscale.evaluate.summary import Summary, json_number

TITLES = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID", "niqe": "NIQE"}
TITLES |= {"dists": "DISTS", "musiq": "MUSIQ", "maniqa": "MANIQA", "clipiqa": "CLIPIQA"}
STARTS = {
    "json": ('{\n "metrics": ', '{\n "bench": '),
    "csv": ("name,method,factor,", "name\n", *(f"name,{metric}{end}" for metric in TITLES for end in (",", "\n"))),
    "markdown": ("| metric | mean (95% interval) |", "| factor | method |"),
}
"""What the reports of `evaluate` begin with, by their form."""
_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "fid": 2, "niqe": 3, "dists": 4, "musiq": 2, "maniqa": 4, "clipiqa": 4}


@dataclass(frozen=True)
class Row:
    """One method at one factor over a set."""

    method: str
    factor: float
    metrics: dict[str, Summary]
    images: list[dict[str, Any]]
    """Per picture "name", the metrics with one number per picture (an infinite PSNR as math.inf) and "seconds"."""
    seconds_median: float
    """Per picture, all factors of the method together, reading the file included."""
    seconds_mean: float


@dataclass(frozen=True)
class Evaluation:
    """Every row of a set, and what was measured."""

    bench: str
    pictures: int
    rows: list[Row]
    settings: dict[str, Any] = field(default_factory=dict)


def evaluation_json(evaluation: Evaluation) -> str:
    """{"bench", "pictures", "settings", "rows": [{"method", "factor", "metrics", "seconds"}], "images": [...]}."""
    rows = [
        {
            "method": row.method,
            "factor": row.factor,
            "metrics": {name: summary.as_json() for name, summary in row.metrics.items()},
            "seconds": {"median": row.seconds_median, "mean": row.seconds_mean},
        }
        for row in evaluation.rows
    ]
    content = {"bench": evaluation.bench, "pictures": evaluation.pictures, "settings": evaluation.settings}
    return dump(content | {"rows": rows, "images": picture_rows(evaluation)})


def evaluation_markdown(evaluation: Evaluation) -> str:
    """One line per factor and method, the mean with its 95% interval; notes below."""
    metrics = list(evaluation.rows[0].metrics)
    header = ["factor", "method", *(TITLES[name] for name in metrics), "s median", "s mean"]
    lines = []
    for row in sorted(evaluation.rows, key=lambda row: row.factor):
        seconds = [f"{value:.3g}" for value in (row.seconds_median, row.seconds_mean)]
        lines.append([f"x{row.factor:g}", row.method, *(cell(n, row.metrics[n]) for n in metrics), *seconds])
    notes = [
        f"{evaluation.pictures} pictures of {evaluation.bench}; 95% bootstrap intervals in brackets; seconds per "
        "picture for all factors of a method, its reading included."
    ]
    return markdown_table(header, lines) + _notes(
        notes, [(f"{row.method} x{row.factor:g}", row.metrics) for row in evaluation.rows]
    )


def picture_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One dict per picture, method and factor, numbers as JSON holds them."""
    return [
        {"name": one["name"], "method": row.method, "factor": row.factor} | _plain(one)
        for row in evaluation.rows
        for one in row.images
    ]


def folders_json(metrics: Mapping[str, Summary], images: Sequence[dict[str, Any]], **about: Any) -> str:
    """{"metrics": {"psnr": {"mean", "ci95", ...}, ...}, "images": [{"name", "psnr", ...}, ...]} and `about`."""
    summaries = {name: summary.as_json() for name, summary in metrics.items()}
    return dump({"metrics": summaries, "images": [_plain(one) for one in images]} | about)


def folders_markdown(metrics: Mapping[str, Summary], pictures: int) -> str:
    """One line per metric."""
    lines = [[TITLES[name], cell(name, summary)] for name, summary in metrics.items()]
    return markdown_table(["metric", "mean (95% interval)"], lines) + _notes([f"{pictures} pictures."], [("", metrics)])


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of one form, with a header; an infinite PSNR is the text inf."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(row) for row in rows)
    return out.getvalue()


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A pipe table, ending with a line break."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |\n" for row in rows)


def cell(metric: str, summary: Summary) -> str:
    """A mean with its interval, to the metric's usual digits; a dash where there is none."""
    if summary.mean is None:
        return "-"
    digits = _DIGITS[metric]
    interval = f" ({summary.ci95[0]:.{digits}f} to {summary.ci95[1]:.{digits}f})" if summary.ci95 else ""
    return f"{summary.mean:.{digits}f}{interval}"


def dump(content: Any) -> str:
    """Strict JSON, ending with a line break."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: json_number(value) if isinstance(value, float) else value for key, value in row.items()}


def _notes(first: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Summary]]]) -> str:
    """What a reader of the numbers has to know, each thing once and, where it is not so in all rows, with their names.

    rows: what each is called, and its metrics.
    """
    where: dict[str, list[str]] = {}
    for label, metrics in rows:
        for name, summary in metrics.items():
            title = TITLES[name].split(",")[0]
            said = [f"{title} is unavailable: {summary.unavailable}."] if summary.unavailable else []
            said += [f"{title}: {summary.note}."] if summary.note else []
            if summary.infinite and summary.mean != math.inf:
                said.append(f"{title} leaves out {summary.infinite} equal pictures, where it is infinite.")
            for text in said:
                where.setdefault(text, []).append(label)
    notes = [
        text if len(labels) == len(rows) else f"{', '.join(dict.fromkeys(labels))}: {text}"
        for text, labels in where.items()
    ]
    return "\n" + "\n".join([*first, *notes]) + "\n"
