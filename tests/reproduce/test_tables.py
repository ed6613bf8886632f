"""The paper's tables on a random model: readings, the baseline, models and variants side by side, published rows."""

from __future__ import annotations

import dataclasses
import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale.data.degrade import PRESETS, degrade, sample_recipe
from nextscale.errors import ImageError, ModelError, OptionError
from nextscale.evaluate.benchmark import Restorer
from nextscale.evaluate.datasets import Pair
from nextscale.evaluate.options import BenchOptions, ScoreOptions
from nextscale.evaluate.summary import Summary
from nextscale.evaluate.table import Evaluation, Row
from nextscale.model.config import ModelConfig
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from reproduce.tables import (
    CODES_ALONE,
    ON_CLEAN,
    VARIANTS,
    FlatBaseline,
    FromPhotograph,
    Reading,
    Reconstruction,
    Setting,
    compare_models,
    compare_variants,
    flat_of,
    readings_of_table_1a,
    reconstruct,
    report_markdown,
    stage_pictures,
)

pytestmark = pytest.mark.integration

ALONE = dataclasses.replace(CODES_ALONE, tile=64)
PSNR = ScoreOptions(metrics=("psnr",))
SETTING = Setting(PSNR, BenchOptions(peers=()), device="cpu", fp32=True)


def draw(path: Path, side: int) -> Path:
    """A photograph of soft noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(side).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair("a", draw(tmp_path / "LR" / "a.png", 64), draw(tmp_path / "HR" / "a.png", 256))


@pytest.fixture(scope="module")
def flat(model: NextScale) -> NextScale:
    """A transformer of flat codes of the same tokenizer."""
    tokenizer = model.tokenizer.with_ladder(flat_of(model.tokenizer.ladder))
    torch.manual_seed(3)
    fresh = NextScale.create(ModelConfig(tokenizer.config, model.config.transformer))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        fresh.transformer.stack.head.weight.normal_(std=0.5, generator=generator)
    return NextScale(fresh.config, tokenizer, fresh.transformer).to("cpu", fp32=True)


@pytest.fixture(scope="module")
def flat_folder(flat: NextScale, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flat.save_pretrained(tmp_path_factory.mktemp("flat"), half=False)


def as_pixels(image: torch.Tensor) -> np.ndarray:
    levels: np.ndarray = ((image[0].permute(1, 2, 0).clamp(-1, 1) / 2 + 0.5) * 255).round().numpy().astype(np.uint8)
    return levels


def test_a_hierarchical_reading_is_what_the_tokenizer_decodes(model: NextScale, pair: Pair) -> None:
    tokenizer = model.tokenizer
    made = Reconstruction(Reading("own", tokenizer, tokenizer.ladder))(pair.hr)
    assert {factor: pixels.shape for factor, pixels in made.items()} == {
        1.0: (64, 64, 3),
        2.0: (128, 128, 3),
        4.0: (256, 256, 3),
    }
    image = torch.from_numpy(np.array(Image.open(pair.hr))).permute(2, 0, 1)[None].float() / 127.5 - 1
    codes = tokenizer.encode(image, ladder=tokenizer.ladder.for_input(64))
    for stage, factor in enumerate((1.0, 2.0, 4.0)):
        wanted = as_pixels(tokenizer.decode(codes, stage))
        assert np.abs(made[factor].astype(int) - wanted).max() <= 1


def test_flat_codes_read_flat_give_the_largest_stage_alone(model: NextScale, pair: Pair) -> None:
    tokenizer = model.tokenizer
    plain = flat_of(tokenizer.ladder)
    flat = Reconstruction(Reading("flat", tokenizer.with_ladder(plain), plain))(pair.hr)
    prefixes = Reconstruction(Reading("prefixes", tokenizer, plain))(pair.hr)
    assert list(flat) == [4.0]
    assert list(prefixes) == [1.0, 2.0, 4.0]
    # All ten steps on the largest canvas are the same either way; rounding alone may differ.
    assert np.abs(flat[4.0].astype(int) - prefixes[4.0]).max() <= 1


def test_table_1a_has_the_papers_rows_and_two_more(model_folder: Path, flat_folder: Path, pair: Pair) -> None:
    readings = readings_of_table_1a(model_folder, flat_folder)
    evaluation = reconstruct(readings, pair.hr.parent, SETTING, {})
    by_row = {(row.method, row.factor) for row in evaluation.rows}
    names = [reading.name for reading in readings]
    assert names[:3] == [
        "flat-trained, read flat",
        "flat-trained, read by Algorithm 1",
        "hierarchical, read by Algorithm 1",
    ]
    flat_only = {"flat-trained, read flat", "hierarchical, read flat"}
    assert by_row == {(n, f) for n in names for f in ((4.0,) if n in flat_only else (1.0, 2.0, 4.0))}
    markdown = report_markdown(evaluation, "1a")
    assert "| x4 | Switti | published, Table 1a | 24.17 |" in markdown
    assert len(readings_of_table_1a(model_folder)) == 3


def test_photographs_that_cannot_be_tokenized_are_named(model: NextScale, tmp_path: Path) -> None:
    method = Reconstruction(Reading("own", model.tokenizer, model.tokenizer.ladder))
    with pytest.raises(ImageError, match=r"odd\.png: 100 x 100 cannot be tokenized .* use 512 x 512"):
        method(draw(tmp_path / "odd.png", 100))
    Image.new("RGB", (256, 128)).save(tmp_path / "wide.png")
    with pytest.raises(ImageError, match=r"wide\.png: 256 x 128 .*no square"):
        method(tmp_path / "wide.png")
    with pytest.raises(ImageError, match="no pictures in such a folder"):
        reconstruct([], tmp_path / "none", SETTING, {})


def test_the_baseline_adds_up_its_prefixes_on_each_stages_canvas(model: NextScale, flat: NextScale, pair: Pair) -> None:
    made = FlatBaseline(flat, model.tokenizer, "baseline", tile=64)(pair.lr)
    (codes,) = flat.upscale(pair.lr, dataclasses.replace(ALONE, scale=4.0)).codes.values()
    assert codes.ladder.num_stages == 1
    ladder = model.tokenizer.ladder.for_input(64)
    assert list(made) == [1.0, 2.0, 4.0]
    for stage, factor in enumerate(made):
        steps = codes.steps[: ladder.stage_ends[stage]]
        f = torch.zeros((1, 32, ladder.canvases[stage], ladder.canvases[stage]))
        with torch.no_grad():
            for k, ids in enumerate(steps):
                vectors = model.tokenizer.quantizer.codebook(ids).permute(0, 3, 1, 2)
                f = f + model.tokenizer.quantizer.lift(vectors, ladder.phi[k], ladder.canvases[stage])
            wanted = as_pixels(model.tokenizer.decode_canvas(f, stage))
        assert np.abs(made[factor].astype(int) - wanted).max() <= 1


def test_a_baseline_of_other_steps_or_tiles_is_refused(model: NextScale, flat: NextScale, pair: Pair) -> None:
    with pytest.raises(ModelError, match="hier: a baseline has one stage"):
        FlatBaseline(model, model.tokenizer, "hier")
    with pytest.raises(ImageError, match="one tile, 128 x 128; set --tile"):
        FlatBaseline(flat, model.tokenizer, "baseline")(pair.lr)
    with pytest.raises(OptionError, match="a baseline needs a model"):
        compare_models({}, {"flat": "nowhere"}, [pair], "set", SETTING)


def test_models_stand_side_by_side_at_the_factors_they_have(model_folder: Path, flat_folder: Path, pair: Pair) -> None:
    models = {"three": str(model_folder), "one": str(flat_folder)}
    evaluation = compare_models(models, {"prefixes": str(flat_folder)}, [pair], "RealSR", SETTING, ALONE)
    found = [(row.method, row.factor) for row in evaluation.rows]
    every = (1.0, 2.0, 4.0)
    assert found == [*(("three", f) for f in every), ("one", 4.0), *(("prefixes", f) for f in every)]
    markdown = report_markdown(evaluation, "2")
    lines = [line for line in markdown.splitlines() if line.startswith("| x2")]
    assert [line.split(" | ")[1] for line in lines] == [
        "three",
        "prefixes",
        "VARSR",
        "the paper's baseline",
        "the paper",
    ]
    assert "published" not in report_markdown(evaluation)


def test_variants_differ_from_the_default_and_are_named(model_folder: Path, pair: Pair) -> None:
    setting = dataclasses.replace(SETTING, options=BenchOptions(factors=(1.0,), peers=()))
    few = {name: VARIANTS[name] for name in (*ON_CLEAN, "fidelity 0.5", "codes alone, temperature 1")}
    upscale = UpscaleOptions(tile=64)
    degraded, clean = compare_variants(model_folder, [pair], "set", setting, upscale, few)
    values = {row.method: row.metrics["psnr"].mean for row in degraded.rows}
    assert list(values) == list(few)
    assert len(set(values.values())) == len(few)
    assert [row.method for row in clean.rows] == list(ON_CLEAN)
    alone, _ = compare_variants(model_folder, [pair], "set", setting, ALONE, few)
    assert [row.method for row in alone.rows] == [
        "default",
        "codes alone, class 1 (clean)",
        "codes alone, temperature 1",
    ]


def test_every_variant_is_a_setting_of_upscaling() -> None:
    for change in VARIANTS.values():
        dataclasses.replace(UpscaleOptions(), **change)


def test_clean_inputs_are_the_photograph_reduced_as_in_training(model: NextScale, pair: Pair) -> None:
    restorer = Restorer(model, dataclasses.replace(ALONE, input_class="clean"), (1.0,), "clean")
    image = torch.from_numpy(np.array(Image.open(pair.hr))).permute(2, 0, 1)[None].float() / 255
    small = degrade(image, [sample_recipe(PRESETS["bilinear"], random.Random(0))])
    lr = (small[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    wanted = model.upscale(lr, restorer.options).images[1.0].rgb
    made = FromPhotograph(restorer, 4)(pair.hr)[1.0]
    assert made.shape == (64, 64, 3)
    assert np.abs(made.astype(int) - wanted).max() <= 1


def test_figure_2_shows_codes_or_models(model: NextScale, flat: NextScale, pair: Pair) -> None:
    for baseline in (None, flat):
        labels, (columns,) = stage_pictures(model, baseline, [pair], ALONE)
        assert len(labels) == len(columns) == 4
        for column in columns[1:]:
            assert {factor: len(pixels) for factor, pixels in column.items()} == {1.0: 64, 2.0: 128, 4.0: 256}
        assert ("baseline" in labels[1]) == (baseline is not None)


def test_published_rows_are_marked_and_only_of_the_same_set() -> None:
    rows = [
        Row("nextscale", 4.0, {"psnr": Summary(20.0, None, 1), "fid": Summary(unavailable="no file")}, [], 1.0, 1.0)
    ]
    known = report_markdown(Evaluation("RealSR", 1, rows), "3")
    assert "| x4 | nextscale | measured | 20.00 | - |" in known
    assert "| x4 | BSRGAN | published, Table 3 | 26.38 | - |" in known
    assert "FID is unavailable: no file." in known
    assert "published" not in report_markdown(Evaluation("val", 1, rows), "3").lower()
    assert io.StringIO(known).readline().count("|") == 6
