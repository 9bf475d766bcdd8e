"""Simulated devices against their sources: moments of every preset's devices, and whole distributions against aihwkit's.

Moments: conductances are drawn at three targets of each preset's device; mean and deviation are compared with the formulae, written out
here once more from the papers (`FORMULAE`: target, seconds -> mean, deviation before a conductance is cut at zero).
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


def rows(session: Session) -> Iterator[Row | None]:
    """A row for each preset, then one for each device that both toolkits have."""
    from lessen.analog.chipfile import presets

    draws = 20_000 if session.smoke else DRAWS
    for name in presets():
        if name in FORMULAE:
            yield session.row(f"moments {name}", lambda n=name: _moments(n, draws))
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
    """What was promised: 1 %, for every preset, and one distribution with the peer."""
    moments = [row for row in rows if row["key"].startswith("moments")]
    compared = [row for row in rows if "largest_distance" in row]
    count = sum(row["comparisons"] for row in compared)
    deviation = max((row["deviation_error_percent"] for row in moments), default=None)
    mean = max((row["mean_error_percent"] for row in moments), default=None)
    return [
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
