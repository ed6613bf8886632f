"""What the metrics' tests share: folders of real weights and pictures, and stand-ins for weights that are not here."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from tests.evaluate.inception_shapes import random_state
from tests.skips import shared


def photograph(name: str) -> Tensor:
    """One of scikit-image's, 1 x 3 x H x W in [0, 1]."""
    with Image.open(Path(skimage.data.__file__).with_name(name)) as image:
        return (torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255)[None]


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real weights, in force for the test."""
    path = shared("NEXTSCALE_WEIGHTS", "weights")
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(path))
    return path


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights and without a network; returns its empty hub cache."""

    def offline(url: str, timeout: float) -> None:
        raise urllib.error.URLError(f"no network for {url} within {timeout} s")

    monkeypatch.delenv("NEXTSCALE_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return tmp_path / "checkpoints"


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with random weights under the names, and in the shapes, of FID's and NIQE's files."""
    path = tmp_path_factory.mktemp("random_weights")
    inception = path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(random_state(), inception)
    rng = np.random.RandomState(2)
    factor = rng.randn(36, 60)
    axis = np.exp(-np.square(np.arange(-3, 4)) / (2 * (7 / 6) ** 2))
    window = np.outer(axis, axis)
    np.savez(
        path / "niqe_pris_params.npz",
        mu_pris_param=rng.rand(1, 36),
        cov_pris_param=factor @ factor.T / 60,
        gaussian_window=window / window.sum(),
    )
    yield path
    inception.unlink()
