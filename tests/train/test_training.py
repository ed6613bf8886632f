"""The trainings on a small model: they learn, they log, and they resume bit for bit."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from nextscale.commands.main import main
from nextscale.data.crops import Crops
from nextscale.data.degrade import PRESETS, usm_sharpen
from nextscale.errors import NextScaleError, OptionError
from nextscale.model.checkpoint import save_folder
from nextscale.model.config import FusionConfig, ModelConfig, RestorerConfig, SamplingOptions, StemConfig
from nextscale.model.restorer import Restorer
from nextscale.model.sampler import sample, tile_noise
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import Condition, enlarge
from nextscale.train import code_samples
from nextscale.train.config import CodebookConfig, CodesConfig, LoopConfig, ReconstructionConfig
from nextscale.train.loop import as_floats, learning_rate, train
from nextscale.train.pairs import draws, pairs
from nextscale.train.tasks import codebook as codebook_training
from nextscale.train.tasks import transformer as codes_training
from nextscale.train.tasks.codebook import CodebookTask
from nextscale.train.tasks.reconstruction import ReconstructionTask, _grid, start_linear
from nextscale.train.tasks.transformer import CodesTask, start_from_codebook
from nextscale.train.validation import Validation
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.pipeline import condition_latents
from tests.conftest import random_model, small_config
from tests.train.toy import Stopped, stop_after

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAIN = ReconstructionConfig(feature=0, lpips=0, unquantized_prob=1.0)
"""The autoencoder phase without the perceptual terms, whose weights a fresh clone does not have."""


@pytest.fixture(scope="module")
def crops() -> Crops:
    return Crops([str(EXAMPLES)], 256)


@pytest.fixture(scope="module")
def small_crops() -> Crops:
    return Crops([str(EXAMPLES)], 128)


def loop(steps: int, **changes: object) -> LoopConfig:
    settings = {"steps": steps, "batch": 2, "warmup": 2, "bf16": False, "log_every": 1, "ema": 0.5} | changes
    return LoopConfig(**settings)  # type: ignore[arg-type]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_linear_start_reconstructs_before_any_training(crops: Crops) -> None:
    tokenizer = Tokenizer(small_config().tokenizer)
    start_linear(tokenizer, crops, images=8)
    images = torch.from_numpy(crops.batch(100, 2)).float() / 127.5 - 1
    (latent,) = tokenizer.stage_latents(images, 3, ladder=tokenizer.ladder.for_input(64))[2:]
    with torch.no_grad():
        error = (tokenizer.decode_canvas(latent, 2) - images).square().mean()
    assert float(error) < 0.25 * float(images.var())


def test_pairs_are_the_same_for_the_same_step(crops: Crops) -> None:
    first, again = (pairs(crops, range(6, 8), ["stablesr"], 0.5, factor=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    targets, inputs, classes = first
    assert targets.shape == (2, 3, 256, 256)
    assert inputs.shape == (2, 3, 64, 64)
    assert set(classes.tolist()) <= {0, 1}


def test_several_degradations_are_mixed(small_crops: Crops) -> None:
    names = (["x4plus"], ["stablesr"], ["x4plus", "stablesr"], ["x4plus", "stablesr"])
    strong, mild, both, again = (pairs(small_crops, range(8), presets, 0.0, factor=4)[1] for presets in names)
    assert torch.equal(both, again)
    assert not torch.equal(both, strong)
    assert not torch.equal(both, mild)


def test_soft_photographs_are_parts_of_the_crops_without_their_finest_detail(small_crops: Crops) -> None:
    def photographs(share: float) -> Tensor:
        return pairs(small_crops, range(8), ["stablesr"], 0.0, soft=share, factor=4)[0]

    sharp, soft, again, some = (photographs(share) for share in (0.0, 1.0, 1.0, 0.5))
    assert torch.equal(soft, again)
    assert not torch.equal(soft, sharp)
    finest = [(x - F.avg_pool2d(x, 3, 1, 1))[..., 1:-1, 1:-1].abs().mean() for x in (soft, sharp)]
    assert float(finest[0]) < 0.7 * float(finest[1])
    kept = [torch.equal(a, b) for a, b in zip(some, sharp, strict=True)]
    assert 0 < sum(kept) < 8


def test_targets_of_a_camera_at_full_size_are_always_soft(small_crops: Crops) -> None:
    sharp, _, _ = pairs(small_crops, range(8), ["camera"], 0.0, factor=4)
    soft, inputs, _ = pairs(small_crops, range(8), ["fullsize"], 0.0, factor=4)
    assert not any(torch.equal(a, b) for a, b in zip(soft, sharp, strict=True))
    finest = [(x - F.avg_pool2d(x, 3, 1, 1))[..., 1:-1, 1:-1].abs().mean() for x in (soft, sharp)]
    assert float(finest[0]) < 0.7 * float(finest[1])
    # The input shows the same part.
    assert float((F.avg_pool2d(soft, 4) - inputs).abs().mean()) < 0.5 * float(
        (F.avg_pool2d(sharp, 4) - inputs).abs().mean()
    )


def test_pairs_of_sharpened_photographs(small_crops: Crops) -> None:
    (plain, inputs, _), (sharp, other, _) = (
        pairs(small_crops, range(2), ["stablesr"], 1.0, factor=4, sharpen=value) for value in (False, True)
    )
    torch.testing.assert_close(sharp, usm_sharpen(plain / 2 + 0.5) * 2 - 1, atol=1e-6, rtol=0)
    assert float((sharp - plain).abs().max()) > 0.05
    assert not torch.equal(inputs, other)


def test_reconstruction_learns_and_keeps_the_quantizer(crops: Crops, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(small_config().tokenizer)
    before = tokenizer.quantizer.codebook.weight.detach().clone()
    train(ReconstructionTask(tokenizer, crops, PLAIN), loop(8, lr=3e-3), tmp_path)
    log = rows(tmp_path)
    assert log[-1]["loss"] < log[0]["loss"]
    assert {"pixel_1", "pixel_2", "pixel_3", "grad_norm", "samples_per_second"} <= set(log[0])
    assert torch.equal(tokenizer.quantizer.codebook.weight, before)


def test_the_grid_term_sees_what_repeats_with_every_patch_and_nothing_else() -> None:
    rows = torch.arange(64) % 4
    grid = 0.1 * ((rows[:, None] + rows) % 2 * 2.0 - 1).expand(2, 3, 64, 64)
    ramp = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64)
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    assert float(_grid(grid, 4)) == pytest.approx(0.1, abs=1e-3)
    assert float(_grid(torch.full_like(grid, 0.3), 4)) < 1e-6
    assert float(_grid(ramp, 4)) < 0.04
    assert float(_grid(noise, 4)) < 0.02


def test_decoder_training_freezes_the_encoder(crops: Crops, tmp_path: Path) -> None:
    tokenizer = random_model().tokenizer
    before = {name: t.clone() for name, t in tokenizer.encoder.state_dict().items()}
    config = ReconstructionConfig(feature=0, lpips=0, unquantized_prob=0.5)
    train(ReconstructionTask(tokenizer, crops, config), loop(1, batch=1), tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokenizer.encoder.state_dict().items())


def test_the_codebook_lowers_its_error_from_k_means(crops: Crops, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(small_config().tokenizer)
    start_linear(tokenizer, crops, images=8)
    task = CodebookTask(tokenizer, crops, CodebookConfig(kmeans_images=8, kmeans_rounds=3, revive_every=3))
    random_error = float(task.losses(0, 2)[0].detach())
    task.start()
    started = float(task.losses(0, 2)[0].detach())
    train(task, loop(6, lr=1e-2, weight_decay=0.0), tmp_path)
    assert started < 0.5 * random_error
    assert float(task.losses(0, 2)[0].detach()) < started
    assert {"perplexity_1", "perplexity_10", "usage", "l2_3"} <= set(rows(tmp_path)[0])


def test_counts_of_all_processes_are_saved_and_go_on_in_the_first(
    crops: Crops, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = CodebookTask(random_model().tokenizer, crops, CodebookConfig())
    monkeypatch.setattr(codebook_training, "summed", lambda counts: counts + 1)  # another process has chosen each once
    task.counts[3] = 5
    saved = task.state_dict()
    assert saved["used"][2:4].tolist() == [1, 6]
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        task.load_state_dict(saved)
        assert task.counts[2:4].tolist() == [[1, 6], [0, 0]][rank]


def test_kept_crops_come_again_and_are_encoded_once(crops: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(small_config().tokenizer)
    start_linear(tokenizer, crops, images=4)
    new, kept = (CodebookTask(tokenizer, crops, CodebookConfig(kept_crops=count)) for count in (0, 2))
    encoded: list[int] = []
    encode = tokenizer.stage_latents

    def counted(images: Tensor, **how: Any) -> list[Tensor]:
        encoded.append(len(images))
        return encode(images, **how)

    monkeypatch.setattr(tokenizer, "stage_latents", counted)
    first, again = (float(kept.losses(step, 2)[0].detach()) for step in (0, 1))
    assert sum(encoded) == 2
    assert again == first
    assert first == pytest.approx(float(new.losses(0, 2)[0].detach()), rel=1e-4)
    assert float(new.losses(1, 2)[0].detach()) != pytest.approx(first, rel=1e-4)


def test_the_transformer_learns_codes_and_logs_each_step(crops: Crops, tmp_path: Path) -> None:
    model = random_model()
    transformer = model.transformer.requires_grad_(True)
    train(
        CodesTask(transformer, model.tokenizer, {64: crops}, CodesConfig(stages=2, sides=(64,))),
        loop(6, lr=3e-3),
        tmp_path,
    )
    log = rows(tmp_path)
    assert log[-1]["cross_entropy"] < log[0]["cross_entropy"]
    assert {"margin", "differ", "preference", "cross_entropy_1", "accuracy_6"} <= set(log[0])
    assert "accuracy_7" not in log[0]


def test_the_losses_are_cross_entropy_and_preference_of_the_same_logits(crops: Crops) -> None:
    model = random_model()
    tokenizer, ladder = model.tokenizer, model.tokenizer.ladder.for_input(64)
    config = CodesConfig(class_free=0.0, beta=2.0, sides=(64,), balance=0.0)
    total, numbers = CodesTask(model.transformer, tokenizer, {64: crops}, config).losses(0, 2)
    targets, inputs, classes = pairs(crops, range(2), config.presets, config.clean, factor=4)
    codes = tokenizer.encode(targets, ladder=ladder)
    own = tokenizer.encode(enlarge(inputs, 256), ladder=ladder)
    condition = Condition(tokenizer.stage_latents(enlarge(inputs, 256), ladder=ladder), classes)
    transformer = model.transformer
    segments = [transformer.start(condition)]
    segments += [transformer.embed(m, k) for k, m in enumerate(tokenizer.step_inputs(codes), start=1)]
    log_p = transformer.logits(segments, condition).log_softmax(-1)

    def mean_log_p(steps: list[Tensor]) -> Tensor:
        ids = torch.cat([s.flatten(1) for s in steps], dim=1)
        return log_p.gather(-1, ids[..., None]).squeeze(-1).mean(1)

    good, bad = mean_log_p(codes.steps), mean_log_p(own.steps)
    wanted = -good.mean() - torch.log(torch.sigmoid(2.0 * (good - bad))).mean()
    assert torch.allclose(total, wanted, atol=1e-5)
    assert numbers["margin"] == pytest.approx(float((good - bad).mean()), abs=1e-5)


def test_the_weights_of_the_trained_tokens_are_one_in_the_mean(crops: Crops) -> None:
    model = random_model()
    for stages in (0, 1):
        task = CodesTask(model.transformer, model.tokenizer, {64: crops}, CodesConfig(stages=stages, sides=(64,)))
        ladder = task.ladders[64]
        steps = [ladder.sides[k] for stage in range(stages or ladder.num_stages) for k in ladder.steps_of(stage)]
        assert len(task.weights[64]) == sum(side**2 for side in steps)
        assert float(task.weights[64].mean()) == pytest.approx(1)


def test_draws_belong_to_samples_not_to_batches() -> None:
    whole = draws(0, 4, 10, 4, 2)
    assert (whole[2:] == draws(0, 4, 12, 2, 2)).all()
    assert (whole != draws(1, 4, 10, 4, 2)).all()


def test_validation_scores_and_shows_every_stage(crops: Crops) -> None:
    model = random_model()
    validation = Validation(crops, 2, ["stablesr"], 0.0, factor=4)
    validation.lpips = None
    settings = ReconstructionConfig(feature=0, lpips=0, unquantized_prob=0.0)
    task = ReconstructionTask(model.tokenizer, crops, settings, validation)
    pictures = task.validation_pictures(model.tokenizer)
    assert set(validation.scores(pictures)) == {"psnr_1", "psnr_2", "psnr_3"}
    sheet = validation.sheet(pictures)
    assert sheet.size == (5 * 256, 2 * 256)
    exact = validation.scores([torch.nn.functional.avg_pool2d(validation.targets, f) + 0.01 for f in (4, 2, 1)])
    assert exact["psnr_1"] == pytest.approx(exact["psnr_3"], abs=0.01)
    assert exact["psnr_3"] > 45
    transformer = CodesTask(model.transformer, model.tokenizer, {64: crops}, CodesConfig(sides=(64,)), validation)
    assert [p.shape[-1] for p in transformer.validation_pictures(model.transformer)] == [64, 128, 256]


def test_the_codebook_trains_with_the_decoders_where_asked(crops: Crops, tmp_path: Path) -> None:
    tokenizer = random_model().tokenizer
    before = tokenizer.quantizer.codebook.weight.detach().clone()
    config = ReconstructionConfig(feature=0, lpips=0, unquantized_prob=0.0, codebook=True, squared=True)
    train(ReconstructionTask(tokenizer, crops, config), loop(1, lr=1e-2), tmp_path)
    assert not torch.equal(tokenizer.quantizer.codebook.weight, before)


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(crops: Crops, tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> dict[str, Tensor]:
        model = random_model()
        transformer = model.transformer.requires_grad_(True)
        task = CodesTask(transformer, model.tokenizer, {64: crops}, CodesConfig(stages=1, sides=(64,)))
        settings = loop(4, batch=1)
        if steps < 4:
            stop_after(steps, task)
            with pytest.raises(Stopped):
                train(task, loop(4, batch=1, save_minutes=0.0), folder)
            return run(folder, 4)
        return dict(train(task, settings, folder).state_dict()) | {
            f"raw.{name}": tensor for name, tensor in model.transformer.state_dict().items()
        }

    whole, resumed = run(tmp_path / "whole", 4), run(tmp_path / "resumed", 2)
    assert len(rows(tmp_path / "resumed")) == 4
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def stem_task(crops: Crops, config: CodesConfig, cache: Path | None = None, encoded: int = 0) -> CodesTask:
    """A small transformer on the features of a small restorer."""
    base = small_config()
    stem = StemConfig(features=8, channels=16, out_channels=40, encoded=encoded)
    sizes = dataclasses.replace(base.transformer, prefix=False, condition="restorer", stem=stem)
    torch.manual_seed(0)
    part = dataclasses.replace(base.tokenizer, fusion=None)
    model = NextScale.create(ModelConfig(part, sizes, RestorerConfig(8, 2, grain_rank=0), FusionConfig(8, 1, 8)))
    start_linear(model.tokenizer, crops, images=8)
    start_from_codebook(model.transformer, model.tokenizer)
    transformer = model.transformer.requires_grad_(True)
    return CodesTask(transformer, model.tokenizer, {64: crops}, config, restorer=model.restorer, cache=cache)


def test_the_stem_learns_the_photographs_latents_first(crops: Crops, tmp_path: Path) -> None:
    task = stem_task(crops, CodesConfig(sides=(64,), latent_steps=6, kept_crops=2))
    before = task.transformer.stack.head.weight.detach().clone()
    train(task, loop(6, lr=1e-2, weight_decay=0.0), tmp_path)
    log = rows(tmp_path)
    assert log[-1]["latent"] < 0.9 * log[0]["latent"]
    assert torch.equal(task.transformer.stack.head.weight, before)
    _, numbers = task.losses(6, 2)
    assert {"latent", "cross_entropy_10", "confidence_10"} <= set(numbers)


def test_the_codes_of_the_restored_picture_follow_from_the_input(crops: Crops) -> None:
    task = stem_task(crops, CodesConfig(sides=(64,), presets=("camera",), clean=0.0, target="restored"))
    assert task.restorer is not None
    made = task.samples.batch(64, 0, 2)
    _, inputs, _ = pairs(crops, range(2), ("camera",), 0.0, factor=4)
    with torch.no_grad():
        pictures = [picture.clamp(-1, 1) for picture in task.restorer(inputs)]
        wanted = [task.tokenizer.latents(picture) for picture in pictures]
    for latents, other in zip(made.latents, wanted, strict=True):
        torch.testing.assert_close(latents, other)


@pytest.mark.parametrize("target", ["restored", "photograph"])
def test_encoded_stages_are_conditioned_on_the_restored_images_latents(
    crops: Crops, tmp_path: Path, target: Literal["restored", "photograph"]
) -> None:
    # As many stages train as are encoded, so that no other images need be made.
    config = CodesConfig(sides=(64,), presets=("camera",), clean=0.0, target=target, stages=2)
    task = stem_task(crops, config, tmp_path, encoded=2)
    model, restorer = task.transformer, task.restorer
    assert model.stem is not None
    assert restorer is not None
    made, kept = (task.samples.batch(64, 0, 2) for _ in range(2))
    assert [len(part) for part in (made.latents, made.own, kept.latents, kept.own)] == [2, 2, 2, 2]
    torch.testing.assert_close(made.own, kept.own)
    targets, inputs, _ = pairs(crops, range(2), ("camera",), 0.0, factor=4)
    ladder = task.ladders[64]
    with torch.no_grad():
        restored = [task.tokenizer.latents(picture.clamp(-1, 1)) for picture in restorer(inputs)]
        features = restorer.features(inputs, factors=(1, 2))
        condition = condition_latents(task.tokenizer, model, restorer, ladder, inputs, features)
        guessed = model.stem(features[1], inputs, ladder)
    wanted = restored if target == "restored" else task.tokenizer.stage_latents(targets, ladder=ladder)
    torch.testing.assert_close(made.latents, wanted[:2])
    channels = wanted[0].shape[1]
    for stage, maps in enumerate(condition):
        torch.testing.assert_close(maps[:, :channels], restored[stage] if stage < 2 else guessed[stage][:, :channels])
        torch.testing.assert_close(maps[:, channels:], guessed[stage][:, channels:])
    assert {"latent", "accuracy_6"} <= set(task.losses(0, 2)[1])


def test_samples_on_disk_are_the_samples(crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CodesConfig(sides=(64,), presets=("stablesr", "camera"))
    made = as_floats(stem_task(crops, config).losses(3, 2)[1])
    cached = stem_task(crops, config, tmp_path)
    first = as_floats(cached.losses(3, 2)[1])
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["6.safetensors", "7.safetensors"]
    (folder / "7.safetensors").write_bytes(b"half")  # is made again
    assert float(cached.losses(3, 2)[1]["loss"]) == pytest.approx(first["loss"], rel=1e-5)
    monkeypatch.setattr(cached.samples, "_made", lambda *_: pytest.fail("they are on disk"))
    assert float(cached.losses(3, 2)[1]["loss"]) == pytest.approx(first["loss"], rel=1e-5)
    assert first["loss"] == pytest.approx(made["loss"], rel=2e-3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = cached.samples.batch(64, 3, 2)
    outside = cached.samples.batch(64, 3, 2)
    assert inside.features is not None
    assert outside.features is not None
    assert torch.equal(inside.features, outside.features)
    # Other settings and other photographs of the same names have other samples.
    other = stem_task(crops, dataclasses.replace(config, clean=0.5), tmp_path)
    assert other.samples.folders != cached.samples.folders
    with monkeypatch.context() as patch:
        changed = {name: dataclasses.replace(preset, clean_prob=0.5) for name, preset in PRESETS.items()}
        patch.setattr(code_samples, "PRESETS", changed)
        assert stem_task(crops, config, tmp_path).samples.folders != cached.samples.folders
    for path in EXAMPLES.glob("*.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "photos")
    elsewhere = Crops([str(tmp_path / "photos")], crops.side, seed=crops.seed)
    assert stem_task(elsewhere, config, tmp_path).samples.folders != cached.samples.folders


def test_a_cache_that_cannot_be_is_one_line(crops: Crops, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"file/64-\w+: cannot be written \(.+\); name another --cache"):
        stem_task(crops, CodesConfig(sides=(64,)), cache=tmp_path / "file")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: full")]
)
def test_a_full_disk_keeps_no_more_samples_and_the_training_goes_on(
    error: Exception, crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise error

    task = stem_task(crops, CodesConfig(sides=(64,)), cache=tmp_path)
    monkeypatch.setattr(code_samples, "save_file", full)
    made = [task.samples.batch(64, step, 2).latents[0] for step in (0, 1)]
    said = capsys.readouterr().err
    assert (said.count("no more samples can be kept ("), said.count("\n")) == (1, 1)
    plain = stem_task(crops, CodesConfig(sides=(64,)))
    torch.testing.assert_close(made[1], plain.samples.batch(64, 1, 2).latents[0])
    assert not list(tmp_path.rglob("*.*"))


def test_every_kept_sample_comes_at_every_side(crops: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    config = CodesConfig(sides=(64, 128, 64), kept_crops=4)
    task = CodesTask(model.transformer, model.tokenizer, {64: crops, 128: Crops([str(EXAMPLES)], 512)}, config)
    asked: dict[int, list[int]] = {64: [], 128: []}

    def made(side: int, places: list[int]) -> None:
        asked[side] += places
        raise StopIteration

    monkeypatch.setattr(task.samples, "_made", made)
    for step in range(12):
        with pytest.raises(StopIteration):
            task.losses(step, 1)
    assert asked == {64: [0, 1, 2, 3] * 2, 128: [0, 1, 2, 3]}
    task.grad_accum_steps = 2
    assert [task._step_of_side(step) for step in range(8)] == [0, 1, 0, 1, 2, 3, 4, 5]


def test_a_mixed_canvas_holds_own_codes_and_has_targets_of_its_own(crops: Crops) -> None:
    task = stem_task(crops, CodesConfig(sides=(64,)))
    ladder, tokenizer = task.ladders[64], task.tokenizer
    samples = task.samples.batch(64, 0, 2)
    own = tokenizer.quantize([z.flip(0) for z in samples.latents], ladder=ladder)
    codes, maps = task._history(samples.latents, own.steps, np.array([0.0, 1.0]), range(2), ladder, 0)
    plain = tokenizer.quantize(samples.latents, ladder=ladder)
    inputs, own_inputs = tokenizer.step_inputs(plain), tokenizer.step_inputs(own)
    for k in range(ladder.num_steps):
        assert torch.equal(codes[k][0], plain.steps[k][0])
        if k:
            torch.testing.assert_close(maps[k - 1][0], inputs[k - 1][0])
            torch.testing.assert_close(maps[k - 1][1], own_inputs[k - 1][1])
    assert torch.equal(codes[0][1], plain.steps[0][1])
    assert not all(torch.equal(codes[k][1], plain.steps[k][1]) for k in range(1, ladder.num_steps))


def test_a_predicted_canvas_is_that_of_a_restoration(crops: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    task = stem_task(crops, CodesConfig(sides=(64,), mixed=1, predicted=1, class_free=0))
    model, tokenizer, ladder = task.transformer, task.tokenizer, task.ladders[64]
    seen: list[list[Tensor]] = []
    forward = model.forward

    def watched(condition: Condition, maps: list[Tensor]) -> Tensor:
        seen.append(maps)
        return forward(condition, maps)

    monkeypatch.setattr(model, "forward", watched)
    task.losses(0, 2)
    samples = task.samples.batch(64, 0, 2)
    assert model.stem is not None
    assert samples.features is not None
    assert samples.inputs is not None
    condition = Condition(model.stem(samples.features, samples.inputs, ladder), samples.classes)
    noise = tile_noise(0, [(0, 0)] * 2)
    *_, last = sample(model, tokenizer.quantizer, ladder, condition, SamplingOptions(), noise=noise)
    for made, expected in zip(seen[0], tokenizer.step_inputs(last.codes), strict=True):
        torch.testing.assert_close(made, expected)


def test_a_process_without_a_predicted_canvas_samples_along_with_the_others(
    crops: Crops, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, along = (stem_task(crops, CodesConfig(sides=(64,), predicted=share)) for share in (0.0, 1e-12))
    sampled: list[int] = []

    def watched(*given: Any, noise: Any, **how: Any) -> Any:
        sampled.append(len(given[3].classes))
        return sample(*given, noise=noise, **how)

    monkeypatch.setattr(codes_training, "sample", watched)
    monkeypatch.setattr(codes_training, "any_process", lambda *_: [True])
    losses = [task.losses(0, 2)[0] for task in (plain, along)]
    assert sampled == [1]
    assert torch.equal(*losses)


def test_a_model_whose_codes_follow_the_restorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nextscale.commands.train.PRESETS", {"tiny": small_config})
    restorer, tokenizer, out = (tmp_path / name for name in ("restorer", "tokenizer", "out"))
    sizes = RestorerConfig(8, 2, grain_rank=0)
    save_folder(restorer, "restorer", sizes, Restorer(sizes).state_dict())
    Tokenizer(dataclasses.replace(small_config().tokenizer, fusion=None)).save_pretrained(tokenizer)
    change = tmp_path / "change.json"
    change.write_text(json.dumps({"transformer": {"condition": "restorer", "prefix": False, "stem": {"features": 8}}}))
    command = ["train", "transformer", "--data", str(EXAMPLES), "--steps", "1", "--batch", "1", "--no-bf16"]
    command += ["--tokenizer", str(tokenizer), "--out", str(out), "--codes.sides", "64"]
    new = [*command, "--config", str(change), "--restorer", str(restorer), "--cache", str(tmp_path / "cache")]
    assert main([*new, "--plan"]) == 0
    assert "restorer" in capsys.readouterr().out
    assert main(new) == 0
    model = NextScale.from_pretrained(out / "model", device="cpu")
    assert model.transformer.stem is not None
    assert model.upscale(np.zeros((40, 60, 3), np.uint8), scale=2).picture.size == (120, 80)
    on = [*command, "--start", str(out / "model")]  # a later --out counts
    assert main([*on, "--out", str(tmp_path / "on")]) == 0
    assert main([*command, "--config", str(change), "--out", str(tmp_path / "no")]) == 1
    assert "needs a restorer" in capsys.readouterr().err
    assert main([*command, "--restorer", str(restorer), "--out", str(tmp_path / "no")]) == 2
    assert "--restorer has no effect" in capsys.readouterr().err
    assert main([*command, "--codes.latent-steps", "5", "--out", str(tmp_path / "no")]) == 2
    assert "--codes.latent-steps has no effect" in capsys.readouterr().err
    wide = RestorerConfig(16, 2, grain_rank=0)
    save_folder(tmp_path / "wide", "restorer", wide, Restorer(wide).state_dict())
    assert main([*on, "--restorer", str(tmp_path / "wide"), "--out", str(tmp_path / "no")]) == 1
    assert "the stem reads 8 channels of features, the restorer has 16" in capsys.readouterr().err


def test_a_damaged_state_is_one_clear_line(crops: Crops, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"half a checkpoint")
    model = random_model()
    transformer = model.transformer.requires_grad_(True)
    task = CodesTask(transformer, model.tokenizer, {64: crops}, CodesConfig(stages=1, sides=(64,)))
    with pytest.raises(NextScaleError, match=r"state\.pt: not a state of this training"):
        train(task, loop(1), tmp_path)


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = LoopConfig(steps=100, warmup=10, final_lr=0.1)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_commands_chain_from_nothing_to_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nextscale.commands.train.PRESETS", {"tiny": small_config})
    data = ["--data", str(EXAMPLES)]
    short = ["--steps", "1", "--batch", "1", "--no-bf16"]
    plain = ["--reconstruction.feature", "0", "--reconstruction.lpips", "0"]
    ae, cb, model = (tmp_path / name for name in ("ae", "cb", "model"))
    tokenizer = ["train", "tokenizer", *data, *short]
    assert main([*tokenizer, "--phase", "autoencoder", "--out", str(ae), *plain]) == 0
    kmeans = ["--codebook.kmeans-images", "8", "--codebook.kmeans-rounds", "1"]
    assert main([*tokenizer, "--phase", "codebook", "--start", str(ae / "model"), "--out", str(cb), *kmeans]) == 0
    finetuned = ["--phase", "finetune-codebook", "--start", str(cb / "model"), "--out", str(tmp_path / "finetuned")]
    assert main([*tokenizer, *finetuned]) == 0
    assert main(["train", "transformer", *data, *short, "--tokenizer", str(cb / "model"), "--out", str(model)]) == 0
    assert isinstance(NextScale.from_pretrained(model / "model"), NextScale)
    assert main([*tokenizer, "--phase", "codebook", "--out", str(tmp_path / "none")]) == 2
    assert "needs --start" in capsys.readouterr().err


def test_a_plan_tells_the_cost_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["train", "tokenizer", "--phase", "autoencoder", "--data", str(EXAMPLES), "--out", str(out), "--plan"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "parameters" in said
    assert "FLOPs" in said
    assert "It fits" in said
    assert not out.exists()
