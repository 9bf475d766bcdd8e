"""Quality over time, with its spread: several instances of a chip, each looked at again and again as it ages.

    for every chip instance (seed): program once; for every time: look, compensate, evaluate

Every pair of chip and time is one row, written to a file as soon as it is known if there is one, so that a killed run goes on where it was.
Rows do not depend on their order: all draws have addresses.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from lessen.analog.mapping import Mapped
from lessen.core.digest import digest
from lessen.core.event import Event, Listener
from lessen.core.modules import evaluating
from lessen.core.strict import strict
from lessen.errors import LessenError, UsageError

Evaluate = Callable[[nn.Module], float | Mapping[str, float]]
"""Judges a model; one number is called `quality`."""


@dataclass(frozen=True)
class Look:
    """One chip at one time.

    Attributes:
        chip: seed of the instance.
        seconds: since programming.
        values: what the evaluation said, by name.
        took: seconds of processor time, programming included.
    """

    chip: int
    seconds: float
    values: dict[str, float]
    took: float = 0.0


@dataclass
class Simulation:
    """What `simulate` found.

    Attributes:
        digital: the evaluation of the model without a chip.
        looks: one for every chip and time, in that order.
    """

    digital: dict[str, float]
    looks: list[Look] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """Times in order."""
        return sorted({look.seconds for look in self.looks})

    def at(self, seconds: float, name: str = "quality") -> list[float]:
        """Values of all chips at a time."""
        return [look.values[name] for look in self.looks if look.seconds == seconds]

    def summary(self, name: str = "quality") -> list[dict[str, float]]:
        """Mean, standard deviation over chips, smallest and largest for every time.

        Of values one of which is infinite the mean is so too, and the deviation is NaN; of values one of which is NaN all four are.
        """
        rows = []
        for seconds in self.times:
            found = self.at(seconds, name)
            finite = all(map(isfinite, found))
            spread = (stdev(found) if len(found) > 1 else 0.0) if finite else nan
            mean, ends = (
                (fmean(found) if finite else sum(found) / len(found)),
                (nan, nan) if any(map(isnan, found)) else (min(found), max(found)),
            )
            row = {"seconds": seconds, "chips": len(found), "mean": mean, "spread": spread, "least": ends[0], "most": ends[1]}
            rows.append(row)
        return rows

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@strict()
def simulate(
    mapped: Mapped,
    evaluate: Evaluate,
    *,
    digital: nn.Module | None = None,
    times: Sequence[float] | None = None,
    chips: int | Sequence[int] = 10,
    adapt: Callable[[Mapped], Any] | None = None,
    file: Path | str | None = None,
    on_event: Listener | None = None,
) -> Simulation:
    """Evaluate a mapped network on several chips at several times.

    Args:
        mapped: from `map`, converters calibrated.
        evaluate: judges a model.
        digital: the model itself, evaluated once for comparison.
        times: seconds since programming; by default the first time of the device, an hour, a day, a month and a year.
        chips: how many instances, each with programming errors and faults of its own; or their seeds.
        adapt: called after every look and before the evaluation, to let the network adapt to what the chip has become (`AdaBS`).
        file: keeps the rows; a run with the same file goes on.
        on_event: progress.

    Raises:
        UsageError: a time that the device does not cover; a file with rows of other weights, another chip, evaluation or adaptation.
    """
    instances = range(chips) if isinstance(chips, int) else [int(chip) for chip in chips]
    if not instances:
        raise UsageError("simulate", got=f"chips={chips}", wanted="at least one")
    moments = standard_times(mapped) if times is None else [float(seconds) for seconds in times]
    for seconds in moments:
        mapped.chip.device.check_time(seconds)
    kept = _Kept(Path(file), belongs(mapped, evaluate, adapt)) if file is not None else None
    rows = {} if kept is None else kept.rows
    found = Simulation(_digital(evaluate, digital, kept))
    for number, instance in enumerate(instances):
        for place, seconds in enumerate(moments):
            look = rows.get((instance, seconds))
            if look is None:
                look = _look(mapped, evaluate, adapt, instance, seconds)
                if kept is not None:
                    kept.add(look)
            found.looks.append(look)
            if on_event is not None:
                done = number * len(moments) + place + 1
                on_event(Event("simulate", done, len(instances) * len(moments), f"chip {instance} at {spell(seconds)}", seconds=look.took))
    return found


def belongs(mapped: Mapped, evaluate: Evaluate, adapt: Callable[[Mapped], Any] | None = None) -> dict[str, Any]:
    """What rows on disk have to have been made for."""
    chip = {"chip": repr(mapped.chip), "layers": sorted(mapped.layers)}
    # what adapts may write statistics into the network at every look: they are not what it is
    weights = digest(dict(mapped.model.named_parameters()), mapped.identity()[1:]) if adapt else digest(mapped)
    return chip | {"network": weights, "evaluation": digest(evaluate), "adaptation": digest(adapt)}


def forget_others(file: Path, wanted: Mapping[str, Any]) -> None:
    """Remove rows that belong to something else, where it cannot come back: a network that was trained anew."""
    if file.exists() and (not (lines := _complete(file)) or lines[0].get("belongs") != wanted):
        file.unlink()


def standard_times(mapped: Mapped) -> list[float]:
    """The first moment that the device describes, then an hour, a day, a month and a year."""
    first = mapped.chip.device.first
    return [first, *(t for t in (3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0) if t > first)]


def spell(seconds: float) -> str:
    """A time in words.

    >>> spell(20), spell(3600), spell(86400), spell(2592000), spell(365 * 86400)
    ('20 s', '1 h', '1 d', '30 d', '1 y')
    """
    for unit, size in (("y", 365 * 86400), ("d", 86400), ("h", 3600)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def parse_time(text: str) -> float:
    """Seconds of a time such as `20s`, `5min`, `1h`, `1d`, `1mo` (30 days) or `1y`.

    >>> parse_time("20s"), parse_time("1.5h"), parse_time("1y")
    (20.0, 5400.0, 31536000.0)
    """
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "mo": 30 * 86400, "y": 365 * 86400}
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text.strip()[len(number) :].strip() or "s"
    try:
        return float(number) * units[unit]
    except (ValueError, KeyError):
        raise UsageError("time", got=repr(text), wanted="a number and a unit: s, min, h, d, w, mo, y", remedy="20s,1h,1d,1y") from None


def _look(mapped: Mapped, evaluate: Evaluate, adapt: Callable[[Mapped], Any] | None, instance: int, seconds: float) -> Look:
    started = time.process_time()
    mapped.seed = instance
    mapped.at(seconds)
    if adapt is not None:
        adapt(mapped)
    values = _judged(evaluate, mapped.model)
    return Look(instance, seconds, values, round(time.process_time() - started, 3))


def _judged(evaluate: Evaluate, model: nn.Module) -> dict[str, float]:
    with torch.no_grad(), evaluating(model):
        found = evaluate(model)
    return {k: float(v) for k, v in found.items()} if isinstance(found, Mapping) else {"quality": float(found)}


def _digital(evaluate: Evaluate, model: nn.Module | None, kept: "_Kept | None") -> dict[str, float]:
    if model is None:
        return {}
    if kept is None:
        return _judged(evaluate, model)
    of = digest(model)
    if of not in kept.digital:
        kept.digital[of] = _judged(evaluate, model)
        kept.note({"digital": kept.digital[of], "of": of})
    return kept.digital[of]


class _Kept:
    """Rows on disk, one a line; the first line says what they belong to."""

    def __init__(self, path: Path, head: Mapping[str, Any]):
        self.path, self.rows, self.digital = path, dict[tuple[int, float], Look](), dict[str, dict[str, float]]()
        if not path.exists():
            self.note({"belongs": head})
            return
        lines = _complete(path)
        held = lines[0].get("belongs") if lines else None
        if held != head:
            other = [key for key in head if not isinstance(held, Mapping) or held.get(key) != head[key]]
            got = f"rows of another {' and '.join(other) or 'run'}"
            raise UsageError(str(path), got=got, wanted="those of this run", remedy="another file=, or remove it")
        for line in lines[1:]:
            if "digital" in line:
                self.digital[line["of"]] = line["digital"]
            else:
                look = Look(**line)
                self.rows[look.chip, look.seconds] = look

    def add(self, look: Look) -> None:
        self.rows[look.chip, look.seconds] = look
        self.note(asdict(look))

    def note(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _complete(path: Path) -> list[dict[str, Any]]:
    """Lines of a file, the last one only if it was written whole; what is half a line is cut off."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        raise LessenError(str(path), got="lines that are no JSON", wanted="rows of a simulation", remedy="remove the file") from None


def mean_over_chips(looks: Iterable[Look], name: str = "quality") -> float:
    """Mean of a value."""
    return fmean(look.values[name] for look in looks)
