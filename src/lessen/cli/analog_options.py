"""Options that commands about analog chips share, grouped as `--help` shows them. The docstring under a field is its help."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from lessen.cli.options import CALIBRATION, EVALUATION, METHODS

CHIP = Group("Chip", sort_key=1)
TRAINING = Group("Training", sort_key=3)
Names = Annotated[tuple[str, ...], Parameter(metavar="NAME", negative="", show_default=False, consume_multiple=True)]


@Parameter(name="*", group=CHIP)
@dataclass(frozen=True)
class OnChip:
    """Which chip, and what of the network lies on it."""

    chip: Annotated[str, Parameter(metavar="CHIP")]
    """A preset (`lessen analog presets`) or a TOML file (`lessen analog describe`)."""
    split: Names = ()
    """Layers that stay digital, by name or pattern; behind a +, routers of experts that lie on tiles."""


@Parameter(name="*", group=CALIBRATION)
@dataclass(frozen=True)
class Inputs:
    """What sets the converters."""

    calibration: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """Text for language models: a .txt or .jsonl file, a directory of them, or "builtin"."""
    batches: Annotated[str | None, Parameter(metavar="MODULE:NAME")] = None
    """For other models: an iterable of batches, or a function that returns one. Most of them judge."""


@Parameter(name="*", group=EVALUATION)
@dataclass(frozen=True)
class Judge:
    """How a network on a chip is judged."""

    eval: Annotated[tuple[str, ...], Parameter(metavar="TEXT", negative="", show_default=False)] = ()
    """Held-out text for language models. May be given several times. Without it: built-in documentation."""
    evaluate: Annotated[str | None, Parameter(metavar="MODULE:FUNCTION")] = None
    """A function of a model that returns a number, or numbers by name, the first of which counts."""
    better: Literal["lower", "higher"] = "higher"
    """Which numbers of --evaluate are better."""
    choose: Annotated[str | None, Parameter(metavar="MODULE:FUNCTION")] = None
    """Judges as --evaluate does, on other data, where a method has to choose."""
    windows: int = 4
    """Windows of each text that are scored."""
    length: int | None = None
    """Tokens in a window. Without it: 256, or the model's context if that is shorter."""


@Parameter(name="*", group=EVALUATION)
@dataclass(frozen=True)
class Aging:
    """How many chips, and when they are looked at."""

    times: Annotated[str | None, Parameter(metavar="TIMES")] = None
    """Times since programming, such as 300s,1h,1d,1mo,1y. Without it: the first that the device describes, then 1h, 1d, 1mo and 1y."""
    chips: int = 10
    """Chip instances."""
    seed: int = 0
    """Of the first instance, and of the calibration windows."""


@Parameter(name="*", group=METHODS)
@dataclass(frozen=True)
class Searching:
    """How the search goes."""

    trials: int = 20
    """Designs in all, those of earlier runs on the same storage among them."""
    workers: int = 1
    """Processes, of a thread each."""
    storage: Annotated[str | None, Parameter(metavar="FILE")] = None
    """Keeps finished designs: NAME.db, NAME.log, or the address of a database."""
    seed: int = 0
    """Of the order of designs, and of the calibration windows."""
    backend: Literal["processes", "ray"] = "processes"
    """Who runs the workers: this machine, or a Ray cluster."""
    chips: int = 2
    """Instances whose mean is the quality of a design."""
    at: Annotated[str | None, Parameter(metavar="TIME")] = None
    """Time since programming, such as 1d. Without it: the device's first."""


@Parameter(name="*", group=TRAINING)
@dataclass(frozen=True)
class Trains:
    """How methods train, those that do: by distillation from the digital model."""

    train: Annotated[str | None, Parameter(metavar="MODULE:NAME")] = None
    """Batches to train on, or a function that returns some. Without it: built-in text, for language models alone."""
    steps: int | None = None
    """Optimizer steps. Without it: 100, unless minutes are given."""
    minutes: float | None = None
    """Minutes to train at most."""
    batch: int = 8
    """Samples of one step."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
