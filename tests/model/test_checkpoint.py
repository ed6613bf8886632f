"""Model folders: exact round trips, and one clear line for whatever may be wrong with them."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextscale.errors import ModelError
from nextscale.model import checkpoint
from nextscale.model.checkpoint import (
    CONFIG,
    SCALE,
    SHIPPED,
    WEIGHTS,
    check_sizes,
    find_folder,
    from_eight_bits,
    local_folder,
    to_eight_bits,
)
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


def test_half_precision_keeps_the_quantizer_whole(model: NextScale, tmp_path: Path) -> None:
    state = load_file(model.save_pretrained(tmp_path) / "model.safetensors")
    for name, tensor in state.items():
        assert tensor.dtype == (torch.float32 if "quantizer." in name else torch.float16), name
    NextScale.from_pretrained(tmp_path)


def test_a_quantizer_that_16_bits_hold_exactly_is_saved_in_16_bits(model: NextScale, tmp_path: Path) -> None:
    exact = copy.deepcopy(model)
    weights = [p.data for p in exact.tokenizer.quantizer.parameters()]
    for weight in weights:
        weight.copy_(weight.half())
    state = load_file(exact.save_pretrained(tmp_path) / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    again = NextScale.from_pretrained(tmp_path, fp32=True).tokenizer.quantizer.parameters()
    for before, after in zip(weights, again, strict=True):
        assert after.dtype == torch.float32
        assert torch.equal(after, before)


def test_the_transformers_matrices_can_be_saved_in_8_bits(model: NextScale, tmp_path: Path) -> None:
    plain, packed = model.save_pretrained(tmp_path / "plain"), model.save_pretrained(tmp_path / "packed", packed=True)
    before, file = load_file(plain / WEIGHTS), load_file(packed / WEIGHTS)
    eight = {name for name, tensor in file.items() if tensor.dtype == torch.int8}
    assert eight == {
        n for n, t in before.items() if n.startswith("transformer.") and n.endswith("weight") and t.ndim == 2
    }
    assert set(file) - set(before) == {name + SCALE for name in eight}
    assert all(torch.equal(file[name], before[name]) for name in set(before) - eight)
    again = NextScale.from_pretrained(packed, fp32=True)
    for name in eight:
        kept, given = again.state_dict()[name], model.state_dict()[name]
        step = given.abs().amax(dim=1, keepdim=True) / 127
        assert bool(((kept - given).abs() <= 0.501 * step).all()), name
        assert float((kept - given).abs().max()) > 0
    # Saved once more, nothing changes.
    once_more = load_file(again.save_pretrained(tmp_path / "again", packed=True) / WEIGHTS)
    assert all(torch.equal(once_more[name], file[name]) for name in eight)


def test_a_row_of_zeros_keeps_its_zeros_in_8_bits() -> None:
    state = {"a.weight": torch.tensor([[0.0, 0.0], [1.0, -2.0]]), "a.bias": torch.ones(2)}
    packed = to_eight_bits(state)
    assert sorted(packed) == ["a.weight", "a.weight" + SCALE]
    torch.testing.assert_close(from_eight_bits(packed, "here")["a.weight"], state["a.weight"], atol=0.008, rtol=0)


@pytest.mark.parametrize("damage", ["lost", "short", "whole"])
def test_matrices_in_8_bits_without_their_scales_are_refused(damage: str, model: NextScale, tmp_path: Path) -> None:
    path = model.save_pretrained(tmp_path, packed=True) / WEIGHTS
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = next(name for name in state if name.endswith(SCALE))
    scale = state.pop(name)
    if damage != "lost":
        state[name] = scale[:-1] if damage == "short" else scale.to(torch.int32)
    save_file(state, path)
    assert f"{name.removesuffix(SCALE)} is in 8 bits without a scale for each row" in refused(tmp_path)


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


def change(folder: Path, *keys: str, to: Any) -> None:
    """Set a value deep in a config.json."""
    data = json.loads((folder / CONFIG).read_text())
    place = data["config"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    (folder / CONFIG).write_text(json.dumps(data))


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong is found before a tensor is made: a model of the folder is never built outside of the check."""

    def create(config: Any) -> NextScale:
        assert torch.empty(1).device.type == "meta", "a model was built before its sizes were checked"
        return real(config)

    real = NextScale.create
    monkeypatch.setattr(NextScale, "create", create)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("transformer", "heads"), 0, "must be a multiple of its heads (0)"),
        (("transformer", "width"), 0, "a transformer's width (0)"),
        (("transformer", "width"), 10**9, "whole numbers from 0 to 1000000, got 1000000000"),
        (("transformer", "width"), 1_000_000, "does not fit its config: the config asks for more than the file's"),
        (("transformer", "depth"), 1_000_000, "does not fit its config: the config asks for more than the file's"),
        (("transformer", "depth"), -1, "whole numbers from 0 to 1000000, got -1"),
        (("transformer", "depth"), 3, "lacks transformer.stack.blocks.2."),
        (("transformer", "mlp_ratio"), float("inf"), "got inf"),
        (("transformer", "mlp_ratio"), -4.0, "its config makes no model"),
        (("transformer", "position_grid"), 0, "its config makes no model (an empty Transformer.position)"),
        (("tokenizer", "codebook_size"), 999_999, "does not fit its config"),
        (("tokenizer", "num_phi"), 1_000_000, "does not fit its config"),
        (("tokenizer", "autoencoder", "channels"), 0, "its config makes no model (an empty "),
        (("tokenizer", "autoencoder", "multipliers"), [1] * 100_000, "config.json: "),
        (("tokenizer", "ladder", "sides"), [4, 6, 8, 10, 14, 16, 20, 24, 28, 1_000_000], "at most 512 tokens"),
        (("tokenizer", "ladder", "input_canvas"), 0, "patch and input_canvas must be 1 or more"),
        (("tokenizer", "ladder", "phi"), [0] * 9, "one phi index per step"),
        (("tokenizer", "fusion", "blocks"), 500_000, "does not fit its config"),
        (("restorer",), {"channels": 1_000_000, "convs": 9, "factors": [1, 2, 4], "denoise": True}, "config.json: "),
    ],
)
def test_sizes_that_no_weights_have_are_one_line_before_memory_is_taken(
    folder: Path, keys: tuple[str, ...], value: Any, said: str
) -> None:
    change(folder, *keys, to=value)
    line = refused(folder)
    assert line.startswith(str(folder))
    assert said in line
    assert len(line) < 600


@pytest.mark.parametrize("text", ["[" * 10_000, '{"a":' * 10_000, '{"format": "nextscale", "config": ' + "[" * 5000])
def test_json_of_any_depth_is_one_line(folder: Path, text: str) -> None:
    closing = "".join({"[": "]", "{": "}"}[c] for c in reversed(text) if c in "[{")
    for whole in (text, text + "1" + closing):
        (folder / CONFIG).write_text(whole)
        assert "config.json: " in refused(folder)


def test_a_deep_value_in_a_fine_config_is_one_line(folder: Path) -> None:
    change(folder, "transformer", "width", to=json.loads("[" * 400 + "]" * 400))
    assert "config.transformer.width must be int, got [[[[[[[...]]]]]]]" in refused(folder)


def test_a_config_without_end_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MOST_CONFIG", 1000)
    (folder / CONFIG).write_text(" " * 1001)
    assert "longer than any configuration (1000 bytes)" in refused(folder)


@pytest.mark.parametrize("how", ["tokenizer", "restorer"])
def test_so_it_is_with_every_part_that_has_a_folder(tmp_path: Path, how: str) -> None:
    from nextscale.model.checkpoint import save_folder
    from nextscale.model.config import RestorerConfig, tiny
    from nextscale.model.restorer import Restorer
    from nextscale.upscale.nextscale import read_restorer

    if how == "tokenizer":
        folder = save_folder(tmp_path, how, tiny().tokenizer, {"a": torch.zeros(3)})
        call: Callable[[], object] = lambda: Tokenizer.from_pretrained(folder)  # noqa: E731
    else:
        config = RestorerConfig(channels=4, convs=1)
        folder = save_folder(tmp_path, how, config, Restorer(config).state_dict())
        change(folder, "convs", to=1_000_000)
        call = lambda: read_restorer(folder)  # noqa: E731
    with pytest.raises(ModelError, match="does not fit its config: the config asks for more than the file's"):
        call()


def test_a_check_takes_no_parameter_of_another_thread(model_folder: Path, model: NextScale) -> None:
    """The count hangs on a hook that the whole process shares."""
    import threading

    def build() -> torch.nn.Module:
        threads = [threading.Thread(target=torch.nn.Linear, args=(9999, 1)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return NextScale.create(model.config)

    check_sizes(model_folder / "model.safetensors", build)


# ---- names ----


def test_a_shipped_name_goes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "mine", "a b"):
        Path(name).mkdir()
    assert find_folder("tiny") == find_folder(Path("tiny")) == SHIPPED / "tiny"
    assert find_folder("./tiny") == Path("tiny")
    assert find_folder(f"{tmp_path}/tiny") == tmp_path / "tiny"
    assert find_folder(Path("mine")) == find_folder("mine/") == Path("mine")
    assert local_folder("mine") is None
    with pytest.raises(ModelError, match=r"mine: no such model; for the folder of that name write ./mine"):
        find_folder("mine")


@pytest.mark.parametrize(
    "name", ["tiny/..", "tiny/../tiny", "../weights/tiny", "tiny/.", "x" * 5000, "a\0b", "", "tiny\\..\\tiny"]
)
def test_no_name_leads_out_of_the_shipped_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked a hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such model"):
        find_folder(name)
    os.makedirs(Path("tiny"))
    if name == "tiny/..":
        assert find_folder(name) == Path("tiny/..")  # a folder of the user's own


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 4, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert "damaged or not a safetensors file" in refused(folder)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    # Copies: older versions of the library map the file, which is written over below.
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
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
