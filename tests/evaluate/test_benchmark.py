"""A benchmark measures every method alike, and a stopped one goes on from what it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import ImageError, ModelError, OptionError
from nextscale.evaluate import scores
from nextscale.evaluate.benchmark import Restorer, evaluate_methods, evaluate_model, pairs_digest
from nextscale.evaluate.datasets import pairs
from nextscale.evaluate.methods import Method, Pixels, peers
from nextscale.evaluate.metrics.psnr_ssim import psnr
from nextscale.evaluate.options import BenchOptions, ScoreOptions
from nextscale.evaluate.scores import area_mean, read_pixels, to_tensor
from nextscale.evaluate.table import Evaluation
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions

SCORE = ScoreOptions(metrics=("psnr", "ssim"))


def make_bench(folder: Path, count: int = 3) -> Path:
    """Pairs of noise, 12 x 11 and 48 x 44."""
    draw = np.random.default_rng(0)
    for part, (width, height) in (("LR", (12, 11)), ("HR", (48, 44))):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{i}.png")
    return folder


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return make_bench(tmp_path / "set")


class Flat:
    """A method that gives one color, counts its calls, and can be made to stop at one."""

    name = "flat"

    def __init__(self, factors: tuple[float, ...] = (4.0,), stop_at: int = 0) -> None:
        self.factors, self.stop_at, self.calls = factors, stop_at, 0

    def __call__(self, lr: Path, /) -> dict[float, Pixels]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        height, width = read_pixels(lr).shape[:2]
        return {f: np.full((round(height * f), round(width * f), 3), 100, np.uint8) for f in self.factors}


def run(bench: Path, methods: list[Method], out: Path | None = None, **options: object) -> Evaluation:
    return evaluate_methods(
        methods, pairs(bench), "set", score=SCORE, options=BenchOptions(**options), out=out, device="cpu"  # type: ignore[arg-type]
    )  # fmt: skip


def numbers(evaluation: Evaluation) -> list[tuple[str, float, list[float]]]:
    """Everything but the seconds."""
    return [(row.method, row.factor, [one["psnr"] for one in row.images]) for row in evaluation.rows]


def test_targets_of_smaller_factors_are_the_area_mean_of_hr(bench: Path) -> None:
    evaluation = run(bench, peers(["bicubic"]))
    assert [(row.method, row.factor) for row in evaluation.rows] == [("bicubic", f) for f in (1, 2, 4)]
    (pair, *_) = pairs(bench)
    restored = peers(["bicubic"])[0](pair.lr)
    truth = to_tensor(read_pixels(pair.hr))
    for row in evaluation.rows:
        target = area_mean(truth, round(4 / row.factor))
        assert row.images[0]["psnr"] == psnr(to_tensor(restored[row.factor]), target).item()


def test_a_method_has_rows_for_the_factors_that_it_gives_only(bench: Path) -> None:
    evaluation = run(bench, [Flat(), *peers(["lanczos"])], factors=(2.0, 4.0))
    assert [(row.method, row.factor) for row in evaluation.rows] == [("flat", 4), ("lanczos", 2), ("lanczos", 4)]
    assert all(row.seconds_median > 0 and row.seconds_mean > 0 for row in evaluation.rows)


def test_a_stopped_run_goes_on_and_ends_like_a_whole_one(bench: Path, tmp_path: Path) -> None:
    whole = run(bench, [Flat(), *peers(["bicubic"])])
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(bench, [Flat(stop_at=3), *peers(["bicubic"])], out)
    assert not (out / "table.json").exists()
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"name": "2", "method": "fl')
    rest = Flat()
    told: list[bool] = []
    resumed = evaluate_methods(
        [rest, *peers(["bicubic"])], pairs(bench), "set", score=SCORE, options=BenchOptions(), out=out, device="cpu",
        on_picture=lambda *now: told.append(now[-1]),
    )  # fmt: skip
    assert rest.calls == 1
    assert told == [True, True, False]
    assert numbers(resumed) == numbers(whole)
    content = json.loads((out / "table.json").read_text())
    assert len(content["images"]) == 3 * 4
    assert (out / "table.md").read_text().startswith("| factor | method |")
    assert (out / "images.csv").read_text().count("\n") == 13


def test_a_limit_is_no_other_setting(bench: Path, tmp_path: Path) -> None:
    assert run(bench, [Flat()], tmp_path / "out", limit=1).pictures == 1
    rest = Flat()
    assert run(bench, [rest], tmp_path / "out").pictures == 3
    assert rest.calls == 2


def test_other_methods_and_metrics_are_added_to_what_is_there(bench: Path, tmp_path: Path) -> None:
    first = Flat()
    run(bench, [first], tmp_path / "out")
    again = Flat()
    evaluation = run(bench, [again, *peers(["bicubic"])], tmp_path / "out")
    assert again.calls == 0
    assert {row.method for row in evaluation.rows} == {"flat", "bicubic"}
    fewer = evaluate_methods(
        [again], pairs(bench), "set", score=ScoreOptions(metrics=("psnr",)), out=tmp_path / "out", device="cpu"
    )
    assert again.calls == 0
    assert list(fewer.rows[0].metrics) == ["psnr"]


@pytest.mark.parametrize("name", ["table.md", "images.csv", "pictures/a.png"])
def test_a_folder_with_files_of_another_origin_is_refused(bench: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OptionError, match=rf"{name.split('/')[0]}: is there already; name a new folder"):
        run(bench, [Flat()], tmp_path / "out")
    assert mine.read_text() == "mine"
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [mine]


def test_rows_of_other_settings_are_not_mixed_in(bench: Path, tmp_path: Path) -> None:
    run(bench, [Flat()], tmp_path / "out")
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    with pytest.raises(OptionError, match=r"other settings \(channel y, not rgb\); choose another --out"):
        evaluate_methods(
            [Flat()], pairs(bench), "set", score=ScoreOptions(metrics=("psnr", "ssim"), channel="rgb"),
            out=tmp_path / "out", device="cpu",
        )  # fmt: skip
    Image.new("RGB", (48, 44)).save(bench / "HR" / "1.png")
    with pytest.raises(OptionError, match="pairs "):
        run(bench, [Flat()], tmp_path / "out")
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == before


def test_a_set_is_known_by_its_pictures_not_its_place(bench: Path, tmp_path: Path) -> None:
    before = pairs_digest(pairs(bench))
    bench.rename(tmp_path / "moved")
    assert pairs_digest(pairs(tmp_path / "moved")) == before


def test_pictures_are_kept_if_asked_for_even_after_the_run(bench: Path, tmp_path: Path) -> None:
    run(bench, [Flat((2.0, 4.0))], tmp_path / "out")
    assert not (tmp_path / "out" / "pictures").exists()
    run(bench, [Flat((2.0, 4.0))], tmp_path / "out", pictures=True)
    kept = sorted(str(p.relative_to(tmp_path / "out" / "pictures")) for p in (tmp_path / "out").rglob("*.png"))
    assert kept == [f"flat/x{f}/{i}.png" for f in (2, 4) for i in range(3)]
    assert (read_pixels(tmp_path / "out" / "pictures" / "flat" / "x4" / "0.png") == 100).all()


def test_a_method_of_another_size_is_named_with_the_picture(bench: Path) -> None:
    class Wrong(Flat):
        def __call__(self, lr: Path, /) -> dict[float, Pixels]:
            return {4.0: super().__call__(lr)[4.0][:-1]}

    with pytest.raises(ImageError, match=r"0\.png, flat x4: a picture of 48 x 43 cannot be compared"):
        run(bench, [Wrong()])


def test_uncut_hr_is_cut_right_and_below(bench: Path) -> None:
    expected = numbers(run(bench, peers(["bicubic"])))
    for pair in pairs(bench):
        wider = np.pad(read_pixels(pair.hr), ((0, 3), (0, 1), (0, 0)))
        Image.fromarray(wider).save(pair.hr)
    found = pairs(bench, crop=True)
    cut = evaluate_methods(peers(["bicubic"]), found, "set", score=SCORE, options=BenchOptions(crop=True), device="cpu")
    assert numbers(cut) == expected


def test_fid_goes_on_after_a_stop(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Iterator[int] = iter(range(100))

    class Means(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            next(calls)
            return image.mean(dim=(2, 3))

    monkeypatch.setattr(scores, "Inception", lambda **_: Means())
    score = ScoreOptions(metrics=("fid",))

    def measure(out: Path | None, limit: int) -> Evaluation:
        options = BenchOptions(factors=(4.0,), limit=limit)
        return evaluate_methods(
            peers(["bicubic"]), pairs(bench), "set", score=score, options=options, out=out, device="cpu"
        )

    whole = measure(None, 0).rows[0].metrics["fid"]
    measure(tmp_path / "out", 2)
    before = next(calls)
    assert measure(tmp_path / "out", 0).rows[0].metrics["fid"] == whole
    assert next(calls) - before == 3  # one picture and its target
    assert whole.mean is not None
    assert whole.mean > 0


# --- the model as a method --------------------------------------------------------------------------------------------


def test_a_model_gives_the_factors_asked_for(model: NextScale, bench: Path) -> None:
    (pair, *_) = pairs(bench)
    options = UpscaleOptions(tile_batch=1)
    given = Restorer(model, options, (1.0,))(pair.lr)
    assert {factor: pixels.shape for factor, pixels in given.items()} == {1.0: (11, 12, 3)}
    direct = model.upscale(pair.lr, UpscaleOptions(scale=1.0, tile_batch=1)).picture.rgb
    assert np.array_equal(given[1.0], direct)


def test_factors_come_from_one_option_only(model: NextScale) -> None:
    with pytest.raises(OptionError, match="takes --factors instead of --scale"):
        Restorer(model, UpscaleOptions(scale=2.0), (1.0,))
    with pytest.raises(OptionError, match="factors 1 2 4"):
        Restorer(model, UpscaleOptions(), (3.0,))


@pytest.mark.integration
def test_a_model_is_scored_beside_its_peers(model_folder: Path, bench: Path, tmp_path: Path) -> None:
    options = BenchOptions(factors=(1.0,), peers=("bicubic",), limit=1)
    out = tmp_path / "out"
    evaluation = evaluate_model(model_folder, bench, score=SCORE, options=options, out=out, device="cpu", fp32=True)
    assert [(row.method, row.factor) for row in evaluation.rows] == [("bicubic", 1), ("nextscale", 1)]
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["fidelity"], settings["precision"], settings["bench"]) == (1.0, "float32", "set")
    with pytest.raises(OptionError, match=r"fidelity 1\.0, not 0\.5"):
        evaluate_model(
            model_folder, bench, upscale=UpscaleOptions(fidelity=0.5), score=SCORE, options=options, out=out,
            device="cpu", fp32=True,
        )  # fmt: skip


def test_a_missing_model_is_one_line(bench: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        evaluate_model("no-such-model", bench, score=SCORE, device="cpu")
