"""Flash: charge on a gate sets the threshold voltage of a transistor, and the threshold its current.

NorFlash. Below threshold a transistor conducts I = I0 exp((V_GS - V_th) / (n V_T)), V_T = k T / q. An error dV of the threshold is a factor
exp(-dV / (n V_T)) of the current, 2.6 to 3 % for each millivolt: errors are in proportion to the weight, unlike in resistive memories.

    written      g0 = target exp(s_w a) + floor b                        s_w = sigma_vth / (n V_T); a, b, c standard normal
    retention    dV(t) = (loss + loss_spread c) log10(t / 1 s)           charge leaks, the threshold falls, the current grows
    temperature  ln(g / g_th) = [ln(g0 / g_th) n V_T0 + dV + k_th (T - T0)] / (n V_T)        read at T, written at T0
    read         sigma = g noise_vth / (n V_T)                           random telegraph and 1/f noise of the transistor

with g_th the conductance at V_GS = V_th and k_th how fast the threshold falls with temperature. The structure is textbook physics
(Tsividis, Operation and Modeling of the MOS Transistor; Bavandpour, Mahmoodi and Strukov 2020, IEEE TCAS-II, on NOR-flash multipliers).
The default constants are prior knowledge of the order of magnitude, not anyone's data: put what your chip measures in their place
(`devices.measured`). Mobility's dependence on temperature and the dependence of charge loss on the state are left out.

SonosFlash. 40 nm charge-trap cells, 128 thousand devices, currents at 0.1 V between drain and source (16 uS is 1600 nA). With I in nA:

    sigma(I, day) = A (1 - exp(-I / B)) around I + drift(I, day), A, B and an 11-term polynomial for each of days 0 to 5
    read          A = 12.58037, B = 215.36557, at each read

Days between are interpolated, later ones held: beyond day 5 nobody published data. The polynomials leave the data at their end: at 1600 nA
that of day 1 says -246 nA and that of day 5 -118, where all say -40 to -60 at 1400; full scale is therefore 1400 here.
Agrawal et al. 2022, IEEE IEDM 21.7, https://ieeexplore.ieee.org/document/10019564, figs. 10, 11; coefficients as in CrossSim (SONOS).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.analog.devices.device import Cells, Device
from lessen.analog.devices.laws import Spread, between, polynomial
from lessen.analog.tiles.streams import normal
from lessen.errors import UsageError

_KELVIN = 8.617333262e-2  # millivolts: k / q


@dataclass(frozen=True)
class NorFlash(Device):
    """Floating gates read below threshold; the defaults are orders of magnitude."""

    g_max: float = 5.0
    """Highest conductance, in microsiemens."""
    sigma_vth: float = 1.0
    """Deviation of the written threshold, in millivolts."""
    ideality: float = 1.4
    """n of the subthreshold slope."""
    floor: float = 0.005
    """Deviation that does not shrink with the target, in microsiemens."""
    loss: float = 0.5
    """Fall of the threshold for each decade of time, in millivolts, common to all devices."""
    loss_spread: float = 0.3
    """Deviation of that fall from device to device."""
    noise_vth: float = 0.3
    """Deviation of the threshold between two reads, in millivolts."""
    kelvin: float = 300.0
    """Temperature at which it is written."""
    read_kelvin: float = 300.0
    """Temperature at which it is read."""
    threshold_us: float = 20.0
    """Conductance at threshold, in microsiemens."""
    threshold_slope: float = 1.0
    """Fall of the threshold for each kelvin, in millivolts."""

    source: ClassVar[str] = "subthreshold physics; constants are prior knowledge, to be replaced by measurements of the chip"
    first: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigma_vth", "floor", "loss_spread", "noise_vth"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError("NorFlash", got=f"{name}={getattr(self, name):g}", wanted="a number that is not negative")
        for name in ("ideality", "kelvin", "read_kelvin", "threshold_us"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError("NorFlash", got=f"{name}={getattr(self, name):g}", wanted="a positive number")
        for name in ("loss", "threshold_slope"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError("NorFlash", got=f"{name}={getattr(self, name):g}", wanted="a finite number")

    def slope(self, kelvin: float) -> float:
        """Millivolts of threshold for a factor of e in the current.

        >>> round(NorFlash().slope(300.0), 2)
        36.19
        """
        return self.ideality * _KELVIN * kelvin

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        self.check_target(target)
        written = target * normal(target, generator).mul_(self.sigma_vth / self.slope(self.kelvin)).exp_()
        written += normal(target, generator).mul_(self.floor)
        return Cells(written.clamp_(min=0), normal(target, generator))

    def drifted(self, cells: Cells, seconds: float) -> Tensor:
        self.check_time(seconds)
        g, decades = cells.conductance, math.log10(seconds / self.first)
        if cells.drift is None or (not decades and self.read_kelvin == self.kelvin):
            return g
        volts = (cells.drift * self.loss_spread + self.loss) * decades + self.threshold_slope * (self.read_kelvin - self.kelvin)
        grown = (volts / self.slope(self.read_kelvin)).exp_()
        share = self.kelvin / self.read_kelvin
        return g * grown if share == 1 else self.threshold_us * (g / self.threshold_us).pow_(share) * grown

    def read_sigma(self, conductance: Tensor, seconds: float, programmed: Tensor | None = None) -> Tensor | None:
        self.check_time(seconds)
        return conductance * (self.noise_vth / self.slope(self.read_kelvin)) if self.noise_vth else None


@dataclass(frozen=True)
class SonosFlash(Spread):
    """Charge traps in 40 nm, read at 0.1 V, from writing to day 5."""

    g_max: float = 14.0
    """Highest conductance, in microsiemens at 0.1 V; up to 16, but above 14 the published polynomials run away."""

    source: ClassVar[str] = "Agrawal et al., IEEE IEDM 2022, 21.7; fits of CrossSim's SONOS"
    ages: ClassVar[bool] = True
    na_per_us: ClassVar[float] = 100.0
    days: ClassVar[tuple[float, ...]] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    scales: ClassVar[tuple[tuple[float, float], ...]] = (
        (19.88665, 176.3115),
        (25.59102, 186.85544),
        (28.72753, 193.56834),
        (31.04318, 198.90332),
        (33.76214, 204.77023),
        (34.57909, 207.34309),
    )
    # nA of drift, in powers of the current in uA
    moved: ClassVar[tuple[tuple[float, ...], ...]] = (
        (0.0,) * 11,
        (0.68365, 6.5125, -403.163, 3379.44, -18743.5, 58890.2, -107685, 117751, -76001.6, 26725.5, -3949.54),
        (0.660925, 8.60627, -172.936, 744.096, -5948.66, 23673.4, -48374, 55607.2, -36539.7, 12840.5, -1874.5),
        (1.15821, 19.6116, -470.807, 3675.1, -20878.6, 65975.2, -119499, 128435, -81157.4, 27880.2, -4020.57),
        (0.872216, 17.0926, -223.37, 1575.26, -13277.9, 50825.6, -101251, 114633, -74612.4, 26055.9, -3787.24),
        (1.15294, 10.3149, -60.5199, 17.6086, -6466.9, 33904.4, -75387.2, 89818.5, -60034.6, 21261.5, -3110.99),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.g_max > 16:
            raise UsageError("SonosFlash", got=f"g_max={self.g_max:g}", wanted="at most 16 uS, the full scale of its fits")

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        index, part = between(seconds / 86400, self.days, logarithmic=False)
        a, b = ((1 - part) * x + part * y for x, y in zip(self.scales[index], self.scales[index + 1], strict=True))
        return self._saturating(target + self.shift(target, seconds), a, b)

    def shift(self, target: Tensor, seconds: float) -> Tensor:
        index, part = between(seconds / 86400, self.days, logarithmic=False)
        mixed = [(1 - part) * x + part * y for x, y in zip(self.moved[index], self.moved[index + 1], strict=True)]
        return polynomial(mixed, target * (self.na_per_us / 1000)) / self.na_per_us

    def read_sigma(self, conductance: Tensor, seconds: float, programmed: Tensor | None = None) -> Tensor:
        self.check_time(seconds)
        return self._saturating(conductance, 12.58037, 215.36557)

    def _saturating(self, conductance: Tensor, a: float, b: float) -> Tensor:
        return -(conductance.clamp(min=0) * (-self.na_per_us / b)).expm1() * (a / self.na_per_us)
