"""A method of your own, in one file: round to nearest with scales that ignore the outliers of each group.

    python examples/own_method.py smollm2-135m

A method is a frozen dataclass: its fields are its options, `kind` says which units it decides on, `needs` which statistics it wants to
see, and the call turns one unit into edits. It never sees the model; the engine reads, applies, records and resumes for it.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import lessen
from lessen.core.edit import Edit, Quantize
from lessen.core.unit import Kind, View
from lessen.formats.affine import Int, PerGroup
from lessen.methods import RTN, Select


@dataclass(frozen=True)
class Clipped:
    """Scales from a quantile of |w| instead of the largest |w|: outliers saturate, everything else gets a finer grid."""

    bits: int = 4
    """Width of a code."""
    group: int = 32
    """Weights that share a scale."""
    quantile: float = 0.98
    """Share of each group that the grid covers."""

    kind: ClassVar[Kind] = "linear"
    scope: ClassVar = "block"
    needs: ClassVar = ()

    def __call__(self, view: View, stats: Mapping[type, Any]) -> list[Edit]:
        format = Int(self.bits, PerGroup(self.group), full_range=False)
        weight = view.weight.float()
        groups = weight.reshape(len(weight), -1, self.group)  # "out group in"
        scale = (groups.abs().quantile(self.quantile, 2) / format.code_range[1]).to(format.scale_dtype)
        return [Quantize(view.unit.slices[0].name, format, format.round(weight, scale, None))]


def main(model: str = "smollm2-135m", **options: Any) -> None:
    # Decided, not applied: the model is untouched. `lessen.compress(model, out, recipe=...)` would write the result.
    candidates: Any = (Clipped(), RTN(scale="absmax"))
    plan = lessen.plan(model, recipe=[Select(candidates)], **options)
    linears = [record for record in plan.records if record.block is not None]
    for name in ("Clipped", "RTN"):
        won = sum(record.method.startswith(name) for record in linears)
        print(f"{name} was the better one for {won} of {len(linears)} layers")
    for record in linears[:3]:
        print(f"{record.unit}: {record.method}, error {record.error}, candidates {record.candidates}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
