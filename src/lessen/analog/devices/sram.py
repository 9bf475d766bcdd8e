"""SRAM: a latch keeps its bit exactly while it has power; a macro's errors are those of its capacitors and its converter.

In a charge-domain macro every cell drives one unit capacitor, and a column shares the charge of all of them. What is not exact is then the
mismatch of the capacitors, drawn once for the life of the chip, and the noise of the converter, which belongs to `Adc.noise`:

    g = target (1 + mismatch n)

A capacitor of some femtofarads in metal matches to about a percent or better (prior knowledge; Pelgrom's law: the deviation falls with the
root of its area). Cells hold one bit: use `Sliced(cell_bits=1)` for weights of more.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.analog.devices.device import Cells, Device
from lessen.analog.tiles.streams import normal
from lessen.errors import UsageError


@dataclass(frozen=True)
class SramCell(Device):
    """A bit that is exact, on a capacitor that nearly is."""

    mismatch: float = 0.0
    """Relative deviation of a unit capacitor."""

    source: ClassVar[str] = "exact cells; mismatch of metal capacitors is prior knowledge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mismatch < 1:
            raise UsageError("SramCell", got=f"mismatch={self.mismatch:g}", wanted="0 to below 1")

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        self.check_target(target)
        return Cells(target * normal(target, generator).mul_(self.mismatch).add_(1) if self.mismatch else target)
