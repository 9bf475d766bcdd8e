"""Which chip? Search over array sizes, converters, encodings, devices and noise for the designs that nothing else beats.

    space = {"array": [Array(128, 128), Array(512, 512)], "adc.bits": [5, 6, 7, 8], "encoding": [Differential(), Sliced(8, 2)]}
    found = explore(quality, partial(cost, shapes), base, space, Search(trials=60, storage="search.db"))
    print(found.table())

A design is a chip with some of its fields replaced. Quality (more is better), energy and area (less is better) pull in different
directions, so the answer is a Pareto front: the designs for which no other is at least as good in all three and better in one. Which design
is tried next is decided by a tree-structured Parzen estimator: it models the designs that are good so far and those that are not, and
tries where the ratio of the two is largest (Ozaki et al. 2022, Multiobjective Tree-Structured Parzen Estimator, JAIR 73; in Optuna, Akiba
et al. 2019, https://arxiv.org/abs/1907.10902). No design is tried twice; where the estimator repeats itself, one that was not tried takes
the place.

With a storage every finished design is kept: a killed search goes on, and with one process it tries the designs that it would have tried.
Several processes work on one storage, on one machine or, with Ray or by hand with a database, on several.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lessen.analog.chip import Chip
from lessen.analog.cost.result import Cost
from lessen.analog.search.change import changed, known_field
from lessen.analog.search.trials import Quality, Range, Search, Space, Task, check_same, finished, label, quiet, run, study_of
from lessen.core.event import Listener
from lessen.core.strict import strict
from lessen.errors import UsageError

__all__ = ["Design", "Exploration", "Range", "Search", "Space", "changed", "explore", "pareto"]


@dataclass(frozen=True)
class Design:
    """One chip that was tried.

    Attributes:
        number: in the order of trials.
        choices: the fields that vary, and what they were.
        quality: None if none was asked for.
        energy_pj, latency_ns: of one inference.
        area_um2: of the chip.
    """

    number: int
    choices: dict[str, Any]
    quality: float | None
    energy_pj: float
    area_um2: float
    latency_ns: float

    @property
    def losses(self) -> tuple[float, ...]:
        """What is to be made small."""
        return (*(() if self.quality is None else (-self.quality,)), self.energy_pj, self.area_um2)


@dataclass(frozen=True)
class Exploration:
    """All designs that were tried.

    Attributes:
        designs: that could be judged, in order.
        refused: choices that make no chip, or none that the network fits on, and why.
    """

    designs: tuple[Design, ...]
    refused: tuple[tuple[dict[str, Any], str], ...] = ()

    @property
    def front(self) -> list[Design]:
        """The designs that no other beats, by energy."""
        return sorted(pareto(self.designs), key=lambda design: design.losses[-2:])

    def table(self) -> str:
        """The front in lines."""
        lines = []
        for design in self.front:
            quality = "" if design.quality is None else f"quality {design.quality:.4g}, "
            figures = f"{quality}{design.energy_pj * 1e-6:.4g} uJ, {design.area_um2 * 1e-6:.4g} mm2"
            lines.append(f"{figures}: " + ", ".join(f"{path} {value}" for path, value in design.choices.items()))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As plain data: all designs, the numbers of those on the front, and what was refused."""
        refused = [{"choices": choices, "reason": reason} for choices, reason in self.refused]
        return {"designs": [asdict(d) for d in self.designs], "front": [d.number for d in self.front], "refused": refused}


def pareto(designs: Sequence[Design]) -> list[Design]:
    """The designs for which no other is as good in everything and better in something."""

    def beaten(one: Design) -> bool:
        return any(other.losses != one.losses and all(a <= b for a, b in zip(other.losses, one.losses, strict=True)) for other in designs)

    return [design for design in designs if not beaten(design)]


@strict()
def explore(
    quality: Quality | None,
    price: Callable[[Chip], Cost],
    base: Chip,
    space: Space,
    search: Search | None = None,
    on_event: Listener | None = None,
) -> Exploration:
    """Search for the chips that nothing beats in quality, energy and area.

    Args:
        quality: judges a chip; None compares energy and area alone. A LessenError that it raises refuses the design.
        price: what a network costs on a chip: `partial(cost, shapes)`.
        base: where all that does not vary is taken from.
        space: what varies. Values may be parts of a chip: `{"device": [Pcm(), Rram()], "array": [Array(256, 256)]}`.
        search: how much, by whom, kept where. Several processes need functions that stand in a module.
        on_event: progress.

    Raises:
        UsageError: a path that no chip has; a storage that holds another search.
        LessenError: a design on which the functions broke, or Optuna is missing.
    """
    search = search or Search()
    task = Task(quality, price, base, {path: v if isinstance(v, Range) else tuple(v) for path, v in space.items()}, search)
    _check_space(task)
    with tempfile.TemporaryDirectory() as folder:
        if search.storage is None and search.workers > 1:
            task = replace(task, search=replace(search, storage=Path(folder) / "search.log"))
        with quiet():
            study = study_of(task)
            check_same(study, task)
            run(study, task, on_event)
            return _result(study)


def _check_space(task: Task) -> None:
    if not task.space:
        raise UsageError("space", got="nothing that varies", wanted="at least one field", remedy='{"adc.bits": [6, 8]}')
    for path, values in task.space.items():
        if not isinstance(values, Range) and len({repr(label(v)) for v in values}) != max(len(values), 1):
            raise UsageError(f"space[{path!r}]", got="no value, or the same value twice", wanted="different values")
        _known(task.base, path, task.space)


def _known(base: Chip, path: str, space: Space) -> None:
    """Refuse a path that neither the base nor a part that the space puts there has."""
    *parents, _ = path.split(".")
    for depth in range(len(parents), 0, -1):
        parts = space.get(".".join(parents[:depth]))
        if parts is not None and not isinstance(parts, Range):
            return  # looked at design by design: parts of different kinds have different fields
    part: Any = base
    for name in path.split("."):
        known_field(part, name, f"space[{path!r}]")
        part = getattr(part, name)


def _result(study: Any) -> Exploration:
    designs, refused = [], []
    for trial in finished(study):
        if "refused" in trial.user_attrs:
            refused.append((dict(trial.params), trial.user_attrs["refused"]))
            continue
        *quality, energy, area = trial.values
        judged = quality[0] if quality else None
        designs.append(Design(len(designs), dict(trial.params), judged, energy, area, trial.user_attrs["latency_ns"]))
    return Exploration(tuple(designs), tuple(refused))
