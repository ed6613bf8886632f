"""FID's Inception has the features of pytorch-fid's, and the distance is that of the definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.errors import NextScaleError
from nextscale.evaluate.metrics.fid import Gaussian, Inception, frechet
from nextscale.evaluate.weights import MissingWeights
from tests.evaluate.conftest import photograph
from tests.evaluate.inception_shapes import shapes
from tests.skips import shared

FILE = "pt_inception-2015-12-05-6726825d.pth"


def samples(num: int, width: int, seed: int) -> Tensor:
    """Correlated features around a mean of their own."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(num, width, generator=generator, dtype=torch.float64) @ mixing + seed


def gaussian(features_ND: Tensor, *, batch: int = 1000) -> Gaussian:
    statistics = Gaussian()
    for start in range(0, len(features_ND), batch):
        statistics.add(features_ND[start : start + batch])
    return statistics


def definition(a: Tensor, b: Tensor) -> float:
    """By numpy's moments and scipy's root of the product."""
    apart = a.mean(dim=0) - b.mean(dim=0)
    first, second = (np.cov(features.numpy(), rowvar=False) for features in (a, b))
    root = scipy.linalg.sqrtm(first @ second)
    return float(apart @ apart) + float(np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


# --- the distance -----------------------------------------------------------------------------------------------------


def test_agrees_with_the_definition() -> None:
    a, b = samples(90, 24, 1), samples(70, 24, 2)
    assert frechet(gaussian(a), gaussian(b)) == pytest.approx(definition(a, b), rel=1e-10)


def test_fewer_pictures_than_features_are_no_problem() -> None:
    a, b = samples(10, 40, 1), samples(60, 40, 2)
    # The definition's root of a singular product is worse than ours.
    assert frechet(gaussian(a), gaussian(b)) == pytest.approx(definition(a, b), rel=1e-6)


def test_known_gaussians() -> None:
    # In one dimension it is (m - n)^2 + (s - t)^2; two values x apart have the deviation x / sqrt 2.
    a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [8.0]])
    assert frechet(gaussian(a), gaussian(b)) == pytest.approx(25 + (6 - 2) ** 2 / 2)


def test_equal_sets_are_at_zero_and_order_does_not_matter() -> None:
    a, b = gaussian(samples(50, 16, 1)), gaussian(samples(20, 16, 2))
    assert 0 <= frechet(a, a) < 1e-9 * a.covariance.trace().item()
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)


def test_sets_without_spread_are_as_far_as_their_means() -> None:
    a, b = torch.zeros(3, 4), torch.full((3, 4), 2.0)
    assert frechet(gaussian(a), gaussian(b)) == 16


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_are_one_clear_line(count: int) -> None:
    few, enough = gaussian(samples(count, 8, 0)), gaussian(samples(5, 8, 0))
    assert few.count == count
    for pair in ((few, enough), (enough, few)):
        with pytest.raises(NextScaleError, match=f"at least two pictures in each set, got {count}") as error:
            frechet(*pair)
        assert "\n" not in str(error.value)


@settings(max_examples=20, deadline=None)
@given(num=st.integers(2, 40), batch=st.integers(1, 40))
def test_batches_give_the_moments_of_the_whole(num: int, batch: int) -> None:
    features = samples(num, 6, num) + 1e4
    statistics = gaussian(features, batch=batch)
    assert statistics.count == num
    torch.testing.assert_close(statistics.mean, features.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.covariance, features.T.cov(), rtol=1e-8, atol=1e-8)


def test_moments_are_in_float64_whatever_comes_in() -> None:
    statistics = gaussian(torch.rand(5, 3).half())
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    with pytest.raises(ValueError, match="N x D"):
        statistics.add(torch.rand(3))


# --- the network ------------------------------------------------------------------------------------------------------

# From pytorch-fid 0.3.0 with the weights of `random_state` and the images below: these features of each image.
CHOSEN = [0, 700, 1000, 1300, 1600, 2047]
FEATURES = [
    [16.698021, 0.202663, 24.193531, 1.284326, 13.827272, 1.894847],
    [16.890596, 0.265719, 24.358488, 1.256254, 13.666524, 1.910324],
]


@pytest.fixture
def inception(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Inception:
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(random_weights))
    return Inception()


@pytest.mark.integration
def test_features_are_those_of_pytorch_fid(inception: Inception) -> None:
    """Padding counted in a mean, a mean for the last maximum or another resize change them by a hundredth or more."""
    images = torch.from_numpy(np.random.RandomState(1).rand(2, 3, 80, 101).astype(np.float32))
    features = inception(images)
    assert features.shape == (2, 2048)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[:, CHOSEN], torch.tensor(FEATURES), rtol=1e-3, atol=1e-3)
    assert not features.requires_grad
    assert not inception.training
    alone = torch.cat([inception(image[None]) for image in images])
    torch.testing.assert_close(alone, features, rtol=1e-4, atol=1e-4)


@pytest.mark.integration
def test_the_state_has_the_official_names_and_shapes(inception: Inception) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in inception.state_dict().items()} == shapes()


@pytest.mark.integration
def test_weights_of_torchvisions_inception_are_refused(
    random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(random_weights / FILE, weights_only=True)
    state["fc.weight"], state["fc.bias"] = state["fc.weight"][:1000], state["fc.bias"][:1000]
    torch.save(state, tmp_path / FILE)
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(tmp_path))
    try:
        with pytest.raises(MissingWeights, match=FILE):
            Inception()
    finally:
        (tmp_path / FILE).unlink()


def test_missing_weights_are_named_with_their_remedy(no_weights: Path) -> None:
    with pytest.raises(MissingWeights, match=f"releases/download/fid_weights/{FILE}") as error:
        Inception()
    assert "NEXTSCALE_WEIGHTS" in str(error.value)
    assert str(no_weights) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
def test_the_official_weights_tell_a_photograph_from_noise() -> None:
    shared("NEXTSCALE_WEIGHTS", "weights", FILE)
    network = Inception()
    crops = photograph("astronaut.png").unfold(2, 128, 64).unfold(3, 128, 64).flatten(2, 3)[0].transpose(0, 1)
    photos, others = (gaussian(network(part)) for part in (crops[::2], crops[1::2]))
    noise = gaussian(network(torch.rand(crops[::2].shape, generator=torch.Generator().manual_seed(0))))
    assert frechet(photos, others) < frechet(photos, noise)
