"""Laws that several devices share: polynomials in the conductance, drift, 1/f noise, and a spread that grows with time.

    drift        g(t) = g(t0) (t / t0)^(-nu)                                       structural relaxation of a glass
    1/f noise    sigma(t) = g(t) Q sqrt(ln((t + t_read) / (2 t_read)))             power of 1/f noise between 1/t and 1/t_read
    spread       g(t) = max(0, target + shift(target, t) + deviation(t)),          std(deviation(t)) = sigma(target, t)

Where a source gives sigma at several times and nothing about how one device moves between them, a device keeps its first deviation
and gains an independent one, so that the sum has the published spread: std^2(t) = std^2(t0) + gain^2. If the published spread shrinks,
the first deviation shrinks with it. That the gains at two later times share one draw is our choice; the spread at each is the source's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.analog.devices.device import Cells, Device
from lessen.analog.tiles.streams import normal


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """A sum of powers, lowest first.

    >>> polynomial((1.0, 0.0, 2.0), torch.tensor(3.0))
    tensor(19.)
    """
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total.mul_(x).add_(coefficient)
    return total


def decay(conductance: Tensor, exponent: Tensor, seconds: float, first: float) -> Tensor:
    """Conductances after drift with an exponent each."""
    return conductance if seconds == first else conductance * torch.exp(exponent * -math.log(seconds / first))


def flicker(seconds: float, t_read: float) -> float:
    """By how much 1/f noise exceeds its quality Q: its relative deviation in a read of `t_read` seconds, over Q.

    >>> round(flicker(20.0, 250e-9), 2)
    4.18
    """
    return math.sqrt(math.log((seconds + t_read) / (2 * t_read)))


@dataclass(frozen=True)
class Spread(Device):
    """A device known by how far from its target it is found, at one time or at several."""

    ages: ClassVar[bool] = False
    """Whether anything changes after the first time."""

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        """Standard deviation of the conductance around its mean."""
        return torch.zeros_like(target)

    def shift(self, target: Tensor, seconds: float) -> Tensor | None:
        """How far the mean has moved from the target; None: not at all."""
        return None

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        self.check_target(target)
        written = normal(target, generator).mul_(self.sigma(target, self.first)).add_(target)
        return Cells(written, normal(target, generator), target) if self.ages else Cells(written)

    def drifted(self, cells: Cells, seconds: float) -> Tensor:
        self.check_time(seconds)
        target, later = cells.target, cells.drift
        if target is None or later is None or seconds == self.first:
            return cells.conductance.clamp(min=0)
        start, now = self.sigma(target, self.first), self.sigma(target, seconds)
        kept = torch.where(start > now, now / start, torch.ones_like(start))
        gained = (now.square() - start.square()).clamp(min=0).sqrt()
        found = target + (cells.conductance - target) * kept + gained * later
        moved = self.shift(target, seconds)
        return (found if moved is None else found + moved).clamp(min=0)


def between(seconds: float, times: Sequence[float], logarithmic: bool) -> tuple[int, float]:
    """Where a time lies in a table: the entry before it, and how far on the way to the next; held at the ends.

    >>> between(10.0, (1.0, 100.0), logarithmic=True)
    (0, 0.5)
    >>> between(1000.0, (1.0, 100.0), logarithmic=True)
    (0, 1.0)
    """
    index = max(i for i, time in enumerate(times[:-1]) if i == 0 or seconds >= time)
    scale = math.log if logarithmic else float
    low, high = scale(times[index]), scale(times[index + 1])
    return index, min(max((scale(max(seconds, times[0])) - low) / (high - low), 0.0), 1.0)
