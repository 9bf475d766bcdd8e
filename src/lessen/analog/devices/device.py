"""What a memory device is to the rest of the house: how it takes a conductance, what becomes of it, how noisily it is read.

All conductances are in microsiemens, all times in seconds since programming. A device knows nothing of weights, signs, slices or tiles.
Three moments are kept apart, since what is drawn in each lives for another span:

    program   the error of writing and whatever makes a device an individual (its drift exponent): drawn once for the chip's life
    drifted   what time has made of it: no draws but those that belong to the device for life
    read      noise of a single read, as a standard deviation: whoever reads decides whether it is frozen for an evaluation or fresh
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.core.strict import check_fields
from lessen.errors import UsageError


@dataclass(frozen=True)
class Cells:
    """Physical devices after programming.

    Attributes:
        conductance: as measured at the first time that the device's fit describes.
        drift: what makes each device age in its own way (a drift exponent, a standard normal draw); None if they age alike.
        target: what was asked for, where ageing depends on it.
    """

    conductance: Tensor
    drift: Tensor | None = None
    target: Tensor | None = None


@dataclass(frozen=True)
class Device:
    """A device that keeps any conductance between its ends exactly and forever; the others inherit what they do not change."""

    g_min: float = 0.0
    """Lowest conductance that it is set to, in microsiemens."""
    g_max: float = 25.0
    """Highest one."""

    source: ClassVar[str] = "no device: the reference of all others"
    first: ClassVar[float] = 0.0
    """Seconds after programming at which the description begins; earlier times are refused."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.g_min < self.g_max < float("inf"):
            got = f"g_min={self.g_min:g}, g_max={self.g_max:g}"
            raise UsageError(type(self).__name__, got=got, wanted="0 <= g_min < g_max, both finite, in microsiemens")

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        """Write conductances.

        Args:
            target: any shape, within g_min and g_max.
            generator: for all that is drawn once.

        Raises:
            UsageError: a target is NaN or outside the range.
        """
        self.check_target(target)
        return Cells(target)

    def drifted(self, cells: Cells, seconds: float) -> Tensor:
        """Conductances after a time, without the noise of reading them.

        Raises:
            UsageError: a time that the description does not cover.
        """
        self.check_time(seconds)
        return cells.conductance

    def read_sigma(self, conductance: Tensor, seconds: float, programmed: Tensor | None = None) -> Tensor | None:
        """Standard deviation of one read; None if reading adds nothing.

        Args:
            conductance: as `drifted` gives it.
            seconds: since programming.
            programmed: `Cells.conductance`, on which the noise of some devices depends; None: estimated from `conductance`.
        """
        return None

    def powers(self, conductance: Tensor) -> tuple[Tensor, Tensor] | None:
        """Coefficients of V^2 and V^3 in the current, in uS/V and uS/V^2, for V >= 0; None for an ohmic device."""
        return None

    def check_target(self, target: Tensor) -> None:
        """Refuse conductances that the device does not have."""
        if target.numel() == 0:
            return
        low, high = (float(end) for end in target.aminmax())
        slack = 1e-5 * self.g_max  # targets are computed in float32
        if not (self.g_min - slack <= low and high <= self.g_max + slack):
            got, wanted = f"{low:g} to {high:g} uS", f"{self.g_min:g} to {self.g_max:g} uS"
            raise UsageError(f"target of {type(self).__name__}", got=got, wanted=wanted)

    def check_time(self, seconds: float) -> None:
        """Refuse a time that the description does not cover."""
        if not self.first <= seconds < float("inf"):
            raise UsageError(
                f"time of {type(self).__name__}", got=f"{seconds:g} s", wanted=f"at least {self.first:g} s: its description begins there"
            )
