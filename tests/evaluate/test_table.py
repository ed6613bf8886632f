"""Tables say what was measured: strict JSON, CSV per picture, Markdown with its notes."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from nextscale.evaluate.summary import Summary, summarize
from nextscale.evaluate.table import (
    Evaluation,
    Row,
    csv_text,
    evaluation_json,
    evaluation_markdown,
    folders_json,
    folders_markdown,
    markdown_table,
    picture_rows,
)


def row(method: str, factor: float, values: list[float], lpips: Summary) -> Row:
    named = [{"name": str(i), "psnr": value, "seconds": 0.5} for i, value in enumerate(values)]
    return Row(method, factor, {"psnr": summarize(values), "lpips": lpips}, named, 0.5, 0.6)


def evaluation() -> Evaluation:
    absent = Summary(unavailable="fetch them")
    rows = [row("a|b", 4.0, [20.0, 22.0], absent), row("ours", 1.0, [30.0, math.inf], absent)]
    return Evaluation("val", 2, rows, {"seed": 0})


def test_json_is_strict_and_holds_every_number() -> None:
    content = json.loads(evaluation_json(evaluation()), parse_constant=pytest.fail)
    assert (content["bench"], content["pictures"], content["settings"]) == ("val", 2, {"seed": 0})
    first, second = content["rows"]
    assert (first["method"], first["factor"], first["seconds"]) == ("a|b", 4.0, {"median": 0.5, "mean": 0.6})
    assert first["metrics"]["psnr"] == {"mean": 21.0, "ci95": [20.0, 22.0], "count": 2}
    assert second["metrics"]["psnr"] == {"mean": 30.0, "ci95": None, "count": 2, "infinite": 1}
    assert second["metrics"]["lpips"] == {"unavailable": "fetch them"}
    assert content["images"][3] == {"name": "1", "method": "ours", "factor": 1.0, "psnr": "inf", "seconds": 0.5}


def test_markdown_sorts_by_factor_and_says_what_is_odd_once() -> None:
    lines = evaluation_markdown(evaluation()).splitlines()
    assert lines[0].startswith("| factor | method | PSNR, dB | LPIPS |")
    assert lines[2].startswith("| x1 | ours | 30.00 | - |")
    assert lines[3].startswith(r"| x4 | a\|b | 21.00 (20.00 to 22.00) | - |")
    assert lines.count("LPIPS is unavailable: fetch them.") == 1
    assert "ours x1: PSNR leaves out 1 equal pictures, where it is infinite." in lines


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(picture_rows(evaluation())))))
    assert list(rows[0]) == ["name", "method", "factor", "psnr", "seconds"]
    assert [float(one["psnr"]) for one in rows] == [20, 22, 30, math.inf]


def test_folders_have_the_promised_json() -> None:
    metrics = {"psnr": summarize([20.0, 22.0]), "fid": Summary(3.0, None, 2, note="no interval")}
    images = [{"name": "a", "psnr": 20.0}, {"name": "b", "psnr": math.nan}]
    content = json.loads(folders_json(metrics, images, border=4))
    assert content["metrics"]["psnr"]["mean"] == 21.0
    assert content["metrics"]["psnr"]["ci95"] == [20.0, 22.0]
    assert content["metrics"]["fid"] == {"mean": 3.0, "ci95": None, "count": 2, "note": "no interval"}
    assert content["images"] == [{"name": "a", "psnr": 20.0}, {"name": "b", "psnr": None}]
    assert content["border"] == 4
    text = folders_markdown(metrics, 2)
    assert "| FID | 3.00 |" in text
    assert "FID: no interval." in text


def test_markdown_tables_are_pipe_tables() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
