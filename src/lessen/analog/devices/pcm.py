"""Phase-change memory: an amorphous plug whose size is the conductance, and which relaxes for years.

With x = target / g_max, in microsiemens:

    written     g_P  = max(0, target + sigma(x) n)
    drift       g_D  = g_P (t / t0)^(-nu),  nu = |mu(x) + s(x) n'|         n' drawn once: every device has its own exponent
    read noise  sigma_read = g_D Q(g_P / g_max) sqrt(ln((t + t_read) / (2 t_read)))

PCM         sigma = 0.26348 + 1.9650 x - 1.1731 x^2 for g_max = 25 uS; mu = clip(0.0244 - 0.0155 ln x, 0.049, 0.1),
            s = clip(-0.0059 - 0.0125 ln x, 0.008, 0.045); Q = min(0.2, 0.0088 / max(x^0.65, 0.001)); t0 = 20 s, t_read = 250 ns.
            Nandakumar et al. 2019, Phase-change memory models for deep learning training and inference, IEEE ICECS,
            https://ieeexplore.ieee.org/document/8964852; constants as in aihwkit (PCMLikeNoiseModel).
HermesPCM   measured on the 64-core chip of Le Gallo et al. 2023, Nature Electronics 6, 680, https://arxiv.org/abs/2212.02872, with two
            devices for one conductance (t0 = 300 s) or one (t0 = 200 s); t_read = 512 ns; constants as in aihwkit (HermesNoiseModel).
JoshiPCM    sigma = 0.28638599 + 0.07585724 G - 0.00178767 G^2, G <= 25 uS, 27 s after programming, no drift in the fit: quadratic through
            fig. 3b of Joshi et al. 2020, Nature Communications 11, 2473, https://www.nature.com/articles/s41467-020-16108-9 (CrossSim).
FoundationPCM  the evaluation noise of Büchel et al. 2025, Analog Foundation Models, https://arxiv.org/abs/2505.09663: a weight is 0 to 180,
            one cubic up to 52.5, another above, exactly 0 below 0.6; no time.

Ours: noise of reading needs g_P; where only g_D is known, mean drift is undone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.analog.devices.device import Cells, Device
from lessen.analog.devices.laws import Spread, decay, flicker, polynomial
from lessen.analog.tiles.streams import normal
from lessen.errors import UsageError

_LEAST = 1e-7  # x below which logarithms are held


@dataclass(frozen=True)
class _PhaseChange(Device):
    """What fits of written, drifting and noisy conductances have in common; the constants are the subclasses'."""

    writing: ClassVar[tuple[float, ...]]
    reference: ClassVar[float]
    t_read: ClassVar[float]

    def sigma(self, target: Tensor) -> Tensor:
        """Standard deviation of a written conductance before it is cut at zero."""
        return polynomial(self.writing, target / self.g_max).mul_(self.g_max / self.reference)

    def exponent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the drift exponent for targets in parts of g_max."""
        raise TypeError(f"{type(self).__name__} is no device of its own")

    def quality(self, x: Tensor) -> Tensor:
        """Q of the 1/f noise for conductances in parts of g_max."""
        raise TypeError(f"{type(self).__name__} is no device of its own")

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        self.check_target(target)
        written = normal(target, generator).mul_(self.sigma(target)).add_(target).clamp_(min=0)
        mean, spread = self.exponent((target / self.g_max).clamp_(min=_LEAST))
        return Cells(written, normal(target, generator).mul_(spread).add_(mean).abs_())

    def drifted(self, cells: Cells, seconds: float) -> Tensor:
        self.check_time(seconds)
        return cells.conductance if cells.drift is None else decay(cells.conductance, cells.drift, seconds, self.first)

    def read_sigma(self, conductance: Tensor, seconds: float, programmed: Tensor | None = None) -> Tensor:
        self.check_time(seconds)
        if programmed is None:
            programmed = conductance
            for _ in range(2):  # the exponent depends on what is looked for, but weakly
                mean = self.exponent((programmed / self.g_max).clamp(min=_LEAST))[0]
                programmed = decay(conductance, -mean, seconds, self.first)
        return self.quality((programmed / self.g_max).clamp_(min=0)).mul_(conductance).mul_(flicker(seconds, self.t_read))


@dataclass(frozen=True)
class PCM(_PhaseChange):
    """Doped GST mushroom cells, a million of them in 90 nm."""

    source: ClassVar[str] = "Nandakumar et al., ICECS 2019; constants of aihwkit's PCMLikeNoiseModel"
    first: ClassVar[float] = 20.0
    writing: ClassVar[tuple[float, ...]] = (0.26348, 1.9650, -1.1731)
    reference: ClassVar[float] = 25.0
    t_read: ClassVar[float] = 250e-9

    def exponent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logarithm = x.log()
        return (-0.0155 * logarithm).add_(0.0244).clamp_(0.049, 0.1), logarithm.mul_(-0.0125).sub_(0.0059).clamp_(0.008, 0.045)

    def quality(self, x: Tensor) -> Tensor:
        # a power by logarithm and exponential, both of which are slow at 0 and infinity; below _LEAST, x^0.65 is cut to 1e-3 anyway
        return x.clamp(min=_LEAST).log_().mul_(-0.65).exp_().clamp_(max=1e3).mul_(0.0088).clamp_(max=0.2)


@dataclass(frozen=True)
class HermesPCM(_PhaseChange):
    """Two devices in parallel for each conductance, as the 64-core chip uses them."""

    g_max: float = 20.7
    """Highest conductance of the unit, in microsiemens; characterized up to 20.7."""

    source: ClassVar[str] = "Le Gallo et al., Nature Electronics 2023; constants of aihwkit's HermesNoiseModel"
    first: ClassVar[float] = 300.0
    writing: ClassVar[tuple[float, ...]] = (0.16603222, 4.71806468, -8.48101252, 4.68961419)
    reference: ClassVar[float] = 20.7
    t_read: ClassVar[float] = 512e-9
    # Pieces, each with where the second begins: logarithm below (slope, offset, clip), polynomial above.
    spread_below: ClassVar[tuple[float, ...]] = (0.3055, -0.0117, -0.0057, 0.0091, 0.04)
    spread_above: ClassVar[tuple[float, ...]] = (0.0073, 0.0093, -0.0118)
    quality_below: ClassVar[tuple[float, ...]] = (0.16, -0.0117, -0.0069, 0.015, 0.04)
    quality_above: ClassVar[tuple[float, ...]] = (0.0123, 0.0211, -0.0280, 0.0069)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.g_max > self.reference:
            wanted = f"at most {self.reference:g} uS, the highest conductance that was characterized"
            raise UsageError(type(self).__name__, got=f"g_max={self.g_max:g}", wanted=wanted)

    def exponent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logarithm = x.log()
        mean = _pieces(x, logarithm, (0.0945, -0.0387, -0.0182, 0.0720, 0.13), (0.0736, -0.0126, -0.0436))
        return mean, _pieces(x, logarithm, self.spread_below, self.spread_above)

    def quality(self, x: Tensor) -> Tensor:
        x = x.clamp(min=_LEAST)
        return _pieces(x, x.log(), self.quality_below, self.quality_above)


@dataclass(frozen=True)
class HermesSinglePCM(HermesPCM):
    """One device for each conductance: half the cells, more noise."""

    g_max: float = 10.35
    """Highest conductance, in microsiemens; characterized up to 10.35."""

    first: ClassVar[float] = 200.0
    writing: ClassVar[tuple[float, ...]] = (0.15781817, 2.32443916, -2.16310839, 0.68841818)
    reference: ClassVar[float] = 10.35
    spread_below: ClassVar[tuple[float, ...]] = (0.3039, -0.0120, -0.0023, 0.0124, 0.04)
    spread_above: ClassVar[tuple[float, ...]] = (0.0104, 0.0116, -0.0165)
    quality_below: ClassVar[tuple[float, ...]] = (0.1591, -0.0078, 0.0038, 0.0179, 0.04)
    quality_above: ClassVar[tuple[float, ...]] = (0.0088, 0.0768, -0.1352, 0.0664)


def _pieces(x: Tensor, logarithm: Tensor, below: tuple[float, ...], above: tuple[float, ...]) -> Tensor:
    """A clipped logarithm (of `x`) up to a border, a polynomial from there on."""
    border, slope, offset, low, high = below
    # a weight of 0 or 1 chooses: on unordered conductances `torch.where` takes as long as ten such passes
    chosen = torch.lt(x.detach(), border, out=torch.empty_like(x))
    return polynomial(above, x).lerp_((slope * logarithm).add_(offset).clamp_(low, high), chosen)


@dataclass(frozen=True)
class JoshiPCM(Spread):
    """Programming error alone, as measured half a minute after writing."""

    g_min: float = 0.25
    """Lowest conductance that it is set to, in microsiemens; the source suggests a hundredth of g_max."""

    source: ClassVar[str] = "Joshi et al., Nature Communications 11, 2473 (2020), fig. 3b; fit of CrossSim's PCMJoshi"
    first: ClassVar[float] = 27.36

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.g_max > 25:
            raise UsageError("JoshiPCM", got=f"g_max={self.g_max:g}", wanted="at most 25 uS, where the fit ends")

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        return polynomial((0.28638599, 0.07585724, -0.00178767), target).clamp_(min=0)


@dataclass(frozen=True)
class FoundationPCM(Spread):
    """The noise with which Analog Foundation Models are judged; it is one of weights, so a device may come out below zero."""

    source: ClassVar[str] = "Büchel et al., Analog Foundation Models, NeurIPS 2025, arXiv 2505.09663; their apply_noise_model.py"
    single: ClassVar[tuple[float, ...]] = (2.579741066, 0.2241968595, -3.715812081e-03, 2.939751381e-05)
    double: ClassVar[tuple[float, ...]] = (2.110295720, 0.2453487120, -3.054993405e-03, 1.232975540e-05)

    def sigma(self, target: Tensor, seconds: float) -> Tensor:
        a = target * (180 / self.g_max)
        written = torch.where(a <= 52.5, polynomial(self.single, a), polynomial(self.double, a))
        return torch.where(a < 0.6, torch.zeros_like(a), written) * (self.g_max / 180)

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        cells = super().program(target, generator)
        return Cells(torch.where(target * (180 / self.g_max) < 0.6, torch.zeros_like(target), cells.conductance))

    def drifted(self, cells: Cells, seconds: float) -> Tensor:
        self.check_time(seconds)
        return cells.conductance
