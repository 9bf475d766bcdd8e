"""Which units a configuration can speak of: for results that stock loaders read.

Some widths have no field: the heads of BERT divide its hidden size, so that fewer of them would be wider ones. Others have one that takes
some numbers only: a hidden size that heads divide. Both are asked of the code: all units of a kind are cut to the same number, one channel
less, a half, or a divisor less, and a configuration is looked for that gives just these shapes.
"""

from collections.abc import Sequence
from math import gcd, lcm

import torch
from torch import nn

from lessen.core.apply import apply
from lessen.core.edit import Keep
from lessen.core.modules import copied
from lessen.core.stock import stock_config
from lessen.core.unit import Unit
from lessen.errors import LessenError
from lessen.structure.found import Structure
from lessen.structure.resize import resizes

TRIES = 32
"""Settings of a configuration to try for one width where stock loaders are to read the result."""
FEW = 12
"""The same where nobody asked for it: enough for one kind of width, and no wait where no field says it."""


def said(model: nn.Module, structure: Structure, units: Sequence[Unit]) -> tuple[list[Unit], int, list[str]]:
    """The units of those kinds whose widths a configuration can say, of what they must be multiples, and notes.

    Args:
        model: what was traced; one without a configuration has all kinds, as it is made in code.
        structure: what `trace` found.
        units: from which to choose.
    """
    if not hasattr(model, "config"):
        return list(units), 1, []
    name, notes = type(model).__name__, []
    able: dict[str, int] = {}
    for kind in dict.fromkeys(unit.kind for unit in units):
        able[kind] = _step(model, structure, [unit for unit in units if unit.kind == kind and unit.size > 1])
        if not able[kind]:
            notes.append(f"No configuration of {name} says another number of {kind}: they are left as they are.")
        elif able[kind] > 1:
            notes.append(f"Widths are kept at multiples of {able[kind]}: configurations of {name} refuse other numbers of {kind}.")
    return [unit for unit in units if able[unit.kind]], lcm(*(step for step in able.values() if step)), notes


def _step(model: nn.Module, structure: Structure, units: Sequence[Unit]) -> int:
    """Of what numbers of channels must be multiples that a configuration can say; 0 if it can say none."""
    if not units:
        return 1
    if _says(model, structure, [(unit, unit.size - 1) for unit in units]):
        return 1
    if not _says(model, structure, [(unit, max(1, unit.size // 2)) for unit in units]):
        return 0
    whole = gcd(*(unit.size for unit in units))
    steps = [step for step in range(2, whole // 2 + 1) if whole % step == 0]
    return next((step for step in steps if _says(model, structure, [(unit, unit.size - step) for unit in units])), 0)


def _says(model: nn.Module, structure: Structure, sizes: Sequence[tuple[Unit, int]]) -> bool:
    """Whether a configuration says these sizes."""
    keeps = [Keep(unit, torch.arange(size)) for unit, size in sizes]
    try:
        edits = resizes(model, structure, keeps)
        return stock_config(model, apply(copied(model), edits), edits, TRIES) is not None
    except LessenError:
        return False
