"""The ComfyUI node through ComfyUI's interface, of which as much as it uses stands here."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nextscale import UpscaleOptions
from nextscale.upscale.nextscale import NextScale

FILE = Path(__file__).parents[1] / "integrations" / "comfyui" / "__init__.py"


class Kind:
    """An input's or output's type: both remember what they were made with."""

    @staticmethod
    def Input(id: str, **settings: Any) -> SimpleNamespace:  # noqa: N802 - ComfyUI's name
        return SimpleNamespace(id=id, **settings)

    @staticmethod
    def Output(**settings: Any) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(**settings)


class NodeOutput:
    """What `execute` returns."""

    def __init__(self, *values: Any) -> None:
        self.result = values


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Any:
    io = SimpleNamespace(
        ComfyNode=object,
        NodeOutput=NodeOutput,
        Schema=lambda **settings: SimpleNamespace(**settings),
        **dict.fromkeys(("Image", "Combo", "Float", "Int", "String", "Mask"), Kind),
    )
    latest = ModuleType("comfy_api.latest")
    latest.io = io  # type: ignore[attr-defined]
    latest.ComfyExtension = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    spec = importlib.util.spec_from_file_location("nextscale_comfyui", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    (node,) = asyncio.run(extension.get_node_list())
    return node


def test_the_schema_names_what_execute_takes(node: Any) -> None:
    schema = node.define_schema()
    assert [i.id for i in schema.inputs] == ["image", "factor", "fidelity", "seed", "denoise", "model"]
    assert [o.display_name for o in schema.outputs] == ["x1", "x2", "x4", "expected error"]
    defaults = {i.id: i.default for i in schema.inputs if hasattr(i, "default")}
    fields = UpscaleOptions()
    assert (float(defaults["factor"]), defaults["fidelity"], defaults["seed"]) == (
        fields.scale,
        fields.fidelity,
        fields.seed,
    )


def test_a_batch_comes_back_at_three_sizes(node: Any, model_folder: Path) -> None:
    batch = torch.from_numpy(np.random.default_rng(0).random((2, 20, 30, 3), dtype=np.float32))
    x1, x2, x4, sure = node.execute(image=batch, factor="4", fidelity=1.0, seed=0, model=str(model_folder)).result
    shapes = [tuple(t.shape) for t in (x1, x2, x4, sure)]
    assert shapes == [(2, 20, 30, 3), (2, 40, 60, 3), (2, 80, 120, 3), (2, 80, 120)]
    assert all(t.dtype == torch.float32 and t.min() >= 0 and t.max() <= 1 for t in (x1, x2, x4, sure))
    model = NextScale.from_pretrained(model_folder)
    expected = model.upscale(batch[1].numpy(), UpscaleOptions(all_factors=True)).images[4.0].rgb
    torch.testing.assert_close(x4[1] * 255, torch.from_numpy(expected).float(), atol=1.01, rtol=0)


def test_a_smaller_factor_fills_all_outputs(node: Any, model_folder: Path) -> None:
    batch = torch.zeros(1, 16, 16, 3)
    x1, x2, x4, sure = node.execute(image=batch, factor="2", fidelity=0.0, seed=1, model=str(model_folder)).result
    assert [tuple(t.shape[1:3]) for t in (x1, x2, x4, sure)] == [(16, 16), (32, 32), (32, 32), (32, 32)]
