"""Text that needs no download: what CPython itself brings, split so that calibration and evaluation share nothing.

For English, two sources lie on every machine that runs CPython 3.11 or later, whatever the distribution strips (documentation, tests,
`idlelib`):

- `pydoc_data.topics`: the language reference as plain text (about 465,000 characters), a real module that `help()` needs;
- the docstrings of the standard library's own modules, read from its source files; they are used for calibration only, to make it less
  monotonous, and where the sources are missing (frozen or zipped interpreters) calibration has the topics alone.

A topic goes to one split by the sha256 of its name, so the split does not move when a Python release edits a text. Topics quote one
another, so a paragraph that repeats 12 consecutive words or signs of anything taken before is dropped. The evaluation split is built
first and is therefore the same whatever calibration holds.

The second evaluation text is far from both: program text, see `lessen.stats.library`.
"""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path

from lessen.errors import LessenError, UsageError, nearest
from lessen.stats import library

NAMES = {"calibration": "builtin-calibration", "evaluation": "builtin-docs", "code": "builtin-code"}
"""What the built-in splits are called in records and reports."""
_REPEAT = 12  # lexemes: shorter matches are phrases ("one of the following"), longer ones would let a shared 32-token run through
_EVALUATION_SHARE = 0.4
_FOREIGN = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}  # not the library, or often stripped
_SHORTEST_DOCSTRING = 400  # characters: below that they are labels, not prose


@dataclass(frozen=True)
class Text:
    """Documents under one name. An evaluation figure is reported under the name, and a message about the text says its `path`."""

    name: str
    documents: tuple[str, ...]
    path: str = field(default="", compare=False)

    @property
    def where(self) -> str:
        """What to call the text in a message: its path, if it has one."""
        return self.path or self.name

    @property
    def characters(self) -> int:
        """Number of characters in all documents."""
        return sum(map(len, self.documents))


def builtin(split: str) -> Text:
    """Text from CPython itself; see the header for what it is.

    Args:
        split: "calibration" or "evaluation", English of one kind; or "code", program text to evaluate on far from calibration. No two
            of them share a document or a run of 12 words.

    Raises:
        UsageError: another name of a split.
        LessenError: an interpreter without `pydoc_data`, or for "code" without the sources of its library.

    >>> builtin("evaluation").name
    'builtin-docs'
    """
    makers = {"calibration": lambda: _calibration()[0], "evaluation": lambda: _evaluation()[0], "code": _code}
    if split not in makers:
        raise UsageError("built-in text", got=f"split {split!r}", wanted="a known split", remedy=nearest(split, makers))
    return Text(NAMES[split], makers[split]())


@cache
def _evaluation() -> tuple[tuple[str, ...], frozenset[int]]:
    """Documents, and the runs of words in them."""
    seen: set[int] = set()
    documents = tuple(_fresh((text for name, text in _topics() if _fraction(name) < _EVALUATION_SHARE), seen))
    return documents, frozenset(seen)


@cache
def _calibration() -> tuple[tuple[str, ...], frozenset[int]]:
    """Documents, and the runs of words in them and in the evaluation split."""
    seen = set(_evaluation()[1])
    topics = tuple(_fresh((text for name, text in _topics() if _fraction(name) >= _EVALUATION_SHARE), seen))
    documents = topics + tuple(_fresh(_docstrings(), seen))
    return documents, frozenset(seen)


@cache
def _code() -> tuple[str, ...]:
    _, seen = _calibration()
    pieces = tuple(kept for piece in library.pieces() for kept in _fresh([piece], set(seen)))
    if not pieces:
        remedy = "give a text file, a .jsonl file or a directory of them"
        raise LessenError(
            "built-in code", got=f"a Python without sources ({sys.executable})", wanted="the library's .py files", remedy=remedy
        )
    return pieces


def _topics() -> list[tuple[str, str]]:
    """(name, text), longest first: a topic that others quote keeps its text, and the quotes are dropped."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise LessenError(
            "built-in text",
            got=f"a Python without pydoc_data ({sys.executable})",
            wanted="CPython's own documentation topics",
            remedy="give a text file, a .jsonl file or a directory of them",
        ) from error
    return sorted(topics.items(), key=lambda item: (-len(item[1]), item[0]))


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(sha256(name.encode()).digest()[:4], "big") / 2**32


def _fresh(documents: Iterable[str], seen: set[int]) -> Iterator[str]:
    """Documents without the paragraphs that repeat something in `seen`, which grows."""
    for document in documents:
        paragraphs = re.split(r"\n\s*\n", document)
        words = [(word, number) for number, part in enumerate(paragraphs) for word in _lexemes(part)]
        runs = _runs([word for word, _ in words])
        repeated = {number for i, run in enumerate(runs) if run in seen for _, number in words[i : i + _REPEAT]}
        seen.update(runs)
        kept = "\n\n".join(part for number, part in enumerate(paragraphs) if number not in repeated).strip()
        if kept:
            yield kept + "\n"


def _lexemes(text: str) -> list[str]:
    """Words and single signs."""
    return re.findall(r"\w+|[^\w\s]", text)


def _runs(lexemes: list[str]) -> list[int]:
    """Hashes of all runs of `_REPEAT` lexemes."""
    return [hash(tuple(lexemes[i : i + _REPEAT])) for i in range(len(lexemes) - _REPEAT + 1)]


def _docstrings() -> Iterator[str]:
    """Long docstrings of the standard library's modules, one document a module, in name order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")) + sorted(root.glob("*/__init__.py")):
        folder = path.parent.name
        if folder in _FOREIGN or path.stem.startswith("_"):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # unreadable or deliberately broken sources are no text
            continue
        nodes = [tree] + [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
        long = [text for node in nodes if len(text := ast.get_docstring(node) or "") >= _SHORTEST_DOCSTRING]
        if long:
            yield "\n\n".join(long)
