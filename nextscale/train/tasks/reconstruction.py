"""Trains the tokenizer from scratch: first the autoencoder, then the decoders on quantized latents.

Encoder and decoders start as a linear patch transform (principal components), which gives 26 dB before any training.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.data.crops import Crops
from nextscale.evaluate.metrics.lpips import Lpips, Vgg19Features
from nextscale.model.layers import area_downsample
from nextscale.model.tokenizer import Tokenizer
from nextscale.train.adversarial import Adversary
from nextscale.train.config import LoopConfig, ReconstructionConfig
from nextscale.train.distributed import positions
from nextscale.train.log import Numbers
from nextscale.train.loop import decay_groups
from nextscale.train.pairs import draws, photographs
from nextscale.train.terms import chances, resampled_lpips, window_of
from nextscale.train.validation import Validation


@torch.no_grad()
def start_linear(tokenizer: Tokenizer, crops: Crops, *, images: int = 128, scale: float = 8.0) -> None:
    """Set the linear paths to the principal components of 16 x 16 patches of all stage sizes, divided by `scale`."""
    size = tokenizer.config.autoencoder.reduction
    channels = tokenizer.config.autoencoder.latent_channels
    hr = torch.from_numpy(crops.batch(0, images)).float() / 127.5 - 1
    patches = []
    largest = tokenizer.ladder.canvases[-1]
    for canvas in reversed(tokenizer.ladder.canvases):
        small = area_downsample(hr, hr.shape[-1] * canvas // largest)
        rows = F.unfold(small, size, stride=size).transpose(1, 2).flatten(0, 1)
        patches.append(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:20000]])
    stacked = torch.cat(patches)
    mean = stacked.mean(0)
    _, vectors = torch.linalg.eigh((stacked - mean).T @ (stacked - mean))
    basis = vectors[:, -channels:].flip(1).T
    linear = tokenizer.encoder.linear
    assert linear is not None
    linear.weight.copy_(basis.view(channels, 3, size, size) / scale)
    linear.bias.copy_(-(basis @ mean) / scale)  # type: ignore[union-attr]
    for decoder in tokenizer.decoders:
        decoder.linear.weight.copy_(basis.view(channels, 3, size, size) * scale)  # type: ignore[union-attr, operator]
        decoder.linear.bias.copy_(mean.view(3, -1).mean(1))  # type: ignore[union-attr, operator]


class ReconstructionTask:
    """Decoders, and the encoder while no sample is quantized, against the photograph at each stage's size.

    The terms per stage are pixel difference, VGG19 features, LPIPS-squeeze, the patch grid, and a critic if the config
    gives it a weight. The decoders' fusion of models of version 4 (`TokenizerConfig.fusion`) is not trained.

    Args:
        tokenizer: trained in place.
        crops: photographs of the last stage's side.
        config: weights of the terms, share of unquantized samples.
        validation: photographs for `validation_pictures`.
    """

    def __init__(
        self, tokenizer: Tokenizer, crops: Crops, config: ReconstructionConfig, validation: Validation | None = None
    ) -> None:
        self.model: nn.Module = tokenizer
        self.tokenizer = tokenizer
        self.crops = crops
        self.config = config
        self.validation = validation
        self.device = tokenizer.quant_conv.weight.device
        self.ladder = tokenizer.ladder.for_input(config.side)
        self.train_encoder = config.unquantized_prob == 1
        self.grad_accum_steps = 1
        layers = ("conv1_2", "conv2_2", "conv3_1")
        self.vgg = Vgg19Features(layers).to(self.device) if config.feature or config.adversarial else None
        self.adversary: Adversary | None = None
        if config.adversarial:
            self.adversary = Adversary(self.ladder.num_stages, (64, 128, 256), config.critic_lr, self.device)
        self.lpips = Lpips("squeeze").to(self.device) if config.lpips else None
        tokenizer.requires_grad_(True)
        tokenizer.quantizer.requires_grad_(config.codebook)
        tokenizer.encoder.requires_grad_(self.train_encoder)
        tokenizer.quant_conv.requires_grad_(self.train_encoder)
        if tokenizer.encoder.linear is not None:
            # Its weights are so small (unit vectors over 768 pixels, divided by `scale`) that Adam's steps erase them.
            tokenizer.encoder.linear.requires_grad_(False)
        for part in (tokenizer.input_features, *(decoder.fusion for decoder in tokenizer.decoders)):
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def groups(self, config: LoopConfig) -> list[dict[str, Any]]:
        self.grad_accum_steps = config.grad_accum_steps
        return decay_groups(self.model.named_parameters(), config.lr, config.weight_decay)

    def losses(self, step: int, batch: int) -> tuple[Tensor, Numbers]:
        config, tokenizer = self.config, self.tokenizer
        first = positions(step, batch).start
        targets = photographs(self.crops, step, batch, self.device, soft=config.soft)
        unquantized = draws(self.crops.seed, 4, first, batch, 3)[:, 2]
        # What is quantized is encoded in float32; an autoencoder in training may encode in 16 bits.
        exact = torch.autocast(targets.device.type, enabled=False)
        with torch.set_grad_enabled(self.train_encoder), nullcontext() if self.train_encoder else exact:
            latents = tokenizer.stage_latents(targets, ladder=self.ladder)
        decoder_inputs = latents
        if config.noise:
            sigma = latents[-1].detach().square().mean(dim=(1, 2, 3), keepdim=True).sqrt() * config.noise
            noise = [_noise(self.crops.seed, first + i, latents) for i in range(batch)]
            decoder_inputs = [
                z + sigma * torch.stack(n).to(z) for z, n in zip(latents, zip(*noise, strict=True), strict=True)
            ]
        if config.unquantized_prob < 1:
            with torch.no_grad():
                codes = tokenizer.quantize(latents, ladder=self.ladder)
            with torch.set_grad_enabled(config.codebook):
                canvases = tokenizer.canvases(codes)
            keep = torch.from_numpy(unquantized < config.unquantized_prob).view(-1, 1, 1, 1).to(self.device)
            decoder_inputs = [torch.where(keep, z, f) for z, f in zip(decoder_inputs, canvases, strict=True)]
        total = targets.new_zeros(())
        numbers: dict[str, float | Tensor] = {}
        for stage, (f, side) in enumerate(zip(decoder_inputs, self.ladder.image_sides, strict=True)):
            output = tokenizer.decode_canvas(f, stage).float()
            target = area_downsample(targets, side)
            difference = output - target
            terms = {"pixel": difference.square().mean() if config.squared else difference.abs().mean()}
            if config.grid and tokenizer.config.autoencoder.patch > 1:
                terms["grid"] = _grid(difference, tokenizer.config.autoencoder.patch)
            chance = chances(self.crops.seed, stage, step // self.grad_accum_steps)
            window, target_window = (window_of(images, chance, 128) for images in (output, target))
            if self.lpips is not None:
                terms["lpips"] = resampled_lpips(self.lpips, window, target_window, 0.75 + 0.75 * chance[2])
            if self.vgg is not None:
                with torch.no_grad():
                    real = self.vgg(target_window / 2 + 0.5)
                made = self.vgg(window / 2 + 0.5)
                terms["feature"] = torch.stack([(a - b).abs().mean() for a, b in zip(made, real, strict=True)]).mean()
                if self.adversary is not None and stage + 1 >= config.disc_start_stage:
                    value, numbers[f"g_loss_{stage + 1}"] = self.adversary.generator_loss(stage, made)
                    terms["adversarial"] = value
                    self.adversary.keep(stage, made, real)
            for name, value in terms.items():
                total = total + getattr(config, name) * value
                if name != "adversarial":
                    # Its value means nothing, only its gradient.
                    numbers[f"{name}_{stage + 1}"] = value.detach()
        numbers["loss"] = total.detach()
        return total, numbers

    @torch.no_grad()
    def validation_pictures(self, average: nn.Module) -> list[Tensor]:
        """The validation photographs encoded and decoded by the averaged tokenizer, at each stage."""
        assert self.validation is not None
        assert isinstance(average, Tokenizer)
        canvases = average.stage_latents(self.validation.targets, ladder=self.ladder)
        if self.config.unquantized_prob < 1:
            canvases = average.canvases(average.quantize(canvases, ladder=self.ladder))
        return [average.decode_canvas(f, stage).float().clamp(-1, 1) for stage, f in enumerate(canvases)]


def _noise(seed: int, position: int, latents: list[Tensor]) -> list[Tensor]:
    """Gaussian noise of variance 1 for one sample's latents, C h w per stage; it depends on seed and position alone."""
    generator = torch.Generator().manual_seed(int(np.random.default_rng((seed, 8, position)).integers(2**62)))
    return [torch.randn(z.shape[1:], generator=generator) for z in latents]


def _grid(difference: Tensor, patch: int, window: int = 32) -> Tensor:
    """How much of a difference B 3 H H repeats from patch to patch.

    Each place within a patch is averaged over windows of patches; the result is how far these means lie from the mean
    of all places.
    """
    channels = difference.shape[1]
    places = F.pixel_unshuffle(difference, patch)
    means = F.avg_pool2d(places, min(window, places.shape[-1]))
    means = means.view(len(means), channels, patch**2, *means.shape[2:])
    deviation: Tensor = (means - means.mean(dim=2, keepdim=True)).abs().mean()
    return deviation
