"""Devices that no longer obey: stuck at one end of their range, whatever is written to them.

A fault belongs to one physical device, not to a weight: in a differential pair it moves one side. Which devices are stuck is a property of
the chip, so it is drawn once, from the chip's seed.

Rates: SA0 (high resistance) 1.75 % and SA1 (low resistance) 9.04 % were measured on a 4 Mb HfO2 macro, Chen et al. 2015, IEEE Transactions
on Computers 64(1); as quoted by https://arxiv.org/abs/2401.11664.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.core.strict import check_fields
from lessen.errors import UsageError


@dataclass(frozen=True)
class Faults:
    """Shares of devices that are stuck."""

    low: float = 0.0
    """Stuck at g_min."""
    high: float = 0.0
    """Stuck at g_max."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.low >= 0 and self.high >= 0 and self.low + self.high <= 1):
            raise UsageError("Faults", got=f"low={self.low:g}, high={self.high:g}", wanted="shares of devices, together at most 1")

    def __bool__(self) -> bool:
        return self.low + self.high > 0

    def apply(self, conductance: Tensor, ends: tuple[float, float], generator: torch.Generator) -> Tensor:
        """Conductances with the stuck devices at their ends.

        Args:
            conductance: any shape.
            ends: g_min and g_max.
            generator: at the start of the stream of this chip's faults.
        """
        if not self:
            return conductance
        stuck = self.states(conductance.shape, generator).to(conductance.device)
        found = torch.where(stuck < 0, conductance.new_tensor(ends[0]), conductance)
        return torch.where(stuck > 0, conductance.new_tensor(ends[1]), found)

    def states(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """What a test of the chip finds: -1 stuck at g_min, 1 stuck at g_max, 0 sound; the devices that `apply` holds."""
        chance = torch.rand(shape, generator=generator)
        high = (chance >= 1 - self.high).to(torch.int8)
        return high - (chance < self.low).to(torch.int8) * (1 - high)
