"""Build, check and tag a release. Nothing is uploaded: `twine upload dist/*` does that.

    python scripts/release.py https://github.com/OWNER/nextscale          # wheel and source into dist/, checked
    python scripts/release.py https://github.com/OWNER/nextscale --tag    # and the tag v<version>

`__version__` in nextscale/__init__.py decides the version: CITATION.cff and the first heading of CHANGELOG.md must name
the same. A heading that ends in "(not released yet)" may be built and tried, and only the tag waits for it to go.

The address goes into the metadata, and the README's links and images become absolute, for a package index shows it
far from its files. Needs `pip install -e '.[release]'`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def absolute(text: str, address: str) -> str:
    """Markdown with relative links and images made absolute, for a repository at an address."""

    def link(found: re.Match[str]) -> str:
        mark, label, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found.group()
        return f"{mark}[{label}]({address}/{'raw' if mark else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[([^]]*)\]\(([^) ]+)\)", link, text)


def with_urls(pyproject: str, address: str) -> str:
    """pyproject.toml with the project's addresses."""
    urls = {
        "Homepage": address,
        "Documentation": f"{address}/tree/main/docs",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
    lines = "\n".join(f'{name} = "{url}"' for name, url in urls.items())
    return pyproject.replace("[project.scripts]", f"[project.urls]\n{lines}\n\n[project.scripts]", 1)


def version_of(root: Path) -> str:
    """The version of a checkout."""
    (version,) = re.findall(r'^__version__ = "(.+)"', (root / "nextscale/__init__.py").read_text("utf-8"), re.M)
    return str(version)


def problems(root: Path, *, tag: bool = False) -> list[str]:
    """What keeps a checkout from being built, and from being tagged."""
    version = version_of(root)
    found = []
    if f"version: {version}\n" not in (root / "CITATION.cff").read_text("utf-8"):
        found.append(f"CITATION.cff has another version than nextscale/__init__.py ({version})")
    heads = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text("utf-8"), re.M)
    head = heads[0] if heads else "missing"
    if head.split()[0] != version:
        found.append(f"the first heading of CHANGELOG.md must be {version}, it is {head}")
    elif tag and "not released" in head:
        found.append(f"CHANGELOG.md says that {head}; give the day instead before the tag")
    return found


def build(root: Path, address: str, out: Path) -> list[Path]:
    """Build a wheel and a source archive of a checkout's last commit, and let twine check them.

    Raises:
        CalledProcessError: building or checking failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
            file = Path(folder, name)
            file.write_text(change(file.read_text(encoding="utf-8"), address), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), folder], check=True)
    made = sorted(out.glob(f"nextscale-{version_of(root)}*"))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, made)], check=True)
    return made


def main() -> int:
    """Build, check and perhaps tag."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="where the repository is, as in https://github.com/OWNER/nextscale")
    parser.add_argument("--tag", action="store_true")
    arguments = parser.parse_args()
    found = problems(ROOT, tag=arguments.tag)
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout:
        found.append("the working tree has changes; commit them first")
    if found:
        sys.stderr.write("".join(f"release: {problem}\n" for problem in found))
        return 1
    made = build(ROOT, arguments.address.rstrip("/"), ROOT / "dist")
    if arguments.tag:
        version = version_of(ROOT)
        subprocess.run(["git", "tag", "-a", f"v{version}", "-m", f"nextscale {version}"], cwd=ROOT, check=True)
    sys.stdout.write("".join(f"{path}\n" for path in made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
