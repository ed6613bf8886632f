"""The plan's counts: those of the tasks' own steps, and what it makes of them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nextscale.data.crops import Crops
from nextscale.errors import OptionError
from nextscale.model.config import FusionConfig, ModelConfig, RestorerConfig, TaesdConfig, TokenizerConfig, paper
from nextscale.model.restorer import Restorer
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import Transformer
from nextscale.train.config import CodebookConfig, CodesConfig, LoopConfig, ReconstructionConfig, RestorationConfig
from nextscale.train.costs import (
    ATTENTION,
    WHOLE,
    Training,
    pieces,
    preparation_flops,
    rates_of_sides,
    tokens_per_sample,
    training_flops,
    training_flops_per_sample,
)
from nextscale.train.hardware import HARDWARE, Hardware, PlanConfig, this_cpu
from nextscale.train.plan import Plan, plan, remedy, render
from nextscale.train.stream import Samples
from nextscale.train.tasks.codebook import CodebookTask
from nextscale.train.tasks.reconstruction import ReconstructionTask
from nextscale.train.tasks.restorer import RestorerTask
from nextscale.train.tasks.transformer import CodesTask
from tests.conftest import small_config

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
Planned = ReconstructionTask | CodesTask | CodebookTask | RestorerTask
SMALL = RestorerConfig(channels=8, convs=2)


def plain_config() -> ModelConfig:
    """The small model without the older fidelity branch, which no training runs."""
    config = small_config()
    return ModelConfig(dataclasses.replace(config.tokenizer, fusion=None), config.transformer)


def whole_config() -> ModelConfig:
    config = plain_config()
    return ModelConfig(config.tokenizer, config.transformer, SMALL, FusionConfig(8, 1, 8))


@pytest.fixture(scope="module")
def crops() -> Crops:
    return Crops([str(EXAMPLES)], 256)


def reconstruction(crops: Crops, unquantized_prob: float) -> ReconstructionTask:
    torch.manual_seed(0)
    config = ReconstructionConfig(feature=0, lpips=0, unquantized_prob=unquantized_prob)
    return ReconstructionTask(Tokenizer(plain_config().tokenizer), crops, config)


def codes(crops: Crops) -> CodesTask:
    torch.manual_seed(0)
    part, config = plain_config().tokenizer, plain_config().transformer
    transformer = Transformer(config, part.ladder, part.codebook_size, part.autoencoder.latent_channels)
    return CodesTask(transformer, Tokenizer(part), {64: crops}, CodesConfig(sides=(64,)))


def codebook(crops: Crops) -> CodebookTask:
    torch.manual_seed(0)
    return CodebookTask(Tokenizer(plain_config().tokenizer), crops, CodebookConfig())


def restorer(
    crops: Crops, anchor: float = 0.0, own: int = 0, precleaned: float = 0.0, share: float = 1.0, refined: int = 0
) -> RestorerTask:
    # The counter sees the degradation, too, so the draws are those of photographs alone; the plan has the dial at 1.
    config = RestorationConfig(
        side=64, workers=0, feature=0, lpips=0, grain=0, smooth_share=0, anchor=anchor, anchor_share=share
    )
    blocks = 1 if own and refined else 0
    sizes = dataclasses.replace(
        SMALL, largest_convs=own, largest_blocks=blocks, precleaned=precleaned, refined_channels=refined
    )
    return RestorerTask(Restorer(sizes), Samples(crops, None, None, config), config)


TASKS: dict[Training, Callable[[Crops], Planned]] = {
    "autoencoder": lambda crops: reconstruction(crops, 1.0),
    "decoders": lambda crops: reconstruction(crops, 0.0),
    "codebook": codebook,
    "transformer": codes,
    "restorer": restorer,
}


def kept_bytes(task: Planned, held: dict[int, Tensor]) -> torch.autograd.graph.saved_tensors_hooks:
    """Collects all tensors that a forward pass saves for the backward pass, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in task.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


@pytest.mark.parametrize("training", TASKS)
def test_a_real_step_has_the_flops_and_activations_that_are_planned(crops: Crops, training: Training) -> None:
    task = TASKS[training](crops)
    held: dict[int, Tensor] = {}
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        with kept_bytes(task, held):
            loss, _ = task.losses(0, 2)
        kept = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
        loss.backward()  # type: ignore[no-untyped-call]
    parts = pieces(SMALL if training == "restorer" else plain_config(), training, 64, batch=2)
    assert training_flops(parts) + preparation_flops(parts) == pytest.approx(counter.get_total_flops(), rel=0.08)
    if training in ("autoencoder", "decoders", "transformer"):
        assert sum(p.kept for p in parts) == pytest.approx(kept, rel=0.25)
    modules = [task.model, task.tokenizer] if isinstance(task, CodesTask) else [task.model]
    assert sum(p.parameters for p in parts) == sum(p.numel() for m in modules for p in m.parameters())


@pytest.mark.parametrize(
    ("own", "precleaned", "share", "refined"),
    [(0, 0.0, 1.0, 0), (1, 0.0, 1.0, 0), (1, 0.2, 0.5, 0), (1, 0.2, 0.0, 0), (0, 0.0, 1.0, 4), (1, 0.2, 0.5, 4)],
)
def test_an_anchor_is_planned_as_it_runs(crops: Crops, own: int, precleaned: float, share: float, refined: int) -> None:
    task = restorer(crops, 1.0, own, precleaned, share, refined)
    with FlopCounterMode(display=False) as counter:
        loss, _ = task.losses(0, 2)
        loss.backward()  # type: ignore[no-untyped-call]
    parts = pieces(task.restorer.config, "restorer", 64, batch=2, anchored=share)
    assert training_flops(parts) + preparation_flops(parts) == pytest.approx(counter.get_total_flops(), rel=0.08)
    assert parts[0].parameters == sum(p.numel() for p in task.restorer.parameters())


def test_a_sample_of_paper_has_4476_tokens() -> None:
    assert tokens_per_sample(paper()) == (1024, 3452)
    assert tokens_per_sample(paper(), 64) == (256, 863)
    assert tokens_per_sample(paper(), stages=1) == (1024, 116)


def test_checkpointing_keeps_less_and_costs_time_and_not_model_flops() -> None:
    plain, again = (
        plan(plain_config(), "transformer", LoopConfig(activation_checkpointing=value), PlanConfig("h100"), sides=(64,))
        for value in (False, True)
    )
    assert again.step_flops == plain.step_flops
    assert plain.seconds < again.seconds < 1.4 * plain.seconds
    assert again.memory["activations"] < 0.8 * plain.memory["activations"]
    assert training_flops_per_sample(plain_config(), side=64) == pytest.approx(plain.step_flops / 8)
    shown = text(plain)
    assert "1119 = 256 prefix + 863" in shown
    assert "at 40% of 989 TFLOPS" in shown


def test_every_kind_of_autoencoder_keeps_less_with_checkpointing() -> None:
    plain = plain_config()
    taesd = TokenizerConfig(autoencoder=TaesdConfig(channels=16, inner_channels=8, blocks=2, latent_channels=12))
    for part in (plain.tokenizer, taesd):
        encoder, decoders = (
            p for p in pieces(ModelConfig(part, plain.transformer), "autoencoder", 64) if p.name != "codebook"
        )
        assert 0 < encoder.checkpointed < 0.95 * encoder.kept
        assert 0 < decoders.checkpointed < 0.95 * decoders.kept


def test_a_step_sees_batch_times_accumulation_times_processes() -> None:
    loop = LoopConfig(steps=100, batch=8, grad_accum_steps=2)
    made = plan(plain_config(), "transformer", loop, PlanConfig("a100-80", processes=24), sides=(64,), photographs=384)
    assert made.samples == 384
    assert made.step_flops == pytest.approx(384 * training_flops_per_sample(plain_config(), side=64))
    assert made.seconds * made.rate * 1e12 * 0.4 * 24 > made.step_flops
    assert "100 epochs" in text(made)


def test_larger_sides_take_fewer_samples() -> None:
    made = plan(plain_config(), "transformer", LoopConfig(batch=8), PlanConfig("a100-80"), sides=(64, 64, 64, 128))
    assert made.batches == {64: 8, 128: 2}
    assert made.samples == (3 * 8 + 2) / 4
    flops = (
        3 * 8 * training_flops_per_sample(plain_config(), side=64)
        + 2 * training_flops_per_sample(plain_config(), side=128)
    ) / 4
    assert made.step_flops == pytest.approx(flops)
    tokens, per_sample = rates_of_sides(plain_config(), (64, 64, 64, 128))
    assert 8 * per_sample == pytest.approx(flops)
    assert tokens == (3 * 1119 + 4476 / 4) / 4


def test_fsdp_divides_weights_and_optimizer() -> None:
    alone, ddp, fsdp = (
        plan(plain_config(), "transformer", loop, PlanConfig("a100-80", processes=count), sides=(64,))
        for loop, count in ((LoopConfig(), 1), (LoopConfig(), 8), (LoopConfig(parallel="fsdp"), 8))
    )
    assert ddp.peak > alone.peak
    assert fsdp.memory["optimizer"] == pytest.approx(alone.memory["optimizer"] / 8)
    assert fsdp.memory["activations"] == alone.memory["activations"]


@pytest.mark.parametrize(
    ("batch", "memory_gib", "advice"),
    [(1, 80, ""), (64, 1.1, "--activation-checkpointing"), (1, 0.5, "--parallel fsdp")],
)
def test_whether_it_fits_is_told_with_the_remedy(batch: int, memory_gib: float, advice: str) -> None:
    made = plan(
        plain_config(),
        "transformer",
        LoopConfig(batch=batch),
        PlanConfig("a100-80", memory_gib=memory_gib),
        sides=(64,),
    )
    assert made.fits == (not advice)
    assert advice in remedy(made)
    assert ("It fits." in text(made)) == made.fits


def test_sharding_is_not_advised_where_it_is_refused() -> None:
    made = plan(plain_config(), "transformer", LoopConfig(), PlanConfig("a100-80", memory_gib=0.5), sides=(64,))
    for training in WHOLE:
        assert "fsdp" not in remedy(dataclasses.replace(made, training=training))


def text(made: Plan) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(made))
    return console.export_text()


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"utilization": 1.5}, {"tflops": -1.0}])
def test_impossible_machines_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="a plan needs"):
        PlanConfig(**wrong)  # type: ignore[arg-type]


def test_this_cpu_is_measured() -> None:
    measured = this_cpu(64)
    assert measured.bf16 > 0
    assert measured.fp32 > 0
    assert 0.1 < measured.memory_gib < 1e5
    assert PlanConfig("h100", memory_gib=40).hardware.memory_gib == 40
    assert PlanConfig("h100").hardware is HARDWARE["h100"]


def test_the_default_is_the_machine_that_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextscale.device.product_rate", lambda _, dtype, *__, **___: 1e12 * (1 + dtype.itemsize))
    config = PlanConfig()
    assert config.device == "this"
    assert config.name == "device of this machine"
    assert (config.hardware.bf16, config.hardware.fp32) == (3.0, 5.0)


def test_a_gpu_here_is_measured_and_named_by_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * 2**30))
    monkeypatch.setattr("nextscale.device.product_rate", lambda _, dtype, *__: 1e12 * (1 + dtype.itemsize))
    assert PlanConfig().hardware == Hardware(3.0, 5.0, 24.0)


def test_the_fusion_trains_on_what_all_other_parts_say() -> None:
    parts = pieces(whole_config(), "fusion", 64)
    assert {part.name: part.passes for part in parts} == {"tokenizer": 1, "transformer": 1, "restorer": 1, "fusions": 3}
    assert all(part.parameters and part.flops for part in parts)
    made = plan(whole_config(), "fusion", LoopConfig(batch=2), PlanConfig(tflops=50, memory_gib=12), sides=(64,))
    assert "given device" in text(made)
    assert made.memory["optimizer"] == 8 * parts[-1].parameters


def test_decoders_on_predicted_codes_are_all_that_trains() -> None:
    parts = {part.name: part for part in pieces(plain_config(), "predicted decoders", 64)}
    assert {name for name, part in parts.items() if part.passes > 1} == {"decoders"}
    own = {part.name: part for part in pieces(plain_config(), "decoders", 64)}
    assert parts["decoders"].flops == own["decoders"].flops
    assert parts["transformer"].flops > 0
