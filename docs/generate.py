"""The pages under docs/methods, written from the methods themselves: `python -m docs`, or `python -m docs --check` to only compare.

A page is the header of the method's file (idea, equation, paper), the table of its options (the dataclass fields with the docstrings
under them) and a recipe. Nothing is typed twice, so a page cannot be wrong about a default.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import is_dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any

from lessen.core.options import options
from lessen.engine.describe import describe

FOLDER = Path(__file__).parent / "methods"
KEYWORDS = r"(Papers?|Changed|Left out|Not implemented|Not here|Beware|Options?)"


def pages(methods: Iterable[type[Any]]) -> dict[str, str]:
    """File name -> text, for every method and for the index."""
    methods = list(methods)
    return {f"{stem(method)}.md": page(method) for method in methods} | {"index.md": index(methods)}


def stem(method: type[Any]) -> str:
    """The file that holds the method, which names its page."""
    return method.__module__.rpartition(".")[2]


def page(method: type[Any]) -> str:
    """One method."""
    header = cleandoc(sys.modules[method.__module__].__doc__ or "").removeprefix(f"{method.__name__}: ")
    normal = method()
    needs = ", ".join(f"`{need.__name__}`" for need in normal.needs) or "no statistics: works without calibration text"
    reach = {"block": "block by block, after the blocks before", "model": "with all units of the model at once"}[normal.scope]
    rows = [f"| `{o.name}` | {cell(o.type)} | `{literal(o.default)}` | {cell(o.help)} |" for o in options(method)]
    table = ["| option | is | default | what it does |", "|---|---|---|---|", *rows] if rows else ["None."]
    return "\n".join(
        [
            f"<!-- Written by `python -m docs` from {method.__module__.replace('.', '/')}.py; edit there. -->",
            f"# {method.__name__}",
            "",
            body(header[:1].upper() + header[1:]),
            "",
            f"Decides on: `{normal.kind}` units, {reach}. Needs: {needs}.",
            "",
            "## Options",
            "",
            *table,
            "",
            "## In a recipe",
            "",
            "```toml",
            recipe(method),
            "```",
            "",
        ]
    )


def body(header: str) -> str:
    """A file header as Markdown: closing remarks such as "Paper:" begin paragraphs of their own, with the word in bold."""
    return re.sub(rf"\n+{KEYWORDS}:", r"\n\n**\1:**", header)


def recipe(method: type[Any]) -> str:
    """The method with its most telling options, as TOML that `lessen.recipe.loads` takes."""
    lines = [f"{o.name} = {toml(o.default)}" for o in options(method) if o.name in ("bits", "group", "ratio", "candidates", "scale")]
    return "\n".join(["[[method]]", f'name = "{method.__name__}"', *(line for line in lines if not line.endswith("None"))])


def toml(x: Any) -> str:
    """A default as TOML; None stays a word that `recipe` leaves out."""
    if isinstance(x, tuple):
        return f"[{', '.join(toml(item) for item in x)}]"
    if is_dataclass(x):
        return f'"{describe(x)}"'
    return str(x).lower() if isinstance(x, bool) else f'"{x}"' if isinstance(x, str) else repr(x)


def literal(x: Any) -> str:
    """A default as Python."""
    if isinstance(x, tuple):
        return f"[{', '.join(literal(item) for item in x)}]"
    return describe(x) if is_dataclass(x) else repr(x)


def cell(text: str) -> str:
    """Text that stays within its table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def index(methods: list[type[Any]]) -> str:
    """All methods in one table."""
    rows = []
    for method in methods:
        normal = method()
        needs = ", ".join(need.__name__ for need in normal.needs) or "nothing"
        first = cell(cleandoc(method.__doc__ or "").partition("\n")[0])
        rows.append(f"| [{method.__name__}]({stem(method)}.md) | {first} | `{normal.kind}` | {needs} |")
    return "\n".join(
        [
            "<!-- Written by `python -m docs`; edit the methods. -->",
            "# Methods",
            "",
            "A method decides and changes nothing; see [how lessen is built](../architecture.md). `lessen ls` prints this list,",
            "`lessen ls NAME` the options of one.",
            "",
            "| method | what it does | decides on | needs |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def stale(wanted: dict[str, str], folder: Path) -> list[str]:
    """Names of pages that are missing, differ, or should not be there."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def main(arguments: list[str], folder: Path = FOLDER) -> int:
    """Write the pages, or with --check only say which are stale. Returns the exit code."""
    from lessen.methods import METHODS

    wanted = pages(METHODS)
    names = stale(wanted, folder)
    if "--check" in arguments:
        for name in names:
            print(f"docs/methods/{name}: got an old page, wanted what the source says; run python -m docs", file=sys.stderr)
        return 1 if names else 0
    folder.mkdir(exist_ok=True)
    for name in names:
        if name in wanted:
            (folder / name).write_text(wanted[name], encoding="utf-8")
        else:
            (folder / name).unlink()
    return 0
