"""`lessen inspect` for what tracing finds, and for models that are no decoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from lessen.cli.output import emit, say, table

if TYPE_CHECKING:
    from torch import nn

    from lessen.core.unit import Unit
    from lessen.structure.found import Structure


def traced(module: "nn.Module", label: str) -> "Structure":
    """Trace a module with the example that it tells itself, or that its configuration tells."""
    from lessen.core.modules import plain_experts
    from lessen.models.inputs import example_inputs
    from lessen.structure.example import example_of
    from lessen.structure.trace import trace

    with plain_experts(module):
        bare = any(p.is_meta for p in module.parameters())
        return trace(module, example_of(module, label) if bare else example_inputs(module, label))


@dataclass(frozen=True)
class Wanted:
    """What of a structure is to be listed: units with their chains, or in a line each, only those of these names; or all as JSON."""

    units: bool
    brief: bool
    names: tuple[str, ...]
    as_json: bool


def show(label: str, structure: "Structure", module: "nn.Module", wanted: Wanted) -> None:
    """Print what a module is made of."""
    kinds = {kind: sum(u.kind == kind for u in structure.units) for kind in dict.fromkeys(u.kind for u in structure.units)}
    facts: dict[str, Any] = {
        "model": label,
        "architecture": type(module).__name__,
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    some = wanted.units or wanted.brief or wanted.names
    if wanted.as_json:
        listing = {"units": structure.units, "held": structure.held} if some else {"units": None}
        emit("inspect", {**facts, "kinds": kinds, **listing})
        return
    table(("", ""), [(name, str(value)) for name, value in facts.items()])
    say("")
    if some:
        listed(structure, module, wanted)
    else:
        table(("kind of unit", "how many"), [(kind, str(count)) for kind, count in kinds.items()], {1})


def listed(structure: "Structure", module: "nn.Module", wanted: Wanted, declared: "Sequence[Unit]" = ()) -> None:
    """Print the units of a structure, and those that are declared for decoders."""
    from lessen.structure.found import explained

    if wanted.names:
        for name in wanted.names:
            own = [unit for unit in (*structure.units, *structure.vocabulary, *structure.stuck, *declared) if unit.name == name]
            for unit in own or [structure.unit(name)]:
                say("\n".join(explained(unit)))
        return
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters(remove_duplicate=False)}
    header = ("unit", "kind", "channels", "parameters", "slices")
    if declared:
        table(header, [_row(unit, shapes) for unit in declared], {2, 3, 4}, title="declared, for language models")
        say("")
    if not wanted.brief:
        say(str(structure))
        return
    table(header, [_row(unit, shapes) for unit in structure.units], {2, 3, 4}, title="traced")
    say("")
    for unit in structure.stuck:
        say(f"held: {unit.name}, {unit.kind}, since {unit.reason}")
    for note in structure.notes:
        say(f"note: {note}")
    places = len(structure.held) - len(structure.stuck)
    say(f"{places} places of tensors are held. --units lists them, and slices and operations of all units; --unit NAME those of one.")


def _row(unit: "Unit", shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    inside = [name for name in shapes if name.startswith(f"{unit.name}.")] if unit.kind == "layer" else []
    own = dict.fromkeys(part.name for part in unit.slices if part.name in shapes)
    count = sum(prod(shapes[name]) for name in inside) + sum(_touched(unit, name, shapes[name]) for name in own)
    return unit.name, unit.kind, str(unit.size), f"{count:,}", str(len(unit.slices))


def _touched(unit: "Unit", name: str, shape: tuple[int, ...]) -> int:
    """How many numbers of a tensor go with the whole unit."""
    rest = list(shape)
    for part in unit.slices:
        if part.name == name and part.axis < len(shape):
            rest[part.axis] -= unit.size * part.span * part.repeat
    return prod(shape) - prod(max(0, size) for size in rest)
