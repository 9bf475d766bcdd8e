"""What the devices of each level of targets showed in a table of reads: the figures that `devices.measured` puts polynomials through.

Targets are gathered into levels (those that there are, or at most 16 groups of near ones). In this order, for each level:

    read     var(t) = v r(t)^2 (1 + growth ln(t / t0))      of reads of one device at one time around their mean; r(t): what drift has left
    written  mean and variance of a device's first mean less its target, v / reads taken out
    drift    nu by least squares in ln g over ln t for each device; mean, and variance less what var(t) gives it

`growth` is one for the device and not negative, the likeliest (a sum of squares with m degrees of freedom is var chi^2_m). Why a logarithm:
noise with a spectrum 1/f, seen since it began t ago in reads that take t_r, has as its variance the integral of df/f from 1/t to 1/t_r,
ln(t / t_r). So growth = 1 / ln(t0 / t_r), and reads at several times tell it without t_r. Every figure has its standard error: of a
variance from the fourth moment, sqrt((m4 - m2^2) / n). Values beyond 4.5 robust deviations (1.4826 median absolute deviations) are left
out. Drift needs conductances above zero, so devices that were ever read at or below it are left out of nu; the fit counts them.

Method: least squares, maximum likelihood and robust trimming are textbook; the model of drift and of 1/f noise is that of
Nandakumar et al. 2019 (`devices.pcm`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lessen.analog.devices.table import Array, Reads
from lessen.errors import UsageError

LEVELS = 16
"""Groups of targets at most."""
LEAST = 8
"""Devices of a level at least."""
ON = 0.95
"""Share of a level's devices that is read above zero if they are said to be on."""
ACCIDENTS = 0.8
"""Share of values that are left at least where wild ones are left out."""
GROWTHS = np.concatenate([[0.0], np.geomspace(1e-4, 100, 2801)])
"""Growths of the noise that are tried, half a percent apart."""

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """What the devices of one target showed; NaN: the table does not say.

    Attributes:
        target: mean of the targets, in microsiemens.
        seen: mean conductance at the first time, in microsiemens.
        devices: how many.
        values: of `QUANTITIES`, by name, deviations and bias in microsiemens.
        errors: standard errors of these.
    """

    target: float
    seen: float
    devices: int
    values: dict[str, float]
    errors: dict[str, float]


QUANTITIES = ("written", "bias", "exponent", "exponent_spread", "reading")
"""What a level has a figure of."""


def levels(reads: Reads, where: str) -> tuple[list[Level], float, int]:
    """What each level showed, the growth of the noise of reading, and how many devices have no exponent of drift.

    Args:
        reads: as `table.read` gives them.
        where: to name in an error.

    Raises:
        UsageError: too few levels, or devices in one.
    """
    members = _levels(reads.target, where)
    masks = [members == i for i in range(members.max() + 1)]
    rise = np.log(reads.times / reads.times[0])
    left = _left(reads, masks)
    spread, freedom = (np.array(part) for part in zip(*(_noise(reads, mine) for mine in masks), strict=True))
    known = np.isfinite(left).all(1)
    spread = spread / np.where(np.isfinite(left), left, np.nanmedian(left, 0) if known.any() else 1.0) ** 2
    growth = _growth(spread[known], freedom[known], rise)
    total = freedom.sum(1)
    base = np.divide((spread / (1 + growth * rise)).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)
    slope, error = _slopes(reads, base[members], 1 + growth * rise)
    found = [_level(reads, mine, (base[i], total[i]), (slope[mine], error[mine]), where) for i, mine in enumerate(masks)]
    drifting = any(math.isfinite(item.values["exponent"]) for item in found)
    return found, growth, int((~np.isfinite(slope)).sum()) if drifting else 0


def _levels(target: Array, where: str) -> Whole:
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


def _noise(reads: Reads, mine: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Sums of squares of a level's reads at each time, and their degrees of freedom; wild devices left out."""
    squares, freedom = reads.square[mine], np.maximum(reads.count[mine] - 1, 0)
    # Deviations, not variances, are judged: those of two reads are skewed enough for honest ones to look wild.
    total = freedom.sum(1)
    known = _kept(np.sqrt(np.divide(squares.sum(1), total, out=np.full(len(total), np.nan), where=total > 0)))
    return squares[known].sum(0), freedom[known].sum(0)


def _left(reads: Reads, masks: list[NDArray[np.bool_]]) -> Array:
    """Share of its conductance that drift has left each level at each time, (levels, times); NaN of levels that are off.

    A share of squares, since noise goes with it: where exponents differ, their mean square is above the square of their median.
    """
    left = np.full((len(masks), len(reads.times)), np.nan)
    for i, mine in enumerate(masks):
        mean = reads.mean[mine]
        for j, now in enumerate(mean.T):
            both = np.isfinite(mean[:, 0]) & np.isfinite(now)
            start, end = mean[both, 0], now[both]
            if len(start) and ((start > 0) & (end > 0)).mean() > ON:
                kept = _kept(np.divide(end, start, out=np.full(len(end), np.nan), where=start > 0))
                left[i, j] = math.sqrt(float(end[kept] @ end[kept]) / float(start[kept] @ start[kept]))
    return left


def _growth(squares: Array, freedom: Array, rise: Array) -> float:
    """Likeliest growth of a variance with `rise`, (times,), from sums of squares and degrees of freedom, (levels, times)."""
    known = (freedom.sum(1) > 0) & (squares.sum(1) > 0)
    squares, freedom = squares[known], freedom[known]
    if not ((freedom.sum(0) > 0) & (rise > 0)).any() or not freedom[:, 0].any():
        return 0.0
    factor = 1 + GROWTHS[:, None] * rise  # (growths, times)
    base = (squares / factor[:, None]).sum(2) / freedom.sum(1)  # each level's own variance, (growths, levels)
    surprise = (freedom.sum(1) * np.log(base)).sum(1) + (freedom.sum(0) * np.log(factor)).sum(1)
    return float(GROWTHS[surprise.argmin()])


def _slopes(reads: Reads, base: Array, factor: Array) -> tuple[Array, Array]:
    """Drift exponent of every device, and the variance that reading gives it; NaN where there is none to be had.

    Args:
        reads: of all devices.
        base: variance of a read at the first time, (devices,).
        factor: by which it has grown, (times,).
    """
    known = np.isfinite(reads.mean)
    usable = (known.sum(1) > 1) & (np.where(known, reads.mean, 1.0) > 0).all(1)
    known &= usable[:, None]
    points = np.maximum(known.sum(1), 1)[:, None]
    t, g = np.where(known, np.log(reads.times), 0.0), np.log(np.where(known, reads.mean, 1.0))
    t = np.where(known, t - t.sum(1, keepdims=True) / points, 0.0)
    g = np.where(known, g - g.sum(1, keepdims=True) / points, 0.0)
    width = np.where(usable, (t * t).sum(1), np.nan)
    slope = -(t * g).sum(1) / width
    # a read's relative variance is that of the first time, grown: what drift takes from a conductance it takes from its noise
    start = np.where(known, reads.mean, np.nan)[:, :1]
    relative = base[:, None] * factor / np.maximum(reads.count, 1) / start**2
    error = (t * t * np.where(known, relative, 0.0)).sum(1) / width**2
    rest = ((g + slope[:, None] * t) ** 2).sum(1) / np.maximum(points[:, 0] - 2, 1) / width
    return slope, np.where(np.isfinite(error), error, np.where(points[:, 0] > 2, rest, np.nan))


def _level(reads: Reads, mine: NDArray[np.bool_], noise: tuple[float, float], drift: tuple[Array, Array], where: str) -> Level:
    """Figures of the devices of one level.

    Args:
        reads: of all devices.
        mine: which devices these are.
        noise: variance of a read at the first time, and its degrees of freedom.
        drift: exponent, and the variance that reading gives it, of these devices.
        where: to name in an error.
    """
    target, start, count = reads.target[mine], reads.mean[mine, 0], reads.count[mine, 0]
    written = _trimmed(start - target)
    if len(written) < LEAST:
        got = f"{len(written)} devices of {float(target.mean()):g} uS at the first time"
        raise UsageError(where, got=got, wanted=f"{LEAST} or more, measured at the same first time as all others")
    variance, freedom = noise
    each = float((1 / count[count > 0]).mean())
    on = np.isfinite(drift[0]).mean() > ON  # else those that happened to be read high would speak for the others
    slopes, errors = _trimmed(drift[0]) if on else np.empty(0), drift[1]
    explained = float(np.median(errors[np.isfinite(errors)])) if np.isfinite(errors).any() else 0.0
    figures = {
        "written": _deviation(written, variance * each if freedom else 0.0),
        "bias": _mean(written),
        "exponent": _mean(slopes),
        "exponent_spread": _deviation(slopes, explained),
        "reading": (math.sqrt(variance), math.sqrt(variance / (2 * freedom))) if freedom else (math.nan, math.nan),
    }
    values, wrong = ({name: figure[i] for name, figure in figures.items()} for i in (0, 1))
    seen = float(start[np.isfinite(start)].mean())
    return Level(float(target.mean()), seen, int(mine.sum()), values, wrong)


def _mean(values: Array) -> tuple[float, float]:
    """Mean and its standard error; NaN where there are too few."""
    return (float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))) if len(values) >= LEAST else (math.nan, math.nan)


def _deviation(values: Array, other: float) -> tuple[float, float]:
    """Deviation with another source's variance taken out, and its standard error; NaN where there are too few."""
    if len(values) < LEAST:
        return math.nan, math.nan
    squares = (values - values.mean()) ** 2
    error = float(squares.std()) / math.sqrt(len(values))
    own = math.sqrt(max(float(values.var(ddof=1)) - other, 0.0))
    return own, error / (2 * max(own, math.sqrt(error))) if error else 0.0


def _trimmed(values: Array) -> Array:
    """Values that are kept."""
    return values[_kept(values)]


def _kept(values: Array) -> NDArray[np.bool_]:
    """Which values are finite and within 4.5 robust deviations of the median; all that are finite where many are not: no accidents."""
    finite = np.isfinite(values)
    if not finite.any():
        return finite
    away = np.abs(values - np.median(values[finite]))
    width = 1.4826 * float(np.median(away[finite]))
    kept = finite & (away <= 4.5 * width)
    return kept if kept.sum() > ACCIDENTS * finite.sum() else finite
