"""pyiqa's metrics through its published interface: `create_metric(name, as_loss=, device=)` and a call per picture.

pyiqa itself is not among the development packages: it is non-commercial, and does not load without torchvision.
"""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.evaluate import scores
from nextscale.evaluate.metrics.unreferenced import Unreferenced
from nextscale.evaluate.options import METRICS, UNREFERENCED, ScoreOptions
from nextscale.evaluate.scores import Scorer
from nextscale.evaluate.table import TITLES, cell
from nextscale.evaluate.weights import MissingWeights


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Stands for pyiqa: the score of a picture is its mean; remembers what was created."""
    asked: list[tuple[str, Any]] = []

    def create_metric(metric_name: str, as_loss: bool = False, device: Any = None) -> Any:
        assert not as_loss
        asked.append((metric_name, device))

        def score(target: Tensor, ref: Tensor | None = None) -> Tensor:
            assert ref is None
            assert target.dtype == torch.float32
            assert target.ndim == 4
            if target.shape[-1] < 8:
                raise RuntimeError("Calculated padded input size per channel: smaller than the kernel")
            return target.mean()[None, None]

        return score

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    return asked


def test_a_picture_is_scored_by_itself(asked: list[tuple[str, Any]]) -> None:
    scorer = Scorer(ScoreOptions(metrics=UNREFERENCED, border=2), device="cpu")
    assert [name for name, _ in asked] == list(UNREFERENCED)
    picture = torch.full((1, 3, 16, 16), 0.25, dtype=torch.float64)
    found = scorer.score(picture, torch.zeros_like(picture))
    assert found == dict.fromkeys(UNREFERENCED, 0.25)
    tiny = scorer.score(picture[..., :6, :6], picture[..., :6, :6])
    assert all(math.isnan(value) for value in tiny.values())


def test_a_picture_reaches_the_device_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    types: list[torch.dtype] = []

    class Watched:
        def __init__(self, *_: Any) -> None:
            pass

        def __call__(self, image: Tensor) -> float:
            types.append(image.dtype)
            return 0.5

    monkeypatch.setattr(scores, "Unreferenced", Watched)
    picture = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    Scorer(ScoreOptions(metrics=("musiq",)), device="cpu").score(picture, picture)
    assert types == [torch.float32]


def test_a_full_memory_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=lambda *_, **__: full))
    with pytest.raises(RuntimeError, match="allocate memory"):
        Unreferenced("musiq", torch.device("cpu"))(torch.zeros(1, 3, 16, 16))


def test_without_pyiqa_one_line_says_what_it_is_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    scorer = Scorer(ScoreOptions(metrics=("psnr", "musiq")), device="cpu")
    assert scorer.names == ("psnr",)
    reason = scorer.unavailable["musiq"]
    assert "pip install pyiqa" in reason
    assert "non-commercial" in reason
    assert "\n" not in reason


def test_weights_that_it_cannot_get_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_metric(*_: Any, **__: Any) -> None:
        raise OSError("HTTP Error 404:\nNot Found")

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    with pytest.raises(MissingWeights, match=r"^pyiqa cannot load maniqa \(HTTP Error 404: Not Found\): check"):
        Unreferenced("maniqa", torch.device("cpu"))


def test_every_metric_has_a_title_and_digits() -> None:
    from nextscale.evaluate.summary import Summary

    assert set(TITLES) == set(METRICS)
    assert all(cell(name, Summary(0.5, None, 1)).startswith("0.5") for name in METRICS)
