"""What the transformer trains on: latents of photographs and of their degraded inputs, made once and kept on disk.

Degrading and encoding are most of a training step's work on a CPU, and the same for every transformer that is trained.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextscale.console import complain
from nextscale.data.crops import Crops
from nextscale.data.degrade import PRESETS, check_presets
from nextscale.errors import OptionError
from nextscale.files import canonical, check_writable, make_folders, write_atomic
from nextscale.model.restorer import Restorer
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import enlarge
from nextscale.train.config import CodesConfig
from nextscale.train.distributed import positions
from nextscale.train.pairs import pairs, whole_factor
from nextscale.upscale.pipeline import restored_latents


@dataclass(frozen=True)
class CodeBatch:
    """B samples, float32."""

    latents: list[Tensor]
    """Those whose codes are learned: the photographs', or their restored inputs', B Z h w of each stage that trains."""
    own: list[Tensor]
    """Those that the condition holds, per stage: the enlarged inputs'. Where the transformer is conditioned on the
    restorer's features, the restored images' of the stages that are encoded (`StemConfig.encoded`)."""
    features: Tensor | None
    """The restorer's features B C h w, where the transformer is conditioned on them."""
    classes: Tensor
    """B: 0 degraded, 1 clean."""
    inputs: Tensor | None = None
    """Of which the features were made, where there are any: B 3 h w in [-1, 1]."""


class CodeSamples:
    """The sample of a position in the stream: it depends on the seed and the position alone.

    Args:
        crops: of each side in pixels of the inputs.
        restorer: on whose features the transformer is conditioned (None: on latents of the enlarged input).
        encoded: of how many stages the condition has the restored image's latents too.
        cache: folder to keep samples in; each set of weights and settings has a folder of its own within it.

    Raises:
        OptionError: the config names a preset that does not exist, or the cache cannot be written.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        restorer: Restorer | None,
        crops: dict[int, Crops],
        config: CodesConfig,
        cache: Path | None = None,
        *,
        encoded: int = 0,
    ) -> None:
        check_presets(config.presets)
        self.tokenizer, self.restorer, self.encoded = tokenizer, restorer, encoded
        self.crops, self.config = crops, config
        self.device = tokenizer.quant_conv.weight.device
        self.ladders = {side: tokenizer.ladder.for_input(side) for side in crops}
        self.factor = whole_factor(tokenizer.ladder)
        self.stages = config.stages or tokenizer.ladder.num_stages
        self.folders: dict[int, Path] = {}
        if cache is not None:
            self.folders = {side: cache / f"{side}-{self._fingerprint(side)}" for side in crops}
            for folder in self.folders.values():
                try:
                    make_folders(folder)
                    check_writable(folder / "sample")
                except OSError as error:
                    raise OptionError(f"{folder}: cannot be written ({error.strerror}); name another --cache") from None
        self.keeping = True
        """False once the disk has refused a sample."""

    def batch(self, side: int, step: int, batch: int) -> CodeBatch:
        """The samples of this process at a step, for inputs of a side."""
        kept = self.config.kept_crops
        places = [place % kept if kept else place for place in positions(step, batch)]
        folder = self.folders.get(side)
        if folder is None:
            return self._made(side, places)
        loaded = {place: _load(folder / f"{place}.safetensors") for place in set(places)}
        found = {place: sample for place, sample in loaded.items() if sample is not None}
        missing = sorted(loaded.keys() - found.keys())
        if missing:
            made = self._made(side, missing)
            for row, place in enumerate(missing):
                found[place] = _pack(made, row)
                self._keep(folder / f"{place}.safetensors", found[place])
        return self._joined([found[place] for place in places])

    @torch.no_grad()
    def _made(self, side: int, places: list[int]) -> CodeBatch:
        config, tokenizer, ladder = self.config, self.tokenizer, self.ladders[side]
        crops = self.crops[side]
        targets, inputs, classes = pairs(
            crops,
            places,
            config.presets,
            config.clean,
            self.device,
            factor=self.factor,
            soft=config.soft,
            sharpen=config.sharpen,
        )
        # What is quantized is encoded in float32.
        with torch.autocast(targets.device.type, enabled=False):
            targets, inputs = (x.contiguous(memory_format=torch.channels_last) for x in (targets, inputs))
            if self.restorer is None:
                latents, own = (
                    tokenizer.stage_latents(images, ladder=ladder)
                    for images in (targets, enlarge(inputs, targets.shape[-1]))
                )
                return CodeBatch(latents, own, None, classes)
            factors = self.restorer.config.factors
            known = factors[: max(self.stages, self.encoded) if config.target == "restored" else self.encoded]
            restored = self.restorer.features(inputs, factors=known or factors[:1])
            latents = restored_latents(tokenizer, self.restorer, restored, inputs, known)
            own, features = latents[: self.encoded], restored[factors[0]]
            if config.target == "photograph":
                latents = tokenizer.stage_latents(targets, self.stages, ladder=ladder)
            return CodeBatch(latents[: self.stages], own, features, classes, inputs)

    def _keep(self, path: Path, sample: dict[str, Tensor]) -> None:
        """Keep a sample; a training of days does not end because the disk of its cache is full."""
        if not self.keeping:
            return
        plain = {name: tensor.cpu().contiguous() for name, tensor in sample.items()}
        try:
            write_atomic(path, lambda part: save_file(plain, part))
        except (OSError, SafetensorError) as error:
            self.keeping = False
            reason = str(error).splitlines()[0]
            complain(f"{path.parent}: no more samples can be kept ({reason}); the training goes on without keeping any")

    def _joined(self, samples: list[dict[str, Tensor]]) -> CodeBatch:
        def stacked(name: str) -> Tensor:
            # As float32 before they meet: a CPU's autocast to bfloat16 does not stack float16.
            return torch.stack([sample[name].float() for sample in samples]).to(self.device)

        stages = self.tokenizer.ladder.num_stages
        latents = [stacked(f"latent_{n}") for n in range(stages if self.restorer is None else self.stages)]
        own = [stacked(f"own_{n}") for n in range(stages if self.restorer is None else self.encoded)]
        if self.restorer is not None:
            return CodeBatch(latents, own, stacked("features"), stacked("class").long(), stacked("inputs"))
        return CodeBatch(latents, own, None, stacked("class").long())

    def _fingerprint(self, side: int) -> str:
        """Of everything that samples follow from."""
        crops, config = self.crops[side], self.config
        digest = hashlib.sha256()
        # Photographs by path, size and time: names alone are alike in many folders.
        files = [(path, os.stat(path)) for path in sorted({source.path for source in crops.sources})]
        photographs = [(canonical(Path(path)), about.st_size, about.st_mtime_ns) for path, about in files]
        places = [(source.name, source.offset) for source in crops.sources]
        settings = (
            [PRESETS[name] for name in (*config.presets, "bilinear")],
            config.clean,
            config.soft,
            config.sharpen,
            config.target,
            crops.seed,
            crops.side,
            f"with inputs, {self.encoded} encoded, {self.stages} stages",  # what a sample holds
        )
        digest.update(repr((photographs, places, settings, self.ladders[side])).encode())
        for part in (self.tokenizer.encoder, self.tokenizer.quant_conv, self.restorer):
            for name, tensor in (part.state_dict() if part is not None else {}).items():
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _pack(batch: CodeBatch, row: int) -> dict[str, Tensor]:
    tensors = {f"latent_{n}": z[row] for n, z in enumerate(batch.latents)}
    tensors |= {f"own_{n}": z[row] for n, z in enumerate(batch.own)}
    if batch.features is not None:
        assert batch.inputs is not None
        tensors |= {"features": batch.features[row].half(), "inputs": batch.inputs[row].half()}
    return tensors | {"class": batch.classes[row]}


def _load(path: Path) -> dict[str, Tensor] | None:
    """A sample that is there and whole."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
