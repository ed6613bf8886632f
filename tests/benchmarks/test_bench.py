"""`python -m benchmarks.bench`: tables, JSON and a plot of what was measured; mishaps are said before the work."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import measure as measuring
from benchmarks.bench import draw, main, table
from benchmarks.measure import ModelReport, Part, PictureRow, TilesRow
from benchmarks.peaks import Peaks
from benchmarks.speed_options import SpeedOptions
from benchmarks.work import Work
from nextscale.errors import ModelError
from nextscale.install import how_to_install

pytestmark = pytest.mark.integration

WORK = Work({"float32": 3e9, "bfloat16": 1e9}, 2e9, 5e9)
PARTS = [Part("encode", 1.5, 2**20, WORK, 0.5, "memory"), Part("step_2", 0.5, 3 * 2**20, WORK, 0.5, "compute")]
REPORT = ModelReport(
    model="small",
    weights="random",
    device="a cpu",
    threads=2,
    parameters=1_500_000,
    tile=128,
    dtype="bfloat16",
    load_seconds=0.25,
    load_peak_bytes=7 * 2**20,
    peaks=Peaks({"float32": 1e11}, 2e10),
    tiles=[TilesRow(1, PARTS, 3), TilesRow(8, skipped="out of memory")],
    pictures=[PictureRow(64, 1, 1, 2.5, 3, 4 * 2**20, 1.0), PictureRow(512, 1, 25, skipped="takes about 9 min")],
)
Measure = Callable[..., ModelReport]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, SpeedOptions]]:
    """What `measure` was asked for; it reports at once."""
    asked: list[tuple[str, str, SpeedOptions]] = []

    def report(name: str, device: str, options: SpeedOptions, _: object) -> ModelReport:
        asked.append((name, device, options))
        if name == "absent":
            raise ModelError("absent: no such folder")
        empty = [dataclasses.replace(row, parts=[], skipped="too long") for row in REPORT.tiles]
        return dataclasses.replace(REPORT, model=name, tiles=empty) if name == "slow" else REPORT

    monkeypatch.setattr(measuring, "measure", report)
    return asked


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Lines of Markdown tables by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {first: rest for first, *rest in cells}


def test_a_table_has_every_part_its_limit_and_the_sum() -> None:
    lines = list(table(REPORT))
    assert lines[0] == "## small (random weights) on a cpu"
    assert "1.5 million parameters, 2 CPU threads, tiles of 128 px, bfloat16, loaded in 0.25 s" in lines[2]
    assert "matrix product 0.1 TFLOPS in float32; copy 20 GB/s" in lines[3]
    found = rows(lines)
    assert found["encode"] == ["1.5", "75%", "1", "4", "2", "5", "0.5", "memory", "3"]
    assert found["step 2"] == ["0.5", "25%", "3", "4", "2", "5", "0.5", "compute", "1"]
    assert found["all"] == ["2", "100%", "3", "8", "4", "10", "1", "", "2"]
    assert "Skipped: out of memory." in lines


def test_pictures_have_their_ratio_or_the_reason() -> None:
    found = rows(list(table(REPORT)))
    assert found["64"] == ["1", "1", "2.5", "3", "4", "1", "2.5"]
    assert found["512"] == ["1", "25", "skipped: takes about 9 min", "", "", "", ""]


def test_a_model_that_did_not_fit_says_so() -> None:
    report = ModelReport("large", "random", "a cpu", 2, 10, 128, skipped="needs about 4.0 GiB, 1.0 are free")
    assert "Skipped: needs about 4.0 GiB, 1.0 are free." in list(table(report))


def test_the_command_runs_every_model_on_every_device(
    measured: list[tuple[str, str, SpeedOptions]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "speed.json"
    words = ["-n", "tiny,other", "--devices", "cpu", "--sizes", "64,128", "--batches", "2", "--json", str(file)]
    assert main(words) == 0
    options = SpeedOptions(sizes=(64, 128), batches=(2,))
    assert measured == [("tiny", "cpu", options), ("other", "cpu", options)]
    content = json.loads(file.read_text())
    assert [one["device"] for one in content["models"]] == ["a cpu", "a cpu"]
    assert content["models"][0]["tiles"][0]["parts"][0]["ratio"] == 3
    assert capsys.readouterr().out.count("## small (random weights) on a cpu") == 2


def test_a_plot_has_a_row_of_panels_per_report(measured: list[object], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "speed.png"
    assert main(["--plot", str(file)]) == 0
    with Image.open(file) as one:
        width, height = one.size
    skipped = ModelReport("large", "random", "a cpu", 2, 10, 128, skipped="too large")
    (tmp_path / "two.png").write_bytes(draw([REPORT, skipped]))
    with Image.open(tmp_path / "two.png") as two:
        assert two.size == (width, 2 * height)
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["--sizes", "0"], 2, "sizes must be 1 or more"),
        (["--runs", "0"], 2, "runs must be 1 or more"),
        (["--batches", "2,-1"], 2, "batches must be 1 or more"),
        (["--max-minutes", "0"], 2, "max-minutes must be above 0"),
        (["-n"], 2, "bench needs at least one of --models and of --devices"),
        (["-n", "absent"], 1, "absent: no such folder"),
    ],
)
def test_mishaps_are_one_line(
    measured: list[object], capsys: pytest.CaptureFixture[str], words: list[str], status: int, expected: str
) -> None:
    assert main(words) == status
    (complaint,) = capsys.readouterr().err.splitlines()
    assert expected in complaint
    assert len(measured) <= 1


def test_nothing_is_measured_for_a_file_that_cannot_be_written(
    measured: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--json", str(tmp_path / "file" / "speed.json")]) == 1
    (complaint,) = capsys.readouterr().err.splitlines()
    assert "speed.json" in complaint
    assert not measured


def test_nothing_is_measured_for_a_plot_without_matplotlib(
    measured: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["--plot", "speed.png"]) == 1
    assert capsys.readouterr().err == f"nextscale: --plot needs matplotlib; {how_to_install('bench')}\n"
    assert not measured


def test_the_status_says_if_nothing_could_be_measured(measured: list[object]) -> None:
    assert main(["-n", "slow"]) == 1
    assert main(["-n", "slow", "tiny"]) == 0
    assert len(measured) == 3
