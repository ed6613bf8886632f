"""The public face of a model: load, save and share it, and restore pictures with it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

import torch
from huggingface_hub import HfApi, ModelCard, ModelHubMixin
from torch import Tensor, nn

from nextscale.errors import ModelError, OptionError
from nextscale.model.checkpoint import (
    CARD,
    FACTS,
    WEIGHTS,
    check_sizes,
    find_folder,
    half_precision,
    hub_reason,
    load_weights,
    read_config,
    read_kind,
    save_folder,
    to_eight_bits,
)
from nextscale.model.config import FusionConfig, Ladder, ModelConfig, RestorerConfig
from nextscale.model.restorer import Restorer
from nextscale.model.tokenizer import Tokenizer
from nextscale.model.transformer import Transformer
from nextscale.upscale.card import CardFacts, model_card
from nextscale.upscale.describe import ModelDescription, describe
from nextscale.upscale.options import UpscaleOptions, cascade, output_size
from nextscale.upscale.pipeline import Pipeline, TileStage, make_fusions, match_color, mean_probability
from nextscale.upscale.plan import WorkPlan
from nextscale.upscale.run import Progress, Reveal, Run, UpscaleResult, as_picture, plan_of, shown_map, to_pil

__all__ = [
    "DEFAULT_MODEL",
    "ModelDescription",
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
Factors = list[float]
"""Under this name where the class below has a method `float`."""


class NextScale(ModelHubMixin, nn.Module):
    """A tokenizer, a transformer and, in newer models, a restorer and a fusion: ready to restore pictures.

    A module like any other: `state_dict`, `parameters`, `to`, `half`, `cuda` do what they say. Only the transformer
    computes in 16 bit; the quantizer stays in float32, so that the ids do not change.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        transformer: Transformer,
        restorer: Restorer | None = None,
        fusions: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.restorer = restorer
        self.fusions = fusions
        self.pipeline = Pipeline(config, tokenizer, transformer, restorer, fusions)
        self.facts = CardFacts()
        """What the model card says of its training; as loaded."""
        self.eval()

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
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path = DEFAULT_MODEL,
        *,
        device: str | torch.device = "auto",
        fp32: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> NextScale:
        """Load a model.

        Args:
            name: a shipped model's name, a folder, or a hub id.
            device: auto (CUDA, then MPS, then CPU), or a torch device.
            fp32: compute in float32 even where 16 bit is faster.
            revision: of a hub id: a branch, a tag or a commit.
            token: for private models; None takes the one of `hf auth login`, False takes none.
            cache_dir: where downloads are kept instead of the hub's own cache.
            local_files_only: never download.
            force_download: download again what the cache holds.

        Raises:
            ModelError: in one line, what is wrong with the folder, or why the hub does not give it.
            OptionError: the device is not there.
        """
        folder = find_folder(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        config = read_config(folder, "model", ModelConfig)
        check_sizes(folder / WEIGHTS, lambda: cls.create(config))
        model = cls.create(config)
        load_weights(folder / WEIGHTS, model)
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
            raise ModelError(f"{second}: its ladder or codebook size is not that of the tokenizer {first}")
        if kind == "model":
            whole = cls.from_pretrained(second, device="cpu", fp32=True)
            if config.transformer.condition == "restorer":
                assert whole.restorer is not None
                return with_restorer(part, whole.transformer, whole.restorer, config.fusion)
            return cls(ModelConfig(part.config, config.transformer), part, whole.transformer)
        alone = ModelConfig(part.config, config.transformer)
        sizes = (part.ladder, part.config.codebook_size, part.config.autoencoder.latent_channels)
        check_sizes(second / WEIGHTS, lambda: Transformer(alone.transformer, *sizes))
        model = cls.create(alone)
        load_weights(second / WEIGHTS, model.transformer)
        return cls(model.config, part, model.transformer)

    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | Path,
        *,
        half: bool = True,
        packed: bool = False,
        facts: CardFacts | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> Path:
        """Write config.json, the weights and the model card.

        Weights are in 16 bit unless `half` is off. What 16 bit cannot hold exactly of the quantizer stays in 32.

        Args:
            packed: the transformer's matrices in 8 bit, a scale for each row: half their size. Codes differ about as
                much as between bfloat16 and float32 (LOG.md). A training should not start from that.
            facts: what the card says of training, licenses and metrics (None: what it said when this model was loaded).
            push_to_hub: then call `push_to_hub` with `repo_id` (None: the folder's name) and the other keywords.

        Raises:
            ModelError: the folder cannot be written, or the hub refuses.
        """
        facts = facts or self.facts
        state = self.state_dict()
        texts = {FACTS: facts.dump(), CARD: model_card(facts, self._shape())}
        tensors = half_precision(state) if half else state
        if packed:
            tensors = tensors | to_eight_bits({n: t for n, t in state.items() if n.startswith("transformer.")})
        saved = save_folder(folder, "model", self.config, tensors, texts)
        if push_to_hub:
            self.push_to_hub(repo_id or saved.name, facts=facts, **hub)
        return saved

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str = "A nextscale model",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        facts: CardFacts | None = None,
    ) -> str:
        """Save the model to a hub (HF_ENDPOINT names another than huggingface.co).

        Returns:
            the address of the commit, or of the pull request.

        Args:
            repo_id: owner/name; made if it is not there.
            private: of a new repository (None: as its owner's new ones are).
            token: None takes the one of `hf auth login`.
            branch: which one to commit to (None: main).
            create_pr: open a pull request against main instead of committing; not together with `branch`.
            facts: as of `save_pretrained`.

        Raises:
            ModelError: the hub cannot be reached or refuses.
        """
        # The mixin's own method makes the repository before it knows that the model can be saved, and leaves its
        # temporary copy behind where the hub refuses.
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, facts=facts)
            try:
                api = HfApi(token=token)
                repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                commit = api.upload_folder(
                    repo_id=repo,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=branch,
                    create_pr=create_pr,
                )
            except Exception as error:
                raise ModelError(
                    f"{repo_id}: the hub did not take it ({hub_reason(error)}); check name, network and token"
                ) from None
        return str(commit.pr_url or commit.commit_url)

    def generate_model_card(self, *_: Any, facts: CardFacts | None = None, **__: Any) -> ModelCard:
        """The card that `save_pretrained` writes, as the hub's library has it."""
        return ModelCard(model_card(facts or self.facts, self._shape()))

    def describe(self) -> ModelDescription:
        """What a host program needs to know to run this model."""
        return describe(self.pipeline)

    def _shape(self) -> dict[str, Any]:
        """What the card says of the model itself."""
        millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in self.named_children()}
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
    def device(self) -> torch.device:
        return self.pipeline.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.dtype

    def to(  # type: ignore[override]
        self,
        device: str | torch.device | torch.dtype | None = "auto",
        dtype: torch.dtype | None = None,
        *,
        fp32: bool = False,
    ) -> NextScale:
        """Move to a device and choose the computing type; see `Pipeline.to`. None for either keeps what it is."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if device is None:
            device, dtype = self.device, dtype or self.dtype
        self.pipeline.to(device, dtype, fp32=fp32)
        return self

    def half(self) -> NextScale:
        """Compute in float16."""
        return self.to(torch.float16)

    def bfloat16(self) -> NextScale:
        """Compute in bfloat16."""
        return self.to(torch.bfloat16)

    def float(self) -> NextScale:
        """Compute in float32."""
        return self.to(torch.float32)

    def forward(self, images: Tensor, **options: Any) -> Tensor:
        """Restore a batch: images B C H W in [0, 1], C = 1 or 3 -> B C sH sW, float32 in [0, 1], on the same device.

        Args:
            options: those of `UpscaleOptions`, as in scale=2.

        Raises:
            OptionError, ImageError, NextScaleError: as `upscale`.
        """
        results = self.upscale(list(images), **options)
        return torch.stack([result.tensor for result in results]).to(images.device)

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
        wanted: Factors,
        **more: Any,
    ) -> Iterator[TileStage]:
        """Restore a batch of tiles; see `Pipeline.restore_tiles`."""
        return self.pipeline.restore_tiles(inputs, keys, label, options, wanted, **more)

    @overload
    def upscale(
        self,
        image: list[Any] | tuple[Any, ...],
        options: UpscaleOptions | None = None,
        *,
        stream: Literal[False] = False,
        on_progress: Callable[[Progress], None] | None = None,
        **keywords: Any,
    ) -> list[UpscaleResult]: ...

    @overload
    def upscale(
        self,
        image: Tensor,  # by its dimensions, a result or a list of results
        options: UpscaleOptions | None = None,
        *,
        stream: Literal[False] = False,
        on_progress: Callable[[Progress], None] | None = None,
        **keywords: Any,
    ) -> Any: ...

    @overload
    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: Literal[False] = False,
        on_progress: Callable[[Progress], None] | None = None,
        **keywords: Any,
    ) -> UpscaleResult: ...

    @overload
    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: Literal[True],
        on_progress: Callable[[Progress], None] | None = None,
        **keywords: Any,
    ) -> Iterator[Reveal]: ...

    def upscale(
        self,
        image: Any,
        options: UpscaleOptions | None = None,
        *,
        stream: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        **keywords: Any,
    ) -> UpscaleResult | list[UpscaleResult] | Iterator[Reveal]:
        """Restore and enlarge a picture of any size: `model.upscale("photo.jpg", scale=2, fidelity=0.8)`.

        Args:
            image: a `Picture`, a path, the bytes of a file, an open binary file, a Pillow image, a numpy array (H W or
                H W C) or a tensor (C H W), uint8, uint16 or float in [0, 1]; floats are kept to 16 bits. A list of
                these, or a tensor B C H W, gives a list of results.
            options: see `UpscaleOptions`.
            stream: return an iterator that yields x1, x2, x4 (every native factor up to the scale) as their stages
                finish, batch of tiles by batch of tiles; of one picture only.
            on_progress: called after every step of every picture.
            keywords: single options, which take the place of those in `options`.

        Raises:
            OptionError: there is no such option, or the options do not fit the model.
            ImageError: the input cannot be read as an image.
            NextScaleError: out of memory even with one tile at a time, or for the result itself.
        """
        options = (options or UpscaleOptions()).changed(**keywords)
        if isinstance(image, list | tuple) or (isinstance(image, Tensor) and image.ndim == 4):
            if stream:
                raise OptionError("stream is for one picture at a time; call it for each")
            return [Run(self.pipeline, as_picture(each), options, on_progress).result() for each in image]
        if stream:
            options = dataclasses.replace(options, all_factors=True)
        run = Run(self.pipeline, as_picture(image), options, on_progress)
        return run.reveals() if stream else run.result()


def with_restorer(
    tokenizer: Tokenizer, transformer: Transformer, restorer: Restorer, fusion: FusionConfig | None = None
) -> NextScale:
    """A model of these parts with an untrained fusion, which gives what the restorer gives.

    The dial of a version-4 tokenizer is left out.

    Raises:
        ModelError: they do not fit each other.
    """
    part = dataclasses.replace(tokenizer.config, fusion=None)
    plain = Tokenizer(part)
    state = tokenizer.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    config = ModelConfig(part, transformer.config, restorer.config, fusion or FusionConfig())
    assert config.fusion is not None
    return NextScale(config, plain, transformer, restorer, make_fusions(config.fusion, restorer, plain))


def restorer_config(name: str | Path) -> RestorerConfig:
    """The sizes of the restorer of a folder: one by itself, or that of a whole model.

    Raises:
        ModelError: the folder holds none.
    """
    folder = find_folder(name)
    kind = read_kind(folder)
    if kind == "restorer":
        return read_config(folder, "restorer", RestorerConfig)
    if kind != "model":
        raise ModelError(f"{folder}: holds a {kind}; name a restorer, or a model that has one")
    found = read_config(folder, "model", ModelConfig).restorer
    if found is None:
        raise ModelError(f"{name}: this model has no restorer; name one that has")
    return found


def read_restorer(name: str | Path) -> Restorer:
    """The restorer of a folder: one by itself, or that of a whole model.

    Raises:
        ModelError: the folder holds none.
    """
    config, folder = restorer_config(name), find_folder(name)
    if read_kind(folder) != "restorer":
        restorer = NextScale.from_pretrained(folder, device="cpu", fp32=True).restorer
        assert restorer is not None
        return restorer
    check_sizes(folder / WEIGHTS, lambda: Restorer(config))
    restorer = Restorer(config)
    load_weights(folder / WEIGHTS, restorer)
    return restorer
