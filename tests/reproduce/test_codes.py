"""The table of codes by step: counts, agreement, and what follows from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale.errors import ImageError
from nextscale.evaluate.datasets import pairs
from nextscale.upscale.nextscale import NextScale
from reproduce.__main__ import main
from reproduce.codes import StepNumbers, codes_markdown, study_codes

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "two"
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        noise = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for part, side in (("LR", 128), ("HR", 512)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            noise.resize((side, side), Image.Resampling.BICUBIC).save(folder / part / f"{name}.png")
    return folder


def test_usage_and_perplexity_of_known_counts() -> None:
    row = StepNumbers(torch.tensor([4, 4, 0, 0]))
    assert (row.tokens, row.usage, 2**row.entropy) == (8, 0.5, 2)


def test_numbers_of_two_pictures(bench: Path, model_folder: Path) -> None:
    model = NextScale.from_pretrained(model_folder, device="cpu", fp32=True)
    found, ladder = pairs(bench), model.tokenizer.ladder
    steps = study_codes(model, found)
    assert [row.tokens for row in steps] == [2 * side**2 for side in ladder.sides]
    # Nothing was predicted before the first step.
    assert steps[0].fitting == steps[0].predicted
    assert [row.restored for row in steps] == [row.fitting for row in steps]  # there is no restorer
    single = [study_codes(model, [pair]) for pair in found]
    for k, row in enumerate(steps):
        for name in ("predicted", "fitting", "enlarged", "probability", "nats"):
            assert getattr(row, name) == pytest.approx(sum(getattr(one[k], name) for one in single))
        assert 0 < row.probability <= row.tokens
        assert row.nats > 0
    text = codes_markdown(steps, ladder, 2, "two")
    assert text.count("\n| ") == 1 + ladder.num_steps
    assert "2 pictures of two" in text


def test_a_photograph_that_is_its_own_input_agrees_with_it(tmp_path: Path, model_folder: Path) -> None:
    """A flat picture: the enlarged input is the photograph."""
    for part, side in (("LR", 128), ("HR", 512)):
        (tmp_path / part).mkdir()
        Image.new("RGB", (side, side), (90, 120, 30)).save(tmp_path / part / "flat.png")
    steps = study_codes(NextScale.from_pretrained(model_folder, device="cpu", fp32=True), pairs(tmp_path))
    assert [row.enlarged for row in steps] == [row.tokens for row in steps]


def test_the_report_is_printed_and_other_sizes_are_one_line(
    bench: Path, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-n", str(model_folder), "--limit", "1", "--device", "cpu", "--fp32"]
    assert main(["report", "codes", "--bench", str(bench), *words]) == 0
    assert capsys.readouterr().out.startswith("| step | side |")
    for part, side in (("LR", 64), ("HR", 256)):
        (tmp_path / part).mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / part / "small.png")
    with pytest.raises(ImageError, match="128 x 128"):
        study_codes(NextScale.from_pretrained(model_folder, device="cpu"), pairs(tmp_path))
