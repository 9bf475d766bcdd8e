"""A layer's matrix becomes conductances on tiles: cut, scaled, encoded, programmed, aged.

    weight (groups * outputs, inputs)
      cut      -> tiles (groups * row tiles, rows, outputs): a matrix with more inputs than a tile has rows is spread evenly over row tiles
      scale    -> by the largest weight of each column (or of each tile), kept as a digital factor
      encode   -> planes of device shares; program, drift, faults, frozen noise of reading, wires: what the chip has made of each plane
      join     -> the signed conductance that a column of currents adds up, over the device's range: the weight again, and its errors

Tiles in the other direction (more outputs than columns) differ in nothing but their scales, ranges and wires, so a row tile is one matrix
with all its columns. All draws have addresses (`streams`), so nothing of a chip is stored: it is made again for every time asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lessen.analog.chip import Chip
from lessen.analog.devices.device import Cells, Device
from lessen.analog.encoding import Plane
from lessen.analog.tiles import wires
from lessen.analog.tiles.streams import normal, stream

_AT_ONCE = 2**18  # weights that are made into conductances at one time; about ten copies of them exist meanwhile


@dataclass(frozen=True)
class Layout:
    """How a matrix lies on tiles.

    Groups that are smaller than a tile share it, block-diagonally, and are read one after the other: while one is driven, all other rows
    rest, so no current of the cells between the blocks, which hold no weight, comes into a sum. `cost` counts as many reads.

    Attributes:
        groups: independent blocks of the layer (grouped convolution), else 1.
        inputs, outputs: of one group.
        row_tiles: tiles over which the inputs of a group are spread.
        rows: inputs on each of them; the last may have fewer.
        columns: weight columns of a physical tile.
        together: groups that share a physical tile.
    """

    groups: int
    inputs: int
    outputs: int
    row_tiles: int
    rows: int
    columns: int
    together: int = 1

    @property
    def column_tiles(self) -> int:
        """Physical tiles beside each other."""
        return -(-self.outputs // self.columns)

    @property
    def tiles(self) -> int:
        """Physical tiles of the layer."""
        return -(-self.groups // self.together) * self.row_tiles * self.column_tiles


def layout(groups: int, inputs: int, outputs: int, chip: Chip) -> Layout:
    """The layout of `groups` matrices of `outputs` x `inputs` on a chip."""
    row_tiles = -(-inputs // chip.array.rows)
    together = max(1, min(chip.array.rows // inputs, chip.columns // outputs, groups, chip.array.blocks or groups))
    return Layout(groups, inputs, outputs, row_tiles, -(-inputs // row_tiles), chip.columns, together)


def widened(values: Tensor) -> Tensor:
    """In the type in which tiles are computed: half precision has too few digits for conductances, codes and sums, others are as they are.

    >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype, widened(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def cut(weight: Tensor, place: Layout) -> Tensor:
    """Weights `(groups * outputs, inputs)` as `tile row column`, absent rows zero; weights in half precision become float32."""
    w = widened(weight).reshape(place.groups, place.outputs, place.inputs).transpose(1, 2)
    missing = place.row_tiles * place.rows - place.inputs
    w = torch.nn.functional.pad(w, (0, 0, 0, missing)) if missing else w
    # in the order of what is drawn for them: numbers in two orders are combined several times slower
    return w.reshape(place.groups * place.row_tiles, place.rows, place.outputs).contiguous()


def over_tiles(values: Tensor, width: int) -> Tensor:
    """The largest of the values of each physical tile, for every column: the last dimension is cut into pieces of `width`."""
    return torch.cat([part.amax(-1, keepdim=True).expand_as(part) for part in values.split(width, -1)], -1)


def scales(tiles: Tensor, chip: Chip) -> Tensor:
    """The weight that takes the whole range, `tile 1 column`."""
    largest = tiles.abs().amax(1, keepdim=True)
    largest = over_tiles(largest, chip.columns) if chip.encoding.scale == "tile" else largest
    return torch.where(largest == 0, torch.ones_like(largest), largest)


@dataclass
class Crossbar:
    """What the columns of a layer add up, over the device's range; an ideal chip holds the scaled weights.

    Attributes:
        signed: `tile slice row column`.
        variance: of one read of each entry, if reads are fresh; noise of a reference column is not in it.
        shared: of one read of the reference columns, `tile slice row (column tile)`: all columns of a tile have that noise in common.
        powers: coefficients of V^2 and V^3 as `signed`, of devices that are not ohmic, in units of read voltage.
        held: conductances of all devices with the signs of their currents, `tile plane row column`, where wires are reckoned at each read.
    """

    signed: Tensor
    variance: Tensor | None = None
    shared: Tensor | None = None
    powers: tuple[Tensor, Tensor] | None = None
    held: Tensor | None = None


@dataclass(frozen=True)
class Moment:
    """Which chip, which layer, when: all that the draws of a crossbar depend on.

    Attributes:
        chip: the instance's seed.
        layer: its name.
        seconds: since programming; None: as if every device had taken its target exactly.
    """

    chip: int
    layer: str
    seconds: float | None


def pieces(weight: Tensor, place: Layout) -> Iterator[tuple[int, slice, Tensor]]:
    """A weight in pieces of whole physical tiles, so that the copies that are made of one fit beside any model.

    Yields:
        The number of the piece, its columns, and its weights as `tile row column`.
    """
    if place.groups > 1:
        yield 0, slice(0, place.outputs), cut(weight, place)
        return
    width = max(_AT_ONCE // place.inputs // place.columns, 1) * place.columns
    for number, start in enumerate(range(0, place.outputs, width)):
        part = weight[start : start + width]
        yield number, slice(start, start + part.shape[0]), cut(part, replace(place, outputs=part.shape[0]))


Written = dict[tuple[int, int, int], Cells]
"""What writing has made of the planes of a piece, by address."""


def realise(scaled: Tensor, chip: Chip, moment: Moment, number: int = 0, written: Written | None = None) -> Crossbar:
    """Program weights in [-1, 1] (`tile row column`, the piece `number` of a layer) and look at them later.

    What writing has made of it is kept in `written`, if given, and taken from there at the next look at the same chip.
    """
    if not chip.encoding.references:
        return _part(scaled, chip, moment, (number, 0), written)
    parts = scaled.split(chip.columns, -1)  # every physical tile has reference columns of its own
    return joined([_part(piece, chip, moment, (number, i), written) for i, piece in enumerate(parts)])


def stuck(scaled: Tensor, chip: Chip, chip_seed: int, layer: str, number: int = 0) -> list[tuple[Plane, Tensor]]:
    """The planes of a piece, reference columns left out, and which of their devices are stuck (`Faults.states`), `tile row column`."""
    width = chip.columns if chip.encoding.references else scaled.shape[-1]
    found: list[list[tuple[Plane, Tensor]]] = []
    for i, piece in enumerate(scaled.split(width, -1)):
        planes = enumerate(chip.encoding.planes(piece))
        marks = [(p, chip.faults.states(p.share.shape, stream(chip_seed, "faults", layer, number, i, k))) for k, p in planes]
        found.append([(p, states) for p, states in marks if not p.reference])
    beside = [list(group) for group in zip(*found, strict=True)]
    return [
        (replace(group[0][0], share=torch.cat([p.share for p, _ in group], -1)), torch.cat([states for _, states in group], -1))
        for group in beside
    ]


def joined(parts: list[Crossbar]) -> Crossbar:
    """Crossbars side by side."""
    if len(parts) == 1:
        return parts[0]

    def side_by_side(tensors: list[Tensor | None]) -> Tensor | None:
        found = [t for t in tensors if t is not None]
        return torch.cat(found, -1) if found else None

    signed = torch.cat([p.signed for p in parts], -1)
    powers = [p.powers for p in parts if p.powers is not None]
    both = (torch.cat([p[0] for p in powers], -1), torch.cat([p[1] for p in powers], -1)) if powers else None
    variance, shared, held = (side_by_side([getattr(p, name) for p in parts]) for name in ("variance", "shared", "held"))
    return Crossbar(signed, variance, shared, both, held)


def _part(scaled: Tensor, chip: Chip, moment: Moment, number: tuple[int, int], written: Written | None) -> Crossbar:
    """A crossbar of some columns."""
    device, slices = chip.device, len(chip.encoding.shifts)
    span = device.g_max - device.g_min
    fresh = chip.reads == "fresh" and moment.seconds is not None
    made = Crossbar(scaled.new_zeros((scaled.shape[0], slices, *scaled.shape[1:])))
    planes = chip.encoding.planes(scaled)
    aged = [_aged(plane, chip, moment, (*number, index), written) for index, plane in enumerate(planes)]
    conductances = [g for g, _ in aged]
    if chip.wires.ohm and moment.seconds is not None:
        if chip.wires.model in ("fast", "iterative"):
            made.held = wires.held(planes, conductances)
        conductances = wires.seen(planes, conductances, chip)
    for plane, g, (_, sigma) in zip(planes, conductances, aged, strict=True):
        made.signed[:, plane.slice].add_(g, alpha=plane.sign / span)  # a reference column counts for all columns
        _bend(made, plane, device, g, chip.system.read_v)
        if fresh and sigma is not None:
            _disturb(made, plane, (sigma / span).square())
    return made


def _aged(plane: Plane, chip: Chip, moment: Moment, address: tuple[int, int, int], written: Written | None) -> tuple[Tensor, Tensor | None]:
    """Conductances of a plane at a moment, frozen noise included, and the standard deviation of reading them."""
    device = chip.device
    target = (plane.share * (device.g_max - device.g_min)).add_(device.g_min)
    if moment.seconds is None:
        return target, None
    draw = (moment.layer, *address)
    cells = None if written is None else written.get(address)
    if cells is None:
        cells = device.program(target, stream(moment.chip, "program", *draw))
        if written is not None:
            written[address] = cells
    g = _held(chip.use.read(device.drifted(cells, moment.seconds), device, moment.seconds), chip, moment.chip, draw)
    sigma = None if chip.reads == "quiet" else device.read_sigma(g, moment.seconds, _held(cells.conductance, chip, moment.chip, draw))
    if chip.reads == "frozen" and sigma is not None:
        g = normal(g, stream(moment.chip, "read", moment.seconds, *draw)).mul_(sigma).add_(g).clamp_(min=0)
    return g, sigma


def _held(conductance: Tensor, chip: Chip, instance: int, draw: tuple[str | int, ...]) -> Tensor:
    """Conductances with the stuck devices of a plane where they are stuck."""
    ends = chip.device.g_min, chip.device.g_max
    return chip.faults.apply(conductance, ends, stream(instance, "faults", *draw)) if chip.faults else conductance


def _bend(made: Crossbar, plane: Plane, device: Device, g: Tensor, volts: float) -> None:
    """Add what a plane of devices that are not ohmic contributes to the higher powers of the voltage."""
    coefficients = device.powers(g)
    if coefficients is None:
        return
    span = device.g_max - device.g_min
    if made.powers is None:
        made.powers = (torch.zeros_like(made.signed), torch.zeros_like(made.signed))
    for power, (sum_, value) in enumerate(zip(made.powers, coefficients, strict=True), start=1):
        sum_[:, plane.slice] += plane.sign / span * volts**power * value


def _disturb(made: Crossbar, plane: Plane, variance: Tensor) -> None:
    """Add the variance of reading a plane; a reference column is read once for all columns of a tile."""
    if plane.reference:
        made.shared = torch.zeros_like(made.signed[..., :1]) if made.shared is None else made.shared
        made.shared[:, plane.slice] += variance
        return
    made.variance = torch.zeros_like(made.signed) if made.variance is None else made.variance
    made.variance[:, plane.slice] += variance
