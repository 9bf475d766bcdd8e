"""Where on its tile a weight lies: inputs and outputs in another order, columns with their signs turned, undone digitally.

    physical[p, q] = sign[q] logical[row[p], column[q]]

Inputs are handed to rows in the order `row`, sums are taken from columns in the order `column` and turned by `sign`. On devices without
errors nothing changes. Order is free only within a physical tile, so its scale, its converters and its reference column stay its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.analog.tiles.crossbar import Crossbar


@dataclass(frozen=True)
class Arrangement:
    """The order on some tiles that lie beside each other.

    Attributes:
        chip: seed of the instance that it is meant for.
        rows: logical row of each physical one, `tile (column tile) row`.
        columns: logical column of each physical one, `tile column`; within the column's own tile.
        signs: 1 or -1, `tile column`, by physical column.
        width: columns of a physical tile.
    """

    chip: int
    rows: Tensor
    columns: Tensor
    signs: Tensor
    width: int

    def place(self, tiles: Tensor) -> Tensor:
        """Logical weights `tile row column` as they lie."""
        ordered = torch.take_along_dim(tiles, self.columns[:, None], 2) * self.signs[:, None].to(tiles)
        parts = ordered.split(self.width, -1)
        return torch.cat([torch.take_along_dim(part, self.rows[:, i, :, None], 1) for i, part in enumerate(parts)], -1)

    def take(self, crossbar: Crossbar, scale: Tensor) -> tuple[Crossbar, Tensor]:
        """What lies there and its scale, `tile 1 column`, in logical order."""
        back = self.columns.argsort(-1)
        turned = self.signs[:, None, None]

        def logical(values: Tensor, signed: bool) -> Tensor:
            values = values * turned.to(values) if signed else values
            parts = [torch.take_along_dim(p, self._rows(i), 2) for i, p in enumerate(values.split(self.width, -1))]
            return torch.take_along_dim(torch.cat(parts, -1), back[:, None, None], 3)

        shared = crossbar.shared
        if shared is not None:
            shared = torch.cat([torch.take_along_dim(p, self._rows(i), 2) for i, p in enumerate(shared.split(1, -1))], -1)
        variance = None if crossbar.variance is None else logical(crossbar.variance, False)
        powers = None if crossbar.powers is None else (logical(crossbar.powers[0], True), logical(crossbar.powers[1], True))
        held = None if crossbar.held is None else logical(crossbar.held, True)
        return Crossbar(logical(crossbar.signed, True), variance, shared, powers, held), torch.take_along_dim(scale, back[:, None], 2)

    def _rows(self, tile: int) -> Tensor:
        """Physical row of each logical one, `tile 1 row 1`."""
        return self.rows[:, tile].argsort(-1)[:, None, :, None]


def as_it_is(chip: int, tiles: Tensor, width: int) -> Arrangement:
    """The order in which weights `tile row column` lie without one."""
    count, rows, columns = tiles.shape
    beside = -(-columns // width)
    order = torch.arange(rows, device=tiles.device).expand(count, beside, rows).clone()
    across = torch.arange(columns, device=tiles.device).expand(count, columns).clone()
    return Arrangement(chip, order, across, tiles.new_ones(count, columns), width)
