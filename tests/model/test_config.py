"""Claims about ladders and strict configurations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nextscale.errors import ModelError, OptionError
from nextscale.model.checkpoint import find_folder, read_config
from nextscale.model.config import (
    PRESETS,
    DecoderFusionConfig,
    Ladder,
    ModelConfig,
    TokenizerConfig,
    TransformerConfig,
    flat_ladder,
    paper,
    phi_schedule,
    tiny,
)
from nextscale.model.config_io import changed, from_dict, read_difference, to_dict
from nextscale.model.transformer import Transformer


def test_older_names_of_keys_still_load() -> None:
    data = to_dict(tiny())
    size = data["tokenizer"].pop("codebook_size")
    data["tokenizer"]["vocabulary"] = size
    assert from_dict(ModelConfig, data) == tiny()
    assert changed(paper(), {"tokenizer": {"vocabulary": 32}}).tokenizer.codebook_size == 32
    with pytest.raises(ModelError, match=r"unknown key config\.tokenizer\.vocabulary"):
        from_dict(ModelConfig, {**data, "tokenizer": {**data["tokenizer"], "codebook_size": size}})


def test_the_ladder_has_3452_tokens_in_three_stages() -> None:
    ladder = Ladder()
    assert [ladder.tokens(n) for n in range(3)] == [116, 552, 2784]
    assert ladder.tokens() == 3452
    assert ladder.canvases == (8, 16, 32)
    assert ladder.image_sides == (128, 256, 512)
    assert ladder.factors == (1, 2, 4)


def test_phi_schedule_equals_the_official_code(fixtures: Path) -> None:
    rows = np.load(fixtures / "var_vae_tiny.npz")["phi_index_per_scale"]
    for row in rows:
        wanted = tuple(int(i) for i in row if i >= 0)
        assert phi_schedule(len(wanted)) == wanted


@pytest.mark.parametrize(("steps", "wanted"), [(3, (0, 2, 3)), (5, (0, 1, 2, 2, 3)), (6, (0, 0, 1, 2, 3, 3))])
def test_phi_schedule_decides_ties_as_float64_does(steps: int, wanted: tuple[int, ...]) -> None:
    assert phi_schedule(steps) == wanted


def test_the_default_ladder_holds_its_own_phi_schedule() -> None:
    assert Ladder().phi == phi_schedule(10)


def test_a_flat_ladder_is_one_stage() -> None:
    ladder = flat_ladder((1, 2, 3, 4))
    assert ladder.num_stages == 1
    assert ladder.phi == (0, 1, 2, 3)


def test_other_ladders_work_as_data() -> None:
    eight = Ladder((4, 8, 16, 32, 64), (2, 3, 4, 5), (0, 1, 2, 2, 3))
    assert list(eight.factors) == [1, 2, 4, 8]
    half = Ladder().for_input(64)
    assert half.sides == (2, 3, 4, 5, 7, 8, 10, 12, 14, 16)
    assert list(half.factors) == [1, 2, 4]


def test_canvases_stay_in_proportion_and_steps_between_them_take_the_next_smaller_side() -> None:
    for side in range(64, 1024, 16):
        grown = Ladder().for_input(side)
        assert grown.canvases == (side // 16, side // 8, side // 4)
        assert list(grown.factors) == [1, 2, 4]
        assert all(0 <= own * side / 128 - new < 1 for own, new in zip(Ladder().sides, grown.sides, strict=True))


def test_a_tile_that_breaks_the_ladder_names_what_fits() -> None:
    with pytest.raises(OptionError, match="use one of 2048 px or less"):
        Ladder().for_input(4096)
    with pytest.raises(OptionError, match="multiple of 16 from 64"):
        Ladder().for_input(100)


@pytest.mark.parametrize(
    "broken",
    [
        {"sides": (4, 4), "stage_ends": (2,), "phi": (0, 1)},
        {"stage_ends": (3, 6)},
        {"phi": (0, 1)},
        {"stage_ends": (6, 3, 10)},
        {"patch": 0},
        {"input_canvas": 0},
        {"phi": (-1,) * 10},
        {"sides": (4, 1000), "stage_ends": (2,), "phi": (0, 1)},
        {"patch": 1000},
    ],
)
def test_an_impossible_ladder_is_refused(broken: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ModelError):
        Ladder(**broken)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_json(preset: str) -> None:
    config = PRESETS[preset]()
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_missing_and_mistyped_keys_are_named() -> None:
    data = to_dict(tiny())
    data["tokenizer"]["ladder"]["sidez"] = []
    with pytest.raises(ModelError, match=r"config\.tokenizer\.ladder\.sidez"):
        from_dict(ModelConfig, data)
    data = to_dict(tiny())
    del data["transformer"]["depth"]
    with pytest.raises(ModelError, match=r"missing key config\.transformer\.depth"):
        from_dict(ModelConfig, data)
    data = to_dict(tiny())
    data["transformer"]["depth"] = "8"
    with pytest.raises(ModelError, match=r"config\.transformer\.depth must be int"):
        from_dict(ModelConfig, data)


def test_a_difference_changes_only_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "flat.json"
    file.write_text('{"tokenizer": {"ladder": {"stage_ends": [10]}}, "transformer": {"depth": 3}}')
    found = read_difference(tiny().codes_alone(), file)
    assert found.tokenizer.ladder == dataclasses.replace(tiny().tokenizer.ladder, stage_ends=(10,))
    assert found.transformer == dataclasses.replace(tiny().transformer, depth=3, condition="latent")
    assert found.tokenizer.autoencoder == tiny().tokenizer.autoencoder
    assert read_difference(tiny(), None) == tiny()
    assert changed(tiny(), {"tokenizer": {"fusion": None}}).tokenizer.fusion is None
    assert (
        changed(paper(), {"tokenizer": {"fusion": to_dict(DecoderFusionConfig())}}).tokenizer.fusion
        == DecoderFusionConfig()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"transformer": {"dept": 3}}', r"flat\.json: unknown key config\.transformer\.dept"),
        (
            '{"tokenizer": {"ladder": {"stage_ends": [9]}}}',
            r"flat\.json: a ladder's stage_ends must rise and end at 10",
        ),
        ("{", r"flat\.json: not readable as JSON"),
        ("[]", r"flat\.json: config must be an object"),
    ],
)
def test_a_wrong_difference_is_one_line_that_names_the_file(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "flat.json"
    file.write_text(text)
    with pytest.raises(ModelError, match=message):
        read_difference(tiny(), file)
    with pytest.raises(ModelError, match=r"gone\.json: it cannot be read"):
        read_difference(tiny(), tmp_path / "gone.json")


def test_configs_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ModelError, match="multiple of its heads"):
        TransformerConfig(width=100, heads=3)
    with pytest.raises(ModelError, match="reduces sides by 16"):
        TokenizerConfig(ladder=Ladder(patch=8))
    model = tiny()
    stem = dataclasses.replace(model.transformer.stem, encoded=4)
    with pytest.raises(ModelError, match="4 stages encoded, the ladder has only 3"):
        dataclasses.replace(model, transformer=dataclasses.replace(model.transformer, stem=stem))


def count(config: ModelConfig) -> int:
    with torch.device("meta"):
        part = config.tokenizer
        model = Transformer(config.transformer, part.ladder, part.codebook_size, part.autoencoder.latent_channels)
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_paper_transformer_has_310_million_parameters() -> None:
    assert abs(count(paper()) - 310e6) <= 3e6


def test_the_shipped_model_is_the_preset() -> None:
    shipped = read_config(find_folder("tiny"), "model", ModelConfig)
    assert len(shipped.transformer.temperatures) == shipped.tokenizer.ladder.num_steps
    # Its temperatures belong to its weights.
    untrained = dataclasses.replace(shipped.transformer, temperatures=())
    assert dataclasses.replace(shipped, transformer=untrained) == tiny()
