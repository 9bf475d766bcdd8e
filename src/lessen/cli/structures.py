"""`lessen inspect` for what tracing finds, and for models that are no decoders."""

from typing import TYPE_CHECKING, Any

from lessen.cli.output import emit, say, table

if TYPE_CHECKING:
    from torch import nn

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
