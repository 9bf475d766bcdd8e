"""`lessen inspect` for what tracing finds, and for models that are no decoders."""

import re
from typing import TYPE_CHECKING, Any

from lessen.cli.output import emit, say, table

if TYPE_CHECKING:
    from torch import nn

    from lessen.structure.trace import Structure


def plain(model: str) -> "nn.Module | None":
    """The module of a factory that returns no language model; None if `model` names anything else."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", model):
        return None
    from lessen.models.module import made

    module = made(model)
    config = getattr(module, "config", None)
    return None if isinstance(config, dict) or hasattr(config, "to_dict") else module


def traced(module: "nn.Module", label: str) -> "Structure":
    """Trace a module with the example that it tells itself."""
    from lessen.structure.example import example_of
    from lessen.structure.trace import trace

    return trace(module, example_of(module, label))


def show(label: str, structure: "Structure", module: "nn.Module", units: bool, as_json: bool) -> None:
    """Print what a module is made of."""
    kinds = {kind: sum(u.kind == kind for u in structure.units) for kind in dict.fromkeys(u.kind for u in structure.units)}
    facts: dict[str, Any] = {
        "model": label,
        "architecture": type(module).__name__,
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    if as_json:
        emit("inspect", {**facts, "kinds": kinds, "units": structure.units if units else None})
        return
    table(("", ""), [(name, str(value)) for name, value in facts.items()])
    say("")
    if units:
        say(str(structure))
    else:
        table(("kind of unit", "how many"), [(kind, str(count)) for kind, count in kinds.items()], {1})
