"""The house keeps its shape: who may import whom, how long things may be, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "lessen"
FILES = sorted(SRC.rglob("*.py"))

# A part may import the parts of the layers before its own, and itself; parts of one layer do not know each other.
LAYERS = [
    ["errors", "environment"],
    ["formats"],
    ["core"],
    ["models"],
    ["structure", "stats", "targets"],
    ["methods"],
    ["recipe"],
    ["engine", "evaluate", "export", "recover", "report"],
    ["calibration", "choice", "rounds", "worth", "analog"],
    ["job", "prune", "restore"],
    ["foresee"],
    ["compress"],
    ["cli"],
    ["__main__"],
]
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}

MAX_FILE = 500
MAX_FUNCTION = 60  # lines, the docstring not counted
MAX_PARAMETERS = 8
# Functions that may be longer, each with its reason.
LONG: dict[str, str] = {}
# Functions that may take more parameters, each with its reason.
WIDE: dict[str, str] = {
    "compress.py:compress": "the front door; each is one question that a user may have",
    "prune.py:prune": "the front door for models in memory",
    "analog/run/job.py:simulated": "a front door of the analog part",
    "analog/run/job.py:searched": "a front door of the analog part",
    "cli/analog.py:explore": "groups of options of the command line, one each",
    "analog/run/hardening.py:hardened": "a front door of the analog part",
    "cli/analog.py:robust": "groups of options of the command line, one each",
}


def part(path: Path) -> str:
    inside = path.relative_to(SRC)
    return inside.parts[0].removesuffix(".py")


def imported(tree: ast.Module) -> set[str]:
    """Parts of lessen that a file imports, at its top or inside functions, but not for type checking alone."""
    names: set[str] = set()
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "lessen" else {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("lessen.")}


# The package's own file is above the layers: it names public things of all of them, and imports them when they are asked for.
@pytest.mark.parametrize("path", [path for path in FILES if path != SRC / "__init__.py"], ids=lambda p: str(p.relative_to(SRC)))
def test_imports_follow_the_arrows(path: Path):
    own = part(path)
    for other in imported(ast.parse(path.read_text())) - {own}:
        if own in ("cli", "__main__") and other not in LEVEL:
            continue  # a public name: `from lessen import load`
        assert other in LEVEL, f"{path}: lessen.{other} has no place in the layers"
        assert LEVEL[other] < LEVEL[own], f"{path}: {own} may not import {other}"


def test_every_part_has_its_place():
    assert {part(path) for path in FILES} - {"__init__"} <= LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_files_and_functions_stay_short(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE, f"{path} has more than {MAX_FILE} lines"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        name = f"{path.relative_to(SRC).as_posix()}:{node.name}"
        length = (node.end_lineno or node.lineno) - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
        assert length <= MAX_FUNCTION or name in LONG, f"{name} has {length} lines"
        count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
        count -= bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
        assert count <= MAX_PARAMETERS or name in WIDE, f"{name} has {count} parameters"


def test_the_exceptions_are_few_and_in_use():
    sources = {path.relative_to(SRC).as_posix(): path.read_text() for path in FILES}
    for name in [*LONG, *WIDE]:
        file, function = name.split(":")
        assert f"def {function}(" in sources.get(file, ""), f"{name} is an exception for nothing"
    assert len(LONG) <= 3
    assert len(WIDE) <= 7


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_what_is_public_says_what_it_is(path: Path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, f"{path} has no header"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_nothing_unfinished_is_left():
    # Spelt in two parts so that this file does not find itself.
    words = ["raise NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME"]
    for path in FILES:
        for word in words:
            assert word not in path.read_text(), f"{path}: {word}"


def test_importing_the_package_does_not_import_torch():
    code = "import sys, lessen; lessen.__version__; dir(lessen); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist_and_stay_functions_when_their_folders_are_imported():
    code = """
import importlib, inspect, pkgutil, lessen
for module in pkgutil.walk_packages(lessen.__path__, "lessen."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in lessen.__all__:
    thing = getattr(lessen, name)
    assert not inspect.ismodule(thing), name
    assert name == "METHODS" or inspect.getdoc(thing), name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_public_name_is_an_attribute_error():
    import lessen

    with pytest.raises(AttributeError, match="kompress"):
        _ = lessen.kompress
