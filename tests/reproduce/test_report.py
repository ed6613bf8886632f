"""`python -m reproduce report`: tables and figures from the command line, and the page that they fill."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.errors import OptionError
from nextscale.evaluate.datasets import Pair
from reproduce.__main__ import main
from reproduce.report import chosen, fill, named

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("sets") / "RealSR", 64)


def make_set(folder: Path, lr_side: int) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name, side in (("LR", lr_side), ("HR", 4 * lr_side)):
        (folder / name).mkdir(parents=True)
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(folder / name / "a.png")
    return folder


def report(*words: object) -> int:
    return main(["report", *map(str, words), "--device", "cpu", "--fp32"])


def test_a_table_is_printed_and_kept(
    bench: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table-2"
    words = ("table-2", "--bench", bench, "-n", model_folder, "--metrics", "psnr", "--tile", 64, "--out", out)
    assert report(*words) == 0
    shown = capsys.readouterr().out
    assert (out / "report.md").read_text() == shown
    assert "| x4 | VARSR | published, Table 2 | 24.61 |" in shown
    assert {row["factor"] for row in json.loads((out / "table.json").read_text())["rows"]} == {1.0, 2.0, 4.0}
    assert json.loads((out / "settings.json").read_text())["fidelity"] == 0
    assert report(*words) == 0
    assert capsys.readouterr().out == shown


def test_reconstructions_need_no_lr(bench: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        report("reconstructions", "--photos", bench / "HR", "--models", f"b={model_folder}", "--metrics", "psnr") == 0
    )
    assert "| x1 | b | measured |" in capsys.readouterr().out


def test_confidence_leaves_a_table_and_every_pictures_numbers(
    bench: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--bench", bench, "-n", model_folder, "--factors", "1", "--tile", 64, "--out", tmp_path)
    assert report("confidence", *words) == 0
    assert capsys.readouterr().out.startswith("| factor | map |")
    assert (tmp_path / "images.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("name", ["report.md", "table.json", "images.csv"])
def test_a_report_replaces_earlier_reports_alone(
    name: str, bench: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("confidence", "--bench", bench, "-n", model_folder, "--factors", "1", "--tile", 64, "--out", tmp_path)
    assert report(*words) == 0
    assert report(*words) == 0
    (tmp_path / name).write_text("mine")
    capsys.readouterr()
    assert report(*words) == 2
    assert re.fullmatch(rf"nextscale: .*{name}: this is no .*report.*; name another --out\n", capsys.readouterr().err)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("part", ["table-2", "codes", "inference"])
def test_every_report_can_be_made_again(part: str, bench: Path, model_folder: Path, tmp_path: Path) -> None:
    how: tuple[object, ...] = ("--bench", bench, "--tile", 64, "--metrics", "psnr")
    if part == "codes":
        how = ("--bench", make_set(tmp_path / "set", 128))
    for _ in range(2):
        assert report(part, *how, "-n", model_folder, "--out", tmp_path / "out") == 0


def test_figures_are_png(bench: Path, model_folder: Path, tmp_path: Path) -> None:
    words = ("--bench", bench, "-n", model_folder, "--tile", 64, "--side", 64)
    assert report("figure", *words, "-o", tmp_path / "a.png", "--crop-side", 32, "--peers", "bicubic", "lanczos") == 0
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width == 8 * (64 + 6) + 6  # LR, bicubic, lanczos, x1, x2, x4, truth, confidence
    assert report("figure-2", *words, "-o", tmp_path / "b.png") == 0
    with Image.open(tmp_path / "b.png") as sheet:
        assert sheet.width == 4 * (64 + 6) + 6


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("figure", "-o", "sheet.jpg"), "name one that ends with .png"),
        (("figure", "-o", "sheet.png", "--pictures", "b"), "no picture b in this set; it has a"),
        (("models", "--models", "folder"), "rows are given as NAME=FOLDER"),
        (("models", "--models"), "there is no row: name models, and factors that they have"),
        (("table-1b", "--without", "no-such-model"), "no-such-model: no such model"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...],
    line: str,
    bench: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    of_model = () if words[0] == "models" else ("-n", model_folder)
    assert report(*words, "--bench", bench, *of_model) in (1, 2)
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1
    assert line in found[0]
    assert not list(tmp_path.iterdir())


def test_a_page_takes_the_reports_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tables" / "one").mkdir(parents=True)
    (tmp_path / "tables" / "one" / "report.md").write_text("| new \\1 |\n")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end one -->\nb\n<!-- two -->\nkept\n<!-- end two -->\n")
    assert main(["report", "page", str(page), "--tables", str(tmp_path / "tables")]) == 0
    wanted = "a\n<!-- one -->\n| new \\1 |\n<!-- end one -->\nb\n<!-- two -->\nkept\n<!-- end two -->\n"
    assert page.read_text() == wanted
    assert fill(wanted, tmp_path / "tables") == (wanted, ["one"])
    assert main(["report", "page", str(page), "--tables", str(tmp_path)]) == 2
    assert "none of its blocks" in capsys.readouterr().err


def test_rows_are_names_and_folders() -> None:
    assert named(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    for wrong in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(OptionError, match="NAME=FOLDER"):
            named(wrong)


def test_pictures_are_chosen_by_name_or_from_the_front() -> None:
    found = [Pair(name, Path(name), Path(name)) for name in "abc"]
    assert [pair.name for pair in chosen(found, ("c", "a"), 1)] == ["c", "a"]
    assert [pair.name for pair in chosen(found, (), 2)] == ["a", "b"]
