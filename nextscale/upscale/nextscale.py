"""The public face of a model: load, save and share it, and restore pictures with it."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from nextscale.errors import ModelError
from nextscale.model.checkpoint import (
    WEIGHTS,
    check_sizes,
    find_folder,
    half_precision,
    load_weights,
    read_config,
    read_kind,
    save_folder,
)
from nextscale.model.config import FusionConfig, Ladder, ModelConfig, RestorerConfig
from nextscale.model.restorer import Restorer
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import Transformer
from nextscale.upscale.card import CARD, FACTS, CardFacts, model_card
from nextscale.upscale.options import UpscaleOptions, cascade, output_size
from nextscale.upscale.pipeline import Pipeline, TileStage, make_fusions, match_color, mean_probability
from nextscale.upscale.plan import WorkPlan
from nextscale.upscale.run import Progress, Reveal, Run, UpscaleResult, as_picture, plan_of, shown_map, to_pil

__all__ = [
    "DEFAULT_MODEL",
    "NextScale",
    "Progress",
    "Reveal",
    "TileStage",
    "UpscaleResult",
    "WorkPlan",
    "as_picture",
    "cascade",
    "make_fusions",
    "match_color",
    "mean_probability",
    "output_size",
    "shown_map",
    "to_pil",
    "with_restorer",
]

DEFAULT_MODEL = "tiny"


class NextScale:
    """A tokenizer, a transformer and, in newer models, a restorer and a fusion: ready to restore pictures."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        transformer: Transformer,
        restorer: Restorer | None = None,
        fusions: nn.ModuleList | None = None,
    ) -> None:
        self.pipeline = Pipeline(config, tokenizer, transformer, restorer, fusions)
        self.facts = CardFacts()
        """What the model card says of its training; as loaded."""

    @classmethod
    def create(cls, config: ModelConfig) -> NextScale:
        """A model with fresh random weights."""
        part = config.tokenizer
        transformer = Transformer(config.transformer, part.ladder, part.codebook_size, part.autoencoder.latent_channels)
        tokenizer = Tokenizer(part)
        if config.restorer is None or config.fusion is None:
            return cls(config, tokenizer, transformer)
        restorer = Restorer(config.restorer)
        return cls(config, tokenizer, transformer, restorer, make_fusions(config.fusion, restorer, tokenizer))

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT_MODEL, *, device: str = "auto", fp32: bool = False
    ) -> NextScale:
        """Load a model.

        Args:
            name: a shipped model's name, a folder, or a hub id.
            device: auto (CUDA, then MPS, then CPU), or a torch device.
            fp32: compute in float32 even where 16 bit is faster.

        Raises:
            ModelError: in one line, what is wrong with the folder.
            OptionError: the device is not there.
        """
        folder = find_folder(name)
        config = read_config(folder, "model", ModelConfig)
        check_sizes(folder / WEIGHTS, lambda: cls.create(config).modules)
        model = cls.create(config)
        load_weights(folder / WEIGHTS, model.modules)
        if (folder / FACTS).is_file():
            model.facts = CardFacts.parse((folder / FACTS).read_text(encoding="utf-8"), str(folder / FACTS))
        return model.to(device, fp32=fp32)

    @classmethod
    def assemble(cls, tokenizer: str | Path, transformer: str | Path) -> NextScale:
        """A model of two folders: a tokenizer, and a converted transformer or the one of another whole model.

        Raises:
            ModelError: one of them is damaged, or they do not fit each other.
        """
        first, second = find_folder(tokenizer), find_folder(transformer)
        part = Tokenizer.from_pretrained(first)
        kind = "transformer" if read_kind(second) == "transformer" else "model"
        config = read_config(second, kind, ModelConfig)
        if (config.tokenizer.ladder, config.tokenizer.codebook_size) != (part.ladder, part.config.codebook_size):
            raise ModelError(f"{second}: its ladder or vocabulary is not that of the tokenizer {first}")
        if kind == "model":
            return cls(
                ModelConfig(part.config, config.transformer),
                part,
                cls.from_pretrained(second, device="cpu", fp32=True).transformer,
            )
        whole = ModelConfig(part.config, config.transformer)
        sizes = (part.ladder, part.config.codebook_size, part.config.autoencoder.latent_channels)
        check_sizes(second / WEIGHTS, lambda: Transformer(whole.transformer, *sizes))
        model = cls.create(whole)
        load_weights(second / WEIGHTS, model.transformer)
        return cls(model.config, part, model.transformer)

    def save_pretrained(self, folder: str | Path, *, half: bool = True, facts: CardFacts | None = None) -> Path:
        """Write config.json, weights in 16 bit (the quantiser stays in 32) unless `half` is off, and the model card.

        Args:
            facts: what the card says of training, licences and metrics (None: what it said when this model was loaded).
        """
        state = self.modules.state_dict()
        facts = facts or self.facts
        texts = {FACTS: facts.dump(), CARD: model_card(facts, self._shape())}
        return save_folder(folder, "model", self.config, half_precision(state) if half else state, texts)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        token: str | None = None,
        half: bool = True,
        facts: CardFacts | None = None,
    ) -> str:
        """Save the model to a hub (HF_ENDPOINT names another than huggingface.co); returns the commit's address.

        Args:
            repo: owner/name; made if it is not there.

        Raises:
            ModelError: the hub cannot be reached or refuses.
        """
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, half=half, facts=facts)
            shutil.copy(Path(folder, CARD), Path(folder, "README.md"))  # the name that hubs show
            try:
                api = HfApi(token=token)
                api.create_repo(repo, private=private, exist_ok=True)
                commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A nextscale model")
            except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
                why = " ".join(str(error).split())
                raise ModelError(f"{repo}: the hub did not take it ({why}); check name, network and token") from None
        return str(commit.commit_url)

    def _shape(self) -> dict[str, Any]:
        """What the card says of the model itself."""
        millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in self.modules.items()}
        ladder = self.tokenizer.ladder
        return {
            "parameters": ", ".join(f"{name} {count:.1f} million" for name, count in millions.items()),
            "factors": ", ".join(f"x{factor:g}" for factor in ladder.factors),
            "tiles": f"{ladder.input_side} px a side; pictures of any size are cut into them",
            "steps": f"{ladder.num_steps}, with {sum(side * side for side in ladder.sides)} tokens",
            "codes": str(self.config.tokenizer.codebook_size),
        }

    @property
    def config(self) -> ModelConfig:
        return self.pipeline.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.pipeline.tokenizer

    @property
    def transformer(self) -> Transformer:
        return self.pipeline.transformer

    @property
    def restorer(self) -> Restorer | None:
        return self.pipeline.restorer

    @property
    def fusions(self) -> nn.ModuleList | None:
        return self.pipeline.fusions

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.dtype

    @property
    def modules(self) -> nn.ModuleDict:
        """All parts under their names in the checkpoint."""
        return self.pipeline.modules

    def to(self, device: str = "auto", *, fp32: bool = False) -> NextScale:
        """Move to a device; see `Pipeline.to`."""
        self.pipeline.to(device, fp32=fp32)
        return self

    def check(self, options: UpscaleOptions) -> None:
        """See `Pipeline.check`."""
        self.pipeline.check(options)

    def ladder_for(self, options: UpscaleOptions) -> Ladder:
        """See `Pipeline.ladder_for`."""
        return self.pipeline.ladder_for(options)

    def plan(self, image: Any, options: UpscaleOptions | None = None) -> WorkPlan:
        """What `upscale` would do: passes, tiles and pixels, known before any work, and checked against limits.

        Args:
            image: as `upscale` takes it.

        Raises:
            OptionError: the options do not fit the model.
            ImageError: the input cannot be read as an image.
        """
        return plan_of(self.pipeline, as_picture(image), options or UpscaleOptions())

    def restore_tiles(
        self,
        inputs: Tensor,
        keys: list[tuple[int, int]],
        label: int,
        options: UpscaleOptions,
        wanted: list[float],
        **more: Any,
    ) -> Iterator[TileStage]:
        """Restore a batch of tiles; see `Pipeline.restore_tiles`."""
        return self.pipeline.restore_tiles(inputs, keys, label, options, wanted, **more)

    @overload
    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: Literal[False] = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> UpscaleResult: ...

    @overload
    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: Literal[True],
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Reveal]: ...

    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> UpscaleResult | Iterator[Reveal]:
        """Restore and enlarge a picture of any size.

        Args:
            image: a `Picture`, a path, a Pillow image, a numpy array (H W or H W C) or a tensor (C H W or 1 C H W),
                uint8, uint16 or float in [0, 1]; floats are rounded to 8 bits.
            options: see `UpscaleOptions`.
            stream: return an iterator that yields x1, x2, x4 (every native factor up to the scale) as their stages
                finish, batch of tiles by batch of tiles.
            on_progress: called after every step.

        Raises:
            OptionError: the options do not fit the model.
            ImageError: the input cannot be read as an image.
            NextScaleError: out of memory even with one tile at a time, or for the result itself.
        """
        options = options or UpscaleOptions()
        if stream:
            options = dataclasses.replace(options, all_factors=True)
        run = Run(self.pipeline, as_picture(image), options, on_progress)
        return run.reveals() if stream else run.result()


def with_restorer(model: NextScale, folder: Path) -> NextScale:
    """A model with the restorer of a folder and an untrained fusion, which gives what the restorer gives.

    The dial of a version-4 tokenizer is left out.

    Raises:
        ModelError: the folder holds no restorer, or one of other factors.
    """
    config = read_config(folder, "restorer", RestorerConfig)
    check_sizes(folder / WEIGHTS, lambda: Restorer(config))
    restorer = Restorer(config)
    load_weights(folder / WEIGHTS, restorer)
    part = dataclasses.replace(model.config.tokenizer, fusion=None)
    tokenizer = Tokenizer(part)
    state = model.tokenizer.state_dict()
    tokenizer.load_state_dict({name: state[name] for name in tokenizer.state_dict()})
    fusion = model.config.fusion or FusionConfig()
    whole = ModelConfig(part, model.config.transformer, restorer.config, fusion)
    fusions = make_fusions(fusion, restorer, tokenizer)
    return NextScale(whole, tokenizer, model.transformer, restorer, fusions)
