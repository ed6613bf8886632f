"""Pictures from the standard input, from addresses and to the standard output; progress for a calling program."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from nextscale import image as images
from nextscale.commands import streams
from nextscale.commands.main import main
from nextscale.install import how_to_install

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def run(
    read_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Run:
    """`nextscale upscale` with the small model at x1 in an empty folder; `stdin` is what it gets there."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object, stdin: bytes | None = None) -> tuple[int, bytes, str]:
        source = SimpleNamespace(buffer=io.BytesIO(stdin or b""), isatty=lambda: stdin is None)
        monkeypatch.setattr(sys, "stdin", source)
        how = ["-n", str(read_once), "-s", "1", "--device", "cpu", "--fp32"]
        try:
            status = main(["upscale", *map(str, words), *how])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return call


def photo(form: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.mark.integration
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_goes_through_a_pipe(run: Run, tmp_path: Path, form: str) -> None:
    status, out, err = run("-i", "-", "-o", "-", stdin=photo(form))
    assert (status, err) == (0, "")
    through = images.decode_bytes(out)
    assert (through.format, through.size) == (form, (30, 20))
    (tmp_path / f"a.{form.lower()}").write_bytes(photo(form))
    assert run(f"a.{form.lower()}", "-o", f"b.{form.lower()}")[0] == 0
    assert (tmp_path / f"b.{form.lower()}").read_bytes() == out


def test_the_format_on_a_pipe_is_the_one_asked_for(run: Run) -> None:
    status, out, _ = run("-", "-o", "-", "--ext", "webp", stdin=photo())
    assert (status, images.decode_bytes(out).format) == (0, "WebP")


@pytest.mark.integration
def test_the_standard_input_goes_to_a_file_or_a_folder(run: Run) -> None:
    assert run("-i", "-", "-o", "a.png", stdin=photo())[0] == 0
    status, out, _ = run("-i", "-", "-o", "out", stdin=photo("JPEG"))
    assert status == 0
    assert out.startswith(b"-: 30 x 20 -> 30 x 20")
    assert images.read("a.png").size == (30, 20)
    assert images.read("out/stdin_x1.jpg").size == (30, 20)


@pytest.mark.parametrize(
    ("words", "stdin", "status", "line"),
    [
        (["-i", "-", "-o", "-"], b"no picture", 1, "-: this is not a picture"),
        (["-i", "-", "-o", "-"], None, 1, "-: the standard input is a terminal; send a picture into it"),
        (["-i", "-", "-", "-o", "out"], photo(), 2, "the standard input (-) can be read once only"),
        (["-i", "-", "-o", "-", "--all-factors"], photo(), 2, "-o - takes one picture and gives one"),
        (["-i", "-", "b.png", "-o", "-"], photo(), 2, "-o - takes one picture and gives one"),
        (["-i", ".", "-o", "-"], photo(), 2, "-o - takes one picture and gives one"),
        (["-i", "-", "-o", "-", "--json"], photo(), 2, "-o - takes one picture and gives one"),
        (
            ["-i", "-", "-o", "-", "--resume"],
            photo(),
            2,
            "--resume and --manifest are for pictures that go to a folder",
        ),
        (["-i", Path.cwd().as_uri(), "-o", "-"], None, 2, "-o - takes one picture and gives one"),
        (["-i", "memory://a.png", "-o", "out", "--resume"], None, 2, "--resume and --manifest are for local files"),
        (["-i", "memory://a.png", "-o", "out"], None, 1, "memory://a.png: it cannot be fetched"),
        (["-i", "https://h.invalid/", "-o", "out"], None, 1, "https://h.invalid/: this address names no file"),
        (["-i", "nosuch://h/a.png?key=secret", "-o", "o.png"], None, 1, "nosuch://h/a.png: it cannot be fetched"),
        (["-i", "missing.png", "-o", "o.png"], None, 1, "missing.png: no such file; check the name"),
        (["-i", "missing.png", "-o", "o.png", "--progress-fd", "777"], None, 2, "--progress-fd 777: Bad file desc"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, words: list[str], stdin: bytes | None, status: int, line: str
) -> None:
    got, out, err = run(*words, stdin=stdin)
    assert (got, out) == (status, b"")
    assert err.startswith(f"nextscale: {line}"), err
    assert err.count("\n") == 1
    assert "secret" not in err
    assert not list(Path().iterdir())


@pytest.mark.integration
def test_addresses_are_read_and_named_as_given(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(photo())
    with fsspec.open("memory://shop/a b.png", "wb") as file:
        file.write(photo())
    status, out, err = run("-i", "memory://shop/a%20b.png", "-o", "none", "--json")
    assert status == 1  # fsspec takes names as they are
    status, out, err = run("-i", "memory://shop/a b.png", "-o", "out", "--json")
    assert (status, err) == (0, "")
    row = json.loads(out)
    assert row["input"] == "memory://shop/a b.png"
    assert images.read(row["outputs"]["x1"]).size == (30, 20)
    assert Path(row["outputs"]["x1"]) == Path("out/a b_x1.png")
    address = (tmp_path / "a b.png").as_uri()
    assert run(address, "-o", "here")[1].startswith(f"{tmp_path / 'a b.png'}: 30 x 20 ->".encode())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a web server on this machine that has `shop/a b.png`."""
    pytest.importorskip("aiohttp", reason="pictures from web servers need the extra `data`")
    (tmp_path / "site/shop").mkdir(parents=True)
    (tmp_path / "site/shop/a b.png").write_bytes(photo())
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.integration
def test_a_picture_comes_from_a_web_server(run: Run, site: str) -> None:
    status, out, err = run("-i", f"{site}/shop/a%20b.png?size=full", "-o", "out", "--json")
    assert (status, err) == (0, "")
    row = json.loads(out)
    assert row["input"] == f"{site}/shop/a%20b.png"
    assert Path(row["outputs"]["x1"]) == Path("out/a b_x1.png")
    assert images.read("out/a b_x1.png").size == (30, 20)


def test_what_a_web_server_lacks_is_one_line(run: Run, site: str) -> None:
    status, out, err = run("-i", f"{site}/shop/none.png?key=secret", "-o", "o.png")
    assert (status, out) == (1, b"")
    assert err.startswith(f"nextscale: {site}/shop/none.png: it cannot be fetched")
    assert err.count("\n") == 1
    assert "secret" not in err
    assert not Path("o.png").exists()


def test_a_picture_comes_from_an_object_store(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="the object store needs `pip install s3fs 'moto[server]'`")
    moto = pytest.importorskip("moto.server", reason="the object store needs `pip install s3fs 'moto[server]'`")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("shop")
        store.pipe("shop/a.png", photo())
        status, _, err = run("-i", "s3://shop/a.png", "-o", "a.png")
        assert (status, err) == (0, "")
        assert images.read("a.png").size == (30, 20)
        status, _, err = run("-i", "s3://shop/none.png", "-o", "o.png")
        assert status == 1
        assert err.startswith("nextscale: s3://shop/none.png: it cannot be fetched")
        assert err.count("\n") == 1
    finally:
        server.stop()


def test_without_fsspec_one_line_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    status, _, err = run("-i", "https://h.invalid/a.png", "-o", "o.png")
    assert status == 1
    assert err == f"nextscale: https://h.invalid/a.png: reading addresses needs fsspec: {how_to_install('data')}\n"


def test_progress_goes_to_a_descriptor_as_lines_of_json(run: Run, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    (tmp_path / "a.png").write_bytes(photo())
    (tmp_path / "b.png").write_bytes(b"no picture")
    status, out, _ = run("a.png", "b.png", "-o", "out", "-q", "--progress-fd", writing)
    os.close(writing)
    with os.fdopen(reading) as stream:
        events: list[dict[str, Any]] = [json.loads(line) for line in stream]
    assert (status, out) == (1, b"")
    steps = [event for event in events if event["event"] == "progress"]
    assert {event["input"] for event in steps} == {"a.png"}
    assert [event["step"] for event in steps] == [1, 2, 3]
    assert steps[-1]["share"] == 1
    assert set(steps[0]) == {"event", "input", "share", "pass", "passes", "tile", "tiles", "step", "steps"}
    (done,) = [event for event in events if event["event"] == "done"]
    assert done["outputs"] == {"x1": str(Path("out/a_x1.png"))}
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["input"] == "b.png"
    assert "not a picture" in failed["error"]


def test_a_reader_that_leaves_does_not_stop_the_work(run: Run, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    (tmp_path / "a.png").write_bytes(photo())
    assert run("a.png", "-o", "b.png", "--progress-fd", writing)[0] == 0
    os.close(writing)
    assert images.read("b.png").size == (30, 20)


@pytest.mark.integration
def test_a_missing_file_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from nextscale.commands.main import main; "
        "status = main(['upscale', '-i', 'missing.png', '-o', 'o.png']); print(status, 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
    assert done.stderr == "nextscale: missing.png: no such file; check the name\n"


@pytest.mark.parametrize("name", ["..%2F..%2Foutside.png", "%2Ftmp%2Foutside.png", "..%5Coutside.png"])
def test_a_servers_name_is_no_path_here(tmp_path: Path, name: str) -> None:
    with fsspec.open(f"memory://shop/{name}", "wb") as file:
        file.write(photo())
    paths, given, refused = streams.fetch([f"memory://shop/{name}"], tmp_path)
    assert (paths, refused) == ([tmp_path / "0" / "outside.png"], [])
    assert given[paths[0]] == f"memory://shop/{name}"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0", "outside.png"]
