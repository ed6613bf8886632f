"""What a host is told of a model is what the model does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from nextscale.model.config import AutoencoderConfig
from nextscale.upscale.describe import tile_bytes
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.options import UpscaleOptions
from tests.conftest import random_model, restoring_model


def test_the_description_is_that_of_the_model(model: NextScale) -> None:
    about = model.describe()
    assert about.factors == model.tokenizer.ladder.factors == (1.0, 2.0, 4.0)
    assert about.scale == 4
    assert about.tile == model.tokenizer.ladder.input_side
    assert about.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert about.weights == 4 * about.parameters
    assert about.tiling == "internal"


@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_sizes_need_no_multiple_and_no_minimum(model: NextScale, size: tuple[int, int]) -> None:
    about = model.describe()
    assert (about.minimum_side, about.multiple_of, about.square) == (1, 1, False)
    result = model.upscale(np.zeros((size[1], size[0], about.input_channels), np.uint8), scale=1)
    assert result.tensor.shape == (about.output_channels, size[1], size[0])


def test_it_computes_in_every_type_named() -> None:
    model = random_model()
    for name in model.describe().dtypes:
        model.to(getattr(torch, name))
        assert model.upscale(np.zeros((9, 9, 3), np.uint8), scale=1).tensor.dtype == torch.float32
    assert model.describe().weights < 4 * model.describe().parameters


def test_memory_of_pictures_is_that_of_the_arrays(model: NextScale) -> None:
    photo = np.zeros((30, 40, 3), np.uint8)
    how = UpscaleOptions(scale=4, all_factors=True)
    result = model.upscale(photo, how)
    held = photo.nbytes + sum(picture.rgb.nbytes for picture in result.images.values())
    assert model.describe().memory(40, 30, how).pictures == held
    assert model.describe().memory(40, 30, how, bits=16).pictures == 2 * held


def test_memory_of_tiles_grows_with_their_batch_and_size(model: NextScale) -> None:
    about = model.describe()
    one = about.memory(128, 128)
    assert one.weights == about.weights
    assert one.tiles == int(tile_bytes(model.config, UpscaleOptions()))
    assert about.memory(1000, 1000, UpscaleOptions(tile_batch=3)).tiles == 3 * one.tiles
    assert about.memory(1000, 1000, UpscaleOptions(tile_batch=1, tile=256)).tiles == 4 * one.tiles
    assert about.memory(200, 100).tiles == 2 * one.tiles


def test_memory_of_tiles_is_that_of_the_parts_that_run() -> None:
    config, refining = (restoring_model(untrained=True, refined=channels).config for channels in (0, 4))
    ladder, auto = config.tokenizer.ladder, config.tokenizer.autoencoder
    fast, codes, decoded = UpscaleOptions(fast=True), UpscaleOptions(), UpscaleOptions(fidelity=0.5)
    assert tile_bytes(config, fast) == 4 * 16 * 8 * ladder.input_side**2
    assert tile_bytes(refining, fast) - tile_bytes(config, fast) == 4 * 3 * 4 * ladder.image_sides[-1] ** 2
    assert isinstance(auto, AutoencoderConfig)
    features = (ladder.image_sides[-1] // auto.patch) ** 2 * auto.channels * auto.multipliers[0]
    assert tile_bytes(config, decoded) == 4 * 14 * features
    # A fusion that reads the codes has them decoded at any fidelity.
    assert tile_bytes(config, codes) == tile_bytes(config, decoded)
    assert config.fusion is not None
    unread = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, codes=False))
    logits = ladder.sides[-1] ** 2 * config.tokenizer.codebook_size
    assert tile_bytes(unread, codes) == max(tile_bytes(config, fast), 4 * 14 * logits) < tile_bytes(unread, decoded)


def test_memory_is_that_of_the_tiles_that_are_run(model: NextScale) -> None:
    about, one = model.describe(), tile_bytes(model.config, UpscaleOptions())
    grown = model.plan(np.zeros((130, 130, 3), np.uint8)).passes[0].tiles
    assert (grown.tile > about.tile, len(grown.lefts)) == (True, 1)
    assert about.memory(130, 130).tiles == math.ceil(one * (grown.tile / about.tile) ** 2)
    assert about.memory(128, 1000).tiles == math.ceil(one)  # a column: no batch holds tiles of two rows


def test_memory_beyond_the_largest_factor_is_that_of_every_pass(model: NextScale) -> None:
    about = model.describe()
    # x6: the photograph, x2, x6, and what the last pass gives where that is larger.
    assert about.memory(1000, 1000, UpscaleOptions(scale=6)).pictures == 3 * (1 + 4 + 36) * 1_000_000
