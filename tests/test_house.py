"""The rules of the house: imports point one way, torch stays out of `--help`, no foreign paths, no torchvision."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytestmark = pytest.mark.rules

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nextscale"
MODULES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE = ("tests", "reproduce", "benchmarks", "examples", "scripts")
"""Folders of the repository that are not in the wheel."""
NodeT = TypeVar("NodeT", bound=ast.AST)
PYTHON_FILES = [*MODULES, *(path for folder in OUTSIDE for path in sorted((ROOT / folder).rglob("*.py")))]

# Lowest first: a module imports from its own layer and from lower ones, and within a layer without circles.
LAYERS = [
    {"errors", "addresses", "console", "device", "files", "install"},
    {"model", "image"},
    {"upscale", "data"},
    {"train", "evaluate"},
    {"web"},
    {"commands"},
    {"demo", "__main__"},
]
# Networks and their files know nothing of pictures, although both are of one layer.
APART = {("model", "image")}
# Their top level is what every command's --help waits for.
TORCH_FREE = [
    *("errors", "addresses", "console", "files", "install", "image", "model.config", "model.config_io"),
    *(
        "upscale.options",
        "upscale.plan",
        "upscale.tiles",
        "upscale.manifest",
        "upscale.outputs",
        "data.crops",
        "data.options",
        "data.pack",
    ),
    *(
        "evaluate.datasets",
        "evaluate.options",
        "evaluate.sets",
        "evaluate.summary",
        "evaluate.methods",
        "evaluate.table",
    ),
    *("train.config", "train.hardware", "web.limits", "web.serve"),
    *("commands.batch", "commands.convert", "commands.data", "commands.degrade", "commands.evaluate"),
    *(
        "commands.cli_types",
        "commands.progress",
        "commands.streams",
        "commands.doctor",
        "commands.main",
        "commands.serve",
        "commands.train",
        "commands.upscale",
    ),
]
# The same for the tools beside the package.
TORCH_FREE_TOOLS = ["reproduce.__main__", "reproduce.published", "reproduce.figures", "benchmarks.bench"]

# Functions of more than 60 lines, and why each stays whole.
LONG = {
    "nextscale/upscale/pipeline.py:restore_tiles": "the picture's way through the model reads top to bottom",
}
# Imported where they are used: extras, and what takes long to load and is seldom needed.
OPTIONAL = {
    *(
        "accelerate",
        "braceexpand",
        "cv2",
        "filelock",
        "fsspec",
        "gradio",
        "ncnn",
        "pyiqa",
        "ray",
        "tensorboard",
        "tifffile",
        "uvicorn",
    ),
    *("httpx", "huggingface_hub", "rich", "torch.distributed", "torch.utils.tensorboard"),
}


def broken(files: Iterable[Path], rule: Callable[[Path], Any]) -> dict[str, Any]:
    """What a rule finds to be wrong, by file: one test per rule, for thousands of tests take longer than the rules."""
    return {str(path.relative_to(ROOT)): found for path in files if (found := rule(path))}


def source(name: str) -> Path:
    """The file of a module: tokenizer.model -> nextscale/model/tokenizer.py."""
    return PACKAGE.joinpath(*name.split(".")).with_suffix(".py")


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def dotted(path: Path) -> str:
    """nextscale/model/tokenizer.py -> tokenizer.model; an __init__ goes by its package's name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported(node: ast.AST, *, inside_functions: bool = True) -> Iterator[str]:
    """The full names of everything imported under `node`, except for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif is_type_checking(child):
            yield from (name for part in getattr(child, "orelse", []) for name in imported(part))
        elif inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(child, inside_functions=inside_functions)


def own_imports(path: Path) -> Iterator[str]:
    """Names below nextscale that a module imports, as in model.tokenizer.Tokenizer."""
    for name in imported(parse(path)):
        if name.startswith("nextscale."):
            yield name.removeprefix("nextscale.")


def layer(name: str) -> int:
    """The number of the layer that a module or a name below nextscale belongs to."""
    top = name.split(".")[0]
    return next(number for number, tops in enumerate(LAYERS) if top in tops)


def may_import(importer: str, name: str) -> bool:
    """Whether a module (model.tokenizer) may import a name (model.decoder.Decoder)."""
    if name == "__version__":
        return True
    return (importer.split(".")[0], name.split(".")[0]) not in APART and layer(name) <= layer(importer)


def module_of(name: str) -> str:
    """The module that holds a name: model.decoder.Decoder -> model.decoder, image.Picture -> image."""
    parts = name.split(".")
    while parts and not (source(".".join(parts)).is_file() or PACKAGE.joinpath(*parts, "__init__.py").is_file()):
        parts.pop()
    return ".".join(parts)


def run_python(code: str, folder: Path = ROOT) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_module_has_its_place() -> None:
    places = {dotted(path).split(".")[0] for path in MODULES} - {""}
    assert places <= set().union(*LAYERS), f"in no layer: {sorted(places - set().union(*LAYERS))}"


def test_imports_point_one_way() -> None:
    # The public surface, nextscale/__init__.py, imports lazily from anywhere.
    inner = [path for path in MODULES if path != PACKAGE / "__init__.py"]
    assert not broken(inner, lambda path: [name for name in own_imports(path) if not may_import(dotted(path), name)])


def test_the_package_needs_nothing_outside_of_it() -> None:
    assert not broken(MODULES, lambda path: {name.split(".")[0] for name in imported(parse(path))} & set(OUTSIDE))


def test_imports_go_in_no_circle() -> None:
    graph = {dotted(path): {module_of(name) for name in own_imports(path)} - {""} for path in MODULES}
    graph.pop("")
    list(TopologicalSorter(graph).static_order())  # raises CycleError
    packages: dict[str, set[str]] = {}
    for name, imports in graph.items():
        top = name.split(".")[0]
        packages.setdefault(top, set()).update({module.split(".")[0] for module in imports} - {top})
    list(TopologicalSorter(packages).static_order())


def test_imports_are_absolute() -> None:
    assert not broken(MODULES, lambda path: [n.lineno for n in nodes(path, ast.ImportFrom) if n.level])


@pytest.mark.parametrize(
    ("importer", "name", "allowed"),
    [
        ("model.decoder", "model.layers.ResBlock", True),
        ("model.tokenizer", "errors.OptionError", True),
        ("errors", "model.layers", False),
        ("model.sampler", "upscale.tiles.plan_tiles", False),
        ("model.checkpoint", "image.Picture", False),
        ("train.loop", "evaluate.metrics.lpips", True),
        ("upscale.tiles", "evaluate.scores", False),
        ("image.picture", "upscale.tiles", False),
        ("data.crops", "train.loop", False),
        ("evaluate.scores", "web.server", False),
        ("train.loop", "web.server", False),
        ("web.server", "commands.main", False),
        ("web.server", "evaluate.scores", True),
        ("commands.main", "__version__", True),
    ],
)
def test_the_rule_itself(importer: str, name: str, allowed: bool) -> None:
    assert may_import(importer, name) is allowed


def test_torch_free_modules_stay_so() -> None:
    def loads_torch(path: Path) -> bool:
        return "torch" in {name.split(".")[0] for name in imported(parse(path), inside_functions=False)}

    assert not broken([source(name) for name in TORCH_FREE if source(name).exists()], loads_torch)


def first_that_loads_torch(names: list[str], folder: Path = ROOT) -> str:
    """Imports modules in turn in a new process; the first one after which torch is loaded."""
    return run_python(
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(print(name))",
        folder,
    )


def test_no_torch_free_module_loads_torch() -> None:
    names = [f"nextscale.{name}" for name in TORCH_FREE if source(name).exists()]
    assert first_that_loads_torch(["nextscale", *names, *TORCH_FREE_TOOLS]) == ""


def test_a_module_that_loads_torch_is_found(tmp_path: Path) -> None:
    for name, text in (("torch", ""), ("early", ""), ("late", "import torch"), ("later", "import torch")):
        (tmp_path / f"{name}.py").write_text(text)
    assert first_that_loads_torch(["early", "late", "later"], tmp_path) == "late"


def test_the_public_names_are_listed() -> None:
    import nextscale

    assert sorted(nextscale.__all__) == [name for name in dir(nextscale) if name in nextscale.__all__]
    assert all(hasattr(nextscale, name) for name in dir(nextscale))
    assert not {"TYPE_CHECKING", "Any", "annotations", "_HOMES"} & set(dir(nextscale))


def test_the_options_know_no_command_line() -> None:
    assert "tyro" not in {name.split(".")[0] for name in imported(parse(source("upscale.options")))}


@functools.cache
def by_kind(path: Path) -> dict[type[ast.AST], list[ast.AST]]:
    """Every node of a file."""
    found: dict[type[ast.AST], list[ast.AST]] = {}
    for node in ast.walk(parse(path)):
        found.setdefault(type(node), []).append(node)
    return found


def nodes(path: Path, kind: type[NodeT]) -> list[NodeT]:
    """Every node of a kind in a file."""
    return by_kind(path).get(kind, [])  # type: ignore[return-value]


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    return [*nodes(path, ast.FunctionDef), *nodes(path, ast.AsyncFunctionDef)]


def test_functions_fit_on_a_screen() -> None:
    def long(path: Path) -> dict[str, int]:
        lines = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(path)}
        return {n: count for n, count in lines.items() if count > 60 and f"{path.relative_to(ROOT)}:{n}" not in LONG}

    assert not broken(PYTHON_FILES, long), "more than 60 lines"


def test_imports_stand_at_the_top() -> None:
    def late(path: Path) -> list[str]:
        allowed = OPTIONAL | ({"torch", "nextscale"} if dotted(path) in TORCH_FREE else set())
        names = {name for node in functions(path) for name in imported(node)}
        return sorted(name for name in names if not any(f"{name}.".startswith(f"{start}.") for start in allowed))

    # Commands load torch late, the public surface everything, and the program what Ctrl+C may come upon.
    late_by_nature = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
    files = [path for path in MODULES if path.parent.name != "commands" and path not in late_by_nature]
    assert not broken(files, late), "imports inside a function"


def test_no_assertion_is_always_true() -> None:
    def tuples(path: Path) -> list[int]:
        return [node.lineno for node in nodes(path, ast.Assert) if isinstance(node.test, ast.Tuple)]

    assert not broken(PYTHON_FILES, tuples), "assert (a, b) asserts nothing"


def test_torchvision_is_never_imported() -> None:
    assert not broken(PYTHON_FILES, lambda p: "torchvision" in {name.split(".")[0] for name in imported(parse(p))})


def test_modules_say_what_they_are() -> None:
    assert not broken(MODULES, lambda path: parse(path).body and not ast.get_docstring(parse(path))), "no docstring"


BRITISH = re.compile(
    "colo" + "ur|gr" + "ey|licen" + "c|behavio" + "ur|neighbo" + "ur|cent" + "re|labell" + "ed"
    r"|(?<!vgg19_)(quant|token|optim|normal|initial|general|summar|recogn|minim|util)is(e[ds]?|ing|ation|er)(?![a-z])",
    re.IGNORECASE,
)
# They hold old names that are still read, or tell of them.
OLD_NAMES = {"config_io.py", "options.py", "pack.py", "CHANGELOG.md"}
OLD_NAMES |= {"test_card.py", "test_degrade.py", "test_loop.py", "test_pack.py"}


def test_spelling_is_american() -> None:
    known = {"gr" + "ey", "licen" + "c", "optim" + "iser", "general" + "ised"}

    def british(path: Path) -> set[str]:
        found = {match.group().lower() for match in BRITISH.finditer(path.read_text(encoding="utf-8"))}
        return found - (known if path.name in OLD_NAMES else set())

    pages = [path for name in ("*.md", "docs/*.md", "examples/*.md") for path in ROOT.glob(name)]
    assert not broken([*PYTHON_FILES, *pages], british)


def test_no_path_of_one_machine() -> None:
    # Strings and comments alike; the folders are spelled in two parts so that this file passes.
    folders = "|".join(("ho" + "me", "ro" + "ot", "wo" + "rk", "Us" + "ers", "mn" + "t", "op" + "t"))
    pattern = re.compile(rf"""["'\s`(](?:/(?:{folders})/|[A-Z]:\\)\S+""")
    assert not broken(PYTHON_FILES, lambda path: pattern.findall(path.read_text(encoding="utf-8")))
