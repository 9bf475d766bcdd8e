"""Results on stdout: a table for people, one JSON object for programs."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from lessen.errors import LessenError

SCHEMA_VERSION = 1
PRINTED = "the result was printed"


def emit(command: str, data: Mapping[str, Any]) -> None:
    """Print one JSON object: `{"schema_version": 1, "command": .., ...}`."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, "command": command, **data}, default=_plain, allow_nan=False))


def emit_error(command: str, message: str, code: int, error: BaseException) -> None:
    """Print an error as one JSON object, unless the result is on stdout already: `{.., "error": {"message": .., "exit_code": ..}}`."""
    if PRINTED in getattr(error, "__notes__", ()):
        return
    parts = {name: getattr(error, name) for name in ("where", "got", "wanted", "remedy") if hasattr(error, name)}
    emit(command, {"error": {"message": message, "exit_code": code, **(parts if isinstance(error, LessenError) else {})}})


@contextmanager
def printed() -> Iterator[None]:
    """Around what may fail once the result is on stdout: the error is marked, so that it does not become a second object there."""
    try:
        yield
    except LessenError as error:
        error.add_note(PRINTED)
        raise


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = (), title: str = "") -> None:
    """Print rows as a table that wraps in a terminal and keeps a row to a line in a pipe."""
    right = set(numeric)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(header))
    for i, name in enumerate(header):
        drawn.add_column(name, justify="right" if i in right else "left", overflow="fold", header_style="bold")
    for row in rows:
        drawn.add_row(*row)
    console = Console(file=sys.stdout, highlight=False, markup=False)
    if title:
        console.print(title, style="bold")
    if console.is_terminal:
        console.print(drawn)
        return
    console.width = 400
    with console.capture() as captured:
        console.print(drawn)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show(drawn: RenderableType, plain: str) -> None:
    """Print what was drawn for a terminal, or its plain twin in a pipe."""
    console = Console(file=sys.stdout, highlight=False, markup=False)
    if console.is_terminal:
        console.print(drawn)
    else:
        print(plain)


def tell(notes: Sequence[str]) -> None:
    """Print the choices that were made for the user, a line each."""
    if notes:
        print()
    for note in notes:
        print(f"- {note}")


def say(text: str) -> None:
    """Print a sentence as it is."""
    print(text)


def _plain(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        case _:
            return value.item() if hasattr(value, "item") else repr(value)
