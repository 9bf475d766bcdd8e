"""Which units a configuration can speak of: for results that stock loaders read.

Some widths have no field: the heads of BERT divide its hidden size, so that fewer of them would be wider ones. Whether there is a field is
asked of the code: all units of a kind are cut to the same share, and a configuration is looked for that gives just these shapes.
"""

from collections.abc import Sequence

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


def said(model: nn.Module, structure: Structure, units: Sequence[Unit]) -> tuple[list[Unit], list[str]]:
    """The units of those kinds whose widths a configuration can say, and a note for each kind that is left whole.

    Args:
        model: what was traced; one without a configuration has all kinds, as it is made in code.
        structure: what `trace` found.
        units: from which to choose.
    """
    if not hasattr(model, "config"):
        return list(units), []
    able: dict[str, bool] = {}
    for kind in dict.fromkeys(unit.kind for unit in units):
        keeps = [Keep(unit, torch.arange(max(1, unit.size // 2))) for unit in units if unit.kind == kind and unit.size > 1]
        try:
            edits = resizes(model, structure, keeps)
            able[kind] = not keeps or stock_config(model, apply(copied(model), edits), edits) is not None
        except LessenError:
            able[kind] = False
    name = type(model).__name__
    notes = [
        f"No configuration of {name} says another number of {kind}: they are left as they are." for kind, fine in able.items() if not fine
    ]
    return [unit for unit in units if able[unit.kind]], notes
