"""Remap: put weights where the stuck devices of a chip do least harm.

A stuck device holds 0 or 1 of its range whatever is written, so the error of a weight w at a place is known beforehand: with planes p of
share s_p(w) that count k_p (a pair: s = w and k = 1 for the positive device, s = -w and k = -1 for the other),

    e(w, place) = sum over planes of k_p (stuck_p(place) - s_p(w)), where stuck

A small weight on a device that is stuck low loses nothing. Rows and columns of a tile are free: inputs may come in any order and sums may
be taken in any order, and a column with its sign turned (its pairs swap sides) is turned back digitally. Which row goes where is an
assignment problem, solved exactly for given columns, and the other way round; taking turns can only lower the sum:

    rows      minimise  sum_i C[i, pi(i)],   C[i, p] = v_i sum_q c_q^2 e(w[i, q], (p, q))^2         v_i = E[x_i^2],  c_q the column's scale
    columns   the same for columns, each with the better of its two signs

`e` has few values for each pattern of faults, so C is a handful of matrix products. The order undone, a chip without faults computes what
it did. On the way stand tables of addresses for inputs and outputs, which most interconnects have.

Idea and assignment: fault-aware mapping by permutation is common knowledge in the field, e.g. Xia et al. 2017, DAC, "Fault-tolerant
training with on-line fault detection for RRAM-based neural computing systems"; exact squared errors for every encoding, weights of inputs
and signs in the same assignment are ours. Needs the map of faults of one instance, as a test of the chip would give it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lessen.analog.chip import Chip
from lessen.analog.mapping import Mapped
from lessen.analog.tiles.arrangement import Arrangement, as_it_is
from lessen.analog.tiles.crossbar import cut, pieces, scales, stuck
from lessen.analog.tiles.layer import Tiles, matrix
from lessen.analog.tiles.listening import listen
from lessen.core.event import Event, Listener
from lessen.core.strict import check_fields
from lessen.errors import UsageError


@dataclass(frozen=True)
class Remap:
    """Order rows and columns of every tile by what is stuck."""

    passes: int = 2
    """Turns of columns and rows."""
    rows: bool = True
    """Whether rows may move; never where wires are modelled by position (`Wires.model="fast"`)."""
    signs: bool = True
    """Whether columns may turn their signs."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.passes < 1:
            raise UsageError("Remap", got=f"passes={self.passes}", wanted="1 or more")

    def check(self, chip: Chip) -> None:
        """Refuse wires that are solved for every input."""
        if chip.wires.ohm and chip.wires.model == "iterative":
            remedy = 'wires.model="solved"'
            raise UsageError("Remap", got='wires.model="iterative"', wanted="wires that are solved when programmed", remedy=remedy)

    def arrange(
        self,
        mapped: Mapped,
        seed: int | None = None,
        batches: Iterable[Any] | None = None,
        run: Callable[[Any, Any], Any] | None = None,
        on_event: Listener | None = None,
    ) -> dict[str, tuple[float, float]]:
        """Arrange all layers for one chip instance and program it.

        Args:
            mapped: the network; converters calibrated.
            seed: of the instance; None: the one that is programmed.
            batches: calibration inputs, from which inputs get their weight; None: all weigh the same.
            run: how the model is called with a batch.
            on_event: progress.

        Returns:
            Expected squared error of each layer by its faults, before and after, in squared weights (times squared inputs with `batches`).
        """
        seed = mapped.seed if seed is None else seed
        self.check(mapped.chip)
        if seed is None:
            raise UsageError("Remap", got="a chip that is not programmed", wanted="program(seed) first, or a seed")
        power = {} if batches is None else input_power(mapped, batches, run)
        found: dict[str, tuple[float, float]] = {}
        for done, (name, layer) in enumerate(mapped.layers.items(), start=1):
            tiles = mapped.tiles(name)
            tiles.arranged, found[name] = self._layer(tiles, matrix(layer).detach(), seed, power.get(name))
            if on_event is not None:
                on_event(Event("remap", done, len(mapped.layers), name))
        mapped.program(seed, mapped.seconds)
        return found

    def __call__(self, mapped: Mapped) -> None:
        """For `simulate(adapt=Remap())`: arrange the instance that is looked at, once."""
        orders = [order.chip for name in mapped.layers for order in mapped.tiles(name).arranged.values()]
        if mapped.chip.faults and (not orders or orders[0] != mapped.seed):
            self.arrange(mapped)

    def _layer(self, tiles: Tiles, weight: Tensor, seed: int, power: Tensor | None) -> tuple[dict[int, Arrangement], tuple[float, float]]:
        orders: dict[int, Arrangement] = {}
        before = after = 0.0
        place, chip = tiles.place, tiles.chip
        inputs = weight.new_ones(place.groups * place.inputs) if power is None else power.to(weight)
        heavy = cut(inputs.reshape(place.groups, place.inputs), replace(place, outputs=1))[..., 0]  # tile row; absent rows weigh nothing
        for number, _, logical in pieces(weight, place):
            order = as_it_is(seed, logical, chip.columns)
            scale = scales(logical, chip)
            for tile in range(logical.shape[0]):
                for i, start in enumerate(range(0, logical.shape[2], chip.columns)):
                    span = slice(start, start + chip.columns)
                    marks = _marks(logical / scale, chip, (seed, tiles.name, number), tile, span)
                    one = _Tile(logical[tile, :, span] / scale[tile, :, span], scale[tile, 0, span], heavy[tile], chip, marks)
                    before += one.loss()
                    after += one.solve(self)
                    order.rows[tile, i], order.columns[tile, span], order.signs[tile, span] = one.rows, one.columns + start, one.signs
            orders[number] = order
        return orders, (before, after)


def _marks(scaled: Tensor, chip: Chip, address: tuple[int, str, int], tile: int, span: slice) -> list[Tensor]:
    """States of the devices of one physical tile, plane by plane."""
    seed, layer, number = address
    return [states[tile, :, span] for _, states in stuck(scaled, chip, seed, layer, number)]


class _Tile:
    """One physical tile and the order on it that is best so far."""

    def __init__(self, weight: Tensor, scale: Tensor, heavy: Tensor, chip: Chip, marks: Sequence[Tensor]):
        self.weight, self.scale, self.heavy, self.chip, self.marks = weight, scale, heavy, chip, marks
        self.rows, self.columns = torch.arange(weight.shape[0]), torch.arange(weight.shape[1])
        self.signs = torch.ones(weight.shape[1])

    def loss(self) -> float:
        """Weighted squared error of the order as it stands."""
        placed = (self.weight[self.rows][:, self.columns] * self.signs)[None]
        error = torch.zeros_like(placed)
        for d, m in self._deviations(placed, self.marks):
            error += d * m
        return float((error[0].square() * self.heavy[self.rows, None] * self.scale[self.columns].square()).sum())

    def solve(self, options: Remap) -> float:
        """Find an order; its loss."""
        if not any(bool(marks.any()) for marks in self.marks):
            return 0.0
        rows = options.rows and not (self.chip.wires.ohm and self.chip.wires.model == "fast")
        for _ in range(options.passes):
            self._columns(options.signs)
            if rows:
                self._rows()
        return self.loss()

    def _columns(self, signs: bool) -> None:
        by_row = self.weight[self.rows]
        turns = (1.0, -1.0) if signs else (1.0,)
        heavy = self.heavy[self.rows].sqrt()[:, None]
        costs = [self._cost((by_row * turn).t(), [m.t() for m in self.marks], heavy.t()) for turn in turns]
        cost = torch.stack(costs) * self.scale.square()[:, None]
        least = cost.min(0)
        physical = _assigned(least.values)  # of each logical column
        self.columns = physical.argsort()
        self.signs = torch.tensor(turns)[least.indices[self.columns, torch.arange(len(self.columns))]]

    def _rows(self) -> None:
        by_column = self.weight[:, self.columns] * self.signs
        cost = self._cost(by_column, self.marks, self.scale[self.columns][None]) * self.heavy[:, None]
        self.rows = _assigned(cost).argsort()

    def _cost(self, lines: Tensor, marks: Sequence[Tensor], heavy: Tensor) -> Tensor:
        """Squared error of each logical line (first axis of `lines`) at each physical one (first axis of the marks)."""
        parts = [(d[0] * heavy, m.to(lines)) for d, m in self._deviations(lines[None], marks)]
        total = lines.new_zeros(len(lines), len(lines))
        for i, (d, m) in enumerate(parts):
            total += d.square() @ m.t()  # marks are 0 or 1
            for other, mark in parts[i + 1 :]:
                if bool((both := m * mark).any()):
                    total += 2 * (d * other) @ both.t()
        return total.clamp_(min=0)

    def _deviations(self, weight: Tensor, marks: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For every plane and end: what a device stuck there adds to each weight, and where devices are."""
        planes = [plane for plane in self.chip.encoding.planes(weight) if not plane.reference]
        shifts = self.chip.encoding.shifts
        found = []
        for plane, states in zip(planes, marks, strict=True):
            counts = shifts[plane.slice] * plane.sign
            found += [(counts * (end - plane.share), states == mark) for end, mark in ((0.0, -1), (1.0, 1)) if bool((states == mark).any())]
        return found


def _assigned(cost: Tensor) -> Tensor:
    """For each row the column of the cheapest assignment."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(cost.double().numpy())[1])


def input_power(mapped: Mapped, batches: Iterable[Any], run: Callable[[Any, Any], Any] | None = None) -> dict[str, Tensor]:
    """E[x^2] of the inputs of every layer, `(group input)`, from a digital run."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hear(name: str, x: Tensor, _: Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + x.square().sum(0)
        counts[name] = counts.get(name, 0) + len(x)

    listen(mapped, hear, batches, run)
    return {name: sums[name] / counts[name] for name in sums}
