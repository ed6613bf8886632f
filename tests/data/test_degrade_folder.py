"""A folder degraded: the same bytes for the same seed and name, replayed from the recipes, one line per mishap."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale import image as images
from nextscale.commands.degrade import Degrade
from nextscale.commands.main import main
from nextscale.data import degrade as d
from nextscale.data.degrade import PRESETS, Recipe, degrade, sample_recipes
from nextscale.data.degrade_folder import (
    Outcome,
    Plan,
    degrade_folder,
    degrade_pixels,
    is_sheet,
    main_numbers,
    read_recipe,
)
from nextscale.errors import ImageError, OptionError


def photo(path: Path, width: int = 48, height: int = 40, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.png", "b.jpg", "deep/c.png")):
        photo(tmp_path / "in" / name, seed=seed)
    return tmp_path / "in"


def run(folder: Path, out: Path, plan: Plan | None = None, sheet: Path | None = None) -> list[Outcome]:
    return list(degrade_folder(folder, out, plan or Plan(), sheet=sheet))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_picture_becomes_a_quarter_beside_its_recipe(photos: Path, tmp_path: Path) -> None:
    outcomes = run(photos, tmp_path / "out")
    assert not any(outcome.error for outcome in outcomes)
    names = [f"{name}.{suffix}" for name in ("a", "b", "deep/c") for suffix in ("json", "png")]
    assert list(contents(tmp_path / "out")) == names
    assert [outcome.lr_size for outcome in outcomes] == [(12, 10)] * 3
    lr = images.read(tmp_path / "out" / "a.png")
    assert (lr.size, lr.bits, lr.is_gray) == ((12, 10), 8, False)


def test_the_result_is_that_of_the_recipe(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", Plan("x4plus", seed=3))
    recipe, factor = read_recipe(tmp_path / "out" / "a.json")
    assert factor == 4
    hr = torch.from_numpy(images.read(photos / "a.png").rgb).permute(2, 0, 1)[None] / 255
    lr = (degrade(hr, [recipe])[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(images.read(tmp_path / "out" / "a.png").rgb, lr)


def test_a_seed_and_a_name_give_the_same_bytes_whatever_the_other_files(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "one", Plan(seed=5))
    run(photos, tmp_path / "two", Plan(seed=5))
    whole = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == whole
    (photos / "a.png").unlink()
    photo(photos / "0 first.png")
    run(photos, tmp_path / "three", Plan(seed=5))
    three = contents(tmp_path / "three")
    assert {name: three[name] for name in three if not name.startswith("0")} == {
        name: whole[name] for name in whole if not name.startswith("a.")
    }
    run(photos, tmp_path / "four", Plan(seed=6))
    recipes = {
        data for folder in ("one", "four") for name, data in contents(tmp_path / folder).items() if "json" in name
    }
    assert len(recipes) == 6  # three names, two seeds: "0 first.png" took the place of "a.png"


def test_recorded_recipes_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "one", Plan("x4plus", seed=1, factor=2))
    assert images.read(tmp_path / "one" / "a.png").size == (24, 20)
    outcomes = run(photos, tmp_path / "two", Plan(recipes=tmp_path / "one"))
    assert not any(outcome.error for outcome in outcomes)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_missing_or_broken_recipe_is_one_line_of_its_picture(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "one")
    (tmp_path / "one" / "a.json").unlink()
    (tmp_path / "one" / "b.json").write_text('{"factor": 4, "recipe": {"color": 1}}')
    outcomes = run(photos, tmp_path / "two", Plan(recipes=tmp_path / "one"))
    assert "a.json: no such recipe" in outcomes[0].error
    assert "unknown key recipe.color" in outcomes[1].error
    assert not outcomes[2].error
    assert sorted(contents(tmp_path / "two")) == ["deep/c.json", "deep/c.png"]
    for text in ("[1]", "{", '{"factor": 4}', '{"factor": 0, "recipe": %s}'):
        recipe = sample_recipes(PRESETS["bilinear"], 1, random.Random(0))[0].to_json()
        (tmp_path / "one" / "b.json").write_text(text.replace("%s", recipe))
        with pytest.raises(OptionError, match=r"b\.json: "):
            read_recipe(tmp_path / "one" / "b.json")


@pytest.mark.parametrize(("width", "height", "size"), [(49, 43, (12, 10)), (5, 4, (1, 1)), (4, 200, (1, 50))])
def test_odd_sizes_are_cut_to_multiples_of_the_factor(
    tmp_path: Path, width: int, height: int, size: tuple[int, int]
) -> None:
    photo(tmp_path / "in" / "a.png", width, height)
    (outcome,) = run(tmp_path / "in", tmp_path / "out", Plan("x4plus"))
    assert outcome.lr_size == size
    assert images.read(tmp_path / "out" / "a.png").size == size


def test_gray_alpha_and_16_bits_become_8_bit_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    gray = np.full((16, 16), 100, np.uint8)
    Image.fromarray(gray).save(folder / "gray.png")
    Image.fromarray(np.dstack([gray, gray, gray, np.zeros_like(gray)])).save(folder / "clear.png")
    images.write(folder / "deep.png", images.Picture(np.full((16, 16, 3), 100 * 257, np.uint16)))
    outcomes = run(folder, tmp_path / "out", Plan("bilinear"))
    assert not any(outcome.error for outcome in outcomes)
    for name, level in (("gray", 100), ("clear", 255), ("deep", 100)):
        with Image.open(tmp_path / "out" / f"{name}.png") as lr:
            assert (lr.mode, lr.size) == ("RGB", (4, 4))
            assert (np.asarray(lr) == level).all()


def test_a_bad_picture_is_one_line_and_the_rest_goes_on(photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes()[:500])
    photo(photos / "b.png")
    photo(photos / "tiny.png", 3, 30)
    outcomes = {outcome.photo.name: outcome.error for outcome in run(photos, tmp_path / "out")}
    assert "truncated" in outcomes["a.png"]
    assert outcomes["b.png"].startswith(f"its result {tmp_path}/out/b.png would overwrite that of {photos}/b.jpg")
    assert outcomes["tiny.png"] == "3 x 30 pixels are too few to reduce 4 times; leave it out"
    assert outcomes["b.jpg"] == outcomes["c.png"] == ""
    assert sorted(contents(tmp_path / "out")) == ["b.json", "b.png", "deep/c.json", "deep/c.png"]


def test_inputs_are_never_overwritten(photos: Path, tmp_path: Path) -> None:
    before = contents(photos)
    for out in (photos, photos / "deep" / "lr"):
        with pytest.raises(OptionError, match="lies inside the folder of photographs"):
            run(photos, out)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(photos / "a.png")
    (first, *_) = run(photos, tmp_path / "out")
    assert "would overwrite an input" in first.error
    assert contents(photos) == before


def test_the_command_offers_every_preset() -> None:
    assert set(get_args(get_type_hints(Degrade)["preset"])) == set(PRESETS)


def test_folders_and_plans_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such folder"):
        run(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no pictures in this folder"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(OptionError, match="factor must be 1 or more"):
        Plan(factor=0)
    with pytest.raises(OptionError, match="unknown preset 'strong'"):
        Plan("strong")
    with pytest.raises(OptionError, match=r"--sheet .*sheet\.xcf: cannot write"):
        run(tmp_path / "empty", tmp_path / "out", sheet=tmp_path / "sheet.xcf")


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("nextscale.data.degrade_folder.degrade", fail)
    (recipe,) = sample_recipes(PRESETS["bilinear"], 1, random.Random(0))
    with pytest.raises(ImageError, match="not enough memory"):
        degrade_pixels(np.zeros((8, 8, 3), np.uint8), recipe, 4)


@pytest.mark.parametrize("seed", range(3))
def test_bands_of_a_large_picture_give_what_the_whole_gives(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hr = torch.rand(1, 3, 140, 132, generator=torch.Generator().manual_seed(seed))
    recipes = sample_recipes(PRESETS["x4plus"], 1, random.Random(seed))
    whole = degrade(hr, recipes)
    monkeypatch.setattr(d, "BAND", 3 * 132 * 40)
    assert ((degrade(hr, recipes) - whole).abs() * 255).max() <= 1.001
    assert torch.allclose(
        d.jpeg(hr, 50.0), torch.cat([d.jpeg(hr[:, :, top : top + 32], 50.0) for top in range(0, 140, 32)], dim=2)
    )


# ---- the sheet ----


def test_a_sheet_of_few_photographs_shows_variants_of_them(photos: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    run(photos, plain)
    run(photos, tmp_path / "out", sheet=tmp_path / "sheet.png")
    assert contents(tmp_path / "out") == contents(plain)
    pixels = images.read(tmp_path / "sheet.png").rgb
    assert images.read(tmp_path / "sheet.png").size == (5 * 266 + 10, 4 * (256 + 4 * 14 + 4 + 10) + 10)
    cells = {
        (row, column): pixels[10 + row * 326 :, 10 + column * 266 :][:40, :48]
        for row in range(4)
        for column in range(5)
    }
    assert len({cell.tobytes() for cell in cells.values()}) == 20
    lr = images.read(tmp_path / "out" / "b.png").rgb
    np.testing.assert_array_equal(cells[0, 1], lr.repeat(4, axis=0).repeat(4, axis=1))


def test_a_sheet_of_replayed_recipes_shows_each_once(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "one")
    run(photos, tmp_path / "two", Plan(recipes=tmp_path / "one"), sheet=tmp_path / "sheet.png")
    assert images.read(tmp_path / "sheet.png").size == (3 * 266 + 10, 336)


def test_the_caption_holds_the_main_numbers() -> None:
    recipe = Recipe.from_json(
        '{"preset": "x4plus", "first": {"blur": {"kind": "aniso", "size": 9, "sigma_x": 1.25, "sigma_y": 0.5,'
        '"rotation": 1.0, "beta": 0.0, "cutoff": 0.0}, "resize_scale": 0.5, "resize_filter": "area",'
        '"noise": {"kind": "gaussian", "strength": 12.0, "gray": true, "seed": 1}, "jpeg_quality": 61.2},'
        '"second": {"blur": null, "resize_scale": 1.0, "resize_filter": "area", "noise": null, "jpeg_quality": null},'
        '"final_filter": "bicubic", "final_sinc": {"kind": "sinc", "size": 7, "sigma_x": 0.0, "sigma_y": 0.0,'
        '"rotation": 0.0, "beta": 0.0, "cutoff": 2.0}, "sinc_first": true}'
    )
    assert main_numbers(recipe) == [
        "1: blur 1.2/0.5, x0.50, gauss 12.0 gray, JPEG 61",
        "2: sharp, x1.00",
        "to LR: bicubic, sinc 2.00, before JPEG 2",
    ]
    (bilinear,) = sample_recipes(PRESETS["bilinear"], 1, random.Random(0))
    assert main_numbers(bilinear) == ["1: nothing", "2: nothing", "to LR: bilinear"]


@pytest.mark.parametrize("name", ["a.png", "new.png"])
def test_the_sheet_is_no_file_of_the_inputs(photos: Path, tmp_path: Path, name: str) -> None:
    before = contents(photos)
    with pytest.raises(OptionError, match=f"{name}: this is or lies among the inputs .*--sheet"):
        run(photos, tmp_path / "out", sheet=photos / name)
    assert contents(photos) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["photograph", "text"])
def test_the_sheet_replaces_nothing_but_an_earlier_one(photos: Path, tmp_path: Path, other: str) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.touch()
    for _ in range(2):
        run(photos, tmp_path / "out", sheet=sheet)
        assert is_sheet(sheet)
    if other == "text":
        sheet.write_text("mine")
    else:
        images.write(sheet, images.Picture(np.zeros((326, 277, 3), np.uint8)))
    before = sheet.read_bytes()
    with pytest.raises(OptionError, match=r"sheet\.png: this is no sheet; name another file with --sheet"):
        run(photos, tmp_path / "out", sheet=sheet)
    assert sheet.read_bytes() == before


def test_the_sheet_is_no_result_of_the_run(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a\.png: this is a result of this run; name another file with --sheet"):
        run(photos, tmp_path / "out", sheet=tmp_path / "out" / "a.png")
    assert not (tmp_path / "out").exists()


def test_results_replace_earlier_ones_alone(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    photo(out / "a.png", seed=9)
    (out / "deep").mkdir()
    (out / "deep" / "c.json").write_text('{"mine": 1}')
    before = contents(out)
    errors = {outcome.photo.name: outcome.error for outcome in run(photos, out)}
    assert f"the result would overwrite {out / 'a.png'}, which is none; choose another -o" in errors["a.png"]
    assert str(out / "deep" / "c.json") in errors["c.png"]
    assert not errors["b.jpg"]
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert not any(outcome.error for outcome in run(photos / "deep", tmp_path / "again"))
    assert not any(outcome.error for outcome in run(photos / "deep", tmp_path / "again", Plan(seed=1)))


@pytest.mark.parametrize("words", [["--preset", "x4plus"], ["--seed", "1"], ["--factor", "2"]])
def test_recipes_leave_nothing_to_be_drawn(
    photos: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["degrade", "-i", str(photos), "-o", str(tmp_path / "out"), "--recipes", str(tmp_path / "lr"), *words]
    assert main(command) == 2
    assert f"{words[0]} included; leave it out" in capsys.readouterr().err
