"""The ComfyUI node through ComfyUI's published interface, of which as much as it uses stands here.

ComfyUI's core is in no package index, so these stand for comfy_api.latest, comfy.model_management, comfy.utils and
folder_paths, and refuse arguments that the real ones do not take.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nextscale import UpscaleOptions, __version__
from nextscale.upscale.nextscale import NextScale

FOLDER = Path(__file__).parents[1] / "integrations" / "comfyui"
BASE = {"id", "display_name", "optional", "tooltip", "lazy", "default", "socketless"}
NUMBER = BASE | {"min", "max", "step", "display_mode", "force_input"}


def kind(inputs: set[str], outputs: tuple[str, ...] = ("id", "display_name", "tooltip", "is_output_list")) -> Any:
    """A type of sockets: its inputs and outputs remember what they were made with, and know no other names."""

    def socket(names: set[str], id: str, settings: dict[str, Any]) -> SimpleNamespace:
        assert set(settings) <= names, set(settings) - names
        return SimpleNamespace(id=id, **settings)

    return SimpleNamespace(
        Input=lambda id, **settings: socket(inputs, id, settings),
        Output=lambda id=None, **settings: socket(set(outputs), id, settings),
    )


class NodeOutput:
    """What `execute` returns."""

    def __init__(self, *values: Any) -> None:
        self.result = values


class Interrupted(Exception):  # noqa: N818 - a stop, no error
    """What ComfyUI raises when the user cancels."""


@dataclass
class Host:
    """What ComfyUI was asked."""

    models: Path
    freed: list[float] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    total: int = 0
    interrupt_after: int = 10**9
    checks: int = 0
    module: Any = None

    def free_memory(self, memory_required: float, device: torch.device) -> list[Any]:
        assert device == torch.device("cpu")
        self.freed.append(memory_required)
        return []

    def throw_exception_if_processing_interrupted(self) -> None:
        self.checks += 1
        if self.checks > self.interrupt_after:
            raise Interrupted


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    host = Host(tmp_path / "models")

    class ProgressBar:
        def __init__(self, total: int, node_id: Any = None) -> None:
            del node_id
            host.total = total

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            del total, preview
            host.shown.append(value)

    def schema(**settings: Any) -> SimpleNamespace:
        assert set(settings) <= {"node_id", "display_name", "category", "inputs", "outputs", "description", "hidden"}
        return SimpleNamespace(**settings)

    io = SimpleNamespace(
        ComfyNode=object,
        NodeOutput=NodeOutput,
        Schema=schema,
        Image=kind(BASE),
        Mask=kind(BASE),
        Combo=kind(BASE | {"options", "control_after_generate"}),
        Float=kind(NUMBER | {"round"}),
        Int=kind(NUMBER | {"control_after_generate"}),
    )
    folders: dict[str, list[str]] = {}
    parts: dict[str, dict[str, Any]] = {
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ComfyExtension": object},
        "comfy": {},
        "comfy.model_management": {
            "get_torch_device": lambda: torch.device("cpu"),
            "unet_offload_device": lambda: torch.device("cpu"),
            "free_memory": host.free_memory,
            "throw_exception_if_processing_interrupted": host.throw_exception_if_processing_interrupted,
        },
        "comfy.utils": {"ProgressBar": ProgressBar},
        "folder_paths": {
            "models_dir": str(host.models),
            "add_model_folder_path": lambda name, path: folders.setdefault(name, []).append(path),
            "get_folder_paths": lambda name: folders[name],
        },
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    host.module = load_node()
    return host


def load_node() -> Any:
    spec = importlib.util.spec_from_file_location("nextscale_comfyui", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def node(host: Host) -> Any:
    extension = asyncio.run(host.module.comfy_entrypoint())
    (node,) = asyncio.run(extension.get_node_list())
    return node


@pytest.fixture
def small(host: Host, model_folder: Path) -> str:
    """The small model in ComfyUI's folder of models; its name there."""
    (host.models / "nextscale").mkdir(parents=True)
    (host.models / "nextscale/small").symlink_to(model_folder)
    return "small"


def batch(count: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((count, 20, 30, channels), dtype=np.float32))


def test_the_sockets_are_what_execute_takes_and_carry_what_they_say(node: Any, small: str) -> None:
    schema = node.define_schema()
    names = ["image", "model", "scale", "fidelity", "denoise", "seed", "temperature"]
    assert [i.id for i in schema.inputs] == names
    assert list(node.execute.__func__.__code__.co_varnames[1 : len(names) + 1]) == names
    assert [o.display_name for o in schema.outputs] == ["image", "cleaned x1", "expected error"]
    inputs = {i.id: i for i in schema.inputs}
    for name in names[2:]:
        assert inputs[name].default == getattr(UpscaleOptions(), name)
        UpscaleOptions(**{name: inputs[name].min})
        UpscaleOptions(**{name: inputs[name].max})
    assert inputs["model"].options == ["tiny", small]
    assert inputs["seed"].control_after_generate


@pytest.mark.integration
@pytest.mark.parametrize("scale", [4.0, 1.5, 0.5])
def test_a_batch_comes_back_at_the_scale_and_cleaned(node: Any, small: str, scale: float, model_folder: Path) -> None:
    pictures = batch(2)
    image, cleaned, error = node.execute(image=pictures, model=small, scale=scale).result
    height, width = int(20 * scale), int(30 * scale)
    assert [tuple(t.shape) for t in (image, cleaned, error)] == [
        (2, height, width, 3),
        (2, 20, 30, 3),
        (2, height, width),
    ]
    assert all(t.dtype == torch.float32 and t.min() >= 0 and t.max() <= 1 for t in (image, cleaned, error))
    model = NextScale.from_pretrained(model_folder, device="cpu")
    for scale_of, got in ((scale, image), (1.0, cleaned)):
        expected = model.upscale(pictures[1].numpy(), scale=scale_of).tensor.permute(1, 2, 0)
        torch.testing.assert_close(got[1], expected, atol=0.02, rtol=0)


@pytest.mark.integration
def test_pictures_are_not_rounded_to_eight_bits(node: Any, small: str) -> None:
    image, cleaned, _ = node.execute(image=batch(), model=small, scale=1.0).result
    assert torch.equal(image, cleaned)
    assert float((image * 255 - (image * 255).round()).abs().max()) > 0.3


@pytest.mark.integration
def test_alpha_stays_and_overshoot_is_cut(node: Any, small: str) -> None:
    image, cleaned, _ = node.execute(image=batch(channels=4) * 1.4 - 0.2, model=small, scale=2.0).result
    assert (image.shape, cleaned.shape) == ((1, 40, 60, 4), (1, 20, 30, 4))


@pytest.mark.integration
def test_the_seed_matters_with_a_temperature(node: Any, small: str) -> None:
    def restored(**how: Any) -> torch.Tensor:
        result: torch.Tensor = node.execute(image=batch(), model=small, scale=1.0, fidelity=0.0, **how).result[0]
        return result

    assert torch.equal(restored(seed=1), restored(seed=2))
    assert not torch.equal(restored(seed=1, temperature=1.0), restored(seed=2, temperature=1.0))


@pytest.mark.integration
def test_the_host_is_asked_for_memory_and_told_the_progress(host: Host, node: Any, small: str) -> None:
    node.execute(image=batch(3), model=small, scale=2.0)
    assert host.freed[0] > 1e6
    assert host.total == 3000
    assert host.shown == sorted(host.shown)
    assert host.shown[-1] == 3000


@pytest.mark.integration
def test_a_cancelled_run_stops_and_leaves_the_model_usable(host: Host, node: Any, small: str) -> None:
    host.interrupt_after = 2
    with pytest.raises(Interrupted):
        node.execute(image=batch(3), model=small, scale=2.0)
    assert host.checks == 3
    host.interrupt_after = 10**9
    node.execute(image=batch(), model=small, scale=1.0)


def test_a_model_is_loaded_once_by_its_name(host: Host, small: str) -> None:
    assert host.module.load(small) is host.module.load(small)


def test_without_nextscale_one_line_says_what_to_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.module
    monkeypatch.setitem(sys.modules, "nextscale", None)
    with pytest.raises(ImportError, match=re.escape(f"{sys.executable} -m pip install {FOLDER.parents[1]}")):
        load_node()


def test_the_registrys_metadata_follow_the_package() -> None:
    text = (FOLDER / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in text
    assert re.search(r"^\[tool\.comfy\]\nPublisherId = ", text, re.M)
    (line,) = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert f'dependencies = ["{line}"]' in text
