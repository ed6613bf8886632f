"""The command `nextscale serve`: its folder, its password, its end, and its mistakes in one line."""

from __future__ import annotations

import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from nextscale import image
from nextscale.commands.main import main
from nextscale.image import Picture
from nextscale.install import how_to_install
from nextscale.web.serve import check_hosts, check_proxies, credentials, free_port, own_folder, sweep
from tests.server import command

pytestmark = pytest.mark.integration


def test_it_serves_with_a_password_and_leaves_nothing(model_folder: Path) -> None:
    with command(
        model_folder, "--allow-host", "photos.example", environment={"NEXTSCALE_AUTH": "ann:secret"}
    ) as server:
        assert httpx.get(f"{server.url}/").status_code == 401
        assert "nextscale" in httpx.get(f"{server.url}/", auth=("ann", "secret")).text
        assert httpx.get(f"{server.url}/healthz", headers={"Host": "photos.example"}).json() == {"status": "ok"}
        assert httpx.get(f"{server.url}/healthz", headers={"Host": "evil.example"}).status_code == 403
        (shared,) = server.root.glob("nextscale-*")
        (own,) = shared.iterdir()
        if sys.platform != "win32":
            assert shared.stat().st_mode & 0o077 == 0
        data = Path("examples/rocket.jpg").read_bytes()
        # A client of the loopback cannot say that it is somebody else.
        headers = {"X-Forwarded-For": "9.9.9.9", "Authorization": "Basic YW5uOnNlY3JldA=="}
        answer = httpx.post(f"{server.url}/api/jobs?scale=1", content=data, headers=headers)
        assert answer.status_code == 201
        assert any(own.rglob("input"))
        server.process.terminate()
        assert server.process.wait(60) == 0
        assert not own.exists()
        assert server.errors() == ""


def test_it_ends_without_a_word_while_somebody_waits(model_folder: Path, tmp_path: Path) -> None:
    image.write(tmp_path / "large.png", Picture(np.zeros((900, 900, 3), np.uint8)))
    data = (tmp_path / "large.png").read_bytes()
    with command(model_folder) as server, ThreadPoolExecutor() as waiting:
        whole = waiting.submit(httpx.post, f"{server.url}/api/upscale?scale=4", content=data, timeout=120)
        job = httpx.post(f"{server.url}/api/jobs?scale=4", content=data, timeout=60).json()["id"]
        events = waiting.submit(httpx.get, f"{server.url}/api/jobs/{job}/events", timeout=120)
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as slow:
            slow.sendall(b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\nsome")
            time.sleep(1)
            server.process.terminate()
            assert server.process.wait(60) == 0
        assert whole.result().status_code == 503
        assert whole.result().json() == {"error": "The server is ending."}
        assert events.result().text.startswith("event: ")
        assert server.errors() == ""


def test_folders_of_killed_servers_go_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with own_folder() as first:
        dead = first.parent / "dead"
        (dead / "job").mkdir(parents=True)
        (dead / "job" / "input").write_bytes(b"x")
        then = time.time() - 4000
        os.utime(dead, (then, then))
        with own_folder() as second:
            assert second.parent == first.parent
            assert not dead.exists()
            assert first.exists()
    assert not list(first.parent.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_a_folder_that_others_can_read_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    open_folder = tmp_path / f"nextscale-{os.getuid()}"
    open_folder.mkdir(mode=0o755)
    with own_folder() as folder:
        assert folder.parent != open_folder
        assert folder.parent.stat().st_mode & 0o077 == 0
    open_folder.rmdir()
    open_folder.symlink_to(tmp_path / "elsewhere")
    with own_folder() as folder:
        assert folder.parent != open_folder


def test_the_sweep_leaves_links_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert sweep(tmp_path / "swept", time.time() + 10) == 0
    assert (tmp_path / "real").exists()


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


@pytest.mark.parametrize(
    "arguments",
    [["--port", "70000"], ["--max-mb", "0"], ["--max-mb", "1e308"], ["--waiting", "0"], ["--max-tiles", "0"]],
)
def test_settings_out_of_range_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert arguments[0].removeprefix("--") in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["--proxy", text]
            for text in ("notanip", "10.0.0.1/8", "10.0.0.1,x", "10.0.0.1,*", "10.0.0.1:80", "proxy.example")
        ),
        *(["--allow-host", text] for text in ("a b", "photos.example:8080", "https://a", "*", "a/b", "a..b", ".", "ä")),
    ],
)
def test_hosts_and_proxies_that_cannot_be_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nextscale: {arguments[0].removeprefix('--')} must be ")
    assert error.count("\n") == 1


def test_hosts_and_proxies_that_can_be_are_taken() -> None:
    check_proxies(["*"])
    check_proxies(["10.0.0.1", "10.0.0.0/8", "::1", "fe80::/10", "10.0.0.1, 10.0.0.2"])
    check_hosts(["localhost", "Photos.example.org", "my_machine", "xn--mnchen-3ya.de", "10.0.0.1"])


def test_without_the_extra_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--port", "0"]) == 1
    assert how_to_install("web") in capsys.readouterr().err


def test_the_hosted_demo_is_a_face_of_the_api() -> None:
    pytest.importorskip("gradio", reason="the hosted demo needs the extra `demo`")
    import subprocess

    # Gradio warns when it is imported: in a process of its own, warnings are no errors.
    code = (
        "import httpx, app\n"
        "app.httpx.post = lambda url, **more: httpx.Response(415, json={'error': f'{url} {more[\"params\"]}'})\n"
        "app.build('http://server')\n"
        "try: app.restore('http://server', 'examples/rocket.jpg', 'x2', 0.5)\n"
        "except app.gr.Error as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "http://server/api/upscale {'scale': '2', 'fidelity': 0.5}", done.stderr
