"""Official files are looked for in order, checked when downloaded, and named with the remedy when they are nowhere."""

from __future__ import annotations

import hashlib
import io
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn

from nextscale.evaluate.weights import MissingWeights, download, load_into, official_file

URL = "https://download.pytorch.org/models/net-01234567.pth"


def test_the_users_folder_comes_before_the_cache(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_weights.mkdir()
    cached = no_weights / "net-01234567.pth"
    cached.touch()
    assert official_file(URL) == cached
    user = no_weights / "user"
    user.mkdir()
    monkeypatch.setenv("NEXTSCALE_WEIGHTS", str(user))
    assert official_file(URL) == cached
    (user / cached.name).touch()
    assert official_file(URL) == user / cached.name
    (user / "net_features.pth").touch()
    assert official_file(URL, also=["net_features.pth"]) == user / "net_features.pth"


def test_a_file_that_is_nowhere_is_named_with_its_remedy(no_weights: Path) -> None:
    with pytest.raises(MissingWeights, match=URL) as error:
        official_file(URL)
    assert "NEXTSCALE_WEIGHTS" in str(error.value)
    assert str(no_weights) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_download_is_checked_and_lands_in_the_cache(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights" * 1000
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    url = "https://download.pytorch.org/models/"
    asked = []

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        asked.append((address, timeout > 0))
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    path = download(url + name, no_weights / name)
    assert path.read_bytes() == content
    assert asked == [(url + name, True)]
    with pytest.raises(MissingWeights, match="sha256"):
        download(url + "net-00000000.pth", no_weights / "net-00000000.pth")
    assert [file.name for file in no_weights.iterdir()] == [name]


def test_batch_norms_counter_may_be_missing_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original, loaded = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    original(torch.rand(2, 3, 4, 4))
    state = {name: tensor for name, tensor in original.state_dict().items() if name != "num_batches_tracked"}
    file = tmp_path / "norm.pth"
    torch.save(state, file)
    load_into(loaded, file)
    assert torch.equal(loaded.running_mean, original.running_mean)  # type: ignore[arg-type]
    del state["running_mean"]
    torch.save(state, file)
    with pytest.raises(MissingWeights, match="remove or replace"):
        load_into(loaded, file)
