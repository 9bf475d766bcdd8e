"""Wires of whole physical tiles: the planes of an encoding share the rows of one array, and every physical column has a wire of its own.

    plane p of weight column j     is column  j devices + p: all devices of a weight beside each other, as `Array.columns` counts them
    reference columns              behind the last weight column, farthest from the drivers

`Wires.model` says what is solved on such an array:

    fast        the closed form of `resistance.lost_share` for each physical column, its load the conductance of all devices on it. A device
                that holds nothing of a weight still conducts g_min, and an offset column half of its range: it is they that load the wire
    columns     every column as a ladder (`resistance.effective`); rows without resistance, so columns know nothing of each other
    solved      rows and columns, ohmic cells, once for each programmed tile (`resistance.effective`)
    iterative   rows and columns, the device's own curve, for every input vector (`resistance.solve`)

Ours, in the fast model. The load a is taken where it takes most, a = 3/2 rows r sum(f g x) with the shape f of the loss (`resistance.far`,
2/3 on average), which is exact for even load as before and right to second order for uneven one. Inputs coded in time leave their rows one
after the other, so the wire is loaded most at first: a pulse is reckoned in `_PARTS` parts of equal length, and within a part the loss goes
with the time that two rows are driven together, the mean of min(x_i, x_j) in place of the mean of x squared (`crowding`). Against the exact
ladder, 64 rows and 5 ohm, what is left is 3 to 5 % of the loss at 25 uS, and 11 to 15 % at 225 uS, where wires take half of the output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lessen.analog.chip import Chip
from lessen.analog.encoding import Plane
from lessen.analog.tiles.resistance import effective, far, lost_share, solve

_AT_ONCE = 2**26  # numbers that the elimination of a batch of tiles keeps, or one iteration over a batch of vectors
_PARTS = 4  # of a pulse; twice as many change no digit of the error


def array(planes: Sequence[Plane], conductances: Sequence[Tensor]) -> Tensor:
    """Planes of one physical tile `tile row column` as they lie, `tile row (column device, reference)`."""
    weights = [g for plane, g in zip(planes, conductances, strict=True) if not plane.reference]
    references = [g for plane, g in zip(planes, conductances, strict=True) if plane.reference]
    return torch.cat([torch.stack(weights, -1).flatten(-2), *references], -1)


def taken_apart(physical: Tensor, planes: Sequence[Plane]) -> list[Tensor]:
    """The inverse of `array`, along the last dimension of any tensor."""
    devices, references = sum(not p.reference for p in planes), sum(p.reference for p in planes)
    columns = (physical.shape[-1] - references) // devices
    weights = iter(physical[..., : columns * devices].unflatten(-1, (columns, devices)).unbind(-1))
    behind = iter(physical[..., columns * devices :].split(1, -1))
    return [next(behind) if plane.reference else next(weights) for plane in planes]


def seen(planes: Sequence[Plane], conductances: Sequence[Tensor], chip: Chip) -> list[Tensor]:
    """Conductances with which planes (of physical tiles beside each other) seem to pass their currents behind their wires."""
    if not chip.wires.ohm or chip.wires.model not in ("columns", "solved"):
        return list(conductances)
    if chip.wires.model == "columns":
        return [effective(g, 0.0, chip.wires.ohm) for g in conductances]
    found: list[list[Tensor]] = []
    width = chip.columns
    for start in range(0, conductances[0].shape[-1], width):
        beside = [g if p.reference else g[..., start : start + width] for p, g in zip(planes, conductances, strict=True)]
        tile = array(planes, beside)
        few = max(_AT_ONCE // (tile.shape[1] * tile.shape[2] ** 2), 1)
        solved = torch.cat([effective(part, chip.wires.ohm, chip.wires.ohm) for part in tile.split(few)])
        found.append(taken_apart(solved, planes))
    return [torch.cat(parts, -1) for parts in zip(*found, strict=True)]


def held(planes: Sequence[Plane], conductances: Sequence[Tensor]) -> Tensor:
    """Conductances of all devices with the signs of their currents, `tile plane row column`; reference columns stand with every column."""
    columns = max(g.shape[-1] for g in conductances)
    signed = [p.sign * g.expand(*g.shape[:-1], columns) for p, g in zip(planes, conductances, strict=True)]
    return torch.stack(signed, 1)


def crowding(driven: Tensor) -> Tensor:
    """By how much inputs coded in time load a wire more than evenly spread ones, `... 1` from magnitudes `... row` (see above).

    >>> crowding(torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 0.5, 0.0, 0.0]]))[:, 0].tolist()
    [1.0, 1.1111111640930176]
    """
    rows = driven.shape[-1]
    together = driven.sort(-1).values @ torch.arange(2 * rows - 1, 0, -2).to(driven)
    alone = driven.sum(-1).square()
    return torch.where(alone > 0, together / alone.clamp(min=1e-30), torch.ones_like(alone))[..., None]


def lost(driven: Tensor, load: Tensor, chip: Chip) -> Tensor:
    """What the wires of the columns keep by the fast model, over the device's range: `tile vector slice column`.

    Args:
        driven: inputs in parts of full drive, `tile vector row`.
        load: signed conductances, `tile row (plane column)`.
        chip: its wires, device and encoding.
    """
    rows, slices, columns = driven.shape[-1], len(chip.encoding.shifts), load.shape[-1] // _planes(chip)
    magnitudes, shape = driven.abs(), far(rows).to(driven)
    sign, conductance = load.sum(1, keepdim=True).sign(), load.abs()  # a plane's devices all have the sign of its column
    both_ways = bool((driven < 0).any())
    binary = chip.dac.levels is not None and (1 in (chip.dac.digit_bits, chip.dac.levels))
    parts = 1 if binary else _PARTS
    total: Tensor | None = None
    for k in range(parts):
        part = (magnitudes * parts - k).clamp_(0, 1)
        near = torch.bmm(part * shape, conductance)
        share = lost_share(near * (1.5 * rows * chip.wires.ohm * 1e-6) * crowding(part))
        kept = share * (torch.bmm(part * driven.sign() * shape, conductance) if both_ways else near)
        total = kept if total is None else total.add_(kept)
    assert total is not None
    scale = 1 / (parts * (chip.device.g_max - chip.device.g_min))
    return (total * sign * scale).unflatten(-1, (slices, -1, columns)).sum(-2)


def iterated(driven: Tensor, load: Tensor, chip: Chip) -> Tensor:
    """Sums behind the wires of whole physical tiles, cells with their own curve, over the device's range: `tile vector slice column`.

    Args:
        driven: inputs in parts of full drive, which are voltages, `tile vector row`.
        load: signed conductances, `tile row (plane column)`.
        chip: its wires, device, encoding and read voltage.

    Raises:
        LessenError: the iteration did not converge.
    """
    planes, volts = chip.encoding.planes(driven.new_zeros(1, 1, 1)), driven * chip.system.read_v
    by_plane = load.unflatten(-1, (len(planes), -1))
    found: list[Tensor] = []
    for start in range(0, by_plane.shape[-1], chip.columns):
        part = by_plane[..., start : start + chip.columns]
        beside = [part[:, :, k, :1] if p.reference else part[:, :, k] for k, p in enumerate(planes)]
        tile = array(planes, [g.abs() for g in beside])
        powers = chip.device.powers(tile)
        few = max(_AT_ONCE // 8 // tile.numel(), 1)
        ohm = chip.wires.ohm
        currents = torch.cat([solve(tile, v, ohm, ohm, powers, tolerance=_tolerance(tile)) for v in volts.split(few, 1)], 1)
        sums = taken_apart(currents, planes)
        signed = [s * p.sign for s, p in zip(sums, planes, strict=True)]
        columns = part.shape[-1]
        joined = torch.stack([s.expand(*s.shape[:-1], columns) for s in signed], 2)  # tile vector plane column
        found.append(joined.unflatten(2, (len(chip.encoding.shifts), -1)).sum(3))
    return torch.cat(found, -1) / (chip.system.read_v * (chip.device.g_max - chip.device.g_min))


def _tolerance(values: Tensor) -> float:
    return 1e-9 if values.dtype == torch.float64 else 1e-5  # sums over a row of cells round in float32


def _planes(chip: Chip) -> int:
    return len(chip.encoding.planes(torch.zeros(1, 1, 1)))
