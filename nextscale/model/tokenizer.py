"""The hierarchical tokenizer: images <-> codes.

Shapes: B images, C latent channels, H side of an image, h w a canvas (1/16 of the image's side), rho side of a step.
Images are RGB in [-1, 1]; latents and canvases are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nextscale.errors import OptionError
from nextscale.model.checkpoint import (
    WEIGHTS,
    check_sizes,
    find_folder,
    load_weights,
    read_config,
    read_kind,
    save_folder,
)
from nextscale.model.config import Ladder, ModelConfig, TaesdConfig, TokenizerConfig
from nextscale.model.decoder import Decoder, InputFeatures
from nextscale.model.encoder import Encoder
from nextscale.model.layers import AttentionBlock, ResBlock, area_downsample
from nextscale.model.quantizer import Quantizer, Scan
from nextscale.model.taesd import TaesdBlock, TaesdDecoder, TaesdEncoder

BLOCKS = (ResBlock, AttentionBlock, TaesdBlock)
"""Blocks of encoders and decoders: what activation checkpointing runs again."""


@dataclass(frozen=True)
class Codes:
    """The token ids of a batch of images."""

    steps: list[Tensor]
    """One map B rho rho per step, int64, from the first step on; perhaps not all steps of the ladder."""
    ladder: Ladder
    """That of the tile size."""

    @property
    def num_stages(self) -> int:
        """Number of complete stages."""
        return sum(end <= len(self.steps) for end in self.ladder.stage_ends)

    def stages(self, count: int) -> Codes:
        """The codes of the first `count` stages, from 1."""
        return Codes(self.steps[: self.ladder.stage_ends[count - 1]], self.ladder)


def tokenizer_config(name: str | Path) -> TokenizerConfig:
    """The configuration of a tokenizer, by itself or in a whole model: a folder, a shipped name, or a hub id.

    Raises:
        ModelError: in one line, what is wrong with the folder.
    """
    folder = find_folder(name)
    if read_kind(folder) == "model":
        return read_config(folder, "model", ModelConfig).tokenizer
    return read_config(folder, "tokenizer", TokenizerConfig)


class Tokenizer(nn.Module):
    """Encoder, residual quantizer and one decoder per stage (paper section 3).

    `encode` and `decode` go from images to codes and back; `latents`, `quantize`, `canvases` and `decode_canvas` are
    the parts of that way, which trainings use one by one.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        auto = config.autoencoder
        self.encoder: Encoder | TaesdEncoder
        if isinstance(auto, TaesdConfig):
            self.encoder = TaesdEncoder(auto)
            self.quant_conv = nn.Conv2d(auto.inner_channels * auto.space_to_depth**2, auto.latent_channels, 1)
        else:
            self.encoder = Encoder(auto)
            self.quant_conv = nn.Conv2d(auto.latent_channels, auto.latent_channels, 3, padding=1)
        if auto.linear_path:
            with torch.no_grad():
                nn.init.dirac_(self.quant_conv.weight)
                self.quant_conv.bias.zero_()  # type: ignore[union-attr]
        self.quantizer = Quantizer(config.codebook_size, auto.latent_channels, config.num_phi)
        self.decoders = nn.ModuleList(
            TaesdDecoder(auto, factor) if isinstance(auto, TaesdConfig) else Decoder(auto, config.fusion, factor)
            for factor in config.ladder.factors
        )
        self.input_features = None if config.fusion is None else InputFeatures(config.fusion)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Tokenizer:
        """Load a tokenizer, by itself or out of a whole model, in evaluation mode and float32.

        Args:
            name: a folder, a shipped model's name, or a hub id.

        Raises:
            ModelError: in one line, what is wrong with the folder.
        """
        folder = find_folder(name)
        config = tokenizer_config(folder)
        prefix = "tokenizer." if read_kind(folder) == "model" else ""
        check_sizes(folder / WEIGHTS, lambda: cls(config), prefix=prefix)
        tokenizer = cls(config)
        load_weights(folder / WEIGHTS, tokenizer, prefix=prefix)
        return tokenizer.eval()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors; gives the folder."""
        return save_folder(folder, "tokenizer", self.config, self.state_dict())

    @property
    def ladder(self) -> Ladder:
        """The ladder of the model's own tile size."""
        return self.config.ladder

    def with_ladder(self, ladder: Ladder) -> Tokenizer:
        """The same weights on another ladder: fewer stages, other steps, one stage for all.

        A stage keeps the decoder of its canvas; one that has none gets a copy of the largest's. The decoders keep their
        fusion (models of version 4) only where every stage keeps its factor.
        """
        old = self.ladder
        old_stages = {side: stage for stage, side in enumerate(old.canvases)}
        sources = [old_stages.get(side, old.num_stages - 1) for side in ladder.canvases]
        other = Tokenizer(self.config.with_ladder(ladder))
        state = self.state_dict()
        for stage, source in enumerate(sources):
            decoder = self.decoders[source].state_dict()
            state |= {f"decoders.{stage}.{name}": tensor for name, tensor in decoder.items()}
        other.load_state_dict({name: state[name] for name in other.state_dict()})
        return other.to(self.quant_conv.weight.device).eval()

    def checkpoint_units(self) -> list[nn.Module]:
        """The blocks that activation checkpointing runs again, and that FSDP gathers one at a time."""
        parts = (self.encoder, *self.decoders)
        return [block for part in parts for block in part.modules() if isinstance(block, BLOCKS)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode and decode images: B 3 H H in [-1, 1] -> each stage's image B 3 H_n H_n, smallest first, not clamped.

        Raises:
            OptionError: the images are not square or smaller than the last stage.
        """
        return [self.decode_canvas(f, stage) for stage, f in enumerate(self.canvases(self.encode(images)))]

    def latents(self, images: Tensor) -> Tensor:
        """Images B 3 H W in [-1, 1], sides multiples of 16 -> latents B C H/16 W/16, float32."""
        out: Tensor = self.quant_conv(self.encoder(images))
        return out.float()

    def stage_latents(self, images: Tensor, stages: int | None = None, *, ladder: Ladder | None = None) -> list[Tensor]:
        """Latents of the images area-averaged to each stage's size, B C h w per stage (Z_n of the paper).

        Args:
            images: B 3 H H in [-1, 1], at least the side of the last stage asked for.
            stages: how many stages (default: all).
            ladder: for tiles of another size (default: the model's own).

        Raises:
            OptionError: the images are not square or too small.
        """
        ladder = ladder or self.ladder
        sides = ladder.image_sides[:stages]
        if images.shape[-1] < sides[-1] or images.shape[-2] != images.shape[-1]:
            raise OptionError(f"images must be square and at least {sides[-1]} px, got {tuple(images.shape[-2:])}")
        return [self.latents(area_downsample(images, side)) for side in sides]

    def encode(self, images: Tensor, stages: int | None = None, *, ladder: Ladder | None = None) -> Codes:
        """Codes of images, by the paper's Algorithm 1.

        Args:
            images: B 3 H H in [-1, 1], at least the side of the last stage asked for.
            stages: encode only the first stages, whose codes equal those of the full encoding (default: all).
            ladder: for tiles of another size (default: the model's own).

        Raises:
            OptionError: the images are not square or too small.
        """
        ladder = ladder or self.ladder
        return self.quantize(self.stage_latents(images, stages, ladder=ladder), ladder=ladder)

    def quantize(self, latents: list[Tensor], *, ladder: Ladder | None = None) -> Codes:
        """Codes of the first stages' latents, each B C h w on its stage's canvas."""
        ladder = ladder or self.ladder
        scan = Scan(self.quantizer, ladder)
        steps = []
        for stage, latent in enumerate(latents):
            for _ in ladder.steps_of(stage):
                steps.append(self.quantizer.nearest(scan.residual(latent)))
                scan.push(steps[-1])
        return Codes(steps, ladder)

    def canvases(self, codes: Codes) -> list[Tensor]:
        """f of each complete stage: B C h w on that stage's canvas, float32."""
        scan = Scan(self.quantizer, codes.ladder)
        out = []
        for ids in codes.steps:
            scan.push(ids)
            if scan.step == codes.ladder.stage_ends[scan.stage]:
                assert scan.f is not None
                out.append(scan.f)
        return out

    def step_inputs(self, codes: Codes) -> list[Tensor]:
        """The transformer's teacher-forced input map of each step but the first: B C rho rho, float32."""
        scan = Scan(self.quantizer, codes.ladder)
        out = []
        for k, ids in enumerate(codes.steps):
            if k:
                out.append(scan.input())
            scan.push(ids)
        return out

    def decode(self, codes: Codes, stage: int | None = None) -> Tensor:
        """Codes -> images B 3 H H in [-1, 1], by the paper's decoder alone.

        Args:
            codes: of at least one complete stage.
            stage: from 0 (default: the last complete one).

        Raises:
            OptionError: the codes do not complete that stage.
        """
        stage = codes.num_stages - 1 if stage is None else stage
        if not 0 <= stage < codes.num_stages:
            raise OptionError(f"these codes complete {codes.num_stages} stages, stage {stage} is not among them")
        f = self.canvases(codes.stages(stage + 1))[-1]
        return self.decode_canvas(f, stage).clamp(-1, 1)

    def decode_canvas(
        self,
        f: Tensor,
        stage: int,
        *,
        inputs: Tensor | None = None,
        features: Tensor | None = None,
        fidelity: float | Tensor = 0.0,
    ) -> Tensor:
        """Canvas f B C h w of a stage -> images B 3 16h 16w, about [-1, 1], not clamped.

        Args:
            f: the sum of the codes' vectors on the stage's canvas.
            stage: from 0.
            inputs: the input photographs B 3 H W in [-1, 1]; only models of version 4 use them.
            features: `input_features(inputs)`, when at hand from another stage.
            fidelity: 0 (the input is ignored) to 1: one for all images, or B 1 1 1.
        """
        if self.input_features is None or inputs is None or (isinstance(fidelity, float) and fidelity == 0):
            return self.decoders[stage](f)  # type: ignore[no-any-return]
        if features is None:
            features = self.input_features(inputs)
        if not isinstance(fidelity, Tensor):
            fidelity = f.new_full((f.shape[0], 1, 1, 1), fidelity)
        return self.decoders[stage](f, inputs=inputs, features=features, fidelity=fidelity)  # type: ignore[no-any-return]
