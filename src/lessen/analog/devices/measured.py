"""A device from measurements: what your chip does, in place of what a paper's did.

A table of reads, one a line, says which device was meant to have which conductance and what it had when:

    target_us,seconds,conductance_us,device
    5.0,20,5.31,0
    5.0,20,5.28,0          a device read more than once at a time shows the noise of reading
    5.0,3600,4.97,0        and at more than one time, its drift

With x = target / g_max, in microsiemens, fitted in this order:

    read     sigma_r(x)      deviation of reads of one device at one time around their mean
    written  b(x) + sigma(x) mean and deviation of a device's first mean from its target, the part of reading taken out
    drift    nu(x), s(x)     g = g_P (t / t0)^(-nu) for each device by least squares in logarithms; its scatter less what reading explains

Targets are gathered into levels (those that there are, or at most 16 groups of near ones). Each level gives a figure after values beyond
4.5 robust deviations (1.4826 median absolute deviations) are left out; polynomials go through the figures, weighted by how well each is
known. Drift needs conductances above zero, so devices that were ever read at or below it are left out of nu; the fit counts them.

Method: least squares and robust trimming are textbook; the model is that of Nandakumar et al. 2019 (`devices.pcm`) with free polynomials.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lessen.analog.devices.device import Cells, Device
from lessen.analog.devices.laws import decay, polynomial
from lessen.analog.tiles.streams import normal
from lessen.errors import UsageError

COLUMNS = ("target_us", "seconds", "conductance_us", "device")
"""What a table of measurements has; more columns are ignored."""
LEVELS = 16
"""Groups of targets at most."""
LEAST = 8
"""Devices of a level at least."""

Array = NDArray[np.float64]


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
    """Deviation of one read, in powers of the conductance that is read over g_max."""
    begins: float = 1.0
    """Seconds after programming of the first measurement."""

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
        object.__setattr__(self, "first", self.begins)  # the first time of other kinds is one for all of them

    def program(self, target: Tensor, generator: torch.Generator) -> Cells:
        self.check_target(target)
        x = target / self.g_max
        spread = polynomial(self.written, x).clamp_(min=0)
        written = normal(target, generator).mul_(spread).add_(target).add_(polynomial(self.bias, x)).clamp_(min=0)
        scatter = polynomial(self.exponent_spread, x).clamp_(min=0)
        return Cells(written, normal(target, generator).mul_(scatter).add_(polynomial(self.exponent, x)))

    def drifted(self, cells: Cells, seconds: float) -> Tensor:
        self.check_time(seconds)
        return cells.conductance if cells.drift is None else decay(cells.conductance, cells.drift, seconds, self.begins)

    def read_sigma(self, conductance: Tensor, seconds: float, programmed: Tensor | None = None) -> Tensor | None:
        self.check_time(seconds)
        return polynomial(self.reading, conductance / self.g_max).clamp_(min=0) if any(self.reading) else None


@dataclass(frozen=True)
class Level:
    """What the devices of one target showed, and the mean conductance at which their reads were compared; NaN: the table does not say."""

    target: float
    seen: float
    devices: int
    written: float
    bias: float
    reading: float
    exponent: float
    exponent_spread: float


@dataclass(frozen=True)
class Fit:
    """A device and the figures through which its polynomials go.

    Attributes:
        device: ready for a `Chip`.
        levels: a figure for each level of targets.
        left_out: devices without a drift exponent, since they were read at or below zero.
    """

    device: Measured
    levels: tuple[Level, ...]
    left_out: int

    def plot(self, path: str | Path) -> None:
        """Draw figures and polynomials (SVG, PNG, PDF by the ending); needs the extra `report`."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            remedy = "pip install lessen[report]"
            raise UsageError("plot of a fit", got="no matplotlib", wanted="it for drawing", remedy=remedy) from None
        device, x = self.device, torch.linspace(0, 1, 101, dtype=torch.float64)
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        parts = (
            ("deviation when written, uS", "written", device.written),
            ("drift exponent", "exponent", device.exponent),
            ("deviation of a read, uS", "reading", device.reading),
        )
        for axes, (title, name, coefficients) in zip(figure.subplots(1, 3), parts, strict=True):
            where = [level.seen if name == "reading" else level.target for level in self.levels]
            axes.plot(where, [getattr(level, name) for level in self.levels], "o", color="#1f6f8b", label="measured")
            axes.plot((x * device.g_max).numpy(), polynomial(coefficients, x).numpy(), color="#c8553d", label="fit")
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


def from_measurements(path: str | Path, *, degree: int = 2, plot: str | Path | None = None) -> Measured:
    """The device that a table of measurements describes.

    Args:
        path: CSV with the columns target_us, seconds, conductance_us, device.
        degree: of the polynomials; lower where there are few levels.
        plot: where to draw the fit.

    Raises:
        UsageError: a column is missing, a value is no number or negative, or there are too few points.
    """
    found = fit(path, degree=degree)
    if plot is not None:
        found.plot(plot)
    return found.device


def fit(path: str | Path, *, degree: int = 2) -> Fit:
    """As `from_measurements`, with the figures behind the polynomials."""
    if not 0 <= degree <= 6:
        raise UsageError("fit of measurements", got=f"degree={degree}", wanted="0 to 6")
    target, seconds, conductance, device = _table(Path(path))
    g_max, first = float(target.max()), float(seconds.min())
    chips, where = np.unique(np.column_stack([device.astype(np.float64), target]), axis=0, return_inverse=True)
    level = _levels(chips[:, 1], str(path))
    means, noise, freedom = _reads(where.ravel(), seconds, conductance)
    start = np.full(len(chips), np.nan)
    count = np.ones(len(chips))
    for (chip, time), (mean, reads) in means.items():
        if time == first:
            start[chip], count[chip] = mean, reads
    total = np.bincount(where.ravel(), conductance) / np.bincount(where.ravel())
    per_device = np.divide(noise, freedom, out=np.full(len(chips), np.nan), where=freedom > 0)
    slope, error = _slopes(len(chips), means, per_device)
    levels = [
        _level(level == i, (chips[:, 1], start, count), (total, noise, freedom), (slope, error), str(path)) for i in range(level.max() + 1)
    ]
    weight = np.array([math.sqrt(item.devices) for item in levels])

    def through(name: str) -> tuple[float, ...]:
        x = np.array([item.seen if name == "reading" else item.target for item in levels]) / g_max
        y = np.array([getattr(item, name) for item in levels])
        known = np.isfinite(y)
        if not known.any():
            return (0.0,)
        power = min(degree, int(known.sum()) - 1)
        return tuple(float(c) for c in np.polynomial.polynomial.polyfit(x[known], y[known], power, w=weight[known]))

    made = Measured(
        g_max=g_max,
        written=through("written"),
        bias=through("bias"),
        exponent=through("exponent"),
        exponent_spread=through("exponent_spread"),
        reading=through("reading"),
        begins=first,
    )
    drifting = any(math.isfinite(item.exponent) for item in levels)
    return Fit(made, tuple(levels), int((~np.isfinite(slope)).sum()) if drifting else 0)


def _table(path: Path) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Columns of a table, checked."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise UsageError(str(path), got=got.lower(), wanted="a table of measurements in CSV") from None
    missing = [name for name in COLUMNS if rows and name not in rows[0]]
    if missing or not rows:
        got = f"no column {missing[0]}" if missing else "no rows"
        raise UsageError(str(path), got=got, wanted=f"columns {', '.join(COLUMNS)} and a row for each read")
    columns: list[Array] = []
    for name in COLUMNS[:3]:
        values = np.empty(len(rows))
        for i, row in enumerate(rows):
            try:
                values[i] = float(row[name] or "nan")
            except ValueError:
                values[i] = math.nan
            least = 0.0 if name != "conductance_us" else -math.inf  # an amplifier's offset may read a little below zero
            if not (math.isfinite(values[i]) and values[i] >= least) or (name == "seconds" and values[i] == 0):
                wanted = {"seconds": "a number above 0", "target_us": "a number of at least 0"}.get(name, "a number")
                raise UsageError(f"{path}:{i + 2}", got=f"{name} = {row[name]!r}", wanted=wanted)
        columns.append(values)
    if columns[0].max() <= 0:
        raise UsageError(str(path), got="no target above 0", wanted="conductances up to the highest that is used")
    highest = float(columns[2][columns[0] == columns[0].max()].mean())
    if highest <= 0:
        raise UsageError(str(path), got=f"{highest:.3g} uS as mean of the highest target", wanted="conductances above 0, in microsiemens")
    names = {name: i for i, name in enumerate(dict.fromkeys(row["device"] for row in rows))}
    return columns[0], columns[1], columns[2], np.array([names[row["device"]] for row in rows])


def _levels(target: Array, where: str) -> NDArray[np.int64]:
    """Group of targets to which each device belongs."""
    values, index = np.unique(target, return_inverse=True)
    if len(values) > LEVELS:
        order = np.argsort(np.argsort(target, kind="stable"), kind="stable")
        index = order * LEVELS // len(target)
    sizes = np.bincount(index.ravel())
    if len(sizes) < 3 or sizes.min() < LEAST:
        got = f"{len(sizes)} levels of targets with at least {sizes.min()} devices"
        raise UsageError(where, got=got, wanted=f"3 levels or more with {LEAST} devices or more each")
    return index.ravel()


Means = dict[tuple[int, float], tuple[float, int]]


def _reads(chip: NDArray[np.int64], seconds: Array, conductance: Array) -> tuple[Means, Array, Array]:
    """Mean and number of reads of every device at every time; sums of squares around them, and their degrees of freedom, by device."""
    both = np.column_stack([chip.astype(np.float64), seconds])
    keys, index, counts = np.unique(both, axis=0, return_inverse=True, return_counts=True)
    index = index.ravel()
    mean = np.bincount(index, conductance) / counts
    square = np.bincount(index, (conductance - mean[index]) ** 2)
    owner = keys[:, 0].astype(np.int64)
    means = {(int(c), float(t)): (float(m), int(n)) for (c, t), m, n in zip(keys, mean, counts, strict=True)}
    return means, np.asarray(np.bincount(owner, square), np.float64), np.asarray(np.bincount(owner, counts - 1.0), np.float64)


def _slopes(devices: int, means: Means, noise: Array) -> tuple[Array, Array]:
    """Drift exponent of every device, and the variance that reading gives it; NaN where there is none to be had."""
    series: list[list[tuple[float, float, int]]] = [[] for _ in range(devices)]
    for (chip, time), (mean, reads) in means.items():
        series[chip].append((time, mean, reads))
    slope, error = np.full(devices, np.nan), np.full(devices, np.nan)
    for chip, points in enumerate(series):
        if len(points) < 2 or min(mean for _, mean, _ in points) <= 0:
            continue
        t, g = np.log([p[0] for p in points]), np.log([p[1] for p in points])
        centred = t - t.mean()
        spread = float(centred @ centred)
        slope[chip] = -float(centred @ g) / spread
        if math.isfinite(noise[chip]):
            relative = np.array([noise[chip] / p[2] / p[1] ** 2 for p in points])
            error[chip] = float((centred**2) @ relative) / spread**2
        elif len(points) > 2:
            rest = g - g.mean() + slope[chip] * centred
            error[chip] = float(rest @ rest) / (len(points) - 2) / spread
    return slope, error


def _level(
    mine: NDArray[np.bool_],
    first: tuple[Array, Array, Array],
    reads: tuple[Array, Array, Array],
    drift: tuple[Array, Array],
    where: str,
) -> Level:
    """Figures of the devices of one level.

    Args:
        mine: which devices these are.
        first: target, mean of the reads at the first time, and their number, of every device.
        reads: mean of all, sum of squares around the means at each time, and its degrees of freedom.
        drift: exponent, and the variance that reading gives it.
        where: to name in an error.
    """
    target, start, count = (values[mine] for values in first)
    written = _trimmed(start - target)
    if len(written) < LEAST:
        got = f"{len(written)} devices of {float(target.mean()):g} uS at the first time"
        raise UsageError(where, got=got, wanted=f"{LEAST} or more, measured at the same first time as all others")
    # Deviations, not variances, are judged: those of two reads are skewed enough for honest ones to look wild.
    known = _kept(np.sqrt(np.divide(reads[1], reads[2], out=np.full(len(mine), np.nan), where=reads[2] > 0)[mine]))
    freedom = float(reads[2][mine][known].sum())
    reading = math.sqrt(float(reads[1][mine][known].sum()) / freedom) if freedom else math.nan
    own = float(written.var(ddof=1)) - (reading**2 * float((1 / count).mean()) if freedom else 0.0)
    slopes, errors = _trimmed(drift[0][mine]), drift[1][mine]
    explained = float(np.median(errors[np.isfinite(errors)])) if np.isfinite(errors).any() else 0.0
    drifting = len(slopes) >= LEAST
    return Level(
        target=float(target.mean()),
        seen=float(np.median(reads[0][mine])),
        devices=int(mine.sum()),
        written=math.sqrt(max(own, 0.0)),
        bias=float(written.mean()),
        reading=reading,
        exponent=float(slopes.mean()) if drifting else math.nan,
        exponent_spread=math.sqrt(max(float(slopes.var(ddof=1)) - explained, 0.0)) if drifting else math.nan,
    )


def _trimmed(values: Array) -> Array:
    """Values that are kept."""
    return values[_kept(values)]


def _kept(values: Array) -> NDArray[np.bool_]:
    """Which values are finite and within 4.5 robust deviations of the median."""
    finite = np.isfinite(values)
    if not finite.any():
        return finite
    away = np.abs(values - np.median(values[finite]))
    width = 1.4826 * float(np.median(away[finite]))
    return finite & (away <= 4.5 * width) if width > 0 else finite
