"""Folders: order, overlap, shared batches, resuming after a kill, and folders inside folders."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextscale import UpscaleOptions
from nextscale import image as images
from nextscale.commands.main import main
from nextscale.image import Picture
from nextscale.model.config import FusionConfig
from nextscale.upscale.engine import Engine, Place, run_all
from nextscale.upscale.nextscale import NextScale
from nextscale.upscale.pipeline import Pipeline
from tests.conftest import restoring_model

ROOT = Path(__file__).parents[2]


def noise(seed: int, width: int = 40, height: int = 30) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def folder(path: Path, count: int, **size: int) -> Path:
    for seed in range(count):
        images.write(path / f"{seed:02}.png", noise(seed, **size))
    return path


@pytest.fixture(scope="module")
def restoring_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of the form of tiny's fifth version: its fusions have a say."""
    return restoring_model(untrained=False).save_pretrained(tmp_path_factory.mktemp("restoring"), half=False)


def command(model: Path, *arguments: Any) -> list[str]:
    return ["upscale", "-n", str(model), "--device", "cpu", "--fp32", *map(str, arguments)]


# -- threads -----------------------------------------------------------------------------------------------------------


def test_rows_come_in_order_and_places_are_passed_in_order(model: NextScale) -> None:
    passed: list[int] = []

    def work(engine: Engine, place: Place, item: int) -> int:
        del engine
        time.sleep(0.02 * (item % 3 == 0))
        place.wait()
        passed.append(item)
        return item

    assert list(run_all(Engine(model), range(30), work)) == passed == list(range(30))


def test_items_are_worked_on_while_others_wait(model: NextScale) -> None:
    together = threading.Barrier(3, timeout=30)

    def work(engine: Engine, place: Place, item: int) -> int:
        del engine, place
        return together.wait() * 0 + item

    assert list(run_all(Engine(model), range(6), work)) == list(range(6))


def test_an_error_of_ours_stops_the_rest(model: NextScale) -> None:
    begun = []

    def work(engine: Engine, place: Place, item: int) -> int:
        del place
        begun.append(item)
        if item == 1:
            raise ZeroDivisionError
        engine.stopped.wait(0 if item == 0 else 30)
        return item

    with pytest.raises(ZeroDivisionError):
        list(run_all(Engine(model), range(50), work))
    assert len(begun) <= 6


# -- shared batches ----------------------------------------------------------------------------------------------------


def gather(shared: Engine, pictures: list[Picture], how: UpscaleOptions) -> list[Any]:
    out: list[Any] = [None] * len(pictures)

    def one(i: int) -> None:
        try:
            out[i] = shared.upscale(pictures[i], how)
        except Exception as error:
            out[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


class Watched(Pipeline):
    """A pipeline that notes its batches, and may fail above a size."""

    def __init__(self, model: NextScale, most: int = 99) -> None:
        super().__init__(model.config, model.tokenizer, model.transformer, model.restorer, model.fusions)
        self.sizes: list[int] = []
        self.most = most

    def restore_tiles(self, inputs: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        self.sizes.append(len(inputs))
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        time.sleep(0.2)  # so that others come to wait
        return super().restore_tiles(inputs, *arguments, **named)


def sharing(watched: Watched) -> Engine:
    """An engine whose pictures share the batches of a watched pipeline."""
    model = NextScale(watched.config, watched.tokenizer, watched.transformer, watched.restorer, watched.fusions)
    model.pipeline = watched
    return Engine(model, share=True)


@pytest.mark.integration
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pictures_share_batches_and_get_what_they_would_alone(model: NextScale, temperature: float) -> None:
    how = UpscaleOptions(scale=2, all_factors=True, confidence=True, temperature=temperature)
    pictures = [noise(seed, 40 + 30 * seed) for seed in range(6)]
    watched = Watched(model)
    shared = sharing(watched)
    results = gather(shared, pictures, how)
    shared.close()
    assert max(watched.sizes) > 1
    assert len(watched.sizes) < len(pictures)
    for picture, result in zip(pictures, results, strict=True):
        alone = model.upscale(picture, how)
        for factor in (1.0, 2.0):
            difference = np.abs(result.images[factor].rgb.astype(int) - alone.images[factor].rgb)
            assert difference.max() <= 1
            assert difference.mean() < 0.01
            assert np.abs(result.confidence[factor].astype(int) - alone.confidence[factor]).max() <= 1
        assert result.timings.keys() == alone.timings.keys()


@pytest.mark.integration
def test_a_batch_that_does_not_fit_is_run_in_smaller_ones(model: NextScale) -> None:
    watched = Watched(model, most=2)
    shared = sharing(watched)
    results = gather(shared, [noise(seed) for seed in range(6)], UpscaleOptions(scale=1))
    shared.close()
    assert max(watched.sizes) > 2
    assert all(not isinstance(result, Exception) for result in results)


def test_another_pictures_error_is_its_own(model: NextScale) -> None:
    shared = sharing(Watched(model))
    bad = threading.Event()

    def stop(_: Any) -> None:
        bad.set()
        raise KeyError("mine")

    out: dict[str, Any] = {}

    def fail() -> None:
        try:
            shared.upscale(noise(0), UpscaleOptions(scale=1), on_progress=stop)
        except KeyError as error:
            out["error"] = error

    threads = [threading.Thread(target=fail)]
    threads += [threading.Thread(target=lambda: out.update(good=shared.upscale(noise(1), UpscaleOptions(scale=1))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.close()
    assert bad.is_set()
    assert "mine" in str(out["error"])
    assert out["good"].picture.size == (40, 30)


@pytest.mark.integration
def test_a_shared_engine_restores_a_folder(model: NextScale) -> None:
    engine = Engine(model, share=True)

    def work(engine: Engine, place: Place, seed: int) -> tuple[int, int]:
        del place
        return engine.upscale(noise(seed), UpscaleOptions(scale=2)).picture.size

    assert list(run_all(engine, range(10), work)) == [(80, 60)] * 10
    engine.close()


# -- models with a restorer and fusions --------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("how", [{}, {"fast": True}], ids=["fused", "fast"])
def test_a_restoring_model_gives_a_folder_what_it_gives_single_pictures(
    restoring_folder: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    source = folder(tmp_path / "in", 2)
    flags = [f"--{name}" for name in how]
    assert main(command(restoring_folder, "-i", source, "-o", tmp_path / "out", "-s", 2, *flags)) == 0
    model = NextScale.from_pretrained(restoring_folder, device="cpu", fp32=True)
    for path in sorted(source.iterdir()):
        alone = model.upscale(path, UpscaleOptions(scale=2, **how))
        assert np.array_equal(images.read(tmp_path / "out" / f"{path.stem}_x2.png").rgb, alone.picture.rgb)
        assert bool(alone.codes) is not bool(how)


def test_codes_that_would_not_change_the_picture_are_left_out_of_a_folder() -> None:
    changed = restoring_model(untrained=False)
    plain = dataclasses.replace(changed.config, fusion=FusionConfig(8, 0, 8, codes=False))
    repeating = NextScale.create(plain)
    assert repeating.restorer is not None
    assert repeating.pipeline.fusions is not None
    for fusion, head in zip(repeating.pipeline.fusions, repeating.restorer.heads, strict=True):
        fusion.head.load_state_dict(head.state_dict())  # type: ignore[union-attr]
    repeating.to("cpu", fp32=True)
    cases: list[tuple[NextScale, dict[str, Any], bool]] = [
        (repeating, {}, False),
        (repeating, {"confidence": True}, True),
        (repeating, {"fidelity": 0.5}, True),
        (changed, {}, True),
    ]
    for model, how, codes in cases:
        options = UpscaleOptions(scale=2, all_factors=True, **how)
        engine = Engine(model)
        got, whole = engine.upscale(noise(0), options), model.upscale(noise(0), options)
        engine.close()
        assert bool(got.codes) is codes
        assert whole.codes
        assert all(np.array_equal(picture.rgb, whole.images[factor].rgb) for factor, picture in got.images.items())
        assert got.maps.keys() == whole.maps.keys()
    with torch.no_grad():
        repeating.pipeline.fusions[2].head.weight[0, 0, 0, 0] += 1  # type: ignore[union-attr, index, operator]
    assert Engine(repeating).upscale(noise(0), UpscaleOptions(scale=1)).codes


@pytest.mark.integration
def test_a_restoring_model_shares_batches_and_keeps_its_expected_error(restoring_folder: Path) -> None:
    model = NextScale.from_pretrained(restoring_folder, device="cpu", fp32=True)
    options = UpscaleOptions(scale=2, confidence=True)
    pictures = [noise(seed) for seed in range(6)]
    watched = Watched(model)
    shared = sharing(watched)
    results = gather(shared, pictures, options)
    shared.close()
    assert max(watched.sizes) > 1
    for picture, result in zip(pictures, results, strict=True):
        alone = model.upscale(picture, options)
        assert np.abs(result.picture.rgb.astype(int) - alone.picture.rgb).max() <= 1
        assert np.abs(result.maps[2.0].astype(float) - alone.maps[2.0]).max() <= 1e-3


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_folders_inside_folders_keep_their_places(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path / "in", 1), folder(tmp_path / "in" / "deep" / "er", 2), folder(tmp_path / "in" / "out" / "x", 1)
    arguments = command(model_folder, "-i", tmp_path / "in", "-o", tmp_path / "in" / "out", "-s", 1, "--recursive")
    for _ in range(2):  # results inside the given folder are no pictures of the next run
        assert main(arguments) == 0
        assert "3 pictures: 3 done" in capsys.readouterr().out
    found = sorted(str(p.relative_to(tmp_path / "in" / "out")) for p in (tmp_path / "in" / "out").rglob("*_x1.png"))
    assert found == ["00_x1.png", "deep/er/00_x1.png", "deep/er/01_x1.png"]


@pytest.mark.integration
def test_resume_leaves_out_what_is_done_and_redoes_what_changed(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = folder(tmp_path / "in", 4), tmp_path / "out"
    (source / "bad.png").write_bytes(b"no picture")
    arguments = command(model_folder, "-i", source, "-o", out, "-s", 1, "--resume", "--json")
    assert main(arguments) == 1
    capsys.readouterr()
    (out / "01_x1.png").unlink()
    data = bytearray((out / "03_x1.png").read_bytes())
    data[-20] ^= 1  # of the same length
    (out / "03_x1.png").write_bytes(data)
    images.write(source / "02.png", noise(99))
    (source / "bad.png").unlink()
    images.write(source / "bad.png", noise(7))
    assert main(arguments) == 0
    again = [Path(json.loads(line)["input"]).name for line in capsys.readouterr().out.splitlines()]
    assert again == ["01.png", "02.png", "03.png", "bad.png"]
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(source)
    typed = command(model_folder, "-i", "../link", "-o", "../in/../out", "-s", 1, "--resume", "--json")
    assert main(typed) == 0  # the same folders, typed otherwise and seen from elsewhere
    assert capsys.readouterr().out == ""
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    assert main([*arguments, "--seed", "1"]) == 0  # another option makes other results
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.integration
def test_a_killed_run_goes_on_without_redoing_or_losing_one(model_folder: Path, tmp_path: Path) -> None:
    source, out, state = folder(tmp_path / "in", 16, width=200, height=150), tmp_path / "out", tmp_path / "m.jsonl"
    arguments = command(model_folder, "-i", source, "-o", out, "--resume", "--manifest", state, "--json")
    call = [sys.executable, "-m", "nextscale", *arguments]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None and (not state.exists() or state.read_bytes().count(b"\n") < 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {row["input"] for row in rows(state)}
    assert 4 <= len(done) < 16
    times = {path: path.stat().st_mtime_ns for path in out.glob("*_x4.png")}
    finished = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=True)
    redone = {json.loads(line)["input"] for line in finished.stdout.splitlines()}
    assert {os.path.realpath(path) for path in redone} == {os.path.realpath(path) for path in source.iterdir()} - done
    assert len(list(out.glob("*_x4.png"))) == 16
    for name in done:
        path = out / f"{Path(name).stem}_x4.png"
        assert path.stat().st_mtime_ns == times[path]
    with contextlib.suppress(FileNotFoundError):
        assert not list(out.glob(".nextscale-*"))[2:]  # at most what was being written


def rows(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in state.read_text().splitlines() if line.endswith("}")]


@pytest.mark.integration
def test_the_list_is_kept_outside_of_the_output(model_folder: Path, tmp_path: Path) -> None:
    source, out = folder(tmp_path / "in", 2), tmp_path / "out"
    assert main(command(model_folder, "-i", source, "-o", out, "-s", 1)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["00_x1.png", "01_x1.png"]


def test_resume_needs_a_folder(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "in", 1)
    arguments = command(model_folder, "-i", tmp_path / "in" / "00.png", "-o", tmp_path / "a.png", "--resume")
    assert main(arguments) == 2
    assert "are for pictures that go to a folder" in capsys.readouterr().err
