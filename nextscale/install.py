"""How to install what is missing: the one place that says it. Needs nothing that may be missing."""

from __future__ import annotations

import importlib.metadata
import re

PUBLISHED = False
"""Whether package indexes hold nextscale under its name; until then its extras are named by their packages."""


def how_to_install(extra: str) -> str:
    """The command that brings an extra's packages, from a clone and from a wheel: pip install 'gradio<7,>=6'."""
    packages = [] if PUBLISHED else requirements(extra)
    if packages:
        return f"pip install {' '.join(_quoted(package) for package in packages)}"
    return f"pip install 'nextscale[{extra}]'" if PUBLISHED else f"pip install '.[{extra}]' in nextscale's folder"


def extras() -> dict[str, list[str]]:
    """The extras of the installed package, and what each requires; empty where the package runs uninstalled."""
    try:
        names = importlib.metadata.metadata("nextscale").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {name: requirements(name) for name in names}


def requirements(extra: str, package: str = "nextscale") -> list[str]:
    """What an extra of a package requires, as pip takes it."""
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    pattern = re.compile(rf"""\s*;.*\bextra\s*==\s*['"]{re.escape(extra)}['"]""")
    return [line[: found.start()].strip() for line in lines if (found := pattern.search(line))]


def missing(packages: list[str]) -> list[str]:
    """Those of some requirements that are not installed at all, by themselves or by an extra of theirs."""
    return [package for package in packages if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    name, extra = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", package).groups()  # type: ignore[union-attr]
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return not extra or all(_is_installed(part) for one in extra.split(",") for part in requirements(one, name))


def _quoted(package: str) -> str:
    """For a shell, where < and [ mean something."""
    return f"'{package}'" if re.search(r"[^\w.-]", package) else package
