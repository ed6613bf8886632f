"""Batches over a cluster: nothing lost and nothing twice when a worker dies, failures per file, free restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale import UpscaleOptions
from nextscale import image as images
from nextscale.commands.batch import Batch, Store, Worker, list_pictures, without_results
from nextscale.commands.cli_types import UpscaleFlags
from nextscale.commands.main import main
from nextscale.errors import ModelError
from nextscale.image import Picture
from nextscale.install import how_to_install
from nextscale.upscale.nextscale import NextScale

pytestmark = [
    pytest.mark.integration,
    # Looked for, not imported: that takes seconds, and the unit tests pass by here too.
    pytest.mark.skipif(find_spec("ray") is None, reason="batches need the extra `ray`"),
]
ROOT = Path(__file__).parents[2]
CLUSTER = """
import sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""
"""Two nodes of one core each."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    call = [sys.executable, "-W", "ignore", "-c", CLUSTER]
    process = subprocess.Popen(
        call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        address = ""
        while not address.startswith("127.") and address.count(":") != 1:
            address = process.stdout.readline().strip()
            assert process.poll() is None, "the cluster did not start"
        yield address
    finally:
        process.stdin.close()
        process.wait(120)
        process.stdout.close()


def photos(path: Path, count: int, side: int = 40) -> Path:
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        images.write(path / f"{seed % 3}" / f"{seed:02}.png", Picture(pixels))
    return path


def call(model: Path, *arguments: Any) -> list[str]:
    fixed = ["-n", str(model), "--device", "cpu", "--fp32", "--cpus-per-worker", "1", "--json"]
    return [sys.executable, "-W", "ignore", "-m", "nextscale", "batch", *fixed, *map(str, arguments)]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str, int]:
    out, errors = process.communicate(timeout=400)
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], errors, process.returncode


def workers() -> list[int]:
    """Processes of ours that hold a model on the cluster."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"ray::MapWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the worker to kill in /proc")
def test_fifty_pictures_on_two_nodes_survive_the_death_of_a_worker(
    cluster: str, model: NextScale, model_folder: Path, tmp_path: Path
) -> None:
    source, out, state = photos(tmp_path / "in", 50), tmp_path / "out", tmp_path / "m.jsonl"
    (source / "0" / "bad.png").write_bytes(b"no picture")
    arguments = ["-i", source, "-o", out, "--address", cluster, "--workers", 2, "--pictures-per-task", 2]
    process = start(call(model_folder, *arguments, "-s", 4, "--manifest", state))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(out.rglob("*.png"))) >= 20:
            break
        time.sleep(0.02)
    before = workers()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    assert process.poll() is None  # it was in the middle
    said, errors, status = finish(process)
    assert status == 1, errors
    assert "bad.png: this is not a picture" in errors
    names = [row["input"] for row in said]
    assert len(names) == len(set(names)) == 51
    rows = [json.loads(line) for line in state.read_text().splitlines()]
    root = Path(os.path.realpath(source))
    assert sorted(row["input"] for row in rows) == sorted(str(root / name) for name in names)
    assert [row["input"] for row in rows if row["state"] == "failed"] == [str(root / "0" / "bad.png")]
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == sorted(f"{seed % 3}/{seed:02}_x4.png" for seed in range(50))
    for seed in (0, 17, 49):
        expected = model.upscale(source / f"{seed % 3}" / f"{seed:02}.png", UpscaleOptions()).picture.rgb
        found = images.read(out / f"{seed % 3}" / f"{seed:02}_x4.png").rgb
        # Another number of threads sums in another order.
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)

    # The same again: what failed is tried once more, everything else is left alone.
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    images.write(source / "0" / "bad.png", Picture(np.zeros((9, 9, 3), np.uint8)))
    said, errors, status = finish(start(call(model_folder, *arguments, "-s", 4, "--manifest", state, "--resume")))
    assert status == 0, errors
    assert [row["input"] for row in said] == ["0/bad.png"]
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in times.items())


def test_stores_are_any_folder_of_fsspec() -> None:
    store = Store("memory://bucket/deep")
    store.write("a/b.png", b"data")
    store.write(".hidden/c.png", b"data")
    store.write("note.txt", b"text")
    assert store.exists("a/b.png")
    assert not store.exists("a/c.png")
    assert store.read("a/b.png") == b"data"
    listed = list_pictures("memory://bucket/deep")
    assert list(listed) == ["a/b.png"]
    before = listed["a/b.png"]
    time.sleep(0.01)
    store.write("a/b.png", b"atad")
    assert list_pictures("memory://bucket/deep")["a/b.png"] != before


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    before = list_pictures(str(tmp_path))
    os.utime(tmp_path / "a.png", ns=(0, 1_000_000_000))
    assert list_pictures(str(tmp_path)) != before


@pytest.mark.parametrize("root", ["memory://results", "{tmp}"])
def test_results_among_the_pictures_are_no_pictures(root: str, tmp_path: Path) -> None:
    store = Store(root.format(tmp=tmp_path))
    for name in ("p.jpg", "p_x4.jpg", "deep/q.png", "deep/q_x2_confidence.png", "out/p_x4.jpg", "r.png"):
        store.write(name, b"data")
    listed = list_pictures(root.format(tmp=tmp_path))
    inside = Store(root.format(tmp=tmp_path) + "/out")
    known = {store.path("r.png")}
    assert list(without_results(listed, store, store, known)) == ["deep/q.png", "out/p_x4.jpg", "p.jpg"]
    assert "out/p_x4.jpg" not in without_results(listed, store, inside, ())
    assert without_results(listed, store, Store("memory://elsewhere"), ()) == listed


@pytest.mark.parametrize("root", ["memory://marks", "{tmp}"])
def test_a_store_knows_what_it_holds(root: str, tmp_path: Path) -> None:
    store = Store(root.format(tmp=tmp_path))
    store.write("a.png", b"data")
    mark = store.mark("a.png", b"data")
    assert store.holds(store.path("a.png"), mark)
    store.write("a.png", b"atad")  # of the same length
    assert not store.holds(store.path("a.png"), mark)
    store.write("a.png", b"data")
    assert store.holds(store.path("a.png"), mark)
    store.write("a.png", b"longer")
    assert not store.holds(store.path("a.png"), mark)
    assert not store.holds(store.path("b.png"), mark)


def test_a_version_of_an_object_is_known_by_its_tag_without_reading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://tags")
    read: list[str] = []
    real_info, real_cat = store.fs.info, store.fs.cat_file

    def cat_file(path: str, **more: Any) -> bytes:
        read.append(path)
        return bytes(real_cat(path, **more))

    monkeypatch.setattr(store.fs, "cat_file", cat_file)
    tag: dict[str, Any] = {"ETag": "one", "LastModified": 7}
    monkeypatch.setattr(store.fs, "info", lambda path, **more: {"size": real_info(path, **more)["size"], **tag})
    store.write("a.png", b"data")
    path, mark = store.path("a.png"), store.mark("a.png", b"data")
    assert store.holds(path, mark)
    assert read == []
    tag["ETag"] = "two"
    assert store.holds(path, mark)  # written again, with the same bytes
    assert len(read) == 1
    store.write("a.png", b"atad")
    assert not store.holds(path, mark)
    tag.clear()  # a store without any sign of a version
    assert not store.holds(path, mark)
    store.write("a.png", b"data")
    assert store.holds(path, store.mark("a.png", b"data"))
    assert len(read) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-i", "gone", "-o", "out"], "gone: no such folder; check the address"),
        (["-i", "empty", "-o", "out"], "empty: no pictures below it"),
        (["-i", "nonsense://x", "-o", "out"], "this kind of address cannot be opened"),
        (["-i", "empty", "-o", "out", "--workers", "0"], "workers must be 1 or more"),
        (["-i", "empty", "-o", "out", "--gpus-per-worker", "-1"], "gpus-per-worker 0 or more"),
        (["-i", "empty", "-o", "out", "--fidelity", "2"], "fidelity must be in [0, 1]"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["batch", *arguments]) in (1, 2)
    errors = capsys.readouterr().err
    assert sentence in errors
    assert len(errors.splitlines()) == 1


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["batch", "-i", ".", "-o", "out"]) == 1
    assert how_to_install("ray") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--address", "auto"], 1, "the cluster auto cannot be used: Could not find any running Ray instance."),
        (["--cpus-per-worker", "16"], 2, "cpus-per-worker is 16, and this machine has 2; give no more"),
        (["--gpus-per-worker", "1"], 2, "gpus-per-worker is 1, and this machine has 0; give no more"),
    ],
)
def test_a_cluster_that_cannot_do_the_work_is_one_line(
    words: list[str],
    code: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    def init(address: str | None, **_: Any) -> None:
        if address:
            raise ConnectionError("Could not find any running Ray instance.\nPlease specify one.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    photos(tmp_path / "in", 1)
    assert main(["batch", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *words]) == code
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["-n", "nothere"], 1, "nothere: no such model; give a folder, a hub id"),
        (["-n", "in"], 1, "in: no such model; for the folder of that name write"),
        (["-n", "./in"], 1, "in/config.json: "),
        (["--device", "banana"], 2, "unknown device banana; use auto, cpu, cuda"),
        (["--device", "meta"], 2, "device meta is not available here"),
        (["-n", "nothere", "--address", "auto"], 1, "nothere: no such model; give a folder, a hub id"),
        (["--device", "banana", "--address", "ray://far:1"], 2, "unknown device banana; use auto, cpu, cuda"),
    ],
)
def test_what_would_stop_every_worker_is_told_before_ray_starts(
    words: list[str],
    code: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    def init(**_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "in", 1)
    assert main(["batch", "-i", "in", "-o", "out", "--manifest", "m.jsonl", *words]) == code
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not Path("m.jsonl").exists()


def test_a_folder_that_only_a_far_cluster_sees_is_left_to_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    def init(**_: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    photos(tmp_path / "in", 1)
    far = ["-n", "/far/model", "--device", "cuda", "--address", "ray://far:1"]
    assert main(["batch", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *far]) == 1
    assert "the cluster ray://far:1 cannot be used: nobody there" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "ray://farther:1")
    assert main(["batch", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *far[:4]]) == 1
    assert "the cluster ray://farther:1 cannot be used: nobody there" in capsys.readouterr().err


def test_a_worker_without_a_model_fails_with_its_first_task(tmp_path: Path) -> None:
    command = Batch(input=str(tmp_path), output=str(tmp_path), model="nothere", device="cpu")
    worker = Worker(command)  # not here: Ray would print the traceback among the rows of --json
    with pytest.raises(ModelError, match="nothere: no such model"):
        worker({"name": np.array(["a.png"])})


def test_a_file_of_unknown_origin_is_kept(model_folder: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path, 1) / "0"
    (folder / "00_x4.png").write_bytes(b"somebody's own")
    command = Batch(input=str(tmp_path), output=str(tmp_path), model=str(model_folder), device="cpu", fp32=True)
    rows = Worker(command, {"0/00_x4.png"})({"name": np.array(["0/00.png"])})
    assert "00_x4.png would overwrite a file that no earlier run is known to have written; move it" in rows["error"][0]
    assert [path.name for path in sorted(folder.iterdir())] == ["00.png", "00_x4.png"]  # nor any smaller result
    assert (folder / "00_x4.png").read_bytes() == b"somebody's own"


CREATION = """The actor died because of an error raised in its creation task, ray::_MapWorker.__init__() (pid=7)
  File "ray/data/actor_pool_map_operator.py", line 700, in __init__
    self._map_transformer.init()
{raised}"""
TASK = """ray::MapBatches(Worker)() (pid=7)
nextscale.errors.ModelError: here: it is damaged

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block."""


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        (CREATION.format(raised="nextscale.errors.ModelError: here: it is damaged"), 1, "here: it is damaged"),
        (TASK, 1, "here: it is damaged"),
        (CREATION.format(raised="nextscale.errors.OptionError: device x is not there"), 2, "device x is not there"),
        (
            CREATION.format(raised="RuntimeError: no more room"),
            1,
            "Ray ended the run (RuntimeError: no more room); --resume goes on with the pictures that are left",
        ),
        (
            "\nThe head went away.\nMore about it.",
            1,
            "Ray ended the run (Exception: The head went away.); --resume goes on with the pictures that are left",
        ),
        ("", 1, "Ray ended the run (Exception: no reason given); --resume goes on with the pictures that are left"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data reads its own old settings
def test_an_error_of_ray_is_one_line(
    text: str,
    code: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray.data

    def from_items(*_: Any, **__: Any) -> None:
        raise Exception(text)

    monkeypatch.setattr(ray.data, "from_items", from_items)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    photos(tmp_path / "in", 1)
    assert main(["batch", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--device", "cpu"]) == code
    assert capsys.readouterr().err == f"nextscale: {expected}\n"


def test_batch_and_upscale_give_the_same_files(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ("a.png", "b.jpg", "c.webp", "d.bmp")
    for name in names:
        images.write(tmp_path / "in" / name, Picture(np.full((20, 30, 3), 99, np.uint8)))
    images.write(tmp_path / "in" / "e.webp", Picture(np.full((20, 30, 3), 99, np.uint8)), lossless=True)
    options = ["-s", "1", "-n", str(model_folder), "--device", "cpu", "--fp32"]
    assert main(["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "one"), *options]) == 0
    command = Batch(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "two"),
        options=UpscaleFlags(scale=1.0),
        model=str(model_folder),
        device="cpu",
        fp32=True,
    )
    rows = Worker(command)({"name": np.array([*names, "e.webp"])})
    assert not any(rows["error"])
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("one", "two"))
    assert sorted(one) == ["a_x1.png", "b_x1.jpg", "c_x1.webp", "d_x1.bmp", "e_x1.webp"]
    assert one == two


def test_pictures_that_are_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.HEIC", "deep/c.nef", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list(list_pictures(str(tmp_path))) == ["a.jpg"]
    assert capsys.readouterr().err == (
        "nextscale: b.HEIC and 1 more: left out, as such pictures are not read; make JPEG, PNG or TIFF files of them\n"
    )
