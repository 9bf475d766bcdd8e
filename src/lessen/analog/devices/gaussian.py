"""Gaussian errors of one size, wherever a device stands: what most papers on robustness assume.

    written  g_P = max(0, target + written g_max n)          read  sigma = reading g_max

No device was ever so simple; it makes methods and tools comparable, and stands for a chip of which only one figure is known.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.analog.devices.device import Cells, Device
from lessen.analog.tiles.streams import normal
from lessen.errors import UsageError


@dataclass(frozen=True)
class Gaussian(Device):
    """Errors of writing and reading as shares of the range."""

    written: float = 0.03
    """Standard deviation of a written conductance, in parts of g_max."""
    reading: float = 0.0
    """Standard deviation of a read, in parts of g_max."""

    source: ClassVar[str] = "no device: the noise model of the literature on robustness"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.written < 1 and 0 <= self.reading < 1):
            raise UsageError("Gaussian", got=f"written={self.written:g}, reading={self.reading:g}", wanted="shares of g_max in [0, 1)")

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        self.check_target(target)
        return Cells(normal(target, generator).mul_(self.written * self.g_max).add_(target).clamp_(min=0))

    def read_sigma(self, conductance: Tensor, seconds: float, programmed: Tensor | None = None) -> Tensor | None:
        return torch.full_like(conductance, self.reading * self.g_max) if self.reading else None
