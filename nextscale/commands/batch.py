"""The `nextscale batch` command: folders of any size and anywhere, over the workers of a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import posixpath
import re
import signal
import threading
import time
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import tyro

from nextscale import image as images
from nextscale.commands.cli_types import UpscaleFlags
from nextscale.commands.streams import report_unread
from nextscale.console import complain, lasting, say, say_row
from nextscale.errors import ImageError, NextScaleError, OptionError
from nextscale.files import Mark, has_mark, mark_of
from nextscale.install import how_to_install
from nextscale.upscale.manifest import Manifest, default_path, settings_key, unfinished
from nextscale.upscale.outputs import (
    earlier_results,
    encode_results,
    own_suffix,
    result_stems,
    would_overwrite_unknown,
)


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
            raise NextScaleError(f"{self.input}: no pictures below it; supported are {images.READABLE}")
        self._check_model()
        source, output = Store(self.input), Store(self.output)
        key = settings_key(self.options, self.model, self.fp32, __version__)
        manifest = Manifest(self.manifest or default_path(output.root), key, resume=self.resume)
        with contextlib.closing(manifest):
            pictures = without_results(listed, source, output, manifest.results)
            if left_out := listed.keys() - pictures.keys():
                complain(f"{self.input}: left out as results of earlier runs: {len(left_out)}")
            listed = pictures
            # In one folder: named like a result, and no run of this manifest wrote it.
            unknown = {name for name in left_out if source.path(name) == output.path(name) not in manifest.results}
            items = {source.path(name): (stamp, name) for name, stamp in listed.items()}
            stems = dict(zip(listed, result_stems([PurePosixPath(name) for name in listed]), strict=True))
            todo = [(name, stems[name]) for name in unfinished(items, manifest, output.holds)]
            failed = 0
            if todo:
                if not ray.is_initialized():
                    self._connect()
                for row in self._rows(todo, unknown):
                    error = row["error"] or None
                    marks = {output.path(name): mark for name, mark in json.loads(row["outputs"]).items()}
                    manifest.record(source.path(row["name"]), listed[row["name"]], marks, error)
                    failed += error is not None
                    self._report(row)
        seconds = time.perf_counter() - started
        if not self.json:
            done, before = len(todo) - failed, len(listed) - len(todo)
            counts = f"{done} done, {before} finished before, {failed} failed"
            say(f"{len(listed)} pictures: {counts}, in {lasting(seconds)}")
        return 1 if failed else 0

    @property
    def _alone(self) -> bool:
        """Whether the workers are on this machine, in a cluster that begins and ends with the command."""
        return not self._cluster

    @property
    def _cluster(self) -> str:
        """The address of the cluster to join, as Ray itself finds it; "" for none."""
        return self.address or os.environ.get("RAY_ADDRESS") or ""

    def _check_model(self) -> None:
        """What would stop every worker stops the command, before the cluster and the list of finished pictures.

        Raises:
            ModelError: there is no such model.
            OptionError: there is no such device.
        """
        import torch

        from nextscale.device import named_device, pick_device
        from nextscale.model.checkpoint import find_folder, read_config
        from nextscale.model.config import ModelConfig

        named_device(self.device)
        # Other machines have other devices. With CUDA here the workers look: a look takes memory of the card.
        if self._alone and not torch.cuda.is_available():
            pick_device(self.device)
        # A client of a far cluster (ray://) need not see the folder that its workers see.
        if not self._cluster.startswith("ray://"):
            read_config(find_folder(self.model), "model", ModelConfig)

    def _connect(self) -> None:
        """Join the cluster of the address, or start one of this machine alone.

        Raises:
            NextScaleError: there is none, or this machine alone has less than one worker takes: Ray would wait forever.
        """
        import ray

        on_term = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=self.address, log_to_driver=False, configure_logging=False)
        except Exception as error:  # ConnectionError, or Exception itself where a node does not start
            cluster = f"the cluster {self._cluster}" if self._cluster else "a cluster of this machine"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NextScaleError(f"{cluster} cannot be used: {reason}") from error
        finally:
            if on_term is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)  # Ray's own exits with 15 and without a word
        if not self._alone:  # these may grow
            return
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for kind, wanted in (("CPU", self.cpus_per_worker), ("GPU", self.gpus_per_worker)):
            has = there.get(kind, 0)
            if wanted > has:
                raise OptionError(
                    f"{kind.lower()}s-per-worker is {wanted:g}, and this machine has {has:g}; give no more"
                )

    def _rows(self, todo: list[tuple[str, str]], unknown: Collection[str]) -> Iterator[dict[str, Any]]:
        """The row of every picture (name, stem of its results) as its task ends; `unknown` as for `Worker`.

        Ray Data replaces a worker that dies and runs its tasks again.

        Raises:
            NextScaleError: Ray gives up, as where no worker starts.
        """
        import ray

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised, too
        tasks = -(-len(todo) // self.pictures_per_task)
        try:
            names = ray.data.from_items(
                [{"name": name, "stem": stem} for name, stem in todo], override_num_blocks=tasks
            )
            done = names.map_batches(
                Worker,
                fn_constructor_args=(self, unknown),
                batch_size=None,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(size=self.workers),
                num_cpus=self.cpus_per_worker,
                num_gpus=self.gpus_per_worker,
            )
            yield from done.iter_rows()
        except Exception as error:  # Ray's and Ray Data's have no common kind
            raise ray_error(error) from error

    def _report(self, row: dict[str, Any]) -> None:
        outputs = list(json.loads(row["outputs"]))
        if self.json:
            state = {"error": row["error"]} if row["error"] else {"outputs": outputs, "seconds": row["seconds"]}
            say_row({"input": row["name"], **state})
        if row["error"]:
            complain(f"{row['name']}: {row['error']}")
        elif not self.json:
            say(f"{row['name']}: {row['seconds']:.1f} s -> {', '.join(outputs)}")


def ray_error(error: Exception) -> NextScaleError:
    """An error that Ray raises, in one line.

    Ray puts the traceback of a worker into the text of its own errors; the last error in it that is none of Ray's is
    what the worker said.
    """
    text = str(error)
    found = re.findall(r"^((?:\w+\.)*\w*(?:Error|Exception)): (.+)$", text, re.MULTILINE)
    plain = next(filter(None, map(str.strip, text.splitlines())), "no reason given")
    own = [(kind, said) for kind, said in found if not kind.startswith("ray.")]
    kind, said = [(type(error).__name__, plain), *found[-1:], *own[-1:]][-1]
    if kind.startswith("nextscale.errors."):
        return (OptionError if kind.endswith(".OptionError") else NextScaleError)(said)
    return NextScaleError(f"Ray ended the run ({kind}: {said}); --resume goes on with the pictures that are left")


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
        if self.local:
            self.root = os.path.realpath(self.root)

    def path(self, name: str) -> str:
        """A file's whole path."""
        return posixpath.join(self.root, name)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return bool(self.fs.exists(self.path(name)))

    def mark(self, name: str, data: bytes) -> Mark:
        """What a file that was just written holds; in an object store also that store's own sign of the version."""
        return mark_of(data) if self.local else [*mark_of(data), _changed(self.fs.info(self.path(name)))]

    def holds(self, path: str, mark: Mark) -> bool:
        """Whether the file of a whole path is there as it was written.

        In an object store by its length and the sign of its version; where that is another one or none, by its digest.
        """
        if self.local:
            return has_mark(Path(path), mark)
        if not self.fs.exists(path) or (info := self.fs.info(path)).get("size") != mark[0]:
            return False
        version = _changed(info)
        return (version != 0 and [version] == mark[2:]) or mark_of(bytes(self.fs.cat_file(path))) == mark[:2]

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
    """A number that changes when a file is written anew, by its tag or else its time; 0 where the store has neither."""
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, int | float):
            return int(value * 1e6)
        if value is not None:
            return zlib.crc32(str(value).encode())
    return 0


def without_results(
    listed: dict[str, list[int]], source: Store, output: Store, known: Collection[str]
) -> dict[str, list[int]]:
    """The pictures that are no results of earlier runs, where results lie among them."""
    if type(source.fs) is not type(output.fs):
        return listed
    inside = posixpath.join(output.root, "")
    if inside != posixpath.join(source.root, ""):
        return {name: stamp for name, stamp in listed.items() if not source.path(name).startswith(inside)}
    paths = {PurePosixPath(source.path(name)): name for name in listed}
    results = {paths[path] for path in earlier_results(list(paths), (), None, known)}
    return {name: stamp for name, stamp in listed.items() if name not in results}


def list_pictures(uri: str) -> dict[str, list[int]]:
    """The pictures below a folder, by name, with their stamps.

    Raises:
        NextScaleError: there is no such folder, or it cannot be listed.
    """
    store = Store(uri)
    try:
        if not store.fs.isdir(store.root):
            raise NextScaleError(f"{uri}: no such folder; check the address")
        files = store.files()
    except OSError as error:
        raise NextScaleError(f"{uri}: it cannot be listed ({error.strerror or error})") from None
    report_unread(sorted(name for name in files if images.is_picture_path(name, images.OTHER_SUFFIXES)))
    return {name: stamp for name, stamp in files.items() if images.is_picture_path(name)}


class Worker:
    """One model in one process of the cluster."""

    def __init__(self, command: Batch, unknown: Collection[str] = ()) -> None:
        """
        Args:
            unknown: names of files in the output of which nobody knows where they are from: none is overwritten.
        """
        import torch

        from nextscale.upscale.engine import Engine
        from nextscale.upscale.nextscale import NextScale

        if command.gpus_per_worker == 0:
            torch.set_num_threads(max(1, int(command.cpus_per_worker)))
        self.command, self.unknown = command, unknown
        self.source, self.target = Store(command.input), Store(command.output)
        self.failure: Exception | None = None
        try:
            self.engine = Engine(NextScale.from_pretrained(command.model, device=command.device, fp32=command.fp32))
        except Exception as failure:  # Ray prints the traceback of a constructor on the standard output
            self.failure = failure

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Restore the pictures named in a batch; what fails is told in its row.

        Raises:
            Exception: that of the constructor, where there is no model.
        """
        if self.failure is not None:
            raise self.failure
        from nextscale.upscale.engine import run_all

        names = [str(name) for name in batch["name"]]
        stems = [str(stem) for stem in batch["stem"]] if "stem" in batch else [Path(name).stem for name in names]
        rows = list(run_all(self.engine, zip(names, stems, strict=True), self._one))
        return {key: [row[key] for row in rows] for key in ("name", "outputs", "error", "seconds", "worker")}

    def _one(self, engine: Any, place: Any, item: tuple[str, str]) -> dict[str, Any]:
        del place
        name, stem = item
        started = time.perf_counter()
        outputs: dict[str, Mark] = {}
        error = ""
        try:
            picture = images.decode_bytes(self.source.read(name))
            result = engine.upscale(picture, self.command.options)
            stem = str(Path(name).with_name(stem))
            suffix = own_suffix(Path(name), picture, self.command.options.scale)
            encoded = {
                f"{stem}_{label}{ending}": data
                for label, ending, data in encode_results(result, suffix, lossless=picture.lossless)
            }
            if unknown := sorted(encoded.keys() & set(self.unknown)):
                raise ImageError(would_overwrite_unknown(self.target.path(unknown[0]), "-o"))
            for file, data in encoded.items():
                self.target.write(file, data)
                outputs[file] = self.target.mark(file, data)
        except NextScaleError as failure:
            error = str(failure)
        except OSError as failure:
            error = f"it cannot be read or written ({failure.strerror or failure}); check the addresses"
        except Exception as failure:
            error = f"internal error ({type(failure).__name__}: {failure})"
        seconds = round(time.perf_counter() - started, 3)
        return {"name": name, "outputs": json.dumps(outputs), "error": error, "seconds": seconds, "worker": os.getpid()}
