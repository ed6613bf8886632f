"""Finds or downloads the weights of the metrics.

The folder named by the environment variable NEXTSCALE_WEIGHTS, then torch's hub cache (which torchvision and
pytorch-fid fill, too), then packages that bring small files along. Nothing is downloaded unless the user says so, by
--download or NEXTSCALE_DOWNLOAD=1: then the official file comes into that cache, checked by its sha256. Without weights
there is an error, never a number.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import pickle
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.errors import NextScaleError
from nextscale.files import write_atomic

_TIMEOUT_SECONDS = 30


class MissingWeights(NextScaleError):  # noqa: N818 - named for what the user lacks
    """Weights of a metric that are not found, cannot be downloaded, or have another checksum than their name says."""


def user_folder() -> Path:
    """The folder in NEXTSCALE_WEIGHTS; unset, a path that holds nothing."""
    return Path(os.environ.get("NEXTSCALE_WEIGHTS") or os.devnull)


def hub_folder() -> Path:
    """Where torch's hub keeps downloaded checkpoints."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def first_file(candidates: Sequence[Path]) -> Path | None:
    """The first of the candidates that is a file."""
    return next((path for path in candidates if path.is_file()), None)


def brought_along(package: str, inside: str) -> list[Path]:
    """Where an installed package would have a file."""
    spec = importlib.util.find_spec(package)
    roots = (spec.submodule_search_locations or []) if spec else []
    return [Path(root) / inside for root in roots]


def official_file(url: str, *, also: Sequence[str] = (), fetch: bool = False) -> Path:
    """The file that `url` ends in, from the user's folder (there also under other names), the hub cache or the net.

    Args:
        fetch: whether the user agreed to a download; the environment variable NEXTSCALE_DOWNLOAD=1 says so, too.

    Raises:
        MissingWeights: it is nowhere, or the download failed or has another checksum.
    """
    name = url.rsplit("/", 1)[1]
    user, cached = user_folder(), hub_folder() / name
    found = first_file([*(user / other for other in also), user / name, cached])
    if found is not None:
        return found
    if fetch or os.environ.get("NEXTSCALE_DOWNLOAD") == "1":
        return download(url, cached)
    raise MissingWeights(
        f"The weights {name} are not here: --download (or NEXTSCALE_DOWNLOAD=1) fetches them from {url} into "
        f"{cached.parent}; or put them into the folder named by NEXTSCALE_WEIGHTS"
    )


def download(url: str, target: Path) -> Path:
    """Fetch an official file; its sha256 must begin with the eight digits that end its name.

    Raises:
        MissingWeights: it cannot be fetched or stored, or its content does not fit its name.
    """
    name = url.rsplit("/", 1)[1]

    def fetch(part: Path) -> None:
        digest = hashlib.sha256()
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, part.open("wb") as out:
            while chunk := response.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
        if not digest.hexdigest().startswith(name.removesuffix(".pth").rsplit("-", 1)[1]):
            raise MissingWeights(f"The download of {url} is damaged (its sha256 does not fit): try again")

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, fetch)
    except (OSError, http.client.HTTPException) as error:
        raise MissingWeights(
            f"The weights {name} cannot be downloaded ({error}): fetch {url} into {target.parent} "
            "or into the folder named by NEXTSCALE_WEIGHTS"
        ) from error
    return target


def load_into(module: nn.Module, file: Path, *, prefix: str = "", names: Mapping[str, str] | None = None) -> None:
    """Copy the file's tensors into the module: under `prefix`, or by `names` (ours -> the file's); others are left.

    Raises:
        MissingWeights: the file is damaged, lacks a tensor or holds one of another shape.
    """
    wanted = names if names is not None else {name: prefix + name for name in module.state_dict()}
    state = load_file(file)
    try:
        # Files older than BatchNorm's counter lack it, and it takes no part in a result.
        load: dict[str, Tensor] = {
            ours: state[theirs]
            for ours, theirs in wanted.items()
            if theirs in state or not ours.endswith("num_batches_tracked")
        }
        module.load_state_dict(load)
    except (RuntimeError, KeyError, TypeError) as error:
        raise damaged(file) from error


def load_file(file: Path) -> Any:
    """What a checkpoint holds, on the CPU, without running code of it.

    Raises:
        MissingWeights: the file is damaged.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise damaged(file) from error


def damaged(file: Path) -> MissingWeights:
    """The error for a file that is there, but cannot be what it should be."""
    return MissingWeights(f"{file} does not hold the weights its name promises: remove or replace it")
