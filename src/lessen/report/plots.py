"""The plots of the page, each as inline SVG in a wide form for desktops and a narrow one for phones.

A plot that has nothing to show is None; the page then says so.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from lessen.core.record import Record, Run
from lessen.report import facts, svg
from lessen.report.text import number, role, short, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 1000, 336
MARKERS = "os^Dv<>P"
DASHES = [(0, ()), (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2))]


def quality_against_bytes(run: Run, wide: bool) -> str | None:
    """Size on x, KL to the original on y; a bar spans the texts."""
    points = _points(run)
    if len(points) < 2:
        return None
    fig = svg.figure(WIDE if wide else NARROW, 400 if wide else 380)
    axes: Axes = fig.add_subplot()
    for name, x, values, kind in points:
        colour = svg.ACCENT if kind in ("result", "export") else svg.MUTED
        mean = sum(values) / len(values)
        axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=2, alpha=0.45, solid_capstyle="butt")
        filled = kind == "result"
        axes.plot(
            x, mean, "o", color=colour, markersize=9 if filled else 7, markerfacecolor=colour if filled else svg.PAPER, markeredgewidth=1.8
        )
    top = max(max(values) for _, _, values, _ in points)
    right = max(x for _, x, _, _ in points)
    axes.set(
        xlim=(0, right * 1.08),
        ylim=(-0.04 * top, top * 1.25 or 1),
        xlabel="size of the weights",
        ylabel="KL to the original, nats per token",
    )
    axes.xaxis.set_major_formatter(lambda x, _: size(x) if x else "0")
    axes.locator_params(axis="x", nbins=8 if wide else 4)
    axes.locator_params(axis="y", nbins=6)
    floor = facts.quality_mean(run, "kld_noise")
    if floor is not None:
        axes.axhline(floor, color=svg.MUTED, linewidth=1, linestyle=(0, (3, 3)))
    _label(axes, points, wide, right, top)
    shown = "; ".join(f"{name}: {size(x)}, KL {number(sum(v) / len(v))}" for name, x, v, _ in points)
    return svg.inline(fig, f"quality-{_form(wide)}", "Quality against bytes", shown)


def _points(run: Run) -> list[tuple[str, float, list[float], str]]:
    """(name, bytes, KL by text, kind) of the source, the result, its exports and the candidates."""
    result = [float(row["kld_mean"]) for row in run.quality.values() if row.get("kld_mean") is not None]
    if not result:
        return []
    points: list[tuple[str, float, list[float], str]] = []
    source, small = facts.before(run, "size_bytes"), facts.after(run, "size_bytes")
    if small:
        points.append(("result", small, result, "result"))
    points += [
        (str(e["format"]), e["size_bytes"], result, "export") for e in run.exports if e.get("size_bytes") and e["size_bytes"] != small
    ]
    rivals: dict[str, tuple[float, list[float]]] = {}
    for row in run.quality.values():
        for rival in row.get("candidates", ()):
            rivals.setdefault(rival["name"], (rival["size_bytes"], []))[1].append(rival["kld_mean"])
    points += [(name, x, values, "candidate") for name, (x, values) in rivals.items()]
    if source:
        points.append(("source", source, [0.0], "source"))
    return points


def _label(axes: "Axes", points: list[tuple[str, float, list[float], str]], wide: bool, right: float, top: float) -> None:
    """Names beside the marks: a column to the right of the crowd, sorted by height, joined by thin lines."""
    crowd = sorted((p for p in points if p[3] != "source"), key=lambda p: (-sum(p[2]) / len(p[2]), p[1]))
    column = max(p[1] for p in crowd) + right * (0.06 if wide else 0.1)
    if column > right * 0.75:
        column = min(p[1] for p in crowd) - right * 0.3
    step = top * (0.085 if wide else 0.1)
    height = math.inf
    for name, x, values, kind in crowd:
        mean = sum(values) / len(values)
        height = min(height - step, mean + step * 0.5 * len(crowd) / 2, top * 1.2)
        axes.annotate(
            f"{name}, {size(x)}",
            (x, mean),
            (column, height),
            va="center",
            color=svg.ACCENT if kind != "candidate" else svg.MUTED,
            fontweight="bold" if kind == "result" else "normal",
            arrowprops={"arrowstyle": "-", "color": svg.LINE, "linewidth": 1, "shrinkA": 2, "shrinkB": 5},
        )
    for name, x, _, kind in points:
        if kind == "source":
            axes.annotate(f"{name}, {size(x)}", (x, 0), (0, 12), textcoords="offset points", ha="right", color=svg.MUTED)


def error_by_block(run: Run, wide: bool) -> str | None:
    """One panel per kind of tensor: the error of what was kept, by block, and of every candidate."""
    measured = [r for r in run.records if r.error]
    panels = facts.by_role(measured) or ({"units in order": measured} if measured else {})
    if not panels:
        return None
    columns = min(len(panels), 4 if wide else 2)
    rows = math.ceil(len(panels) / columns)
    fig = svg.figure(WIDE if wide else NARROW, 34 + rows * (165 if wide else 135))
    kept = list(dict.fromkeys(short(r.method) for r in measured))
    tried = sorted({short(name) for r in measured for name in r.candidates})
    grid = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for cell in grid.flat[len(panels) :]:
        cell.axis("off")
    for cell, (name, records) in zip(grid.flat, panels.items(), strict=False):
        _error_panel(cell, records, kept, tried)
        cell.set_title(name, loc="left", pad=4)
    for cell in grid[:, 0]:
        cell.set_yscale("log")
        cell.yaxis.set_minor_formatter(lambda *_: "")
        cell.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    handles = _legend(kept, tried)
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles) if wide else 3, handlelength=1.8, columnspacing=1.2)
    fig.supxlabel("decoder block", fontsize=12, color=svg.MUTED)
    worst = max(measured, key=lambda r: r.error or 0)
    shown = "; ".join(f"{name}: {number(min(_errors(rs)))} to {number(max(_errors(rs)))}" for name, rs in panels.items())
    shown += f". Largest: {worst.unit}, {number(worst.error)}."
    return svg.inline(fig, f"error-{_form(wide)}", "Relative squared error by block, one panel per kind of layer", shown)


def _errors(records: list[Record]) -> list[float]:
    return [r.error for r in records if r.error is not None]


def _error_panel(axes: "Axes", records: list[Record], kept: list[str], tried: list[str]) -> None:
    xs = [i if r.block is None else r.block for i, r in enumerate(records)]
    for i, name in enumerate(tried):
        ys = [next((e for key, e in r.candidates.items() if short(key) == name and e > 0), math.nan) for r in records]
        axes.plot(xs, ys, color=svg.MUTED, linewidth=1.1, linestyle=DASHES[i % len(DASHES)])
    for i, name in enumerate(kept):
        mine = [(x, r.error) for x, r in zip(xs, records, strict=True) if short(r.method) == name]
        if mine:
            axes.plot(*zip(*mine, strict=True), MARKERS[i % len(MARKERS)], color=svg.ACCENT, markersize=3.6, markeredgewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)  # pyright: ignore[reportAttributeAccessIssue]


def _legend(kept: list[str], tried: list[str]) -> list:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=svg.ACCENT, marker=MARKERS[i % len(MARKERS)], linestyle="", markersize=5, label=f"{name} kept")
        for i, name in enumerate(kept)
    ]
    return marks + [
        Line2D([], [], color=svg.MUTED, linewidth=1.2, linestyle=DASHES[i % len(DASHES)], label=f"{name} tried")
        for i, name in enumerate(tried)
    ]


def bits_by_tensor(run: Run, wide: bool) -> str | None:
    """A cell per tensor, the darker the more bits; tensors outside the blocks have a row each."""
    records = [r for r in run.records if r.action in ("quantize", "skip", "replace", "factor")]
    rows: dict[str, list[Record]] = {}
    for r in records:
        rows.setdefault(role(r.unit), []).append(r)
    if not rows:
        return None
    blocks = 1 + max((r.block for r in records if r.block is not None), default=0)
    fig = svg.figure(WIDE if wide else NARROW, 62 + len(rows) * (26 if wide else 24))
    most = max(r.bits for r in records)
    axes: Axes = fig.add_subplot()
    for y, cells in enumerate(rows.values()):
        _bit_row(axes, y, cells, blocks, most)
    axes.set(xlim=(0, blocks), ylim=(len(rows) - 0.4, -0.6), xlabel="decoder block")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(axis="y", labelcolor=svg.INK)
    axes.set_xticks(np.unique(np.linspace(0, blocks - 1, min(blocks, 7)).round()) + 0.5)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x - 0.5:.0f}")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    shown = "; ".join(f"{name}: {_span(cells)} bits per weight" for name, cells in rows.items())
    return svg.inline(fig, f"bits-{_form(wide)}", "Stored bits per weight of every tensor", shown)


def _bit_row(axes: "Axes", y: int, cells: list[Record], blocks: int, most: float) -> None:
    for r in cells:
        x, width = (0, blocks) if r.block is None else (r.block, 1)
        gap = 0.04 * min(1, blocks / 30)
        axes.barh(y, width - 2 * gap, left=x + gap, height=0.78, color=svg.ACCENT, alpha=round(0.12 + 0.88 * r.bits / most, 3), linewidth=0)
    axes.annotate(_span(cells), (blocks, y), (8, 0), textcoords="offset points", va="center", annotation_clip=False)


def _span(cells: list[Record]) -> str:
    low, high = min(r.bits for r in cells), max(r.bits for r in cells)
    return number(low) if number(low) == number(high) else f"{number(low)} to {number(high)}"


def _form(wide: bool) -> str:
    return "wide" if wide else "narrow"


def draw(run: Run) -> dict[str, tuple[str, str] | None]:
    """Every plot, wide and narrow, by name; None where there is nothing to show. LessenError without matplotlib."""
    plots = {"quality": quality_against_bytes, "error": error_by_block, "bits": bits_by_tensor}
    drawn: dict[str, tuple[str, str] | None] = {}
    with svg.style():
        for name, plot in plots.items():
            wide, narrow = plot(run, True), plot(run, False)
            drawn[name] = (wide, narrow) if wide and narrow else None
    return drawn
