"""Simulated devices against their sources: moments of every preset's devices, and whole distributions against aihwkit's.

Moments: conductances are drawn at three targets of each preset's device; mean and deviation are compared with the formulae, written out
here once more from the papers (`FORMULAE`: target, seconds -> mean, deviation before a conductance is cut at zero).
Later: the same a day after programming, where the source has a law of time (`LATER`); exponents of drift of each device, mean and deviation
(`EXPONENTS`); noise of reading, drawn at the first time and a day later (`READING`: conductance as it is read and as written, seconds).
Distributions: the same device, target and time drawn by both toolkits, and the largest distance of the two cumulative distributions (the
statistic of Kolmogorov and Smirnov) with its p-value, corrected for the number of comparisons (Bonferroni).
"""

import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Goal, Row, Session, at_least, at_most

DAY = 86400.0
DRAWS, PAIRS = 2_000_000, 200_000
TIMES = {
    "PCM": (20.0, 3600.0, DAY),
    "HermesPCM": (300.0, 3600.0, DAY),
    "HermesSinglePCM": (200.0, 3600.0, DAY),
    "WanRRAM": (1.0, DAY, 2 * DAY),
}
SHARES = (0.0, 0.06, 0.3, 0.6, 1.0)  # of the range, where distributions are compared


def polynomial(coefficients: Sequence[float], x: float) -> float:
    return sum(c * x**k for k, c in enumerate(coefficients))


def foundation(g: float, seconds: float) -> tuple[float, float]:
    a = g * 180 / 25
    low, high = (
        (2.579741066, 0.2241968595, -3.715812081e-03, 2.939751381e-05),
        (2.110295720, 0.2453487120, -3.054993405e-03, 1.232975540e-05),
    )
    return g, polynomial(low if a <= 52.5 else high, a) * 25 / 180


def cmo(g: float, seconds: float) -> tuple[float, float]:
    log = math.log(seconds)
    return g - 0.08900206 * log, math.hypot(0.0112185391 + 0.01129027418 * g, 0.04201137 * log + 0.41183342)


def nor(g: float, seconds: float) -> tuple[float, float]:
    s = 1.0 / (1.4 * 0.08617333262 * 300)
    return g * math.exp(s * s / 2), math.sqrt(g * g * math.exp(s * s) * (math.exp(s * s) - 1) + 0.005**2)


Formula = Callable[[float, float], tuple[float, float]]
FORMULAE: dict[str, Formula] = {
    "ideal": lambda g, t: (g, 0.0),
    "isaac": lambda g, t: (g, 0.0),
    "sram-charge": lambda g, t: (g, 0.005 * g),
    "pcm-nandakumar": lambda g, t: (g, polynomial((0.26348, 1.9650, -1.1731), g / 25)),
    "pcm-hermes": lambda g, t: (g, polynomial((0.16603222, 4.71806468, -8.48101252, 4.68961419), g / 20.7)),
    "pcm-joshi": lambda g, t: (g, polynomial((0.28638599, 0.07585724, -0.00178767), g)),
    "pcm-foundation": foundation,
    "rram-neurram": lambda g, t: (g, polynomial((0.348, 16.030, -43.853, 45.393, -16.815), g / 40)),
    "rram-milo": lambda g, t: (g, 4.782321 - 0.009107 * g),
    "rram-cmo": cmo,
    "nor-wtm2101": nor,
    "sonos-40nm": lambda g, t: (g, 0.1988665 * (1 - math.exp(-100 * g / 176.3115))),
}


def folded(mean: float, sigma: float) -> tuple[float, float]:
    """Mean and deviation of |mean + sigma n|."""
    found = sigma * math.sqrt(2 / math.pi) * math.exp(-((mean / sigma) ** 2) / 2) + mean * math.erf(mean / sigma / math.sqrt(2))
    return found, math.sqrt(mean**2 + sigma**2 - found**2)


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def hermes_exponent(g: float) -> tuple[float, float]:
    x = g / 20.7
    mean = clip(-0.0387 * math.log(x) - 0.0182, 0.0720, 0.13) if x < 0.0945 else polynomial((0.0736, -0.0126, -0.0436), x)
    spread = clip(-0.0117 * math.log(x) - 0.0057, 0.0091, 0.04) if x < 0.3055 else polynomial((0.0073, 0.0093, -0.0118), x)
    return folded(mean, spread)


def hermes_reading(g: float, written: float, seconds: float) -> float:
    x = written / 20.7
    quality = clip(-0.0117 * math.log(x) - 0.0069, 0.015, 0.04) if x < 0.16 else polynomial((0.0123, 0.0211, -0.0280, 0.0069), x)
    return g * quality * math.sqrt(math.log((seconds + 512e-9) / (2 * 512e-9)))


def sonos_later(g: float, seconds: float) -> tuple[float, float]:
    moved = (0.68365, 6.5125, -403.163, 3379.44, -18743.5, 58890.2, -107685, 117751, -76001.6, 26725.5, -3949.54)
    return g + polynomial(moved, g / 10) / 100, 0.2559102 * (1 - math.exp(-100 * g / 186.85544))


LATER: dict[str, Formula] = {
    "rram-cmo": cmo,
    "rram-neurram": lambda g, t: (g, polynomial((0.701, 22.086, -50.773, 47.095, -16.458), g / 40)),
    "sonos-40nm": sonos_later,
}
EXPONENTS: dict[str, Callable[[float], tuple[float, float]]] = {
    "pcm-nandakumar": lambda g: folded(
        clip(0.0244 - 0.0155 * math.log(g / 25), 0.049, 0.1), clip(-0.0059 - 0.0125 * math.log(g / 25), 0.008, 0.045)
    ),
    "pcm-hermes": hermes_exponent,
    # g grows with exp((loss + spread n) log10 t / (n V_T)): as a power of t, negative
    "nor-wtm2101": lambda g: (-0.5 / (1.4 * 0.08617333262 * 300 * math.log(10)), 0.3 / (1.4 * 0.08617333262 * 300 * math.log(10))),
}
READING: dict[str, Callable[[float, float, float], float]] = {
    "pcm-nandakumar": lambda g, p, t: g * min(0.2, 0.0088 / max((p / 25) ** 0.65, 1e-3)) * math.sqrt(math.log((t + 250e-9) / 500e-9)),
    "pcm-hermes": hermes_reading,
    "rram-cmo": lambda g, p, t: 0.0277316483 * math.log10(max(g, 1.0)) * math.sqrt(math.log((t + 1e-6) / 2e-6)),
    "nor-wtm2101": lambda g, p, t: g * 0.3 / (1.4 * 0.08617333262 * 300),
    "sonos-40nm": lambda g, p, t: 0.1258037 * (1 - math.exp(-100 * g / 215.36557)),
}


def rows(session: Session) -> Iterator[Row | None]:
    """A row for each preset, then one for each device that both toolkits have."""
    from lessen.analog.chipfile import presets

    draws = 20_000 if session.smoke else DRAWS
    for name in presets():
        if name in FORMULAE:
            yield session.row(f"moments {name}", lambda n=name: _moments(n, draws))
    for name in FORMULAE:
        if name in LATER or name in EXPONENTS or name in READING:
            yield session.row(f"later {name}", lambda n=name: _later(n, draws))
    for kind in ("PCM",) if session.smoke else TIMES:
        yield session.row(f"distribution {kind}", lambda k=kind: _distributions(k, session.smoke))


def _moments(name: str, draws: int) -> Row:
    """The largest errors of mean and deviation at three targets, in percent of the deviation."""
    import torch

    from lessen.analog.chipfile import preset
    from lessen.analog.tiles.streams import stream

    device = preset(name).device
    seconds, worst = device.first, {"mean": 0.0, "deviation": 0.0}
    for share in (0.3, 0.6, 1.0):
        g = device.g_min + share * (device.g_max - device.g_min)
        found = device.drifted(device.program(torch.full((draws,), g), stream(0, name, share)), seconds).double()
        mean, sigma = FORMULAE[name](g, seconds)
        if sigma == 0:
            worst["mean"] = max(worst["mean"], 100 * float((found - g).abs().max()) / g)
            continue
        worst["mean"] = max(worst["mean"], 100 * abs(float(found.mean()) - mean) / sigma)
        worst["deviation"] = max(worst["deviation"], 100 * abs(float(found.std()) / sigma - 1))
    return {"preset": name, "draws": draws, **{f"{key}_error_percent": round(value, 4) for key, value in worst.items()}}


def _later(name: str, draws: int) -> Row:
    """The largest errors of what time and reading do, a day after programming, at three targets, in percent.

    Means are compared in parts of the deviation.
    """
    import torch

    from lessen.analog.chipfile import preset
    from lessen.analog.tiles.streams import normal, stream

    device, worst = preset(name).device, {}

    def note(key: str, error: float) -> None:
        worst[key] = max(worst.get(key, 0.0), 100 * abs(error))

    for share in (0.3, 0.6, 1.0):
        g = device.g_min + share * (device.g_max - device.g_min)
        cells = device.program(torch.full((draws,), g, dtype=torch.float64), stream(1, name, share))
        first, found = device.drifted(cells, device.first), device.drifted(cells, DAY)
        if name in LATER:
            mean, sigma = LATER[name](g, DAY)
            note("later_mean", (float(found.mean()) - mean) / sigma)
            note("later_deviation", float(found.std()) / sigma - 1)
        if name in EXPONENTS:
            kept = first > 0
            exponent = -(found[kept] / first[kept]).log() / math.log(DAY / device.first)
            mean, sigma = EXPONENTS[name](g)
            note("exponent_mean", (float(exponent.mean()) - mean) / sigma)
            note("exponent_deviation", float(exponent.std()) / sigma - 1)
        for seconds in (device.first, DAY) if name in READING else ():
            level, written = torch.full((draws,), 0.9 * g, dtype=torch.float64), torch.full((draws,), g, dtype=torch.float64)
            sigma = device.read_sigma(level, seconds, written)
            if sigma is None:
                note("reading", 1.0)
                continue
            noise = sigma * normal(level, stream(2, name, share, seconds))
            note("reading", float(noise.std()) / READING[name](0.9 * g, g, seconds) - 1)
    return {"preset": name, "draws": draws, "seconds": DAY, **{f"{key}_error_percent": round(value, 4) for key, value in worst.items()}}


def _distributions(kind: str, smoke: bool) -> Row:
    """Ours against aihwkit's at every target and time; in smoke runs, ours against ours."""
    import numpy as np

    count = 2_000 if smoke else PAIRS
    device = _device(kind)
    cases = [(kind, share * device.g_max, seconds) for share in SHARES for seconds in TIMES[kind]]
    ours = [_draw(device, g, seconds, count, 0) for _, g, seconds in cases]
    if smoke:
        theirs = [_draw(device, g, seconds, count, 1) for _, g, seconds in cases]
    else:
        from benchmarks.peers import python, script
        from lessen.errors import LessenError

        try:
            interpreter = python("aihwkit")
        except LessenError as error:
            return {"device": kind, "reason": str(error)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "draws.npz"
            lines = [f"{kind} {g!r} {seconds!r}" for _, g, seconds in cases]
            command = [str(interpreter), str(script("analog_noise")), str(path), str(count)]
            subprocess.run(command, input="\n".join(lines), text=True, check=True)
            with np.load(path) as data:
                theirs = [data[line] for line in lines]
    found = [distance(a, b) for a, b in zip(ours, theirs, strict=True)]
    worst = min(range(len(found)), key=lambda i: found[i][1])
    return {
        "device": kind,
        "comparisons": len(found),
        "draws": count,
        "largest_distance": round(max(d for d, _ in found), 5),
        "smallest_p": float(f"{found[worst][1]:.3g}"),
        "at": f"{cases[worst][1]:g} uS, {cases[worst][2]:g} s",
    }


def _device(kind: str) -> Any:
    from lessen.analog.devices import DEVICES

    return next(cls for cls in DEVICES if cls.__name__ == kind)()


def _draw(device: Any, g: float, seconds: float, count: int, seed: int) -> Any:
    import torch

    from lessen.analog.tiles.streams import normal, stream

    cells = device.program(torch.full((count,), g), stream(seed, "program", g))
    found = device.drifted(cells, seconds)
    sigma = device.read_sigma(found, seconds, cells.conductance)
    if sigma is not None:
        found = found + sigma * normal(found, stream(seed, "read", g, seconds))
    return found.clamp(min=0).numpy()


def distance(a: Any, b: Any) -> tuple[float, float]:
    """Largest distance of two samples' cumulative distributions, and how often chance alone gives as much (Kolmogorov's limit).

    >>> distance([1.0, 2.0], [3.0, 4.0])[0]
    1.0
    """
    import numpy as np

    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    away = np.searchsorted(a, both, side="right") / len(a) - np.searchsorted(b, both, side="right") / len(b)
    found = float(np.abs(away).max())
    x = found * math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    if x < 0.2:
        return found, 1.0
    return found, min(max(2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101)), 0.0), 1.0)


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What was promised: 1 %, for every preset and law, and one distribution with the peer."""
    moments = [row for row in rows if row["key"].startswith("moments")]
    compared = [row for row in rows if "largest_distance" in row]
    count = sum(row["comparisons"] for row in compared)
    deviation = max((row["deviation_error_percent"] for row in moments), default=None)
    mean = max((row["mean_error_percent"] for row in moments), default=None)
    later = [row for row in rows if row["key"].startswith("later")]

    def furthest(*names: str) -> float | None:
        return max((row[f"{n}_error_percent"] for row in later for n in names if f"{n}_error_percent" in row), default=None)

    return [
        at_most(
            "exponents of drift, mean in parts of the deviation, and deviation, worst preset",
            furthest("exponent_mean", "exponent_deviation"),
            1.0,
            " %",
        ),
        at_most("mean and deviation a day later, worst preset with a law of time", furthest("later_mean", "later_deviation"), 1.0, " %"),
        at_most("noise of a read at the first time and a day later, worst preset", furthest("reading"), 1.0, " %"),
        at_most(f"error of the sampled deviation, worst of {len(moments)} presets", deviation, 1.0, " %"),
        at_most("error of the sampled mean in parts of the deviation, worst preset", mean, 1.0, " %"),
        at_most(
            f"largest distance to aihwkit's distributions, {count} comparisons",
            max((row["largest_distance"] for row in compared), default=None),
            0.01,
        ),
        at_least(
            "smallest p-value of these, times their number",
            min(count * min(row["smallest_p"] for row in compared), 1.0) if compared else None,
            0.01,
        ),
    ]
