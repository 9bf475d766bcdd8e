"""Whether what pruning leaves fits the groups that rounding wants, told before any work.

A pruned unit is `n` channels wide, each `span` input features of the matrix that it writes into. The count is known beforehand where every
layer loses the same share; where layers compete it is known only to be a multiple of the method's `multiple`, or what it was. Rounding in
groups of `g` then needs

    g divides  n * span          count known
    g divides  multiple * span   count not known, and the width before as well
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm
from typing import Any

import torch

from lessen.engine.describe import describe
from lessen.engine.quantize import candidates
from lessen.errors import UsageError
from lessen.methods.budget import Budget, keep
from lessen.methods.objectives import Objectives
from lessen.methods.rounding import Rounding
from lessen.models.checkpoint import Checkpoint
from lessen.structure.decoder import units


@dataclass(frozen=True)
class _Width:
    """What is known of a unit: `divisor` divides its channels, which are as many where `known`; and who cut it last."""

    divisor: int
    known: bool = True
    by: Budget | None = None


def check_widths(source: Checkpoint, methods: Sequence[Any]) -> None:
    """Refuse to prune to widths that the rounding after it cannot group.

    Args:
        source: the model as it is.
        methods: the recipe, in order.

    Raises:
        UsageError: names the tensor and the `multiple` that would suit.
    """
    found = units(source)
    cut = {unit.name: _Width(unit.size) for unit in found if unit.kind in ("ffn", "kv_group")}
    readers = {part.name: (unit, part.span) for unit in found if unit.name in cut for part in unit.slices if part.axis == 1}
    for method in methods:
        if isinstance(method, Budget):
            for unit in found:
                if unit.name in cut and unit.kind in method.kinds:
                    cut[unit.name] = _after(method, cut[unit.name])
            continue
        for name, group in _groups(found, method):
            if name not in readers:
                continue
            unit, span = readers[name]
            width = cut[unit.name]
            if width.by is not None and width.divisor * span % group:
                raise _refusal(name, width, span, group, unit.size)


def _after(method: Budget, width: _Width) -> _Width:
    if method.ratio == 0:
        return width
    alike = method.across == "layer" and method.of == "channels" and not isinstance(method, Objectives)
    if alike and width.known:
        left = keep([torch.arange(width.divisor, dtype=torch.float32)], method.ratio, method.multiple)[0]
        return _Width(len(left), True, method)
    return _Width(gcd(method.multiple, width.divisor), False, method)


def _groups(found: Sequence[Any], method: Any) -> list[tuple[str, int]]:
    """Every matrix that a method rounds in groups, with each group size that it may take."""
    groups: list[tuple[str, int]] = []
    for each in candidates(method):
        size = getattr(each.format.granularity, "size", None) if isinstance(each, Rounding) else None
        if size is not None:
            kind = each.kind  # pyright: ignore[reportAttributeAccessIssue]
            groups += [(part.name, size) for unit in found if unit.kind == kind for part in unit.slices]
    return groups


def _refusal(name: str, width: _Width, span: int, group: int, size: int) -> UsageError:
    assert width.by is not None
    pruner, needed = type(width.by).__name__, lcm(width.by.multiple, group // gcd(group, span))
    features = width.divisor * span
    got = f"{features} input features" if width.known else f"a multiple of {features} input features" if features > 1 else "any width"
    remedy = f"give {pruner} multiple={needed} (--method {pruner} --multiple {needed})"
    if needed >= size:
        remedy = f"round in smaller groups, of which {size * span} holds several, and give {pruner} a multiple of that size"
    return UsageError(name, got=f"{got} after {describe(width.by)}, in groups of {group}", wanted=f"a multiple of {group}", remedy=remedy)
