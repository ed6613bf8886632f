"""The plan's arithmetic against the modules it speaks of: their parameters, counted FLOPs, and kept activations."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextscale.data.crops import Crops
from nextscale.errors import OptionError
from nextscale.model.config import ModelConfig, paper, tiny
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import Condition, Transformer
from nextscale.train.config import CodebookConfig, CodesConfig, LoopConfig, ReconstructionConfig
from nextscale.train.plan import (
    GIB,
    HARDWARE,
    Plan,
    PlanConfig,
    Precision,
    Training,
    attention_pairs,
    pieces,
    plan,
    preparation_flops,
    rates_of_sides,
    remedy,
    render,
    segments,
    span,
    this_cpu,
    tokens_per_sample,
    training_flops,
    training_flops_per_sample,
    transformer_costs,
)
from nextscale.train.tasks.codebook import CodebookTask
from nextscale.train.tasks.reconstruction import ReconstructionTask
from nextscale.train.tasks.transformer import CodesTask
from tests.conftest import small_config

EXAMPLES = Path(__file__).parents[2] / "examples"
PRESETS = {"small": small_config, "tiny": tiny, "paper": paper}


def parameters(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def models(config: ModelConfig) -> tuple[Tokenizer, Transformer]:
    tokenizer = config.tokenizer
    return Tokenizer(tokenizer), Transformer(
        config.transformer, tokenizer.ladder, tokenizer.codebook_size, tokenizer.autoencoder.latent_channels
    )


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors hold no numbers, so that there is nothing to initialise."""
    monkeypatch.setattr(Transformer, "init_weights", lambda _: None)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_modules(preset: str) -> None:
    config = PRESETS[preset]()
    with torch.device("meta"):
        tokenizer, transformer = models(config)
    decoders = parameters(tokenizer.decoders, tokenizer.input_features)
    counted = {part.name: part.cost.parameters for part in pieces(config, "transformer")}
    assert counted["encoder"] == parameters(tokenizer.encoder, tokenizer.quant_conv)
    assert counted["codebook"] == parameters(tokenizer.quantizer)
    assert counted["decoders"] == decoders
    assert counted["embeddings"] + counted["blocks"] + counted["head"] == parameters(transformer)
    assert counted["blocks"] == parameters(transformer.stack.blocks, transformer.stack.shared_ada)
    trainings: list[Training] = ["autoencoder", "codebook", "vocabulary", "decoders"]
    for training in trainings:
        assert sum(p.cost.parameters for p in pieces(config, training)) == parameters(tokenizer)


def test_a_sample_of_paper_has_4476_tokens_and_58_percent_of_dense_attention() -> None:
    assert tokens_per_sample(paper()) == (1024, 3452)
    assert tokens_per_sample(paper(), 64) == (256, 863)
    assert tokens_per_sample(paper(), stages=1) == (1024, 116)
    assert attention_pairs(segments(paper().tokenizer.ladder)) / 4476**2 == pytest.approx(0.58, abs=0.005)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("preset", PRESETS)
def test_transformer_flops_are_those_counted_forward_and_back(preset: str) -> None:
    config = PRESETS[preset]()
    ladder, channels = config.tokenizer.ladder, config.tokenizer.autoencoder.latent_channels
    # The counter knows the plain attention only.
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        _, transformer = models(config)
        condition = Condition([torch.empty(1, channels, c, c) for c in ladder.canvases], torch.zeros(1).long())
        maps = [torch.empty(1, channels, s, s) for s in ladder.sides[1:]]
        with FlopCounterMode(display=False) as forward:
            tokens = [transformer.start(condition), *(transformer.embed(m, k) for k, m in enumerate(maps, start=1))]
            logits = transformer.logits(tokens, condition)
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()  # type: ignore[no-untyped-call]
    costs = transformer_costs(config, ladder, 0, Precision())
    planned = sum(cost.flops for cost in costs.values())
    assert planned == pytest.approx(forward.get_total_flops(), rel=0.001)
    # The first layers send no gradient to the latents.
    assert 2 * planned == pytest.approx(backward.get_total_flops(), rel=0.01)
    assert training_flops_per_sample(config) == pytest.approx(3 * planned)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("preset", PRESETS)
def test_tokenizer_flops_are_those_counted(preset: str) -> None:
    config = PRESETS[preset]()
    tokenizer = config.tokenizer
    ladder, channels = tokenizer.ladder, tokenizer.autoencoder.latent_channels
    side = ladder.image_sides[-1]
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        module = Tokenizer(tokenizer)
        latents = [torch.empty(1, channels, c, c) for c in ladder.canvases]
        with FlopCounterMode(display=False) as encoding:
            module.stage_latents(torch.empty(1, 3, side, side))
        with FlopCounterMode(display=False) as quantising:
            module.quantise(latents)
        with FlopCounterMode(display=False) as decoding:
            inputs = torch.empty(1, 3, ladder.input_side, ladder.input_side)
            features = None if module.input_features is None else module.input_features(inputs)
            for stage, f in enumerate(latents):
                module.decode_canvas(f, stage, inputs=inputs, features=features, weight=0.5)
    planned = {part.name: part.cost.flops for part in pieces(config, "decoders")}
    assert planned["encoder"] == pytest.approx(encoding.get_total_flops(), rel=0.001)
    assert planned["codebook"] == pytest.approx(quantising.get_total_flops(), rel=0.001)
    assert planned["decoders"] + planned.get("fusion", 0) == pytest.approx(decoding.get_total_flops(), rel=0.001)


@pytest.fixture(scope="module")
def crops() -> Crops:
    return Crops([str(EXAMPLES)], 256)


def reconstruction(crops: Crops, continuous: float) -> ReconstructionTask:
    torch.manual_seed(0)
    config = ReconstructionConfig(feature=0, lpips=0, unquantized_prob=continuous)
    return ReconstructionTask(Tokenizer(small_config().tokenizer), crops, config)


def codes(crops: Crops) -> CodesTask:
    torch.manual_seed(0)
    tokenizer, transformer = models(small_config())
    return CodesTask(transformer, tokenizer, {64: crops}, CodesConfig(sides=(64,)))


def codebook(crops: Crops) -> CodebookTask:
    torch.manual_seed(0)
    return CodebookTask(Tokenizer(small_config().tokenizer), crops, CodebookConfig())


TASKS: dict[Training, Callable[[Crops], ReconstructionTask | CodesTask | CodebookTask]] = {
    "autoencoder": lambda crops: reconstruction(crops, 1.0),
    "decoders": lambda crops: reconstruction(crops, 0.0),
    "codebook": codebook,
    "transformer": codes,
}


@pytest.mark.parametrize("training", TASKS)
def test_the_flops_of_a_real_step_are_those_planned(crops: Crops, training: Training) -> None:
    task = TASKS[training](crops)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss, _ = task.losses(0, 1)
        loss.backward()  # type: ignore[no-untyped-call]
    parts = pieces(small_config(), training, 64)
    planned = training_flops(parts) + preparation_flops(parts)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.05)


def kept_bytes(task: ReconstructionTask | CodesTask | CodebookTask, *, bf16: bool) -> int:
    """Bytes of all tensors that a forward pass saves for the backward pass, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in task.model.parameters()}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        task.losses(0, 2)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("training", ["autoencoder", "decoders", "transformer"])
def test_the_activations_of_a_real_step_are_those_planned(crops: Crops, training: Training, bf16: bool) -> None:
    measured = kept_bytes(TASKS[training](crops), bf16=bf16)
    loop = LoopConfig(batch=2, bf16=bf16)
    memory = plan(small_config(), training, loop, PlanConfig("cpu", tflops=1), sides=(64,)).memory
    planned = memory["activations"] + memory.get("16 bit copies of weights", 0)
    assert planned == pytest.approx(measured, rel=0.15)


def test_recomputing_keeps_the_inputs_of_the_blocks_only() -> None:
    whole, less = (
        transformer_costs(paper(), paper().tokenizer.ladder, 0, Precision(), recompute=recompute)["blocks"]
        for recompute in (False, True)
    )
    assert less.kept == 16 * 4476 * 1024 * 4
    assert less.kept < whole.kept / 10
    assert less.flops == whole.flops
    assert less.working > whole.working


def test_a_step_sees_batch_times_accumulation_times_processes() -> None:
    loop = LoopConfig(steps=100, batch=8, grad_accum_steps=2)
    made = plan(paper(), "transformer", loop, PlanConfig("a100-80", processes=24), photographs=384)
    assert made.samples == 384
    assert made.step_flops == pytest.approx(384 * training_flops_per_sample(paper()))
    assert made.seconds * made.rate * 1e12 * 0.4 * 24 > made.step_flops
    assert "100 epochs" in text(made)


def test_larger_sides_take_fewer_samples() -> None:
    made = plan(tiny(), "transformer", LoopConfig(batch=8), PlanConfig("a100-80"), sides=(64, 64, 64, 128))
    assert made.batches == {64: 8, 128: 2}
    assert made.samples == (3 * 8 + 2) / 4
    flops = (3 * 8 * training_flops_per_sample(tiny(), side=64) + 2 * training_flops_per_sample(tiny(), side=128)) / 4
    assert made.step_flops == pytest.approx(flops)
    tokens, per_sample = rates_of_sides(tiny(), (64, 64, 64, 128))
    assert 8 * per_sample == pytest.approx(flops)
    assert tokens == (3 * 1119 + 4476 / 4) / 4


def test_recomputing_costs_time_and_not_model_flops() -> None:
    plain, again = (
        plan(paper(), "transformer", LoopConfig(activation_checkpointing=value), PlanConfig("h100"))
        for value in (False, True)
    )
    assert again.step_flops == plain.step_flops
    assert 1.1 * plain.seconds < again.seconds < 1.4 * plain.seconds
    assert again.peak < plain.peak / 2


def test_fsdp_divides_weights_and_optimiser() -> None:
    alone, ddp, fsdp = (
        plan(paper(), "transformer", loop, PlanConfig("a100-80", processes=count))
        for loop, count in ((LoopConfig(), 1), (LoopConfig(), 8), (LoopConfig(parallel="fsdp"), 8))
    )
    assert ddp.peak > alone.peak
    assert fsdp.memory["optimiser"] == pytest.approx(alone.memory["optimiser"] / 8)
    assert fsdp.memory["activations"] == alone.memory["activations"]


@pytest.mark.parametrize(
    ("batch", "memory_gib", "advice"), [(1, 80, ""), (64, 80, "--activation-checkpointing"), (1, 4, "--parallel fsdp")]
)
def test_whether_it_fits_is_told_with_the_remedy(batch: int, memory_gib: float, advice: str) -> None:
    made = plan(paper(), "transformer", LoopConfig(batch=batch), PlanConfig("a100-80", memory_gib=memory_gib))
    assert made.fits == (not advice)
    assert advice in remedy(made)
    assert ("It fits." in text(made)) == made.fits


def text(made: Plan) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(made))
    return console.export_text()


def test_the_tables_tell_the_numbers() -> None:
    shown = text(plan(paper(), "transformer", LoopConfig(steps=13000, batch=16), PlanConfig("a100-80", processes=24)))
    assert "4476 = 1024 prefix + 3452" in shown
    assert "384 on 24 x a100-80" in shown
    assert "302 M" in shown
    assert "at 40% of 312 TFLOPS" in shown
    assert "given device" in text(plan(tiny(), "fusion", LoopConfig(), PlanConfig(tflops=50, memory_gib=12)))


def test_fusion_trains_decoders_and_dial_on_what_the_frozen_transformer_says() -> None:
    passes = {part.name: part.passes for part in pieces(tiny(), "fusion")}
    assert passes == {"encoder": 1, "codebook": 1, "transformer": 1, "decoders": 3, "fusion": 3}
    # A model without a dial trains its decoders alone.
    assert "fusion" not in {part.name for part in pieces(paper(), "fusion")}


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"utilisation": 1.5}, {"tflops": -1.0}])
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


@pytest.mark.parametrize(("seconds", "said"), [(0.5, "0.5 s"), (150, "2.5 min"), (9000, "2.5 h"), (216000, "2.5 days")])
def test_times_are_said_in_their_unit(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; from nextscale.train import plan as p; from nextscale.model.config import paper; "
        "from nextscale.train.config import LoopConfig; "
        "p.show(p.plan(paper(), 'transformer', LoopConfig())); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert plan(paper(), "transformer", LoopConfig()).peak > 4 * GIB
