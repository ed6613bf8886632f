"""The `nextscale batch` command: folders of any size and anywhere, over the workers of a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import posixpath
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from nextscale import image as images
from nextscale.commands.cli_types import UpscaleFlags
from nextscale.console import complain, lasting, say
from nextscale.errors import NextScaleError, OptionError
from nextscale.install import how_to_install
from nextscale.upscale.manifest import Manifest, default_path, settings_key, unfinished
from nextscale.upscale.outputs import own_suffix


@dataclass(frozen=True)
class Batch:
    """Restore all pictures below a folder or an address of an object store, on this machine or a Ray cluster."""

    input: Annotated[str, tyro.conf.arg(aliases=["-i"], metavar="URI")]
    """Folder of pictures, with those inside it: a path, s3://..., gs://... (what fsspec reads)."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="URI")]
    """Folder of the results, which lie there as the pictures lie in the input, in the formats that `upscale` takes."""
    options: Annotated[UpscaleFlags, tyro.conf.arg(name="")] = field(default_factory=UpscaleFlags)
    model: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "tiny"
    """A shipped model's name, a model folder that all workers see, or a hub id."""
    device: str = "auto"
    """Of every worker: auto, cpu, cuda, mps."""
    fp32: bool = False
    """Compute in float32 even where 16 bit is faster."""
    workers: int = 1
    """Workers, each with a model of its own."""
    cpus_per_worker: float = 2.0
    """CPU cores that each worker takes."""
    gpus_per_worker: float = 0.0
    """GPUs that each worker takes; 0.5 puts two on one."""
    pictures_per_task: int = 8
    """Pictures that a worker is handed at once; those in its hands are done again when it dies."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """An existing cluster: auto, or its address (default: a cluster of this machine alone)."""
    resume: bool = False
    """Continue an interrupted run: leave out the pictures that its manifest knows as finished."""
    manifest: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where the state of every picture is kept (default: a file of the user's, named by the output)."""
    json: bool = False
    """Print one JSON object per picture."""

    def __post_init__(self) -> None:
        for name in ("workers", "pictures_per_task"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise OptionError("cpus-per-worker must be above 0, gpus-per-worker 0 or more")

    def run(self) -> int:
        try:
            import ray
        except ImportError:
            raise NextScaleError(f"batches need Ray: {how_to_install('ray')}") from None
        from nextscale import __version__

        started = time.perf_counter()
        listed = list_pictures(self.input)
        if not listed:
            raise NextScaleError(f"{self.input}: no pictures below it; supported are JPEG, PNG, WebP, TIFF, BMP, AVIF")
        output = Store(self.output)
        key = settings_key(self.options, self.model, self.fp32, __version__)
        manifest = Manifest(self.manifest or default_path(output.root), key, resume=self.resume)
        with contextlib.closing(manifest):
            todo = unfinished({name: (stamp, (name, stamp)) for name, stamp in listed.items()}, manifest, output.exists)
            failed = 0
            if todo:
                if not ray.is_initialized():
                    ray.init(address=self.address, log_to_driver=False, configure_logging=False)
                for row in self._rows(todo):
                    error = row["error"] or None
                    manifest.record(row["name"], listed[row["name"]], json.loads(row["outputs"]), error)
                    failed += error is not None
                    self._report(row)
        seconds = time.perf_counter() - started
        if not self.json:
            done, before = len(todo) - failed, len(listed) - len(todo)
            counts = f"{done} done, {before} finished before, {failed} failed"
            say(f"{len(listed)} pictures: {counts}, in {lasting(seconds)}")
        return 1 if failed else 0

    def _rows(self, todo: list[tuple[str, list[int]]]) -> Iterator[dict[str, Any]]:
        """Every picture's row as its task ends. Ray Data replaces a worker that dies and runs its tasks again."""
        import ray

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        tasks = -(-len(todo) // self.pictures_per_task)
        names = ray.data.from_items([{"name": name} for name, _ in todo], override_num_blocks=tasks)
        done = names.map_batches(
            Worker,
            fn_constructor_args=(self,),
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=self.workers),
            num_cpus=self.cpus_per_worker,
            num_gpus=self.gpus_per_worker,
        )
        yield from done.iter_rows()

    def _report(self, row: dict[str, Any]) -> None:
        outputs = json.loads(row["outputs"])
        if self.json:
            state = {"error": row["error"]} if row["error"] else {"outputs": outputs, "seconds": row["seconds"]}
            say(json.dumps({"input": row["name"], **state}))
        if row["error"]:
            complain(f"{row['name']}: {row['error']}")
        elif not self.json:
            say(f"{row['name']}: {row['seconds']:.1f} s -> {', '.join(outputs)}")


class Store:
    """A folder on a disk or in an object store, through fsspec; files in it go by their names inside it."""

    def __init__(self, uri: str) -> None:
        """
        Raises:
            NextScaleError: fsspec, or what it needs for this kind of address, is missing.
        """
        try:
            from fsspec.core import url_to_fs

            self.fs, self.root = url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise NextScaleError(f"{uri}: this kind of address cannot be opened ({error})") from None
        self.root = self.root.rstrip("/") or "/"
        self.local = "file" in ((self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol)

    def path(self, name: str) -> str:
        """A file's whole path."""
        return posixpath.join(self.root, name)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return bool(self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return bytes(self.fs.cat_file(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all: object stores do so by themselves."""
        if self.local:
            images.write_bytes(self.path(name), data)
        else:
            self.fs.pipe_file(self.path(name), data)

    def files(self) -> dict[str, list[int]]:
        """Every file's name and stamp, by name; hidden ones are left out."""
        found = {}
        for path, info in self.fs.find(self.root, detail=True).items():
            name = path[len(self.root) :].lstrip("/")
            if not any(part.startswith(".") for part in name.split("/")):
                found[name] = [int(info.get("size") or 0), _changed(info)]
        return dict(sorted(found.items()))


def _changed(info: dict[str, Any]) -> int:
    """A number that changes when a file is written anew: its time where the store tells one, or its tag."""
    for key in ("mtime", "LastModified", "updated", "created", "ETag", "etag"):
        value = info.get(key)
        if isinstance(value, int | float):
            return int(value * 1e6)
        if value is not None:
            return zlib.crc32(str(value).encode())
    return 0


def list_pictures(uri: str) -> dict[str, list[int]]:
    """The pictures below a folder, by name, with their stamps.

    Raises:
        NextScaleError: there is no such folder, or it cannot be listed.
    """
    store = Store(uri)
    try:
        if not store.fs.isdir(store.root):
            raise NextScaleError(f"{uri}: no such folder; check the address")
        return {name: stamp for name, stamp in store.files().items() if images.is_picture_path(Path(name))}
    except OSError as error:
        raise NextScaleError(f"{uri}: it cannot be listed ({error.strerror or error})") from None


class Worker:
    """One model in one process of the cluster."""

    def __init__(self, command: Batch) -> None:
        import torch

        from nextscale.upscale.engine import Engine
        from nextscale.upscale.nextscale import NextScale

        if command.gpus_per_worker == 0:
            torch.set_num_threads(max(1, int(command.cpus_per_worker)))
        self.command = command
        self.source, self.target = Store(command.input), Store(command.output)
        self.engine = Engine(NextScale.from_pretrained(command.model, device=command.device, fp32=command.fp32))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Restore the pictures named in a batch; what fails is told in its row."""
        from nextscale.upscale.engine import run_all

        rows = list(run_all(self.engine, [str(name) for name in batch["name"]], self._one))
        return {key: [row[key] for row in rows] for key in ("name", "outputs", "error", "seconds", "worker")}

    def _one(self, engine: Any, place: Any, name: str) -> dict[str, Any]:
        del place
        started = time.perf_counter()
        outputs: list[str] = []
        error = ""
        try:
            picture = images.decode_bytes(self.source.read(name))
            result = engine.upscale(picture, self.command.options)
            stem = str(Path(name).with_suffix(""))
            suffix = own_suffix(Path(name), picture, self.command.options.scale)
            for factor, restored in result.images.items():
                outputs.append(f"{stem}_x{factor:g}{suffix}")
                data = images.encode_bytes(restored, suffix, lossless=picture.lossless)
                self.target.write(outputs[-1], data)
            for factor, values in result.maps.items():
                outputs.append(f"{stem}_x{factor:g}_confidence.png")
                self.target.write(outputs[-1], images.encode_bytes(images.Picture(values[..., None]), ".png"))
        except NextScaleError as failure:
            error = str(failure)
        except OSError as failure:
            error = f"it cannot be read or written ({failure.strerror or failure}); check the addresses"
        except Exception as failure:
            error = f"internal error ({type(failure).__name__}: {failure})"
        seconds = round(time.perf_counter() - started, 3)
        return {"name": name, "outputs": json.dumps(outputs), "error": error, "seconds": seconds, "worker": os.getpid()}
