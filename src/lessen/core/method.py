"""What a method is: a frozen dataclass whose fields are its options and whose call turns a view and statistics into edits."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lessen.core.edit import Edit
from lessen.core.unit import View


class Accumulator(Protocol):
    """What data has told about one input, accumulated batch by batch. Concrete ones live in `lessen.stats.accumulators`."""

    def update(self, x: Any) -> None: ...
    def merge(self, other: Any) -> None: ...
    def value(self) -> Any: ...


Stats = Mapping[type, Any]
"""Accumulated values of one unit's input, keyed by accumulator class: `stats[Gram]` is a tensor."""


class Method(Protocol):
    """Decides, and only decides: no model, no hooks, no devices, no printing, no global randomness.

    Beside the call, a method has three attributes. They may be class variables or properties, and Python's protocols can express only
    one of the two, so they are documented here and not declared:

    kind: the kind of unit it decides on; the engine calls it once for each such unit.
    scope: "block" methods see units one block at a time, in order, each after the edits of the blocks before; "model" methods are
        given all units at once (`ModelMethod`).
    needs: accumulator classes to collect for each unit before the call.
    """

    def __call__(self, view: View, stats: Stats) -> list[Edit]: ...


class ModelMethod(Protocol):
    """A method that ranks units of the whole model against each other (`scope = "model"`); `kind` and `needs` as for `Method`."""

    def decide(self, views: Sequence[View], stats: Sequence[Stats]) -> list[Edit]: ...
