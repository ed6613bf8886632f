"""The rules of the house: imports point one way, torch stays out of `--help`, no foreign paths, no torchvision."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nextscale"
MODULES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE = ("tests", "reproduce", "benchmarks", "examples", "scripts")
"""Folders of the repository that are not in the wheel."""
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

REPO_FILES = pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
PACKAGE_FILES = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def source(name: str) -> Path:
    """The file of a module: tokenizer.model -> nextscale/model/tokenizer.py."""
    return PACKAGE.joinpath(*name.split(".")).with_suffix(".py")


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


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_module_has_its_place() -> None:
    places = {dotted(path).split(".")[0] for path in MODULES} - {""}
    assert places <= set().union(*LAYERS), f"in no layer: {sorted(places - set().union(*LAYERS))}"


# The public surface, nextscale/__init__.py, imports lazily from anywhere.
@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=dotted)
def test_imports_point_one_way(path: Path) -> None:
    wrong = [name for name in own_imports(path) if not may_import(dotted(path), name)]
    assert not wrong, f"{dotted(path)} may not import {wrong}"


@PACKAGE_FILES
def test_the_package_needs_nothing_outside_of_it(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(parse(path))} & set(OUTSIDE)


def test_imports_go_in_no_circle() -> None:
    graph = {dotted(path): {module_of(name) for name in own_imports(path)} - {""} for path in MODULES}
    graph.pop("")
    list(TopologicalSorter(graph).static_order())  # raises CycleError
    packages: dict[str, set[str]] = {}
    for name, imports in graph.items():
        top = name.split(".")[0]
        packages.setdefault(top, set()).update({module.split(".")[0] for module in imports} - {top})
    list(TopologicalSorter(packages).static_order())


@PACKAGE_FILES
def test_imports_are_absolute(path: Path) -> None:
    relative = [node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative


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


@pytest.mark.parametrize("name", [name for name in TORCH_FREE if source(name).exists()])
def test_torch_free_modules_stay_so(name: str) -> None:
    top_level = imported(parse(source(name)), inside_functions=False)
    assert "torch" not in {module.split(".")[0] for module in top_level}


def first_that_loads_torch(names: list[str]) -> str:
    """Imports modules in turn in a new process; the first one after which torch is loaded."""
    return run_python(
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(print(name))"
    )


def test_no_torch_free_module_loads_torch() -> None:
    names = [f"nextscale.{name}" for name in TORCH_FREE if source(name).exists()]
    assert first_that_loads_torch(["nextscale", *names, *TORCH_FREE_TOOLS]) == ""


def test_a_module_that_loads_torch_is_found() -> None:
    assert first_that_loads_torch(["nextscale.errors", "nextscale.device", "nextscale.files"]) == "nextscale.device"


def test_the_public_names_are_listed() -> None:
    import nextscale

    assert sorted(nextscale.__all__) == [name for name in dir(nextscale) if name in nextscale.__all__]
    assert all(hasattr(nextscale, name) for name in dir(nextscale))
    assert not {"TYPE_CHECKING", "Any", "annotations", "_HOMES"} & set(dir(nextscale))


def test_the_options_know_no_command_line() -> None:
    assert "tyro" not in {name.split(".")[0] for name in imported(parse(source("upscale.options")))}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    return (node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@REPO_FILES
def test_functions_fit_on_a_screen(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path) if node.end_lineno}
    long = {name: lines for name, lines in long.items() if lines > 60 and f"{place}:{name}" not in LONG}
    assert not long, f"{place}: more than 60 lines: {long}"


@PACKAGE_FILES
def test_imports_stand_at_the_top(path: Path) -> None:
    if path.parent.name == "commands" or path == PACKAGE / "__init__.py":  # they load torch, or everything, late
        return
    allowed = OPTIONAL | ({"torch", "nextscale"} if dotted(path) in TORCH_FREE else set())
    late = {name for node in functions(path) for name in imported(node)}
    wrong = sorted(name for name in late if not any(f"{name}.".startswith(f"{start}.") for start in allowed))
    assert not wrong, f"{dotted(path)} imports {wrong} inside a function"


@REPO_FILES
def test_no_assertion_is_always_true(path: Path) -> None:
    tuples = [n.lineno for n in ast.walk(parse(path)) if isinstance(n, ast.Assert) and isinstance(n.test, ast.Tuple)]
    assert not tuples, f"assert (a, b) asserts nothing: lines {tuples}"


@REPO_FILES
def test_torchvision_is_never_imported(path: Path) -> None:
    assert "torchvision" not in {name.split(".")[0] for name in imported(parse(path))}


@PACKAGE_FILES
def test_modules_say_what_they_are(path: Path) -> None:
    tree = parse(path)
    if path.name == "__init__.py" and not tree.body:
        return
    assert ast.get_docstring(tree), f"{dotted(path)} has no docstring"


BRITISH = re.compile(
    "colo" + "ur|gr" + "ey|licen" + "c|behavio" + "ur|neighbo" + "ur|cent" + "re|labell" + "ed"
    r"|(?<!vgg19_)(quant|token|optim|normal|initial|general|summar|recogn|minim|util)is(e[ds]?|ing|ation|er)(?![a-z])",
    re.IGNORECASE,
)
# They hold old names that are still read, or tell of them.
OLD_NAMES = {"config_io.py", "options.py", "pack.py", "CHANGELOG.md"}
OLD_NAMES |= {"test_card.py", "test_degrade.py", "test_loop.py", "test_pack.py"}


def test_spelling_is_american() -> None:
    known = {"gr" + "ey", "licen" + "c", "optim" + "iser", "general" + "ised", "token" + "ise"}
    for path in [*PYTHON_FILES, *(p for name in ("*.md", "docs/*.md", "examples/*.md") for p in ROOT.glob(name))]:
        found = {match.group().lower() for match in BRITISH.finditer(path.read_text(encoding="utf-8"))}
        found -= known if path.name in OLD_NAMES else set()
        assert not found, f"{path.relative_to(ROOT)}: {found}"


@REPO_FILES
def test_no_path_of_one_machine(path: Path) -> None:
    # Strings and comments alike; the folders are spelled in two parts so that this file passes.
    folders = "|".join(("ho" + "me", "ro" + "ot", "wo" + "rk", "Us" + "ers", "mn" + "t", "op" + "t"))
    found = re.findall(rf"""["'\s`(](?:/(?:{folders})/|[A-Z]:\\)\S+""", path.read_text(encoding="utf-8"))
    assert not found
