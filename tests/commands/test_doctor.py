"""`nextscale doctor`: what is found is told, what is missing comes with its command; the install sentences."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys

import pytest
import torch

from nextscale import __version__, install
from nextscale.commands import doctor
from nextscale.commands.main import main
from nextscale.install import extras, how_to_install, missing, requirements

REQUIRES = [
    "torch>=2.6",
    'gradio<7,>=6; extra == "web"',
    "opencv-python-headless>=4.10; extra == 'depth16'",
    "tifffile>=2024.5; extra == 'depth16'",
    'fsspec[http]>=2024.6; python_version >= "3.10" and extra == "data"',
    "ray; extra == 'ray'",
]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    further = {"numpy": ['no-such-package>=2; extra == "odd"', 'pillow; extra == "even"']}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: further.get(name, REQUIRES))


@pytest.mark.usefixtures("metadata")
def test_a_sentence_names_the_packages_until_the_index_has_nextscale(monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_install("web") == "pip install 'gradio<7,>=6'"
    assert how_to_install("depth16") == "pip install 'opencv-python-headless>=4.10' 'tifffile>=2024.5'"
    assert how_to_install("data") == "pip install 'fsspec[http]>=2024.6'"
    assert how_to_install("ray") == "pip install ray"
    monkeypatch.setattr(install, "PUBLISHED", True)
    assert how_to_install("web") == "pip install 'nextscale[web]'"


def test_without_metadata_it_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    assert how_to_install("web") == "pip install '.[web]' in nextscale's folder"
    assert extras() == {}


@pytest.mark.usefixtures("metadata")
def test_what_is_missing_is_found_by_the_packages_name() -> None:
    assert requirements("depth16") == ["opencv-python-headless>=4.10", "tifffile>=2024.5"]
    assert missing(["numpy>=1.26", "no-such-package[x]>=2", "pillow"]) == ["no-such-package[x]>=2"]
    assert missing(["numpy[even]>=1.26", "numpy[odd,even]", "numpy[odd]>=1"]) == ["numpy[odd,even]", "numpy[odd]>=1"]


def test_this_machine_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^nextscale +{re.escape(__version__)} on Python \d", out, re.M)
    assert re.search(rf"^torch +{re.escape(torch.__version__)}, built for \w+", out, re.M)
    assert re.search(r"^device +\w+.*, computes in (float32|bfloat16|float16)$", out, re.M)
    assert re.search(r"^model +tiny, \d+ MB", out, re.M)
    assert out.endswith("nextscale can restore pictures here\n")


def test_it_is_told_in_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"facts", "extras", "advice", "problems"}
    assert report["problems"] == []
    assert "dev" not in report["extras"]


def test_a_missing_extra_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "extras", lambda: {"web": ["no-such-package>=6"], "ray": ["numpy"], "dev": ["nope"]})
    report = doctor.examine()
    assert report.extras == {"web": f"{how_to_install('web')}  (lacks no-such-package>=6)", "ray": "installed"}


def test_torch_that_does_not_load_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem: torch does not load" in out
    assert doctor.CPU_TORCH in out
    assert out.endswith("nextscale cannot restore pictures here\n")


def test_a_damaged_model_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextscale.model.checkpoint.CONFIG", "gone.json")
    (problem,) = doctor.examine().problems
    assert problem.startswith("the shipped model is damaged")


@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        ("12.8", False, "sees no GPU: install or update the driver"),
        (None, True, doctor.CUDA_TORCH),
        (None, False, None),
    ],
)
def test_a_torch_for_another_machine_is_advice(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, driver: bool, words: str | None
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: "nvidia-smi" if driver else None)
    advice = [line for line in doctor.examine().advice if "torch" in line]
    assert len(advice) == (words is not None)
    if words is not None:
        assert words in advice[0]
