"""The plots of the page, each as inline SVG in a wide form for desktops and a narrow one for phones.

A plot that has nothing to show is None; the page then says so.
"""

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from lessen.core.record import Record, Run
from lessen.report import decisions, facts, svg
from lessen.report.text import distinct, number, role, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = 1000, 336
MARKERS = "o^sDv<>P"
DASHES = [(0, ()), (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2))]
STEPS = (1, 2, 5, 10, 20, 50)


def draw(run: Run) -> dict[str, tuple[str, str] | None]:
    """Every plot, wide and narrow, by name; None where there is nothing to show. LessenError without matplotlib."""
    plots = {"quality": quality_against_bytes, "error": error_by_block, "bits": bits_by_tensor}
    drawn: dict[str, tuple[str, str] | None] = {}
    with svg.style():
        for name, plot in plots.items():
            wide, narrow = plot(run, True), plot(run, False)
            drawn[name] = (wide, narrow) if wide and narrow else None
    return drawn


def _form(wide: bool) -> str:
    return "wide" if wide else "narrow"


class _Point(NamedTuple):
    """One mark of the quality plot: bytes, KL by text, and whether it is the "source", "result", an "export" or a "candidate"."""

    name: str
    x: float
    klds: list[float]
    kind: str

    @property
    def y(self) -> float:
        return sum(self.klds) / len(self.klds)

    @property
    def colour(self) -> str:
        return svg.ACCENT if self.kind in ("result", "export") else svg.MUTED


def quality_against_bytes(run: Run, wide: bool) -> str | None:
    """Size on x, KL to the original on y; a bar spans the texts."""
    points = _points(run)
    if len(points) < 2:
        return None
    fig = svg.figure(WIDE if wide else NARROW, 380)
    axes: Axes = fig.add_subplot()
    for p in points:
        axes.plot([p.x, p.x], [min(p.klds), max(p.klds)], color=p.colour, linewidth=2.5, alpha=0.4, solid_capstyle="butt")
        filled = p.kind == "result"
        face, width = (p.colour, 9) if filled else (svg.PAPER, 7)
        axes.plot(p.x, p.y, "o", color=p.colour, markersize=width, markerfacecolor=face, markeredgewidth=1.8, zorder=3 + filled)
    top, right = max(max(p.klds) for p in points) or 1.0, max(p.x for p in points)
    axes.set(xlim=(0, right * 1.06), ylim=(-0.04 * top, top * 1.2), xlabel="size of the weights, as written")
    axes.set_title("KL to the original, nats per token", loc="left", color=svg.MUTED)
    axes.xaxis.set_major_formatter(lambda x, _: re.sub(r"\.0+ ", " ", size(x)) if x else "0")
    axes.locator_params(axis="x", nbins=8 if wide else 4)
    axes.locator_params(axis="y", nbins=6)
    floor = facts.quality_mean(run, "kld_noise")
    if floor is not None:
        axes.axhline(floor, color=svg.MUTED, linewidth=1, linestyle=(0, (3, 3)))
    _label(axes, points, wide, right, top)
    shown = "; ".join(f"{p.name}: {size(p.x)}, KL {number(p.y)}" for p in points)
    return svg.inline(fig, f"quality-{_form(wide)}", "Quality against bytes", shown)


def _points(run: Run) -> list[_Point]:
    """Source, result and candidates as evaluated; exports, which were not evaluated on the texts, at the result's KL and said so.

    All by the bytes of their weights: a tokenizer is as large before as after.
    """
    result = [float(row["kld_mean"]) for row in run.quality.values() if row.get("kld_mean") is not None]
    if not result:
        return []
    written = {str(e["format"]): e["weights_bytes"] for e in run.exports if e.get("weights_bytes")}
    source, small = facts.before(run, "size_bytes"), written.pop("huggingface", None) or facts.after(run, "size_bytes")
    points = [_Point("result", small, result, "result")] if small else []
    level = [sum(result) / len(result)]  # no bar: the spread over the texts was not measured either
    points += [_Point(f"{name} (KL not measured)", bytes_, level, "export") for name, bytes_ in written.items()]
    rivals: dict[str, _Point] = {}
    for row in run.quality.values():
        for rival in row.get("candidates", ()):
            rivals.setdefault(rival["name"], _Point(rival["name"], rival["size_bytes"], [], "candidate")).klds.append(rival["kld_mean"])
    points += rivals.values()
    return [*points, _Point("source", source, [0.0], "source")] if source else points


def _label(axes: "Axes", points: list[_Point], wide: bool, right: float, top: float) -> None:
    """Names in a column beside the crowd, sorted by height, joined to their marks by thin lines."""
    crowd = sorted((p for p in points if p.kind != "source"), key=lambda p: (-p.y, p.x))
    column = max(p.x for p in crowd) + right * (0.05 if wide else 0.09)
    left = column > right * (0.75 if wide else 0.5)
    if left:
        column = min(p.x for p in crowd) - right * (0.05 if wide else 0.09)
    step = top * 0.085
    height = math.inf
    for i, p in enumerate(crowd):
        level = [q for q in crowd if abs(q.y - p.y) < step]  # those that would lie over one another are centred on their marks
        height = min(height - step, p.y + step * (len(level) - 1) / 2) if i else p.y + step * (len(level) - 1) / 2
        axes.annotate(
            f"{p.name}, {size(p.x)}",
            (p.x, p.y),
            (column, height),
            va="center",
            ha="right" if left else "left",
            color=p.colour,
            fontweight="bold" if p.kind == "result" else "normal",
            arrowprops={"arrowstyle": "-", "color": svg.LINE, "linewidth": 1, "relpos": (float(left), 0.5), "shrinkA": 3, "shrinkB": 6},
        )
    for p in points:
        if p.kind == "source":
            axes.annotate(f"source, {size(p.x)}", (p.x, 0), (6, 11), textcoords="offset points", ha="right", color=svg.MUTED)


def error_by_block(run: Run, wide: bool) -> str | None:
    """A panel for the whole block with every candidate, and one for each kind of tensor; by block, on a logarithmic scale."""
    measured = [r for r in run.records if r.error and r.block is not None and r.action in ("quantize", "factor")]
    panels = decisions.by_role(measured)
    tried = {r.block: r for r in reversed(measured) if r.candidates}
    if not panels:
        return None
    names = distinct([*(r.method for r in measured), *(name for r in tried.values() for name in r.candidates)])
    kept = [name for name in names if any(r.method == name for r in measured)]
    cells = len(panels) + bool(tried)
    columns = min(cells, 4 if wide else 2)
    rows = math.ceil(cells / columns)
    fig = svg.figure(WIDE if wide else NARROW, 44 + rows * (170 if wide else 138))
    grid = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    if tried:
        _block_panel(grid[0], sorted(tried.values(), key=lambda r: r.block or 0), list(names), kept)
    for axes, (name, records) in zip(grid[bool(tried) :], panels.items(), strict=False):
        axes.set_title(name, loc="left", pad=5)
        _marks(axes, ((r, r.error) for r in records), kept)
    shown = [e for r in measured for e in (r.error, *_tried(r).values()) if e]
    spread = max(shown) / min(shown)
    for i, axes in enumerate(grid):
        axes.set_yscale("log")
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if spread < 100 else (1,))
        axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        axes.tick_params(labelbottom=i + columns >= cells)
        axes.set_axis_on() if i < cells else axes.set_axis_off()
    handles = _legend(names, kept, {name for r in tried.values() for name in r.candidates})
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles) if wide else 2, handlelength=1.8, columnspacing=1.4)
    fig.supxlabel("decoder block", fontsize=12, color=svg.MUTED)
    worst = max(measured, key=lambda r: r.error or 0)
    spans = {name: [r.error for r in records if r.error] for name, records in panels.items()}
    text = "; ".join(f"{name}: {number(min(errors))} to {number(max(errors))}" for name, errors in spans.items())
    title = "Relative squared error by decoder block, one panel per kind of layer"
    return svg.inline(fig, f"error-{_form(wide)}", title, f"{text}. Largest: {worst.unit}, {number(worst.error)}.")


def _tried(record: Record) -> dict[str, float]:
    """Errors of a block's candidates: what the block itself adds, where that was measured."""
    return record.own or record.candidates


def _block_panel(axes: "Axes", blocks: list[Record], names: list[str], kept: list[str]) -> None:
    axes.set_title("whole block", loc="left", pad=5, fontweight="bold")
    for i, name in enumerate(name for name in names if any(name in r.candidates for r in blocks)):
        errors = [_tried(r).get(name) or math.nan for r in blocks]
        axes.plot([r.block or 0 for r in blocks], errors, color=svg.MUTED, linewidth=1.1, linestyle=DASHES[i % len(DASHES)])
    _marks(axes, ((r, _tried(r).get(r.method)) for r in blocks), kept)


def _marks(axes: "Axes", points: Iterable[tuple[Record, float | None]], kept: list[str]) -> None:
    points = list(points)
    axes.plot([r.block or 0 for r, _ in points], [error or math.nan for _, error in points], color=svg.ACCENT, linewidth=1, alpha=0.4)
    for i, name in enumerate(kept):
        mine = [(r.block, error) for r, error in points if r.method == name and error]
        if mine:
            axes.plot(*zip(*mine, strict=True), MARKERS[i % len(MARKERS)], color=svg.ACCENT, markersize=4, markeredgewidth=0)


def _legend(names: dict[str, str], kept: list[str], tried: set[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    marks = {"color": svg.ACCENT, "linestyle": "", "markersize": 5.5}
    lines = [name for name in names if name in tried]
    return [
        *(Line2D([], [], marker=MARKERS[i % len(MARKERS)], label=f"{names[k]}, kept", **marks) for i, k in enumerate(kept)),
        *(Line2D([], [], color=svg.MUTED, linestyle=DASHES[i % len(DASHES)], label=f"{names[k]}, tried") for i, k in enumerate(lines)),
    ]


def bits_by_tensor(run: Run, wide: bool) -> str | None:
    """A cell per tensor, the stronger the more bits; a tensor outside the blocks has a row of its own."""
    records = [r for r in run.records if r.action in ("quantize", "factor") or (r.action == "skip" and r.bits)]
    rows: dict[str, list[Record]] = {}
    for r in records:
        rows.setdefault(role(r.unit), []).append(r)
    if not rows:
        return None
    blocks = 1 + max((r.block for r in records if r.block is not None), default=0)
    fig = svg.figure(WIDE if wide else NARROW, 56 + len(rows) * (27 if wide else 24))
    most = max(r.bits for r in records)
    axes: Axes = fig.add_subplot()
    for y, cells in enumerate(rows.values()):
        for r in cells:
            x, width, gap = (0, blocks, 0.0) if r.block is None else (r.block, 1, 0.06)
            strength = round(0.1 + 0.9 * r.bits / most, 3)
            axes.barh(y, width - 2 * gap, left=x + gap, height=0.78, color=svg.ACCENT, alpha=strength, linewidth=0)
        axes.annotate(_span(cells), (blocks, y), (7, 0), textcoords="offset points", va="center", annotation_clip=False)
    axes.set(xlim=(0, blocks), ylim=(len(rows) - 0.4, -0.6), xlabel="decoder block")
    axes.set_yticks(range(len(rows)), list(rows))
    step = next((s for s in STEPS if blocks / s <= 7), blocks)
    axes.set_xticks([x + 0.5 for x in range(0, blocks, step)])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x - 0.5:.0f}")
    axes.tick_params(axis="y", labelcolor=svg.INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    shown = "; ".join(f"{name}: {_span(cells)} bits per weight" for name, cells in rows.items())
    return svg.inline(fig, f"bits-{_form(wide)}", "Stored bits per weight of every tensor", shown)


def _span(cells: list[Record]) -> str:
    low, high = number(min(r.bits for r in cells)), number(max(r.bits for r in cells))
    return low if low == high else f"{low}–{high}"
