"""What is left to pay after units were narrowed, worked out from shapes alone.

A tensor may belong to several units (a convolution's rows to one, its columns to another), so what a channel saves depends on what was
removed elsewhere. A `Cost` therefore speaks of the widths of all units at once. With s_a the length of axis a of a tensor, U_a the units
whose slices lie on it (span indices to a channel), w_u a unit's width and n_u its size,

    elements(tensor) = product over axes a of (s_a - sum over u in U_a of span * (n_u - w_u))
    cost             = sum over tensors of weight(tensor) * elements(tensor)

with the weight 1 for parameters, bytes per element for bytes, uses per forward for multiply-accumulates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from lessen.core.unit import Unit
from lessen.errors import LessenError


class Cost(Protocol):
    """What a budget is counted in.

    Attributes:
        name: what is counted ("parameters").
        whole: the cost of the model as it is.
    """

    name: str
    whole: float

    def at(self, widths: Sequence[int]) -> float:
        """The cost when unit i has `widths[i]` channels left."""
        ...

    def saving(self, widths: Sequence[int], unit: int, width: int) -> float:
        """By how much `at(widths)` falls when one more unit is narrowed to `width`."""
        ...


class Channels:
    """Every channel counts one, whatever it is made of.

    >>> cost = Channels([Unit("a", "ffn", 4, ()), Unit("b", "ffn", 6, ())])
    >>> cost.whole, cost.at([4, 5])
    (10.0, 9.0)
    """

    name = "channels"

    def __init__(self, units: Sequence[Unit]):
        self.whole = float(sum(unit.size for unit in units))

    def at(self, widths: Sequence[int]) -> float:
        return float(sum(widths))

    def saving(self, widths: Sequence[int], unit: int, width: int) -> float:
        return float(widths[unit] - width)


class Elements:
    """The elements of tensors, each tensor with a weight of its own.

    Args:
        shapes: of every tensor that counts, those outside all units included; a tied tensor appears once, under the name units use.
        units: what may be narrowed.
        weights: tensor name -> worth of one element; missing ones are worth `default`.
        constant: what is paid whatever the widths are.

    >>> from lessen.core.unit import Slice
    >>> unit = Unit("mlp", "ffn", 4, (Slice("up", 0), Slice("down", 1)))
    >>> cost = Elements("parameters", {"up": (4, 3), "down": (3, 4), "norm": (3,)}, [unit])
    >>> cost.whole, cost.at([2])
    (27.0, 15.0)
    """

    def __init__(
        self,
        name: str,
        shapes: Mapping[str, tuple[int, ...]],
        units: Sequence[Unit],
        weights: Mapping[str, float] | None = None,
        default: float = 1.0,
        constant: float = 0.0,
    ):
        self.name, self.sizes = name, [unit.size for unit in units]
        self._shapes = dict(shapes)
        self._weights = {name: (weights or {}).get(name, default) for name in shapes}
        self._on: dict[str, dict[int, dict[int, int]]] = {}  # tensor -> axis -> unit -> indices to a channel
        self._of: list[list[str]] = []  # unit -> tensors
        for place, unit in enumerate(units):
            names = list(dict.fromkeys(part.name for part in unit.slices if part.name in self._shapes))
            self._of.append(names)
            for part in unit.slices:
                if part.name in self._shapes:
                    spans = self._on.setdefault(part.name, {}).setdefault(part.axis, {})
                    spans[place] = spans.get(place, 0) + part.span * part.repeat
        for name, axes in self._on.items():
            for axis, spans in axes.items():
                if sum(span * self.sizes[u] for u, span in spans.items()) > self._shapes[name][axis]:
                    got = f"units that claim more of axis {axis} than its {self._shapes[name][axis]} indices"
                    raise LessenError(name, got=got, wanted="units that do not overlap", remedy="choose one kind of unit")
        untouched = [n for n in self._shapes if n not in self._on]
        self._rest = constant + sum(self._weights[n] * prod(self._shapes[n]) for n in untouched)
        self.whole = self.at(self.sizes)

    def at(self, widths: Sequence[int]) -> float:
        return self._rest + sum(self._worth(name, widths) for name in self._on)

    def saving(self, widths: Sequence[int], unit: int, width: int) -> float:
        after = list(widths)
        after[unit] = width
        return sum(self._worth(name, widths) - self._worth(name, after) for name in self._of[unit])

    def per_channel(self, unit: int) -> float:
        """What one channel of a unit is worth in the whole model, on average."""
        after = list(self.sizes)
        after[unit] = 0
        return sum(self._worth(name, self.sizes) - self._worth(name, after) for name in self._of[unit]) / self.sizes[unit]

    def _worth(self, name: str, widths: Sequence[int]) -> float:
        shape, axes = self._shapes[name], self._on[name]
        lengths = [size - sum(span * (self.sizes[u] - widths[u]) for u, span in axes.get(a, {}).items()) for a, size in enumerate(shape)]
        return self._weights[name] * prod(lengths)


def parameters(shapes: Mapping[str, tuple[int, ...]], units: Sequence[Unit]) -> Elements:
    """The number of parameters; shared ones count once."""
    return Elements("parameters", shapes, units)


def bytes_of(shapes: Mapping[str, tuple[int, ...]], units: Sequence[Unit], widths: Mapping[str, int]) -> Elements:
    """Bytes of all parameters; `widths` holds the bytes of one element by tensor."""
    return Elements("bytes", shapes, units, {name: float(width) for name, width in widths.items()})


@dataclass(frozen=True)
class Goal:
    """How much may be left.

    Attributes:
        cost: what is counted.
        value: what may be left of it.
        strict: stay at or below `value`; otherwise come as near to it as whole channels allow.
    """

    cost: Cost
    value: float
    strict: bool = False
