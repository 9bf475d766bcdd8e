"""What tracing a model gives: its units, what is held and why, and the numbers that follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lessen.core.unit import Slice, Unit
from lessen.errors import UsageError, nearest
from lessen.structure.axes import Axis, find, leaves
from lessen.structure.watch import Site


@dataclass(frozen=True)
class Structure:
    """What `trace` found.

    Attributes:
        units: everything that can be cut, in the order of the tensors.
        held: "tensor[dim]" -> why no index of it may go, for dimensions that are held whole; and the names of `stuck` units.
        sites: calls that were given sizes as numbers (see `Site`), in order of execution.
        notes: what was noticed on the way.
        vocabulary: rows of tables that inputs number, with the rows of the output head: to cut them changes what the caller passes and
            gets, so they are not among the units.
        dims: tensor name -> its axes; tied tensors once, by their first name.
        leaves: axis -> name of the unit that it is.
        stuck: units that could lose channels, but the model's code cannot express it; their `reason` says why.
    """

    units: tuple[Unit, ...]
    held: Mapping[str, str]
    sites: tuple[Site, ...] = ()
    notes: tuple[str, ...] = ()
    vocabulary: tuple[Unit, ...] = ()
    dims: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict, repr=False)
    leaves: Mapping[Axis, str] = field(default_factory=dict, repr=False)
    stuck: tuple[Unit, ...] = ()

    def unit(self, name: str) -> Unit:
        """The unit of that name."""
        found = next((u for u in self.units if u.name == name), None)
        if found is None:
            raise UsageError("structure", got=f"no unit {name!r}", wanted="a unit", remedy=nearest(name, [u.name for u in self.units]))
        return found

    def size_after(self, axis: Axis, kept: Mapping[str, int]) -> int:
        """Size of an axis when units have this many channels left (by name; others are whole)."""
        root = find(axis)
        if root.kind == "leaf":
            return kept.get(self.leaves.get(root, ""), root.size)
        total = 0 if root.kind == "concat" else 1
        for part in root.parts:
            size = self.size_after(part, kept)
            total = total + size if root.kind == "concat" else total * size
        return total

    def units_of(self, axis: Axis) -> list[str]:
        """Names of the units whose channels the axis counts."""
        return list(dict.fromkeys(self.leaves[leaf] for leaf in leaves(axis) if leaf in self.leaves))

    def __str__(self) -> str:
        lines: list[str] = []
        for unit in self.units:
            lines += explained(unit)
        lines += [f"held: {place}, since {reason}" for place, reason in self.held.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def explained(unit: Unit) -> list[str]:
    """A unit in lines: what it is, its slices, and the operations that tie them."""
    lines = [f"{unit.name}: {unit.kind}, {unit.size} channel{'s' * (unit.size != 1)} ({unit.reason})"]
    return [*lines, *(f"  {_place(part)}" for part in unit.slices), *(f"  {line}" for line in unit.chain[1:])]


def _place(part: Slice) -> str:
    again = f", again {part.repeat} times" if part.repeat > 1 else ""
    again += f" at a distance of {part.stride}" if part.repeat > 1 and part.stride is not None else ""
    indices = "1 index" if part.span == 1 else f"{part.span} indices"
    return f"{part.name}[{part.axis}]: {indices} a channel, from {part.start}{again}"
