"""The page's server: everyone gets their own picture, limits hold, nothing stays behind, programs can call it."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs the extra `web`")

import httpx
from gradio_client import Client, handle_file

from nextscale import UpscaleOptions
from nextscale import image as images
from nextscale.commands.main import main
from nextscale.errors import ImageError
from nextscale.image import Picture
from nextscale.install import how_to_install
from nextscale.upscale.nextscale import NextScale
from nextscale.web.page import Limits, Restorer, overlaid, sweep
from nextscale.web.serve import credentials, example_photos, free_port
from tests.server import Server, running

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[Server]:
    with running(model_folder) as server:
        yield server


def photo(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    images.write(path, Picture(pixels))
    return path


def call(server: Server, path: Path, **options: float) -> list[Path]:
    client = Client(server.url, verbose=False)
    try:
        return [Path(p) for p in client.predict(photo=handle_file(path), api_name="/upscale", **options)]
    finally:
        client.close()


# -- the server --------------------------------------------------------------------------------------------------------


def test_eight_at_once_each_get_their_own_picture(server: Server, model: NextScale, tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{seed}.png", seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: call(server, path, scale=2.0), paths))
    for path, answer in zip(paths, answers, strict=True):
        expected = model.upscale(path, UpscaleOptions(scale=2.0, all_factors=True)).images
        assert [p.name for p in answer] == ["restored_x1.png", "restored_x2.png"]
        for file, factor in zip(answer, (1.0, 2.0), strict=True):
            np.testing.assert_array_equal(images.read(file).rgb, expected[factor].rgb)


def test_profile_and_sixteen_bits_survive(server: Server, tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    images.write(tmp_path / "deep.png", Picture(pixels, icc=profile))
    (answer,) = call(server, tmp_path / "deep.png", scale=1.0)
    back = images.read(answer)
    assert (back.bits, back.icc) == (16, profile)


def test_confidence_comes_when_asked_for(server: Server, tmp_path: Path) -> None:
    answer = call(server, photo(tmp_path / "a.png", 1), scale=1.0, confidence=True)
    assert [p.name for p in answer] == ["restored_x1.png", "restored_x1_confidence.png"]
    assert images.read(answer[1]).is_grey


def test_no_client_name_on_the_disk(server: Server, tmp_path: Path) -> None:
    call(server, photo(tmp_path / "very private name.png", 3), scale=1.0)
    files = [path.name for path in server.folder.rglob("*")]
    assert "photograph.png" in files
    assert not any("private" in name for name in files)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_bytes(b"no picture"), "This is not a picture"),
        (lambda path: photo(path, 0, (600, 400)), "pixels"),
        (lambda path: photo(path, 0, (300, 300)), "choose a smaller factor or a smaller picture"),
    ],
    ids=["no picture", "too many pixels", "too large a result"],
)
def test_what_cannot_be_done_is_a_plain_sentence(server: Server, tmp_path: Path, make: object, sentence: str) -> None:
    path = tmp_path / "a.png"
    make(path)  # type: ignore[operator]
    with pytest.raises(Exception, match=sentence) as caught:
        call(server, path, scale=8.0)
    assert not re.search(r"Traceback|/tmp", str(caught.value))


def test_an_option_out_of_range_is_a_plain_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"Fidelity must be in \[0, 1\], got 7"):
        call(server, photo(tmp_path / "a.png", 0), fidelity=7.0)


def test_an_upload_beyond_the_limit_is_refused(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(b"\0" * 2_500_000)
    with path.open("rb") as file:
        answer = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("big.png", file)})
    assert answer.status_code == 413


def test_a_full_queue_refuses(model_folder: Path, tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", 0, (200, 200))
    with running(model_folder, "--waiting", "1") as small, concurrent.futures.ThreadPoolExecutor(6) as pool:
        client = Client(small.url, verbose=False)
        jobs = [client.submit(photo=handle_file(path), api_name="/upscale") for _ in range(6)]
        del pool
        errors = [str(job.exception(timeout=300) or "") for job in jobs]
        client.close()
    assert sum("full" in error for error in errors) >= 1
    assert sum(not error for error in errors) >= 1


def test_a_password_is_asked_for(model_folder: Path) -> None:
    with running(model_folder, environment={"NEXTSCALE_AUTH": "ann:secret"}) as guarded:
        assert httpx.get(f"{guarded.url}config").status_code == 401
        with pytest.raises(Exception, match=r"(?i)login|auth|credential"):
            Client(guarded.url, verbose=False)
        Client(guarded.url, auth=("ann", "secret"), verbose=False).close()


def test_ending_it_leaves_no_files(model_folder: Path, tmp_path: Path) -> None:
    with running(model_folder) as server:
        call(server, photo(tmp_path / "a.png", 0), scale=1.0)
        assert any(server.folder.rglob("restored_x1.png"))
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        assert not server.folder.exists()
        assert "Traceback" not in server.errors()


def test_the_documented_example_runs_as_it_stands(server: Server, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "gradio_client" in block)
    assert code.count("\n") <= 6
    photo(tmp_path / "photo.jpg", 5)
    code = code.replace("http://127.0.0.1:7860", server.url.rstrip("/"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "restored_x4.png" in done.stdout


# -- its parts ---------------------------------------------------------------------------------------------------------


def test_work_stops_within_a_step_when_nobody_waits(model: NextScale, tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png", 0, (600, 500))
    restorer, stop = Restorer(model, tmp_path / "files", Limits()), threading.Event()
    moments = restorer.restore(str(path), UpscaleOptions(), stop)
    next(moments)
    before = threading.active_count()
    stop.set()
    last = list(moments)
    assert not any(files.complete for moment in last for files in moment.files.values())
    deadline = time.monotonic() + 30
    while threading.active_count() >= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() < before


def test_factors_come_in_order_and_progress_rises(model: NextScale, tmp_path: Path) -> None:
    restorer = Restorer(model, tmp_path / "files", Limits())
    path = photo(tmp_path / "a.png", 0, (150, 40))
    moments = list(restorer.restore(str(path), UpscaleOptions(confidence=True), threading.Event()))
    done = [sorted(f for f, files in moment.files.items() if files.complete) for moment in moments]
    assert [row for i, row in enumerate(done) if i == 0 or row != done[i - 1]] == [[], [1], [1, 2], [1, 2, 4]]
    shares = [moment.share or 0 for moment in moments]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    for files in moments[-1].files.values():
        assert all(Path(str(p)).is_file() for p in (files.shown, files.download, files.overlay, files.confidence))


def test_the_overlay_colours_the_less_sure_half_alone() -> None:
    pixels = np.full((10, 10, 3), 100, np.uint8)
    confidence = np.arange(100, dtype=np.uint8).reshape(10, 10)
    painted = (overlaid(Picture(pixels), confidence).rgb != pixels).any(axis=2)
    assert painted.reshape(-1).tolist() == [i < 49 for i in range(100)]
    sure = overlaid(Picture(pixels), np.full((10, 10), 200, np.uint8))
    np.testing.assert_array_equal(sure.rgb, pixels)


def test_the_sweep_takes_old_files_only(tmp_path: Path) -> None:
    old, new = tmp_path / "a" / "old.png", tmp_path / "b" / "new.png"
    for path in (old, new):
        path.parent.mkdir()
        path.write_bytes(b"x")
    then = time.time() - 4000
    os.utime(old, (then, then))
    os.utime(old.parent, (then, then))
    assert sweep(tmp_path, 3600) == 1
    assert new.exists()
    assert not old.exists()
    os.utime(old.parent, (then, then))
    sweep(tmp_path, 3600)
    assert not old.parent.exists()


def test_results_beyond_the_limit_are_refused_before_work() -> None:
    with pytest.raises(ImageError, match="more than 1 million pixels"):
        Limits(result_pixels=1_000_000).check(Picture(np.zeros((600, 500, 3), np.uint8)), 2)


def test_five_examples_are_shipped_with_their_licences() -> None:
    names = [path.name for path in example_photos()]
    assert len(names) == 5
    licences = (ROOT / "examples" / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in licences for name in names)


@pytest.mark.parametrize("text", ["ann", ":x", "ann:"])
def test_credentials_need_both_parts(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--auth", text]) == 2
    assert "auth must be USER:PASSWORD" in capsys.readouterr().err


def test_credentials_may_hold_colons() -> None:
    assert credentials("ann:a:b") == ("ann", "a:b")
    assert credentials(None) is None


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert free_port("127.0.0.1", 0) > 0


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--max-mb", "0"], ["--waiting", "0"]])
def test_settings_out_of_range_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert arguments[0].removeprefix("--") in capsys.readouterr().err


def test_without_gradio_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["serve", "--port", "0"]) == 1
    assert how_to_install("web") in capsys.readouterr().err
