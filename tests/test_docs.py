"""Pages that are written from the sources: fresh, complete, and made of recipes that load."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from docs import generate
from lessen import recipe
from lessen.core.options import options
from lessen.methods import METHODS

DOCS = Path(generate.__file__).parent


@dataclass(frozen=True)
class Halve:
    """Halve everything | as a test."""

    strength: float = 0.5
    """How much, from 0 to 1 | or more."""
    bits: int | None = None
    """Width."""

    kind: ClassVar[str] = "linear"
    scope: ClassVar[str] = "block"
    needs: ClassVar[tuple[type, ...]] = ()


def test_pages_are_fresh():
    assert generate.stale(generate.pages(METHODS), DOCS / "methods") == [], "run python -m docs"


def test_a_method_brings_its_page():
    pages = generate.pages([Halve])
    assert set(pages) == {f"{generate.stem(Halve)}.md", "index.md"}
    page = pages[f"{generate.stem(Halve)}.md"]
    assert "| `strength` | a number | `0.5` | How much, from 0 to 1 \\| or more. |" in page
    assert "| `bits` | an integer or none | `None` | Width. |" in page
    assert page.count("# Halve") == 1 and "bits = " not in page
    assert "| Halve everything \\| as a test. |" in pages["index.md"]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_page_is_complete(method):
    page = generate.page(method)
    assert all(f"| `{option.name}` |" in page and option.help in page.replace("\\|", "|") for option in options(method))
    assert "http" in page or "is ours" in page or method.__name__ == "RTN"  # a published method names its paper


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_recipe_loads(method):
    """With the defaults spelt out, the recipe is the method as it is without options."""
    loaded = recipe.loads(generate.recipe(method))
    assert list(loaded) == [method()]


def test_stale_pages_are_told_mended_and_removed(tmp_path: Path, capsys):
    folder = tmp_path / "methods"
    assert generate.main([], folder) == 0 == generate.main(["--check"], folder)
    (folder / "gone.md").write_text("a method that is no more")
    (folder / "rtn.md").write_text("old")
    assert generate.main(["--check"], folder) == 1
    assert {"gone.md", "rtn.md"} <= set(re.findall(r"\w+\.md", capsys.readouterr().err))
    assert generate.main([], folder) == 0 == generate.main(["--check"], folder)


def test_links_between_pages_lead_somewhere():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
