"""What several tests share: the fixtures' folder and a small model with random weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nextscale.model.config import (
    AutoencoderConfig,
    DecoderFusionConfig,
    FusionConfig,
    ModelConfig,
    RestorerConfig,
    TokenizerConfig,
    TransformerConfig,
)
from nextscale.model.convert import convert
from nextscale.model.tokenizer import Tokenizer
from nextscale.upscale.nextscale import NextScale
from tests.skips import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of finished pictures stay out of the user's home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """A test that sets the number of threads sets it for itself: another number rounds otherwise."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """VAR's tiny tokenizer, converted."""
    folder = tmp_path_factory.mktemp("var")
    convert(FIXTURES / "vae_tiny.pth", folder, "var", "tokenizer", steps="1,2,3,4")
    return Tokenizer.from_pretrained(folder)


def small_config() -> ModelConfig:
    """The real ladder on the narrowest widths: fast enough to run whole pictures in tests."""
    autoencoder = AutoencoderConfig(
        channels=16, multipliers=(1, 1, 1), blocks=1, patch=4, attention=False, linear_path=True
    )
    return ModelConfig(
        TokenizerConfig(autoencoder=autoencoder, codebook_size=64, fusion=DecoderFusionConfig(channels=16, blocks=1)),
        TransformerConfig(depth=2, width=64, heads=1, shared_adaln=True, aligned_conditioning=True),
    )


def random_model() -> NextScale:
    """A small model with seeded random weights in which every part speaks (nothing starts at zero)."""
    torch.manual_seed(0)
    model = NextScale.create(small_config())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not bool(parameter.any()) or "head.weight" in name:
                parameter.normal_(std=0.05, generator=generator)
    return model.to("cpu", fp32=True)


def restoring_model(*, untrained: bool, precleaned: float = 0.0, refined: int = 0) -> NextScale:
    """The small random model with a restorer; its fusion as made, or with a say for the codes."""
    base = small_config()
    part = dataclasses.replace(base.tokenizer, fusion=None)
    sizes = RestorerConfig(
        channels=8, convs=2, largest_convs=1 if precleaned else 0, precleaned=precleaned, refined_channels=refined
    )
    config = ModelConfig(part, base.transformer, sizes, FusionConfig(8, 1, 8))
    torch.manual_seed(3)
    model = NextScale.create(config)
    generator = torch.Generator().manual_seed(1)
    parts: torch.nn.Module = model.tokenizer if untrained else model
    with torch.no_grad():
        for name, parameter in parts.named_parameters():
            if not bool(parameter.any()) or "head.weight" in name:
                parameter.normal_(std=0.05, generator=generator)
    return model.to("cpu", fp32=True)


@pytest.fixture(scope="session")
def model() -> NextScale:
    return random_model()


@pytest.fixture(scope="session")
def model_folder(model: NextScale, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.save_pretrained(tmp_path_factory.mktemp("model"), half=False)


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> NextScale:
    return NextScale.from_pretrained(model_folder, device="cpu", fp32=True)


@pytest.fixture
def read_once(loaded: NextScale, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`model_folder`, which commands do not read again: that is most of a run on a small picture."""
    read = NextScale.from_pretrained

    def from_pretrained(name: str | Path, **how: Any) -> NextScale:
        if (str(name), how) == (str(model_folder), {"device": "cpu", "fp32": True}):
            return loaded
        return read(name, **how)

    monkeypatch.setattr(NextScale, "from_pretrained", staticmethod(from_pretrained))
    return model_folder


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of `runs/` as a module, which its worker processes can import by name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "runs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
