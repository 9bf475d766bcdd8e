"""A device from measurements: what your chip does, in place of what a paper's did.

`devices.levels` takes from a table what the devices of each level of targets showed; here polynomials in x = target / g_max, in
microsiemens, go through these figures, and make a device:

    written     g_P = max(0, target + b(x) + sigma(x) n)
    drift       g_D = g_P (t / t0)^(-nu),  nu = mu(x) + s(x) n'            n' drawn once: every device has its own exponent
    read noise  sigma_read = sigma_r(g_P / g_max) g_D / g_P sqrt(1 + growth ln(t / t0))

t0 is the first time of the table. Noise is a share of what a device conducts, so it fades with drift and grows with the logarithm of time.
Where a device conducts more than was programmed (reads have disturbed it, or it drifts upward), the noise is that of what it conducts.

The degree is the data's: the lowest up to 5 whose distance from the figures is no more than their standard errors explain (chi-square per
degree of freedom at most 2), so that neither a bend is missed nor noise followed. `Fit.misfit` says how far the worst level is off.
Outside of the targets that were measured, figures are held at the nearest that was: a polynomial says nothing there.

Method: least squares by standard errors is textbook; the laws are those of Nandakumar et al. 2019 (`devices.pcm`) with free polynomials and
a growth that is fitted. Ours: the choice of the degree.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lessen.analog.devices.device import Cells, Device
from lessen.analog.devices.laws import decay, polynomial
from lessen.analog.devices.levels import QUANTITIES, Level, levels
from lessen.analog.devices.table import Array, read
from lessen.analog.tiles.streams import normal
from lessen.errors import UsageError

DEGREE = 5
"""Highest degree that is chosen."""
EXPLAINED = 2.0
"""Chi-square per degree of freedom up to which standard errors explain a distance."""
FINE = 1e-3
"""Share of the largest figure below which a standard error is nobody's concern."""
MISFIT = 4.0
"""Standard errors from which a polynomial is said to miss its figures."""


@dataclass(frozen=True)
class Measured(Device):
    """A device whose polynomials (in target / g_max, lowest power first, in microsiemens) came from a table."""

    written: tuple[float, ...] = (0.0,)
    """Deviation of a written conductance."""
    bias: tuple[float, ...] = (0.0,)
    """Mean of a written conductance less its target."""
    exponent: tuple[float, ...] = (0.0,)
    """Mean exponent of drift."""
    exponent_spread: tuple[float, ...] = (0.0,)
    """Its deviation from device to device."""
    reading: tuple[float, ...] = (0.0,)
    """Deviation of one read at the first time, in powers of the conductance over g_max."""
    growth: float = 0.0
    """By how much the variance of a read grows, in parts of that at the first time, when time grows by a factor of e."""
    begins: float = 1.0
    """Seconds after programming of the first measurement."""
    lowest: float = 0.0
    """Lowest target that was measured, in microsiemens; below it, figures are held."""

    source: ClassVar[str] = "measurements"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("written", "bias", "exponent", "exponent_spread", "reading"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                raise UsageError("Measured", got=f"{name}={values}", wanted="coefficients that are numbers, one at least")
        if not 0 < self.begins < math.inf:
            raise UsageError("Measured", got=f"begins={self.begins:g}", wanted="a first time above 0")
        if not 0 <= self.growth < math.inf:
            raise UsageError("Measured", got=f"growth={self.growth:g}", wanted="at least 0: noise does not fade but with its conductance")
        if not 0 <= self.lowest < self.g_max:
            raise UsageError("Measured", got=f"lowest={self.lowest:g}", wanted=f"0 to below g_max = {self.g_max:g} uS")
        object.__setattr__(self, "first", self.begins)  # the first time of other kinds is one for all of them

    def figure(self, name: str, conductance: Tensor) -> Tensor:
        """Value of a polynomial, held outside of what was measured.

        Args:
            name: of its field.
            conductance: target, or what was programmed for `reading`, in microsiemens.
        """
        return polynomial(getattr(self, name), (conductance / self.g_max).clamp_(self.lowest / self.g_max, 1.0))

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        self.check_target(target)
        spread = self.figure("written", target).clamp_(min=0)
        written = normal(target, generator).mul_(spread).add_(target).add_(self.figure("bias", target)).clamp_(min=0)
        scatter = self.figure("exponent_spread", target).clamp_(min=0)
        return Cells(written, normal(target, generator).mul_(scatter).add_(self.figure("exponent", target)))

    def drifted(self, cells: Cells, seconds: float) -> Tensor:
        self.check_time(seconds)
        return cells.conductance if cells.drift is None else decay(cells.conductance, cells.drift, seconds, self.begins)

    def read_sigma(self, conductance: Tensor, seconds: float, programmed: Tensor | None = None) -> Tensor | None:
        self.check_time(seconds)
        if not any(self.reading):
            return None
        if programmed is None:
            programmed = conductance
            for _ in range(2):  # the exponent depends on what is looked for, but weakly
                programmed = decay(conductance, -self.figure("exponent", programmed), seconds, self.begins)
        state, least = torch.maximum(programmed, conductance), 1e-7 * self.g_max  # a device that is off has all of its noise
        left = (conductance + least).div_(state + least)
        rise = math.sqrt(1 + self.growth * math.log(seconds / self.begins))
        return self.figure("reading", state).clamp_(min=0).mul_(left).mul_(rise)


@dataclass(frozen=True)
class Fit:
    """A device and the figures through which its polynomials go.

    Attributes:
        device: ready for a `Chip`.
        levels: a figure for each level of targets.
        left_out: devices without a drift exponent, since they were read at or below zero.
        misfit: largest distance of a polynomial from its figures, in standard errors, by the polynomial's name.
    """

    device: Measured
    levels: tuple[Level, ...]
    left_out: int
    misfit: dict[str, float]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before this device is trusted, a line each."""
        notes = [
            f"{name}: the polynomial of degree {len(getattr(self.device, name)) - 1} is {away:.0f} standard errors off the worst level"
            for name, away in self.misfit.items()
            if away > MISFIT
        ]
        if self.device.lowest > 0:
            notes.append(f"no target below {self.device.lowest:.3g} uS was measured: figures are held there")
        if self.left_out:
            notes.append(f"{self.left_out} devices read at or below zero are left out of drift")
        return tuple(notes)

    def plot(self, path: str | Path) -> None:
        """Draw figures and polynomials (SVG, PNG, PDF by the ending); needs the extra `report`."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            remedy = "pip install lessen[report]"
            raise UsageError("plot of a fit", got="no matplotlib", wanted="it for drawing", remedy=remedy) from None
        device = self.device
        x = torch.linspace(device.lowest, device.g_max, 101, dtype=torch.float64)
        figure = Figure(figsize=(14, 3.2 + 0.2 * len(self.notes)), layout="constrained")
        if self.notes:
            figure.suptitle("\n".join(self.notes), fontsize=8)
        parts = (
            ("deviation when written, uS", "written"),
            ("drift exponent", "exponent"),
            ("deviation of drift exponent", "exponent_spread"),
            ("deviation of a read, uS", "reading"),
        )
        for axes, (title, name) in zip(figure.subplots(1, 4), parts, strict=True):
            where = [_place(level, name) for level in self.levels]
            known, error = (
                [part[name] for part in parts] for parts in zip(*((item.values, item.errors) for item in self.levels), strict=True)
            )
            axes.errorbar(where, known, error, fmt="o", color="#1f6f8b", label="measured")
            axes.plot(x.numpy(), device.figure(name, x).numpy(), color="#c8553d", label="fit")
            axes.set(title=title, xlabel="conductance, uS" if name == "reading" else "target, uS", ylim=(0, None))
            axes.legend(frameon=False)
        path = Path(path)
        aside, kind = path.with_name(f".{path.name}"), path.suffix.lstrip(".").lower() or "svg"
        if kind not in ("svg", "png", "pdf"):
            raise UsageError("plot of a fit", got=path.name, wanted="a name that ends in .svg, .png or .pdf")
        try:
            figure.savefig(aside, format=kind, metadata={"Date": None} if kind == "svg" else None)
            aside.replace(path)
        except OSError as error:
            raise UsageError(str(path), got=(error.strerror or str(error)).lower(), wanted="a file that can be written") from None


def from_measurements(path: str | Path, *, degree: int | None = None, plot: str | Path | None = None) -> Measured:
    """The device that a table of measurements describes.

    Args:
        path: CSV with the columns target_us, seconds, conductance_us, device.
        degree: of the polynomials, less where there are few levels; None: what the standard errors of the figures ask for, up to 5.
        plot: where to draw the fit, with its notes.

    Raises:
        UsageError: a column is missing, a value is no number or negative, or there are too few points.
    """
    found = fit(path, degree=degree)
    if plot is not None:
        found.plot(plot)
    return found.device


def fit(path: str | Path, *, degree: int | None = None) -> Fit:
    """As `from_measurements`, with the figures behind the polynomials, and what to know of the fit."""
    if degree is not None and not 0 <= degree <= 6:
        raise UsageError("fit of measurements", got=f"degree={degree}", wanted="0 to 6")
    reads = read(Path(path))
    found, growth, left_out = levels(reads, str(path))
    g_max = float(reads.target.max())
    made: dict[str, tuple[float, ...]] = {}
    misfit: dict[str, float] = {}
    for name in QUANTITIES:
        x = np.array([_place(level, name) for level in found]) / g_max
        y, error = (np.array([part[name] for part in parts]) for parts in zip(*((item.values, item.errors) for item in found), strict=True))
        made[name], misfit[name] = through(x, y, error, degree)
    device = Measured(
        g_max=g_max,
        written=made["written"],
        bias=made["bias"],
        exponent=made["exponent"],
        exponent_spread=made["exponent_spread"],
        reading=made["reading"],
        growth=growth,
        begins=float(reads.times[0]),
        lowest=float(reads.target.min()),
    )
    return Fit(device, tuple(found), left_out, misfit)


def through(x: Array, y: Array, error: Array, degree: int | None) -> tuple[tuple[float, ...], float]:
    """A polynomial through figures with standard errors: its coefficients, and its largest distance from them in standard errors.

    Args:
        x: (figures,).
        y: figures, NaN where there is none.
        error: their standard errors.
        degree: None for the lowest that is explained.

    >>> through(np.arange(5.0), np.array([1.0, 3.0, 5.0, 7.0, 9.0]), np.full(5, 0.1), None)[0]
    (1.0, 2.0)
    """
    known = np.isfinite(y)
    if not known.any():
        return (0.0,), 0.0
    nearest = np.abs(x[:, None] - x[known]).argmin(1)  # a level without a figure, as of drift where devices are off, has its neighbour's
    y, error = y[known][nearest], error[known][nearest]
    error = np.maximum(error, FINE * float(np.abs(y).max()) or 1.0)
    most = len(y) - 1
    best, away = np.zeros(1), y / error
    for power in range(min(DEGREE, most) + 1) if degree is None else (min(degree, most),):
        best = np.polynomial.polynomial.polyfit(x, y, power, w=1 / error)
        away = (y - np.polynomial.polynomial.polyval(x, best)) / error
        if float(away @ away) <= EXPLAINED * (most - power):
            break
    return tuple(float(c) for c in best), float(np.abs(away).max())


def _place(level: Level, name: str) -> float:
    """Where a figure stands, in microsiemens: noise of reading belongs to what was written, the rest to what was wanted."""
    return level.seen if name == "reading" else level.target
