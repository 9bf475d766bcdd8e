"""Resistive memory: a filament in an oxide, written until it is close enough, which then relaxes away from where it was left.

Every device here is described by the spread of its conductances around the target (`laws.Spread`), in microsiemens:

WanRRAM       sum of c_i x^i, x = target / g_max, quartic for g_max = 40 uS at 1 s, 1 day and 2 days. Between these, sigma goes linearly
              in ln t; after the last it is held, since nobody published more: what it says about a month is optimistic.
              Wan et al. 2022, Nature 608, 504, https://www.nature.com/articles/s41586-022-04992-8; fit of aihwkit (ReRamWan2022NoiseModel).
WanCubicRRAM  1.053 + 0.2374 G - 0.01167 G^2 + 1.536e-4 G^3, G <= 39.26 uS, 1 s after writing: CrossSim's fit of the same figure.
              The two fits differ at low G (1.05 against 0.35 uS at zero): what is read off a figure is no better than that.
MiloRRAM      4.782321 - 0.009107 G, 50 to 225 uS (algorithm IGVVA-100), no time. Its current is not proportional to the voltage:
              I = G V + NL2 V^2 + NL3 V^3 with NL2, NL3 cubic and quadratic in log10 G (siemens), |V| <= 0.5 V.
              Milo et al. 2021, IEEE IRPS, https://ieeexplore.ieee.org/document/9405119, fig. 4; fits of CrossSim (RRAMMilo).
CmoRRAM       written 0.00081107 + 0.00106879 G (accepted within 0.2 %) or 0.0112185391 + 0.01129027418 G (2 %); after t seconds the mean
              has moved by -0.08900206 ln t and a further 0.04201137 ln t + 0.41183342 is spread independently, whatever G is;
              read noise 0.0277316483 log10(G) sqrt(ln((t + t_read) / (2 t_read))), t_read = 1 us.
              Falcone et al. 2025, All-in-One Analog AI Accelerator: On-Chip Training and Inference with Conductive-Metal-Oxide/HfOx ReRAM
              Devices, IBM Research Zurich; constants of aihwkit (ReRamCMONoiseModel).

Ours: log10(G) is held at zero below 1 uS, where the source's formula would give a negative deviation or none at all.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.analog.devices.laws import Spread, between, flicker, polynomial
from lessen.errors import UsageError

_DAY = 86400.0


@dataclass(frozen=True)
class WanRRAM(Spread):
    """HfOx cells of the NeuRRAM chip, from one second to two days."""

    g_max: float = 40.0
    """Highest conductance, in microsiemens; the spread is scaled with it."""

    source: ClassVar[str] = "Wan et al., Nature 608, 504 (2022); fit of aihwkit's ReRamWan2022NoiseModel"
    first: ClassVar[float] = 1.0
    ages: ClassVar[bool] = True
    times: ClassVar[tuple[float, ...]] = (1.0, _DAY, 2 * _DAY)
    tables: ClassVar[tuple[tuple[float, ...], ...]] = (
        (0.348, 16.030, -43.853, 45.393, -16.815),
        (0.701, 22.086, -50.773, 47.095, -16.458),
        (0.782, 20.274, -43.507, 37.062, -11.934),
    )

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        index, part = between(seconds, self.times, logarithmic=True)
        mixed = [a + part * (b - a) for a, b in zip(self.tables[index], self.tables[index + 1], strict=True)]
        return polynomial(mixed, target / self.g_max).clamp_(min=0) * (self.g_max / 40.0)


@dataclass(frozen=True)
class WanCubicRRAM(Spread):
    """The same cells, one second after writing, as another group read the figure."""

    g_max: float = 39.26
    """Highest conductance, in microsiemens; the fit ends at 39.26."""

    source: ClassVar[str] = "Wan et al., Nature 608, 504 (2022), extended data fig. 3; fit of CrossSim's RRAMWan"
    first: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.g_max > 39.26:
            raise UsageError("WanCubicRRAM", got=f"g_max={self.g_max:g}", wanted="at most 39.26 uS, where the fit ends")

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        return polynomial((1.053, 0.2374, -0.01167, 1.536e-4), target).clamp_(min=0)


@dataclass(frozen=True)
class MiloRRAM(Spread):
    """Multilevel HfO2 cells whose low states conduct less at higher voltage than Ohm's law says."""

    g_min: float = 50.0
    """Lowest conductance that it is set to, in microsiemens; the fits begin at 50."""
    g_max: float = 225.0
    """Highest one; the fits end at 225."""

    source: ClassVar[str] = "Milo et al., IEEE IRPS 2021, fig. 4 (IGVVA-100); fits of CrossSim's RRAMMilo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.g_min < 50 or self.g_max > 225:
            raise UsageError("MiloRRAM", got=f"{self.g_min:g} to {self.g_max:g} uS", wanted="a range within 50 to 225 uS, that of its fits")

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        return polynomial((4.782321, -0.009107), target).clamp_(min=0)

    def powers(self, conductance: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of V^2 and V^3, for 0 <= V <= 0.5 V; conductances are held to the range of the fits."""
        logarithm = (conductance.double().clamp(50.0, 225.0) * 1e-6).log10()  # large terms cancel: float32 would lose a tenth of a percent
        square = polynomial((7.063e-3, 5.711e-3, 1.541e-3, 1.388e-4), logarithm)
        cube = polynomial((1.2968e-3, 6.7919e-4, 8.871e-5), logarithm)
        return (square * 1e6).to(conductance), (cube * 1e6).to(conductance)


@dataclass(frozen=True)
class CmoRRAM(Spread):
    """Conductive metal oxide on HfOx: filaments that are read quietly and relax within the first second."""

    g_min: float = 9.0
    """Lowest conductance that it is set to, in microsiemens."""
    g_max: float = 88.19
    """Highest one."""
    acceptance: float = 2.0
    """Percent of the target within which a written conductance is accepted; 0.2 and 2 were characterized."""

    source: ClassVar[str] = "Falcone et al., IBM Research Zurich; constants of aihwkit's ReRamCMONoiseModel"
    first: ClassVar[float] = 1.0
    ages: ClassVar[bool] = True
    writing: ClassVar[dict[float, tuple[float, float]]] = {0.2: (0.00081107, 0.00106879), 2.0: (0.0112185391, 0.01129027418)}
    t_read: ClassVar[float] = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.acceptance not in self.writing:
            raise UsageError("CmoRRAM", got=f"acceptance={self.acceptance:g}", wanted="0.2 or 2 percent: these were characterized")

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        relaxed = 0.04201137 * math.log(seconds) + 0.41183342
        return polynomial(self.writing[self.acceptance], target).square_().add_(relaxed**2).sqrt_()

    def shift(self, target: Tensor, seconds: float) -> Tensor:
        return torch.full_like(target, -0.08900206 * math.log(seconds))

    def read_sigma(self, conductance: Tensor, seconds: float, programmed: Tensor | None = None) -> Tensor:
        self.check_time(seconds)
        return conductance.clamp(min=1).log10_() * (0.0277316483 * flicker(seconds, self.t_read))
