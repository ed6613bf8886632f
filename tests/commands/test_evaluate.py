"""`nextscale evaluate` from the command line: files, exit status, one line per mishap."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale.commands.evaluate import progress
from nextscale.commands.main import main
from nextscale.console import Remaining
from nextscale.evaluate import scores
from nextscale.evaluate.options import METRICS
from nextscale.evaluate.table import STARTS
from nextscale.evaluate.weights import MissingWeights
from tests.evaluate.test_benchmark import make_bench


def refuse(*_: Any, **__: Any) -> None:
    raise MissingWeights("no weights here: fetch them")


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """The options for two folders of two pairs."""
    draw = np.random.default_rng(0)
    for folder, ending in (("p", "_x4"), ("t", "")):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            pixels = draw.integers(0, 256, (16, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}{ending}.png")
    return ["evaluate", "--pred", str(tmp_path / "p"), "--target", str(tmp_path / "t"), "--device", "cpu"]


def test_two_folders_give_a_table_json_and_csv(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "markdown")}
    written = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    assert main([*folders, "--metrics", "psnr,ssim", "--channel", "rgb", "--border", "1", *written]) == 0
    content = json.loads(files["json"].read_text())
    assert set(content["metrics"]) == {"psnr", "ssim"}
    low, high = content["metrics"]["psnr"]["ci95"]
    assert low <= content["metrics"]["psnr"]["mean"] <= high
    assert [row["name"] for row in content["images"]] == ["a", "b"]
    assert (content["channel"], content["border"], content["pictures"]) == ("rgb", 1, 2)
    assert [row["name"] for row in csv.DictReader(files["csv"].read_text().splitlines())] == ["a", "b"]
    table = files["markdown"].read_text()
    assert table.startswith("| metric | mean (95% interval) |")
    assert capsys.readouterr().out.strip() == table.strip()


def test_metrics_may_be_apart_or_joined(folders: list[str], tmp_path: Path) -> None:
    assert main([*folders, "--json", str(tmp_path / "a.json"), "--metrics", "ssim", "psnr"]) == 0
    assert main([*folders, "--json", str(tmp_path / "b.json"), "--metrics", "ssim,psnr"]) == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_metric_without_weights_is_said_and_not_invented(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "Lpips", refuse)
    assert main([*folders, "--json", str(tmp_path / "a.json"), "--metrics", "psnr,lpips"]) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["metrics"]["lpips"] == {"unavailable": "no weights here: fetch them"}
    assert capsys.readouterr().err == "nextscale: lpips is unavailable: no weights here: fetch them\n"
    assert main([*folders, "--metrics", "lpips"]) == 1


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["--metrics", "psnr,vmaf"], 2, f"metrics must be some of {' '.join(METRICS)}, got vmaf"),
        (["--metrics", "psnr", "--border", "-1"], 2, "border must be 0 or more"),
        (["--metrics", "psnr", "--border", "8"], 1, "a border of 8 leaves nothing of 20 x 16"),
        (["--fidelity", "0.5"], 2, "only --bench takes options of a model or a set; leave out --fidelity here"),
        (["--fp32"], 2, "leave out --fp32 here"),
        (["--bench", "x"], 2, "either --pred and --target, or --bench alone"),
        (["--csv", "-"], 2, "--csv -: a report is a file; name one"),
        (["--json", "a_x4.png/x.json"], 1, "a_x4.png/x.json: a part of the folder's path is a file"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    status: int,
    expected: str,
    folders: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path / "p")
    assert main([*folders, *words]) == status
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_folders_that_do_not_match_are_one_line(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p" / "a_x4.png").unlink()
    assert main([*folders, "--json", str(tmp_path / "a.json")]) == 1
    error = capsys.readouterr().err
    assert "a (only in" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


@pytest.mark.integration
def test_a_model_on_a_set_and_again_from_what_it_has(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = make_bench(tmp_path / "set", 2)
    words = ["evaluate", "-n", str(model_folder), "--bench", str(bench), "--factors", "1", "--peers", "bicubic"]
    words += ["--metrics", "psnr", "--device", "cpu", "--fp32"]
    reports = ["--json", "a.json", "--csv", "a.csv", "--markdown", "a.md"]
    assert main([*words, "--limit", "1", *reports]) == 0
    for option, file in zip(reports[::2], reports[1::2], strict=True):
        assert Path(file).read_text().startswith(STARTS[option[2:]])
    (out,) = (tmp_path / "evaluation").iterdir()
    assert out.name.startswith(f"set-{model_folder.name}")
    assert str(out.relative_to(tmp_path)) in capsys.readouterr().out
    first = (out / "rows.jsonl").read_text()
    assert main(words) == 0
    assert (out / "rows.jsonl").read_text().startswith(first)
    content = json.loads((out / "table.json").read_text())
    assert [(row["method"], row["metrics"]["psnr"]["count"]) for row in content["rows"]] == [
        ("bicubic", 2),
        ("nextscale", 2),
    ]
    assert json.loads((tmp_path / "a.json").read_text())["pictures"] == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--factors", "3"], "factors must divide the set's, 4; got 3"),
        (["--peers", "magic"], "unknown peer magic"),
        (["--scale", "2"], "takes --factors instead of --scale"),
    ],
)
def test_wrong_settings_of_a_set_are_one_line(
    words: list[str],
    expected: str,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_bench(tmp_path / "set", 1)
    assert main(["evaluate", "-n", str(model_folder), "--bench", "set", "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "evaluation").exists()


def test_the_rest_is_estimated_from_what_this_run_did_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 11.0, 21.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    remaining = Remaining()
    assert remaining.seconds(90, 100, resumed=True) == pytest.approx(10)
    assert remaining.seconds(91, 100) == pytest.approx(11 * 9)
    assert remaining.seconds(92, 100) == pytest.approx(10.5 * 8)


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(every=0) as done:
        done(1, 2, "a", False)
        done(2, 2, "b", False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  about")[0] for line in lines] == ["nextscale: 1/2 pictures  a", "nextscale: 2/2 pictures  b"]
    assert lines[-1].endswith("about 0 s left")
    with progress() as done:
        done(1, 2, "a", False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", ["--json", "--csv", "--markdown"])
@pytest.mark.parametrize("kind", ["picture", "notes", "table of another"])
def test_no_report_replaces_what_is_none(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, kind: str
) -> None:
    file = tmp_path / "p" / "a_x4.png"
    if kind != "picture":
        file = tmp_path / "mine"
        file.write_text(
            "to do\n" if kind == "notes" else '{"names": []}' if option == "--json" else "name,price\n1,2\n"
        )
    before = file.read_bytes()
    assert main([*folders, "--metrics", "psnr", option, str(file)]) == 2
    words = f"nextscale: {file}: this is no report of evaluate; name another file with {option}\n"
    assert capsys.readouterr().err == words
    assert file.read_bytes() == before


@pytest.mark.parametrize("option", ["--json", "--csv", "--markdown"])
def test_a_report_replaces_an_earlier_one(folders: list[str], tmp_path: Path, option: str) -> None:
    file = tmp_path / "report"
    file.touch()  # as mktemp leaves one
    for _ in range(2):
        assert main([*folders, "--metrics", "psnr", option, str(file)]) == 0
        assert file.read_text().startswith(STARTS[option[2:]])


def test_no_report_replaces_a_file_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "model" / "config.json"
    config.parent.mkdir()
    config.write_text("{}")
    (tmp_path / "bench").mkdir()
    words = ["--bench", str(tmp_path / "bench"), "-n", str(config.parent), "--json", str(config)]
    assert main(["evaluate", *words]) == 2
    assert f"{config}: this is or lies among the inputs of this run" in capsys.readouterr().err
    assert config.read_text() == "{}"


def test_two_reports_need_two_files(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "out")
    assert main([*folders, "--metrics", "psnr", "--json", file, "--csv", file]) == 2
    assert capsys.readouterr().err == f"nextscale: {file}: --json writes this file, too; name another file with --csv\n"


def test_a_file_that_cannot_be_written_is_named_once(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "taken"
    file.mkdir()
    assert main([*folders, "--metrics", "psnr", "--json", str(file)]) != 0
    assert capsys.readouterr().err.count(str(file)) == 1
