"""Options that several commands share, grouped as `--help` shows them. The docstring under a field is its help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

RESULT = Group("Result", sort_key=1)
METHODS = Group("Methods", sort_key=2)
CALIBRATION = Group("Calibration", sort_key=3)
EVALUATION = Group("Evaluation", sort_key=4)
RUNNING = Group("Running", sort_key=5)

Switch = Annotated[bool, Parameter(negative="", show_default=False)]


@Parameter(name="*", group=METHODS)
@dataclass(frozen=True)
class Methods:
    """What is to be done to the model. Without any of these a good default is chosen."""

    to: Annotated[str | None, Parameter(metavar="DIAL")] = None
    """Size to reach: 70MB, 4bpw (bits per weight) or 0.5x (of the source). Everything else is derived from it."""
    recipe: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """TOML file with a list of methods."""
    method: Annotated[tuple[str, ...], Parameter(metavar="METHOD", negative="", show_default=False)] = ()
    """A method, its options after it: --method GPTQ --bits 3. May be given several times. `lessen ls GPTQ` lists its options."""


@Parameter(name="*", group=CALIBRATION)
@dataclass(frozen=True)
class Calibration:
    """What data the methods see."""

    calibration: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """A .txt or .jsonl file, a directory of them, or "builtin"."""
    tokens: int | None = None
    """How many calibration tokens to read."""
    seed: int | None = None
    """Seed of everything random; the same seed repeats the run to the bit."""


@Parameter(name="*", group=RUNNING)
@dataclass(frozen=True)
class Running:
    """How the command behaves, whatever it does."""

    threads: int | None = None
    """Processor threads to use."""
    json: Switch = False
    """Print the result as one JSON object."""
    quiet: Switch = False
    """No progress on stderr."""
    debug: Switch = False
    """Show the traceback of an error."""
