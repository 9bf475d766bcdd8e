"""How long the command line takes to answer `--help`: every command, in fresh processes, torch never imported."""

import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.harness import Goal, Row, Session, at_most, measured
from lessen.cli.main import app

COMMANDS = (
    "",
    *(name for name in app if not name.startswith("-")),
    *(f"{name} {inner}" for name in app if not name.startswith("-") for inner in app[name] if not inner.startswith("-")),
)
"""No command, every command that is registered, and those within them."""


def rows(session: Session) -> Iterator[Row | None]:
    for command in COMMANDS[:2] if session.smoke else COMMANDS:
        key = " ".join(["lessen", *command.split(), "--help"])
        yield session.row(key, lambda c=command: _help(c, 2 if session.smoke else 11))


def _help(command: str, times: int) -> Row:
    runs = [measured([sys.executable, "-m", "lessen", *command.split(), "--help"]) for _ in range(times)]
    if any(run["code"] for run in runs):
        raise RuntimeError(f"lessen {command} --help: {runs[0]['stderr']}")
    figures = {f"{key}_median": median(run[key] for run in runs) for key in ("seconds", "cpu_seconds")}
    return figures | {"seconds_lowest": min(run["seconds"] for run in runs), "runs": times, "peak_mb": runs[0]["peak_mb"]}


def goals(rows: list[Row]) -> list[Goal]:
    """Processor seconds of the median run: what the command takes, whoever else is on the machine."""
    return [at_most(f"{row['key']}: CPU-seconds", row["cpu_seconds_median"], 0.5) for row in rows]
