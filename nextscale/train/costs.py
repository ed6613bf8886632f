"""What a batch costs in each part of a training, counted on the real modules with fake tensors.

A FLOP is a multiplication or an addition of a matrix product or convolution. A backward pass counts twice its forward
pass. Reading, degradation and the perceptual networks are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from nextscale.model.config import Ladder, ModelConfig, RestorerConfig
from nextscale.model.restorer import Restorer
from nextscale.model.tokenizer import BLOCKS, Codes, Tokenizer
from nextscale.model.transformer import Condition, Transformer
from nextscale.train.config import anchor_inputs
from nextscale.train.loop import checkpoint_units
from nextscale.upscale.nextscale import make_fusions

Training = Literal[
    "autoencoder",
    "codebook",
    "finetune-codebook",
    "decoders",
    "transformer",
    "restorer",
    "fusion",
    "predicted decoders",
]
WHOLE: tuple[Training, ...] = ("codebook", "finetune-codebook", "fusion", "predicted decoders")
"""Those that read or write weights as whole tensors, and so refuse to shard them."""
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(slope: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(slope, query, key, value))  # type: ignore[no-untyped-call]


ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The counter knows the attention of GPUs only."""


@dataclass
class Piece:
    """A part of a training: what it runs, and what that costs for a batch."""

    name: str
    modules: list[nn.Module]
    passes: int
    """1: forward only. 3: forward and backward."""
    run: Callable[[], Any] | None = None
    """The forward pass; None where the weights are only held in memory."""
    exact: bool = False
    """In float32 whatever the training runs in."""
    parameters: int = 0
    flops: float = 0.0
    """Of the forward pass."""
    kept: float = 0.0
    """Bytes that the forward pass leaves for the backward pass."""
    checkpointed: float = 0.0
    """The same with activation checkpointing, and the largest block that runs again."""


def _empty(make: Callable[[], ModuleT]) -> ModuleT:
    """A module with fake weights, built without allocating real ones."""
    with unset_fake_temporarily(), torch.device("meta"):
        module = make()
    module._apply(lambda weight: torch.empty(weight.shape, dtype=weight.dtype))  # type: ignore[no-untyped-call]
    return module


class _Networks:
    """A model's networks without numbers, and what its trainings run of them for a batch of photographs."""

    def __init__(self, config: ModelConfig, ladder: Ladder, stages: int, batch: int) -> None:
        tokenizer, channels = config.tokenizer, config.tokenizer.autoencoder.latent_channels
        self.config, self.ladder, self.stages = config, ladder, stages
        self.tokenizer = _empty(lambda: Tokenizer(tokenizer))
        self.images = torch.empty(batch, 3, ladder.image_sides[-1], ladder.image_sides[-1])
        self.inputs = torch.empty(batch, 3, ladder.input_side, ladder.input_side)
        self.latents = [torch.empty(batch, channels, side, side) for side in ladder.canvases]
        sides = ladder.sides[: ladder.stage_ends[stages - 1]]
        self.codes = Codes([torch.zeros(batch, side, side, dtype=torch.long) for side in sides], ladder)
        self.maps = [torch.empty(batch, channels, side, side) for side in sides]
        self.condition = Condition(self.latents, torch.zeros(batch, dtype=torch.long))

    @functools.cached_property
    def transformer(self) -> Transformer:
        part = self.config.tokenizer
        channels = part.autoencoder.latent_channels
        return _empty(lambda: Transformer(self.config.transformer, part.ladder, part.codebook_size, channels))

    @functools.cached_property
    def restorer(self) -> Restorer:
        restoring = self.config.restorer
        assert restoring is not None
        return _empty(lambda: Restorer(restoring))

    def restore(self) -> dict[int, Tensor]:
        return self.restorer.features(self.inputs)

    def encode(self) -> list[Tensor]:
        return self.tokenizer.stage_latents(self.images, ladder=self.ladder)

    def decode(self) -> list[Tensor]:
        return _differences([self.tokenizer.decode_canvas(f, stage) for stage, f in enumerate(self.latents)])

    def canvases(self) -> list[Tensor]:
        return self.tokenizer.canvases(self.codes)

    def quantize(self) -> Any:
        return self.tokenizer.quantize(self.latents[: self.stages], ladder=self.ladder), self.canvases()

    def search(self) -> list[Tensor]:
        return [self.tokenizer.quantizer.nearest(m) for m in self.maps]

    def tokenize(self) -> Any:
        photograph = self.tokenizer.encode(self.images, self.stages, ladder=self.ladder)
        maps = self.tokenizer.step_inputs(self.codes)
        return photograph, maps, self.tokenizer.quantize(self.encode()[: self.stages], ladder=self.ladder)

    def predict(self) -> Tensor:
        condition, stem = self.condition, self.transformer.stem
        if stem is not None:
            encoded = self.latents[: self.transformer.config.stem.encoded]
            features = torch.empty(*self.inputs.shape[:1], stem.enter.in_channels - 3, *self.inputs.shape[2:])
            condition = replace(condition, latents=stem(features, self.inputs, self.ladder, encoded))
        logits: Tensor = self.transformer(condition, self.maps[1:])
        with torch.autocast("cpu", enabled=False):
            return logits.log_softmax(-1)

    def decoder_features(self) -> list[Tensor]:
        decoders = self.tokenizer.decoders
        return [decoders[n].features(f)[0] for n, f in enumerate(self.latents)]  # type: ignore[operator]


def _forwards(config: ModelConfig, training: Training, ladder: Ladder, stages: int, batch: int) -> list[Piece]:
    """The parts of a training on the tokenizer's latents, as its task runs them."""
    run = _Networks(config, ladder, stages, batch)
    tokenizer = run.tokenizer
    encoder: list[nn.Module] = [tokenizer.encoder, tokenizer.quant_conv]
    decoders: list[nn.Module] = [tokenizer.decoders]
    codebook: list[nn.Module] = [tokenizer.quantizer]
    if training == "autoencoder":
        frozen = Piece("codebook", codebook, 1)
        return [Piece("encoder", encoder, 3, run.encode), frozen, Piece("decoders", decoders, 3, run.decode)]
    if training == "decoders":
        quantize = Piece("codebook", codebook, 1, run.quantize, exact=True)
        return [Piece("encoder", encoder, 1, run.encode), quantize, Piece("decoders", decoders, 3, run.decode)]
    if training in ("codebook", "finetune-codebook"):
        return [
            Piece("encoder", encoder, 1, run.encode, exact=True),
            Piece("nearest codes", [], 1, run.search, exact=True),
            Piece("codebook", codebook, 3, run.canvases),
            Piece("decoders", decoders, 1),
        ]
    if training == "transformer":
        own = config.transformer.condition == "restorer"
        return [
            Piece("tokenizer", [tokenizer], 1, run.tokenize, exact=True),
            *([Piece("restorer", [run.restorer], 1, run.restore, exact=True)] if own else []),
            Piece("transformer", [run.transformer], 3, run.predict),
        ]
    if training == "predicted decoders":
        return [
            Piece("tokenizer", [*encoder, *codebook], 1, lambda: (run.encode(), run.quantize()), exact=True),
            Piece("transformer", [run.transformer], 1, run.predict, exact=True),
            *([Piece("restorer", [run.restorer], 1, run.restore, exact=True)] if config.restorer else []),
            Piece("decoders", decoders, 3, run.decode),
        ]
    return _fusion_forwards(run)


def _restorer_forwards(config: RestorerConfig, side: int, batch: int, *, anchored: float | None) -> list[Piece]:
    """The restorer's training: all of it, or what the largest factor has for itself.

    With an anchor the largest factor makes pictures of its inputs, too, and the restorer as it was makes them again.
    """
    restorer, inputs = _empty(lambda: Restorer(config)), torch.empty(batch, 3, side, side)
    own, factor = restorer.largest, config.factors[-1]

    held = torch.empty(0 if anchored is None else anchor_inputs(batch, anchored), 3, side, side)

    def largest(restorer: Restorer) -> Tensor:
        return restorer.draft(restorer.features(held, factors=(factor,)), held, factor)

    pieces = []
    if len(held):
        before = _empty(lambda: Restorer(config))
        pieces.append(Piece("restorer as it was", [before], 1, lambda: largest(before)))
    if own is None:

        def every() -> list[Tensor]:
            return _differences([*restorer(inputs), *([largest(restorer)] if len(held) else [])])

        return [*pieces, Piece("restorer", [restorer], 3, every)]
    inputs = torch.empty(batch + len(held), 3, side, side)
    h = torch.empty(len(inputs), config.channels, side, side)
    shared, cleaning = slice(config.convs + 1 - config.largest_convs), restorer.cleaning

    def frozen() -> Any:
        if cleaning is None:
            return restorer.body(inputs, part=shared)
        # The whole body and the head of factor 1, and the shared convolutions again.
        return restorer.draft({1: restorer.body(inputs)}, inputs, 1), restorer.body(inputs, part=shared)

    def trained() -> list[Tensor]:
        read = h if cleaning is None else h + cleaning(h)
        return _differences([restorer.draft({1: h, factor: restorer.deeper(own(read))}, inputs, factor)])

    modules = [
        own,
        restorer.deeper,
        restorer.heads[-1],
        *(part for part in (cleaning, restorer.refinement) if part is not None),
    ]
    return [
        *pieces,
        Piece("restorer", [restorer.body], 1, frozen),
        Piece(f"x{factor}'s own layers", modules, 3, trained),
    ]


def _fusion_forwards(run: _Networks) -> list[Piece]:
    """The parts of the fusions' training: everything else is frozen and runs before them."""
    config, inputs = run.config, run.inputs
    assert config.restorer is not None
    assert config.fusion is not None
    restoring, sizes, restorer = config.restorer, config.fusion, run.restorer
    fusions = _empty(lambda: make_fusions(sizes, Restorer(restoring), Tokenizer(config.tokenizer)))
    confidence = inputs.new_empty(len(inputs), 1, *inputs.shape[2:])
    with torch.no_grad():
        restored = restorer.features(inputs)
        decoded = run.decoder_features() if sizes.codes else [None] * len(fusions)

    def tokenize() -> Any:
        return run.encode(), run.quantize(), run.decoder_features() if sizes.codes else None

    def fuse() -> Any:
        made = [
            fusion(inputs, h, d, confidence) for fusion, h, d in zip(fusions, restored.values(), decoded, strict=True)
        ]
        refined = [restorer.refined(made[n][0], restored, factor) for n, factor in enumerate(restored)]
        return _differences(refined), made

    return [
        Piece("tokenizer", [run.tokenizer], 1, tokenize),
        Piece("transformer", [run.transformer], 1, run.predict),
        Piece("restorer", [restorer], 1, lambda: restorer.features(inputs)),
        Piece("fusions", [fusions], 3, fuse),
    ]


def _differences(pictures: list[Tensor]) -> list[Tensor]:
    """A pixel loss per picture, which keeps as many values for the backward pass as the real one."""
    return [(picture.float() - torch.empty(picture.shape)).abs().mean() for picture in pictures]


def _count(piece: Piece, *, bf16: bool) -> Piece:
    """Fill in what a piece costs."""
    parameters = [p for module in piece.modules for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(piece.passes > 1)
    weights = {p.untyped_storage()._cdata for p in parameters}
    outside: dict[int, Tensor] = {}
    within: list[dict[int, Tensor]] = []
    entered: list[Tensor] = []
    inside = False

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            (within[-1] if inside else outside)[storage] = tensor
        return tensor

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal inside
        del module
        inside = True
        within.append({})
        entered.extend(x for x in arguments if isinstance(x, Tensor))

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    for unit in (unit for module in piece.modules for unit in _units(module)):
        unit.register_forward_pre_hook(enter)
        unit.register_forward_hook(leave)
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=bf16 and not piece.exact)
    with torch.set_grad_enabled(piece.passes > 1), counter, hooks, cast:
        result = piece.run() if piece.run else None
    del result
    blocks = [_bytes(block) for block in within]
    piece.parameters = sum(p.numel() for p in parameters)
    piece.flops = float(counter.get_total_flops())
    piece.kept = _bytes(outside | {key: x for block in within for key, x in block.items()})
    inputs = {x.untyped_storage()._cdata: x for x in entered}
    piece.checkpointed = _bytes(outside | inputs) + max(blocks, default=0.0)
    return replace(piece, modules=[], run=None)


def _units(module: nn.Module) -> list[nn.Module]:
    """What checkpointing would run again in a module or in the parts of its owner."""
    declared = checkpoint_units(module)
    return declared or [m for m in module.modules() if isinstance(m, BLOCKS)]


def _bytes(tensors: dict[int, Tensor]) -> float:
    return float(sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()))


@functools.lru_cache(maxsize=64)
def _pieces(
    config: ModelConfig | RestorerConfig,
    training: Training,
    side: int,
    stages: int,
    batch: int,
    *,
    bf16: bool,
    anchored: float | None,
) -> tuple[Piece, ...]:
    with FakeTensorMode():
        if isinstance(config, RestorerConfig):
            found = _restorer_forwards(config, side, batch, anchored=anchored)
        else:
            ladder = config.tokenizer.ladder
            ladder = ladder.for_input(side or ladder.input_side)
            found = _forwards(config, training, ladder, stages or ladder.num_stages, batch)
        return tuple(_count(piece, bf16=bf16) for piece in found)


def pieces(
    config: ModelConfig | RestorerConfig,
    training: Training,
    side: int = 0,
    *,
    stages: int = 0,
    batch: int = 1,
    bf16: bool = False,
    anchored: float | None = None,
) -> list[Piece]:
    """What a batch costs in each part of a training.

    Args:
        config: a restorer's for its training, else a whole model's.
        side: of the input photograph in pixels (0: the model's own).
        stages: train the transformer on the first stages only (0: all).
        anchored: the restorer's training keeps to the restorer as it was, on so many inputs as a share of the batch
            (`RestorationConfig.anchor_share`; None: no anchor).
    """
    return list(_pieces(config, training, side, stages, batch, bf16=bf16, anchored=anchored))


def training_flops(parts: Sequence[Piece]) -> float:
    """FLOPs of forward and backward of what is trained."""
    return sum(part.passes * part.flops for part in parts if part.passes > 1)


def preparation_flops(parts: Sequence[Piece]) -> float:
    """FLOPs of the frozen parts, which only run forward: tokenizing, say."""
    return sum(part.flops for part in parts if part.passes == 1)


def training_flops_per_sample(
    config: ModelConfig, training: Training = "transformer", side: int = 0, *, stages: int = 0
) -> float:
    """FLOPs of forward and backward for one sample: what model FLOPs utilization counts.

    Recomputed and masked work does not count, nor do tokenization and degradation.
    """
    return training_flops(pieces(config, training, side, stages=stages))


def tokens_per_sample(config: ModelConfig, side: int = 0, *, stages: int = 0) -> tuple[int, int]:
    """Tokens of the prefix, and of all steps, for an input photograph of a side in pixels (0: the model's own)."""
    ladder = config.tokenizer.ladder
    ladder = ladder.for_input(side or ladder.input_side)
    steps = ladder.sides[: ladder.stage_ends[(stages or ladder.num_stages) - 1]]
    return ladder.canvases[-1] ** 2 if config.transformer.prefix else 0, sum(s * s for s in steps)


def rates_of_sides(config: ModelConfig, sides: Sequence[int], *, stages: int = 0) -> tuple[float, float]:
    """Tokens and training FLOPs per sample of the nominal batch, where a transformer sees several sides in turn.

    A larger side than the smallest takes fewer samples, as many times fewer as its picture is larger.
    """
    shares = [(side, min(sides) ** 2 / side**2) for side in sides]
    tokens = sum(share * sum(tokens_per_sample(config, side, stages=stages)) for side, share in shares)
    flops = sum(share * training_flops_per_sample(config, side=side, stages=stages) for side, share in shares)
    return tokens / len(sides), flops / len(sides)
