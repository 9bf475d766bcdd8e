"""The plots of a run on an analog chip, each in a wide form and a narrow one: quality over time, energy by layer, tile map, Pareto front.

Arrays and converters are drawn in the accent colour, what stands around them in grey. A plot that has nothing to show is None.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lessen.report import svg
from lessen.report.analog_facts import ENERGIES, Run, choice, unit
from lessen.report.plots import NARROW, WIDE
from lessen.report.text import number, percent, role

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Plot = tuple[str, str] | None
SHADES = {
    "adc": (svg.ACCENT, 1.0), "dac": (svg.ACCENT, 0.6), "cells": (svg.ACCENT, 0.3), "digital": (svg.MUTED, 1.0),
    "buffers": (svg.MUTED, 0.6), "interconnect": (svg.MUTED, 0.32), "loading": (svg.INK, 1.0),
}  # fmt: skip
BARS = 16


def draw(run: Run) -> dict[str, Plot]:
    """Every plot, wide and narrow, by name. LessenError without matplotlib."""
    plots: dict[str, Callable[[Run, bool], str | None]] = {
        "quality": quality_over_time, "energy": energy_by_layer, "tiles": tile_map, "front": pareto_front,
    }  # fmt: skip
    drawn: dict[str, Plot] = {}
    with svg.style():
        for name, plot in plots.items():
            wide, narrow = plot(run, True), plot(run, False)
            drawn[name] = (wide, narrow) if wide and narrow else None
    return drawn


def quality_over_time(run: Run, wide: bool) -> str | None:
    """Mean over the chips with a band of one standard deviation, every chip as a thin line, the digital model dashed."""
    if not run["qualities"] or not run["metrics"]:
        return None
    metric = run["metrics"][0]
    looks = {found["name"]: [x for x in found["looks"] if x["values"][metric["name"]] is not None] for found in run["qualities"]}
    if not all(looks.values()):
        return None
    fig = svg.figure(WIDE if wide else NARROW, 360 if wide else 300)
    axes: Axes = fig.add_subplot()
    ticks: dict[float, str] = {}
    said = []
    for place, found in enumerate(run["qualities"]):
        told = found["rows"][metric["name"]]
        rows = [row for row in told if row["mean"] is not None and row["spread"] is not None]
        last = place == len(run["qualities"]) - 1
        colour = svg.ACCENT if last else svg.MUTED
        x = [_at(row["seconds"]) for row in rows]
        mean, spread = [row["mean"] for row in rows], [row["spread"] for row in rows]
        ticks |= {_at(row["seconds"]): row["time"] for row in told}
        chips: dict[int, list[tuple[float, float]]] = {}
        for look in looks[found["name"]]:
            chips.setdefault(look["chip"], []).append((_at(look["seconds"]), look["values"][metric["name"]]))
        for points in chips.values():
            axes.plot(*zip(*sorted(points), strict=True), color=colour, linewidth=0.8, alpha=0.35, zorder=1)
        low, high = [m - s for m, s in zip(mean, spread, strict=True)], [m + s for m, s in zip(mean, spread, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(x, mean, "o-", color=colour, linewidth=2, markersize=5, label=found["name"], zorder=3)
        said.append(f"{found['name']}: " + ", ".join(f"{row['time']} {number(row['mean'])} ± {number(row['spread'])}" for row in told))
    digital = run["qualities"][0]["digital"].get(metric["name"])
    if digital is not None and not _distant(digital, run, metric["name"]):
        axes.axhline(digital, color=svg.MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="digital")
    shown = [look["values"][metric["name"]] for found in looks.values() for look in found]
    if min(shown) > 0 and max(shown) / min(shown) > 30:
        axes.set_yscale("log")
    _times(axes, ticks, wide)
    axes.set_title(metric["title"], loc="left", color=svg.MUTED)
    axes.set_xlabel("time since programming")
    fig.legend(*axes.get_legend_handles_labels(), loc="outside upper right" if wide else "outside lower left", ncols=3)
    return svg.inline(fig, f"quality-{_form(wide)}", f"{metric['title']} over time", f"{'; '.join(said)}. Digital: {number(digital)}.")


def _at(seconds: float) -> float:
    return math.log10(max(seconds, 1.0))


def _distant(digital: float, run: Run, name: str) -> bool:
    """Whether a line for the digital model would squeeze all others (the signal to an error of nothing is 300 dB)."""
    shown = [x for found in run["qualities"] for look in found["looks"] if (x := look["values"][name]) is not None]
    return abs(digital) >= 300 and abs(digital) > 2 * max(map(abs, shown))


def _times(axes: "Axes", ticks: Mapping[float, str], wide: bool) -> None:
    """Labels at the times themselves, left out where they would touch."""
    width = max(max(ticks) - min(ticks), 1.0)
    kept: list[float] = []
    for x in sorted(ticks):
        if not kept or x - kept[-1] > width * (0.05 if wide else 0.13):
            kept.append(x)
    axes.set_xticks(kept, [ticks[x] for x in kept])


def energy_by_layer(run: Run, wide: bool) -> str | None:
    """Stacked bars of what spends energy, of the last kind of inference; a mark where the digital accelerator would be, or its figure."""
    if not run["costs"]:
        return None
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    what, found = list(run["costs"].items())[-1]
    bars = _bars(found["layers"])
    present = [part for part in ENERGIES if any(bar["energy"][part] > 0 for bar in bars)]
    largest = max(sum(bar["energy"].values()) for bar in bars)
    reach = max(largest, *(bar["baseline_pj"] for bar in bars))
    far = reach > 3 * largest  # marks that far out would leave nothing to see of the bars
    reach = largest * (1.3 if wide else 1.7) if far else reach
    name, scale = unit(largest)
    fig = svg.figure(WIDE if wide else NARROW, 90 + len(bars) * (24 if wide else 36))
    axes: Axes = fig.add_subplot()
    for y, bar in enumerate(bars):
        left = 0.0
        for part in present:
            colour, alpha = SHADES[part]
            axes.barh(y, bar["energy"][part] * scale, left=left, height=0.62 if wide else 0.42, color=colour, alpha=alpha, linewidth=0)
            left += bar["energy"][part] * scale
        digital, mark = bar["baseline_pj"] * scale, {"markerfacecolor": svg.PAPER, "markersize": 5, "markeredgewidth": 1.3}
        if far:
            text = f"digital {number(digital)}"
            axes.annotate(text, (left, y), (6, 0), textcoords="offset points", va="center", fontsize=11, color=svg.MUTED)
        else:
            axes.plot(digital, y, "o", color=svg.MUTED, zorder=3, **mark)
        if not wide:
            axes.annotate(bar["name"], (0, y), (0, 9), textcoords="offset points", va="bottom", fontsize=11, color=svg.INK)
    axes.set(ylim=(len(bars) - 0.4, -0.7 if wide else -0.95), xlim=(0, reach * scale * 1.04))
    axes.set_yticks(range(len(bars)) if wide else [], [bar["name"] for bar in bars] if wide else [])
    axes.tick_params(axis="y", labelcolor=svg.INK)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=8 if wide else 4)
    axes.set_xlabel(f"{name} of {'an' if what[0] in 'aeiou' else 'a'} {what}")
    handles: list[Any] = [Patch(color=SHADES[part][0], alpha=SHADES[part][1], label=part) for part in present]
    handles += [] if far else [Line2D([], [], marker="o", linestyle="", color=svg.MUTED, markerfacecolor=svg.PAPER, label="digital int8")]
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles) if wide else 3, handlelength=1.2, columnspacing=1.2)
    said = "; ".join(
        f"{bar['name']}: {number(sum(bar['energy'].values()) * scale)} {name}, digital {number(bar['baseline_pj'] * scale)}" for bar in bars
    )
    return svg.inline(fig, f"energy-{_form(wide)}", "Energy by layer and by what spends it", said)


def _bars(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers as they run; of many, those of one role together; of many roles, the rest in one bar."""
    named = [(layer["name"] or "the model", layer) for layer in layers]
    if len(named) > BARS:
        named = [(role(name), layer) for name, layer in named]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, layer in named:
        groups.setdefault(name, []).append(layer)
    bars = [
        {
            "name": name if len(members) == 1 else f"{name} × {len(members)}",
            "energy": {part: sum(m["energy"][part] for m in members) for part in ENERGIES},
            "baseline_pj": sum(m["baseline_pj"] for m in members),
        }
        for name, members in groups.items()
    ]
    if len(bars) <= BARS:
        return bars
    order = sorted(bars, key=lambda bar: -sum(bar["energy"].values()))
    kept, rest = order[: BARS - 1], order[BARS - 1 :]
    other = {part: sum(bar["energy"][part] for bar in rest) for part in ENERGIES}
    return [*kept, {"name": f"{len(rest)} others", "energy": other, "baseline_pj": sum(bar["baseline_pj"] for bar in rest)}]


def tile_map(run: Run, wide: bool) -> str | None:
    """A cell for every tile, in the order of the layers; the stronger, the fuller. Layers are set apart by a gap."""
    layers = run["layers"]
    tiles = sum(layer["tiles"] for layer in layers)
    if not tiles:
        return None
    width = WIDE if wide else NARROW
    across = min(tiles, max(12 if wide else 8, math.ceil(math.sqrt(tiles * (6.0 if wide else 1.6)))))
    cell = min(34.0, (width - 8) / across)
    down = -(-tiles // across)
    fig = svg.figure(width, down * cell + 10)
    fig.set_layout_engine("none")
    axes: Axes = fig.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, (width - 2) / cell), ylim=(down + 0.1, -0.1))
    single = tiles <= 300
    start = 0
    for layer in layers:
        for row, first, last in _runs(start, layer["tiles"], across):
            steps = range(first, last) if single else [first]
            gap = 0.06 if single else min(0.12, 0.3 / cell)
            for x in steps:
                stop = x + 1 if single else last
                axes.add_patch(_cell(x, row, stop - x, gap, 0.1 + 0.9 * layer["utilisation"]))
            text = _fitting(layer["name"] or "the model", (last - first) * cell)
            if text:
                strong = layer["utilisation"] > 0.55
                axes.text((first + last) / 2, row + 0.5, text, ha="center", va="center", fontsize=9, color=svg.PAPER if strong else svg.INK)
        start += layer["tiles"]
    said = "; ".join(
        f"{layer['name'] or 'the model'}: {layer['tiles']} tiles, {percent(layer['utilisation'])} in use" for layer in layers[:60]
    )
    return svg.inline(fig, f"tiles-{_form(wide)}", f"{tiles} tiles by layer", said)


def _runs(start: int, count: int, across: int) -> Iterator[tuple[int, int, int]]:
    """Row, first and last column of consecutive cells that are laid out line by line."""
    while count > 0:
        row, column = divmod(start, across)
        length = min(count, across - column)
        yield row, column, column + length
        start, count = start + length, count - length


def _cell(x: float, y: float, width: float, gap: float, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + gap / 2, y + gap / 2), width - gap, 1 - gap, facecolor=svg.ACCENT, alpha=alpha, linewidth=0)


def _fitting(name: str, room: float) -> str:
    """As much of a name as fits into `room` pixels of letters that are 5 wide; nothing if that tells nothing."""
    for text in (name, role(name)):
        if len(text) * 5.4 + 8 <= room:
            return text
    return ""


def pareto_front(run: Run, wide: bool) -> str | None:
    """Energy on x, quality on y, area as the size of a mark; the front joined."""
    found = run["exploration"]
    if not found or len(found["designs"]) < 2:
        return None
    sign, designs = found["sign"], found["designs"]
    largest = max(d["area_um2"] for d in designs)
    fig = svg.figure(WIDE if wide else NARROW, 400 if wide else 320)
    axes: Axes = fig.add_subplot()
    name, scale = unit(max(d["energy_pj"] for d in designs))
    front = sorted((d for d in designs if d["number"] in found["front"]), key=lambda d: d["energy_pj"])
    for d in designs:
        best = d["number"] in found["front"]
        colour, size = svg.ACCENT if best else svg.MUTED, 4 + 12 * math.sqrt(d["area_um2"] / largest)
        face = colour if best else svg.PAPER
        marks = {"markersize": size, "markerfacecolor": face, "markeredgewidth": 1.2, "alpha": 0.75}
        axes.plot(d["energy_pj"] * scale, sign * d["quality"], "o", color=colour, zorder=2 + best, **marks)
    for mark, d in enumerate(front, 1):
        place = (d["energy_pj"] * scale, sign * d["quality"])
        axes.annotate(str(mark), place, (0, 9 if mark % 2 else -20), textcoords="offset points", ha="center", color=svg.INK, zorder=5)
    energies = [d["energy_pj"] for d in designs]
    axes.margins(x=0.12, y=0.14)
    if max(energies) / min(energies) > 10:
        axes.set_xscale("log")
    axes.set_title(run["metrics"][0]["title"] if run["metrics"] else "quality", loc="left", color=svg.MUTED)
    axes.set_xlabel(f"energy of an inference, {name}; larger marks: larger chips" if wide else f"{name} of an inference")
    said = "; ".join(
        ", ".join(f"{path} {choice(value)}" for path, value in d["choices"].items())
        + f": {number(sign * d['quality'])}, {number(d['energy_pj'] * scale)} {name}, {number(d['area_um2'] * 1e-6)} mm²"
        for d in front
    )
    return svg.inline(fig, f"front-{_form(wide)}", "Quality against energy of every design", f"The front: {said}")


def _form(wide: bool) -> str:
    return "wide" if wide else "narrow"
