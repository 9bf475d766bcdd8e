"""What a cut is worth: the budget that a wish means for a model, what it came to, and a forward measured before and after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from torch import nn

from lessen.core.edit import Edit, Keep
from lessen.core.unit import Unit
from lessen.errors import UsageError
from lessen.methods.budget import Budget
from lessen.structure.example import arguments
from lessen.structure.state import untouched
from lessen.targets.cost import Cost, Goal, bytes_of, parameters
from lessen.targets.latency import Latency, Table, measured, preferred_multiple
from lessen.targets.profile import macs
from lessen.targets.wish import Counted, Wish

_OF: dict[str, Counted] = {"parameters": "parameters", "bytes": "bytes", "macs": "macs", "latency": "milliseconds"}
_NAMES = {counted: name for name, counted in _OF.items()}

NOTHING = "Nothing was removed: what was asked for is less than one channel, head or layer."


def caller(model: nn.Module, example: Any) -> Callable[[], Any]:
    """A forward on the example."""
    args, kwargs = arguments(example)
    return lambda: model(*args, **kwargs)


def settled(
    model: nn.Module, call: Callable[[], Any], units: Sequence[Unit], method: Any, to: str | None, uniform: bool
) -> tuple[Any, Goal | None, list[str]]:
    """The method with its settled options, what may be left, and the choices made."""
    if not isinstance(method, Budget):
        if to is not None:
            name = type(method).__name__
            remedy = f"method={name}(ratio=0.25), or a method that narrows layers"
            raise UsageError("prune", got=f"to={to!r} with {name}", wanted="its ratio: it drops whole layers", remedy=remedy)
        return method, None, []
    notes: list[str] = []
    if uniform and method.across == "model":
        method = replace(method, across="place")
    if to is None and method.of == "channels":
        return method, None, notes
    wish = Wish(_OF[method.of], 1 - method.ratio, True) if to is None else Wish.parse(to)
    if wish.counted == "milliseconds" and method.multiple == 1:
        method = replace(method, multiple=preferred_multiple(next(model.parameters()).device))
        notes.append(f"Widths are kept at multiples of {method.multiple}, which the hardware likes.")
    cost = _cost(model, call, units, wish.counted)
    value = wish.value(cost.whole)
    if value > cost.whole:
        got = f"{to}, more than the {cost.whole:,.4g} {cost.name} that there are"
        raise UsageError("prune", got=got, wanted="less than that")
    return replace(method, ratio=min(0.999, 1 - value / cost.whole), of=_NAMES[wish.counted]), Goal(cost, value, not wish.relative), notes


def _cost(model: nn.Module, call: Callable[[], Any], units: Sequence[Unit], counted: Counted) -> Cost:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    match counted:
        case "parameters":
            return parameters(shapes, units)
        case "bytes":
            return bytes_of(shapes, units, {name: p.element_size() for name, p in model.named_parameters()})
        case "macs":
            with untouched(model):
                return macs(model, call, units)
        case _:
            first = next(model.parameters())
            with untouched(model):
                return Latency(model, call, units, Table(first.device, first.dtype))


def missed(goal: Goal | None, before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """A word where what was asked for lies between what whole channels and heads can give."""
    name = "" if goal is None else goal.cost.name
    if goal is not None and goal.value >= goal.cost.whole:
        return ["Nothing was asked to go: the model is a copy."]
    if goal is None or name not in after or abs(after[name] - goal.value) <= 0.02 * before[name]:
        return []
    return [f"Asked for {goal.value:,.0f} {name}, came to {after[name]:,.0f}: units lose whole channels or heads, and keep their floors."]


def uneven_share(method: Any, units: Sequence[Unit], edits: Sequence[Edit]) -> list[str]:
    """A word for each kind of which noticeably more or less went than the ratio says, since heads and groups go whole."""
    left = {edit.unit.name: len(edit.indices) for edit in edits if isinstance(edit, Keep)}
    if not left or not isinstance(method, Budget) or method.of != "channels":
        return []
    notes: list[str] = []
    for kind in dict.fromkeys(unit.kind for unit in units):
        own = [unit for unit in units if unit.kind == kind]
        whole = sum(unit.size for unit in own)
        gone = whole - sum(left.get(unit.name, unit.size) for unit in own)
        if abs(gone / whole - method.ratio) > NOTICED:
            few = min(unit.size for unit in own)
            went = f"{gone / whole:.0%} went: none is divided, and the smallest unit has {few}"
            notes.append(f"Asked for {method.ratio:.0%} of all that units of kind {kind} have, {went}.")
    return notes


NOTICED = 0.05
"""Difference between the share that was asked for and the one that went from which on it is told."""


def sizes(model: nn.Module) -> dict[str, float]:
    """Parameters and bytes, shared ones once."""
    own = list(model.parameters())
    return {"parameters": float(sum(p.numel() for p in own)), "bytes": float(sum(p.numel() * p.element_size() for p in own))}


TURNS = 5
BUSY = 3
"""From this factor between turns on, times say nothing."""


def timed(model: nn.Module, smaller: nn.Module, example: Any, before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Measure a forward of both, taking turns; a plain word where nothing was won, or nothing that the turns agree on."""
    device = next(model.parameters()).device
    with untouched(model, smaller):
        both = [(measured(caller(model, example), device), measured(caller(smaller, example), device)) for _ in range(TURNS)]
    before["milliseconds"], after["milliseconds"] = (median(times) for times in zip(*both, strict=True))
    return [] if before["parameters"] == after["parameters"] else verdict(both)


def verdict(both: Sequence[tuple[float, float]]) -> list[str]:
    """What pairs of milliseconds, dense and smaller, say; nothing where every pair says that the smaller one is faster.

    >>> verdict([(10.0, 5.0), (11.0, 6.0), (10.0, 5.5)])
    []
    >>> verdict([(10.0, 30.0), (40.0, 10.0)])
    ['Which is faster cannot be told on a machine this busy: a forward took 20 ms (10 to 30), before 25 ms (10 to 40).']
    >>> print(verdict([(10.0, 9.0), (9.0, 10.0), (10.0, 9.5)])[0].partition(";")[0])
    Not measurably faster here: a forward took 9.5 ms (9 to 10), before 10 ms (9 to 10)
    """
    dense, now = zip(*both, strict=True)
    told = ", before ".join(f"{median(times):.3g} ms ({min(times):.3g} to {max(times):.3g})" for times in (now, dense))
    if all(b < 0.97 * a for a, b in both):
        return []
    if any(max(times) > BUSY * min(times) for times in (dense, now)):
        return [f"Which is faster cannot be told on a machine this busy: a forward took {told}."]
    overlapping = min(now) < max(dense)
    said = "Not measurably faster here" if overlapping else "The smaller model is not faster here"
    tip = "narrower layers win little where a forward waits for memory or for small kernels; a multiple of 8 (64 on a GPU) may help"
    return [f"{said}: a forward took {told}; {tip}, or dropping whole layers."]
