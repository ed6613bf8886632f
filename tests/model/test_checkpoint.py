"""Model folders: exact round trips, and one clear line for whatever may be wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextscale.errors import ModelError
from nextscale.model.checkpoint import find_folder
from nextscale.model.tokenizer import Tokenizer
from nextscale.upscale.nextscale import NextScale


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


def refused(folder: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        NextScale.from_pretrained(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_saved_model_loads_bit_for_bit(model: NextScale, model_folder: Path) -> None:
    again = NextScale.from_pretrained(model_folder, fp32=True)
    assert again.config == model.config
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_half_precision_keeps_the_quantiser_whole(model: NextScale, tmp_path: Path) -> None:
    state = load_file(model.save_pretrained(tmp_path) / "model.safetensors")
    for name, tensor in state.items():
        assert tensor.dtype == (torch.float32 if "quantizer." in name else torch.float16), name
    NextScale.from_pretrained(tmp_path)


def test_a_tokenizer_saves_and_loads_alone(model: NextScale, tmp_path: Path) -> None:
    folder = model.tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = Tokenizer.from_pretrained(folder)
    assert torch.equal(again.quantizer.codebook.weight, model.tokenizer.quantizer.codebook.weight)
    assert "holds a tokenizer, a model is needed" in refused(folder)


def test_saving_leaves_no_temporary_files(model_folder: Path) -> None:
    assert sorted(p.name for p in model_folder.iterdir()) == [
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
    ]


def test_an_unknown_key_is_named(folder: Path) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data["config"]["transformer"]["dropout"] = 0.1
    path.write_text(json.dumps(data))
    assert "config.transformer.dropout" in refused(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "not readable as JSON"), ("[]", "not a nextscale model"), ('{"format": "other"}', "not a nextscale model")],
)
def test_a_damaged_or_foreign_config_is_refused(folder: Path, content: str, reason: str) -> None:
    (folder / "config.json").write_text(content)
    assert reason in refused(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 4, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert "damaged or not a safetensors file" in refused(folder)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    short = {name: tensor for name, tensor in state.items() if "position" not in name}
    save_file(short, path)
    assert "lacks transformer.position" in refused(folder)
    save_file(state | {"extra": torch.zeros(1)}, path)
    assert "foreign tensor extra" in refused(folder)
    save_file(state | {"transformer.position": torch.zeros(1)}, path)
    assert "transformer.position has shape (1,)" in refused(folder)
    broken = state["transformer.position"].clone()
    broken.view(-1)[0] = float("nan")
    save_file(state | {"transformer.position": broken}, path)
    assert "not finite" in refused(folder)


def test_missing_files_and_names_are_explained(tmp_path: Path) -> None:
    assert "config.json: missing" in refused(tmp_path)
    assert "no such model" in refused("no-such-name")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"x")
    assert "nextscale convert" in refused(file)


def test_a_hub_id_is_downloaded(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, *, allow_patterns: list[str], **how: object) -> str:
        asked.append((name, *allow_patterns, how))
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_folder("owner/name", revision="v1") == model_folder
    assert asked == [("owner/name", "config.json", "model.safetensors", "card.json", "README.md", {"revision": "v1"})]


def test_a_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *, allow_patterns: list[str], **_: object) -> str:
        raise OSError(f"no route\nto {name} {allow_patterns}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert "the hub does not give it (no route: to owner/name" in refused("owner/name")


def test_an_unwritable_folder_is_explained(model: NextScale, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ModelError, match="could not be written"):
        model.save_pretrained(blocker / "model")
