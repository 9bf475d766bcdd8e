"""A chip with some of its fields replaced, by path."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from lessen.analog.chip import Chip
from lessen.errors import UsageError, nearest


def changed(chip: Chip, choices: Mapping[str, Any]) -> Chip:
    """A chip with fields replaced, given by paths; fields of one part together, so that they may depend on each other.

    >>> changed(Chip(), {"array.rows": 64, "array.columns": 32}).array
    Array(rows=64, columns=32)
    """
    tree: dict[str, Any] = {}
    for path, value in choices.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node.setdefault(leaf, {})[""] = value
    return _rebuilt(chip, tree, "chip")


def known_field(part: Any, name: str, where: str) -> None:
    """Refuse a name that is no field of a part."""
    names = [f.name for f in fields(part)] if is_dataclass(part) else []
    if name not in names:
        wanted = f"a field of {type(part).__name__}"
        raise UsageError(where, got=repr(name), wanted=wanted, remedy=nearest(name, names) if names else None)


def _rebuilt(part: Any, tree: Mapping[str, Any], where: str) -> Any:
    part = tree.get("", part)
    below = {name: node for name, node in tree.items() if name}
    for name in below:
        known_field(part, name, where)
    changes = {name: _rebuilt(getattr(part, name), node, f"{where}.{name}") for name, node in below.items()}
    return replace(part, **changes) if changes else part
