"""Pictures that are no local files: the standard input and addresses come in, the standard output takes one."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from nextscale.addresses import is_address, shown, store_reason
from nextscale.console import complain, to_output
from nextscale.errors import ImageError, NextScaleError, OptionError, OutputError
from nextscale.install import how_to_install

STANDARD = "-"
"""What names the standard input, and the standard output."""


def local_path(name: str) -> Path | None:
    """The path that a name stands for; None for the standard input, and for addresses other than file://..."""
    if name == STANDARD or (is_address(name) and not name.lower().startswith("file://")):
        return None
    return Path(url2pathname(urlsplit(name).path) if is_address(name) else name)


def fetch(names: Sequence[str], folder: Path) -> tuple[list[Path], dict[Path, str], list[tuple[str, str]]]:
    """Local files for everything named on the command line.

    Args:
        folder: where the standard input and what lies at addresses is put.

    Returns:
        the paths, in the order of the names; of those in `folder`, the name each was given by; the names that cannot
        be had, with the reason.

    Raises:
        OptionError: the standard input is named twice.
    """
    paths: list[Path] = []
    given: dict[Path, str] = {}
    refused: list[tuple[str, str]] = []
    if names.count(STANDARD) > 1:
        raise OptionError("the standard input (-) can be read once only; name it once")
    for number, name in enumerate(names):
        local = local_path(name)
        if local is not None:
            paths.append(local)
            continue
        try:
            place = folder / str(number)  # apart, so that equal names do not meet
            place.mkdir()
            path = _from_stdin(place) if name == STANDARD else _download(name, place)
        except NextScaleError as error:
            refused.append((shown(name), str(error)))
            continue
        paths.append(path)
        given[path] = shown(name)
    return paths, given, refused


def missing(path: Path) -> str | None:
    """Why there is no file or folder of this name, or None where there is one."""
    if os.path.exists(path):
        return None
    if os.path.islink(path):
        return "the link points to a missing file; mend the link or name the file itself"
    return "no such file; check the name"


def report_unread(names: Sequence[str]) -> None:
    """Say which pictures of a folder are left out since their kind is not read; nothing where there are none."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        complain(f"{names[0]}{more}: left out, as such pictures are not read; make JPEG, PNG or TIFF files of them")


def to_stdout(file: Path) -> None:
    """Write a file's bytes to the standard output.

    Raises:
        OutputError: it is closed, or takes no more.
    """
    if sys.stdout is None:
        raise OutputError("the standard output is closed; name a file with -o")
    with file.open("rb") as source, to_output():
        shutil.copyfileobj(source, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _from_stdin(place: Path) -> Path:
    if sys.stdin is None:
        raise ImageError("the standard input is closed; send a picture into it, as in `... < photo.jpg`")
    if sys.stdin.isatty():
        raise ImageError("the standard input is a terminal; send a picture into it, as in `... < photo.jpg`")
    path = place / "stdin"  # without a suffix: what it is, its bytes say
    try:
        with path.open("wb") as target:
            shutil.copyfileobj(sys.stdin.buffer, target)
    except OSError as error:
        raise ImageError(f"it cannot be read ({error.strerror or error})") from None
    return path


def _download(address: str, place: Path) -> Path:
    inside = shown(address).partition("://")[2]
    # A server's name is no path on this machine, however its slashes are written.
    name = re.split(r"[/\\]", unquote(inside))[-1]
    if name in ("", ".", "..") or (address.lower().startswith("http") and "/" not in inside):
        raise ImageError("this address names no file; name a picture, or use `nextscale batch` for whole folders")
    try:
        import fsspec
    except ImportError:
        raise ImageError(f"reading addresses needs fsspec: {how_to_install('data')}") from None
    path = place / name
    try:
        with fsspec.open(address, "rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    except ImportError as error:  # a store that needs a package more, which its message names
        raise ImageError(f"this kind of address needs a package more ({' '.join(str(error).split())})") from None
    except Exception as error:  # every store has its own errors
        reason = store_reason(address, error)
        raise ImageError(f"it cannot be fetched ({reason}); check the address and the connection") from None
    return path
