"""Options that several commands share, grouped as `--help` shows them. The docstring under a field is its help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

RESULT = Group("Result", sort_key=1)
METHODS = Group("Methods", sort_key=2)
CALIBRATION = Group("Calibration", sort_key=3)
EVALUATION = Group("Evaluation", sort_key=4)
RUNNING = Group("Running", sort_key=5)

Switch = Annotated[bool, Parameter(negative="", show_default=False)]


@Parameter(name="*", group=RESULT)
@dataclass(frozen=True)
class Result:
    """Where the result goes."""

    out: Annotated[Path, Parameter(metavar="DIR")] = Path("out")
    """Directory to write; it appears only when it is complete."""
    export: Annotated[str | None, Parameter(metavar="FORMATS")] = None
    """Further formats, with commas between them, or "none". Otherwise GGUF and ONNX where the result fits them."""
    overwrite: Switch = False
    """Replace DIR if it exists."""
    fresh: Switch = False
    """Forget what an earlier run for DIR has finished, instead of going on there."""

    @property
    def exports(self) -> tuple[str, ...] | None:
        """The formats by name; None leaves the choice to the library."""
        if self.export is None:
            return None
        return () if self.export == "none" else tuple(name.strip() for name in self.export.split(","))


@Parameter(name="*", group=EVALUATION)
@dataclass(frozen=True)
class Evaluation:
    """How the result is judged."""

    eval: Annotated[tuple[str, ...], Parameter(metavar="TEXT", negative="", show_default=False)] = ()
    """Held-out text: a .txt or .jsonl file or a directory. May be given several times."""
    no_eval: Switch = False
    """Do not measure quality and speed."""
    no_prove: Switch = False
    """Do not open the written files in their runtimes, which hold the model whole; their codes are read back and compared all the same."""
    max_kld: Annotated[float | None, Parameter(metavar="NATS")] = None
    """Exit with 3 if the mean KL to the original is larger on any text."""
    strict: Switch = False
    """Fail if any part of the model had to be skipped."""


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
    no_embeddings: Switch = False
    """Leave token table and output head as they are; otherwise they get 8 bits unless a method says more."""


@Parameter(name="*", group=CALIBRATION)
@dataclass(frozen=True)
class Calibration:
    """What data the methods see."""

    calibration: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """A .txt or .jsonl file, a directory of them, or "builtin"."""
    tokens: int | None = None
    """How many calibration tokens to read."""
    written: Annotated[float | None, Parameter(metavar="SHARE")] = None
    """Share of the calibration text that the model writes itself, 0 to 1. Without it: half, for models of up to 500M parameters."""
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


def wishes(methods: Methods, calibration: Calibration) -> dict[str, Any]:
    """What the user asked for as keyword arguments of `lessen.compress` and `lessen.plan`.

    Raises:
        UsageError: a recipe that cannot be read, a dial that says nothing, or two answers to one question.
    """
    from lessen import recipe
    from lessen.errors import UsageError

    if methods.recipe and methods.method:
        raise UsageError("--method", got="--recipe as well", wanted="one of the two", remedy="write the method into the recipe")
    return {
        "recipe": recipe.load(methods.recipe) if methods.recipe else recipe.parse(methods.method) if methods.method else None,
        "to": recipe.Dial.parse(methods.to) if methods.to else None,
        "embeddings": not methods.no_embeddings,
        "calibration": calibration.calibration,
        "tokens": calibration.tokens,
        "written": calibration.written,
        "seed": calibration.seed,
    }
