"""Measured time as a budget: a table of what each product takes at each width on this machine, interpolated between the widths.

Time does not follow multiplications: a narrow product leaves vector units idle, and at a batch of one the weights' way through memory
decides. So every distinct product of a forward (`lessen.targets.profile`) is run by itself at five widths of each axis that can be
narrowed, with warm-up, and the median counts. A model's time is

    t(widths) = sum over products of table(widths), bilinear between measured widths, + rest

where `rest` is what the whole forward took beyond its products (norms, activations, memory traffic); it is taken to stay. Tables are
kept on disk, keyed by everything that a time depends on: processor, threads, device, dtype and version of torch.

Tables of measured layers: Cai et al. 2019, ProxylessNAS, https://arxiv.org/abs/1812.00332 (section 3.3.1); Shen et al. 2022, HALP,
https://arxiv.org/abs/2110.10811 (section 3.1). Ours: rest, interpolation and the cache.
"""

import json
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lessen.core.unit import Unit
from lessen.environment import processor
from lessen.targets.profile import Use, attention_unit, profile

FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
WARM_UP, RUNS, ENOUGH = 3, 15, 0.15  # runs thrown away, runs timed at most, seconds after which the median is good enough


def measured(run: Callable[[], Any], device: torch.device, runs: int = RUNS, enough: float = ENOUGH) -> float:
    """Median milliseconds of a call, after warm-up.

    Args:
        run: what to time.
        device: a CUDA device is waited for.
        runs: how often at most.
        enough: seconds after which three runs suffice.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    times: list[float] = []
    began = time.perf_counter()
    with torch.no_grad():
        for turn in range(WARM_UP + runs):
            wait()
            started = time.perf_counter()
            run()
            wait()
            if turn >= WARM_UP or time.perf_counter() - began > enough:
                times.append(time.perf_counter() - started)
            if len(times) >= 3 and time.perf_counter() - began > enough:
                break
    return 1000 * median(times)


def preferred_multiple(device: torch.device) -> int:
    """Widths that kernels like: whole vector registers on a processor, whole tiles of the tensor cores on a GPU."""
    return 64 if device.type == "cuda" else 8


def cache_folder() -> Path:
    """Where tables are kept: `lessen` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lessen"


class Table:
    """Measured milliseconds of single products on one device, kept in a file.

    Args:
        device: where to measure.
        dtype: of all operands.
        folder: where the file is; None: `cache_folder()`.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, folder: Path | None = None):
        self.device, self.dtype = device, dtype
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        self.machine = f"{name}, {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}"
        self.path = (folder or cache_folder()) / f"latency-{sha256(self.machine.encode()).hexdigest()[:16]}.json"
        self.times: dict[str, float] = {}
        self.fresh = 0
        try:
            self.times = json.loads(self.path.read_text())["milliseconds"]
        except (OSError, ValueError, KeyError):
            self.times = {}

    def milliseconds(self, op: str, shapes: tuple[tuple[int, ...], ...], settings: tuple[Any, ...] = ()) -> float:
        """What one product of these exact shapes takes; measured if it is not in the file yet."""
        key = json.dumps([op, shapes, settings])
        if key not in self.times:
            self.times[key] = measured(self._runner(op, shapes, settings), self.device)
            self.fresh += 1
        return self.times[key]

    def save(self) -> None:
        """Write what was measured, aside and then renamed. A cache that cannot be written is no error."""
        if not self.fresh:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside = self.path.with_suffix(f".{os.getpid()}.aside")
            aside.write_text(json.dumps({"machine": self.machine, "milliseconds": self.times}, indent=0))
            aside.replace(self.path)
        except OSError:
            return
        self.fresh = 0

    def _runner(self, op: str, shapes: tuple[tuple[int, ...], ...], settings: tuple[Any, ...]) -> Callable[[], Any]:
        # Zeros would do for the time, but subnormal or constant operands have been seen to be faster on some processors.
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(shape, generator=generator).to(self.device, self.dtype) for shape in shapes)
        match op:
            case "matmul":
                return lambda: F.linear(a, b)
            case "convolution":
                return lambda: torch.convolution(a, b, None, *settings)
            case "attention":
                return lambda: F.scaled_dot_product_attention(a, b, b, enable_gqa=a.shape[1] != b.shape[1])
            case _:
                return lambda: torch.bmm(a, b)


class Latency:
    """Milliseconds of a forward as a cost; see `Cost`.

    Args:
        model: as it is.
        run: runs it once on the inputs that count.
        units: what may be narrowed.
        table: measured products.
    """

    name = "milliseconds"

    def __init__(self, model: nn.Module, run: Callable[[], Any], units: Sequence[Unit], table: Table):
        self.table, self.sizes = table, [unit.size for unit in units]
        self.device = table.device
        self.whole = measured(run, self.device, enough=2.0)
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._on: dict[str, dict[int, list[tuple[int, int]]]] = {}
        for place, unit in enumerate(units):
            for part in unit.slices:
                self._on.setdefault(part.name, {}).setdefault(part.axis, []).append((place, part.span * part.repeat))
        self._curves: dict[str, _Curve] = {}
        self._uses: list[tuple[_Curve, list[list[tuple[int, int]]]]] = []
        self._of: list[set[int]] = [set() for _ in units]
        for use in profile(model, run):
            self._take(use, units)
        table.save()
        self.rest = 0.0
        self.rest = max(0.0, self.whole - self.at(self.sizes))
        self.whole = self.at(self.sizes)

    def at(self, widths: Sequence[int]) -> float:
        return self.rest + sum(self._time(use, widths) for use in range(len(self._uses)))

    def saving(self, widths: Sequence[int], unit: int, width: int) -> float:
        after = list(widths)
        after[unit] = width
        return sum(self._time(use, widths) - self._time(use, after) for use in self._of[unit])

    def _take(self, use: Use, units: Sequence[Unit]) -> None:
        """Note a product that some unit narrows; others belong to the rest."""
        if use.weight is not None and use.op in ("matmul", "convolution") and use.weight in self._on:
            axes = [self._on[use.weight].get(axis, []) for axis in (0, 1)]
        elif use.op in ("attention", "batched") and (place := attention_unit(units, use.module)) is not None:
            axes = [[(place, 1)], []]
        else:
            return
        for _, place in enumerate({place for axis in axes for place, _ in axis}):
            self._of[place].add(len(self._uses))
        key = json.dumps([use.op, use.shapes, use.settings, [bool(axis) for axis in axes], [self._full(use, i) for i in (0, 1)]])
        if key not in self._curves:
            self._curves[key] = _Curve(use, [self._full(use, i) if axes[i] else 0 for i in (0, 1)], self.table, units)
        self._uses.append((self._curves[key], axes))

    def _full(self, use: Use, axis: int) -> int:
        """The length of an axis of the weight; for attention all its heads count as what the unit has."""
        if use.weight is not None:
            return self._shapes[use.weight][axis]
        return use.shapes[0][1] if use.op == "attention" else use.shapes[0][0]

    def _time(self, use: int, widths: Sequence[int]) -> float:
        curve, axes = self._uses[use]
        shares = []
        for axis, full in zip(axes, curve.full, strict=True):
            gone = sum(span * (self.sizes[u] - widths[u]) for u, span in axis)
            total = full if curve.weighted else sum(self.sizes[u] for u, _ in axis)
            shares.append(1 - gone / total if total else 1.0)
        return curve.at(*shares)


class _Curve:
    """One product's time over the shares that are left of its two axes."""

    def __init__(self, use: Use, full: Sequence[int], table: Table, units: Sequence[Unit]):
        self.full, self.weighted = list(full), use.weight is not None
        self.grids = [sorted({self._step(n, f) for f in FRACTIONS}) if n else [1.0] for n in full]
        self.times = [[table.milliseconds(*self._shaped(use, a, b)) for b in self.grids[1]] for a in self.grids[0]]

    def _step(self, full: int, fraction: float) -> float:
        """A share that is a whole multiple of eight, where that is possible."""
        length = round(full * fraction / 8) * 8 if full >= 16 and self.weighted else round(full * fraction)
        return min(max(1, length), full) / full

    def _shaped(self, use: Use, a: float, b: float) -> tuple[str, tuple[tuple[int, ...], ...], tuple[Any, ...]]:
        """The operands of the product with these shares of its two axes left."""
        first, second = use.shapes
        if use.op == "matmul":
            out, width = (max(1, round(n * s)) for n, s in zip(second, (a, b), strict=True))
            return use.op, ((first[0], width), (out, width)), ()
        if use.op == "convolution":
            stride, padding, dilation, transposed, extra, groups = use.settings
            rows, columns = (max(1, round(n * s)) for n, s in zip(second[:2], (a, b), strict=True))
            if groups > 1:  # what leaves is whole groups
                groups = rows = max(1, round(groups * a)) * (second[0] // groups)
                groups = max(1, rows // (second[0] // use.settings[5]))
            channels = rows if transposed else columns * groups
            settings = (stride, padding, dilation, transposed, extra, groups)
            return use.op, ((first[0], channels, *first[2:]), (rows, columns, *second[2:])), settings
        if use.op == "attention":
            heads, keys = max(1, round(first[1] * a)), max(1, round(second[1] * a))
            heads = max(keys, heads // keys * keys)
            return use.op, ((first[0], heads, *first[2:]), (second[0], keys, *second[2:])), ()
        batch = max(1, round(first[0] * a))
        return use.op, ((batch, *first[1:]), (batch, *second[1:])), ()

    def at(self, a: float, b: float) -> float:
        """Bilinear between measured shares; below the smallest one, as there."""
        (i, x), (j, y) = (_place(grid, share) for grid, share in zip(self.grids, (a, b), strict=True))
        near, far = self.times[i], self.times[min(i + 1, len(self.times) - 1)]
        k = min(j + 1, len(near) - 1)
        return (1 - x) * ((1 - y) * near[j] + y * near[k]) + x * ((1 - y) * far[j] + y * far[k])


def _place(grid: Sequence[float], share: float) -> tuple[int, float]:
    """The grid point at or below a share, and how far it is to the next."""
    after = bisect_left(grid, share)
    if after == 0:
        return 0, 0.0
    if after == len(grid):
        return len(grid) - 1, 0.0
    return after - 1, (share - grid[after - 1]) / (grid[after] - grid[after - 1])
