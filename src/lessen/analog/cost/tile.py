"""One layer on tiles: conversions, drives, currents, sums; and what a tile takes in area and time.

For one vector, with r row tiles, c column tiles, s slices (groups of columns that are read apart) and d digits (reads of a tile, times the
blocks of small groups on it, which are read in turn):

    conversions = N r s d      row drives = K c d      device reads = devices d      scales = N r s (r if the ADC has one stated range)

A tile is read every `interval`: its converters sample and hold, so the array is read for the next digit while the columns of a converter,
`adc.columns` or as many as the block has, take their turns.

    interval = max(read, columns max(sample, clock))        vector = read + columns sample + (d - 1) interval + sums

Conductances are those that the weights take; where weights are not given, those of a standard normal matrix of 512 rows. Inputs are taken
as spread evenly over their range (mean square 1/3), single bits as set half of the time.
"""

from math import ceil, log2, sqrt

import torch
from torch import Tensor

from lessen.analog.chip import Chip
from lessen.analog.cost.adc import MODELS, AdcModel
from lessen.analog.cost.components import DRAM_PJ_A_BIT, Technology, cell_read_pj
from lessen.analog.cost.count import LayerShape
from lessen.analog.cost.place import Place, place
from lessen.analog.cost.result import Area, Energy
from lessen.analog.devices.sram import SramCell
from lessen.analog.tiles.crossbar import cut, layout, scales
from lessen.errors import UsageError

_UNIT_FF = 1.2  # capacitor of a charge-domain SRAM cell: Valavi et al. 2019, JSSC 54(6)
_LOOKED_AT = 2**22  # weights from which a mean is taken
_SUM_BITS = 16  # of a partial sum that moves between tiles


def input_bits(chip: Chip) -> int:
    """Bits of an input; an error for inputs that are driven as they are, which have no price."""
    if chip.dac.bits is None:
        raise UsageError(f"cost of {chip.name}", got="an ideal DAC", wanted="a resolution", remedy="dac.bits = 8")
    return chip.dac.bits


def converter(chip: Chip, adc: AdcModel | None) -> AdcModel:
    """The model that prices converters: the one given, or the chip's own choice."""
    return adc or MODELS[chip.system.adc_model]


def mean_share(weight: Tensor | None, chip: Chip) -> float:
    """Mean of all devices between the ends of their range, reference columns left out.

    Args:
        weight: `out in`, of which enough outputs are looked at; None: a standard normal matrix, by its quantiles.
        chip: whose encoding decides.

    >>> round(mean_share(None, Chip()), 3)  # pairs: one device of each stays at the lower end
    0.129
    """
    given: Tensor = torch.special.ndtri((torch.arange(512, dtype=torch.float64) + 0.5) / 512)[None] if weight is None else weight.detach()
    given = given[:: -(-given.numel() // _LOOKED_AT)]
    whole = layout(1, given.shape[1], given.shape[0], chip)
    tiles = cut(given, whole)
    planes = [p for p in chip.encoding.planes(tiles / scales(tiles, chip)) if not p.reference]
    padded = whole.row_tiles * whole.rows / whole.inputs  # absent rows hold no devices
    absent = sum(float(p.share.flatten()[0]) for p in chip.encoding.planes(torch.zeros(1, 1, 1)) if not p.reference) / len(planes)
    mean = sum(float(p.share.mean()) for p in planes) / len(planes)
    return absent + (mean - absent) * padded


def read_pj(share: float, chip: Chip) -> float:
    """One device in one read, its conductance at `share` of the range."""
    drive = 0.5 if _driven_bits(chip) == 1 else 1 / 3
    if isinstance(chip.device, SramCell):
        return _UNIT_FF * 1e-3 * chip.system.supply_v**2 * share * drive
    g = chip.device.g_min + share * (chip.device.g_max - chip.device.g_min)
    return cell_read_pj(g, chip.system.read_v, chip.system.read_ns, drive)


def tile_energy(shape: LayerShape, chip: Chip, weight: Tensor | None = None, adc: AdcModel | None = None) -> Energy:
    """One inference of a layer, without buffers and transport."""
    where, figures, cycles = place(shape, chip), Technology.of(chip.system), chip.dac.cycles
    bits = _driven_bits(chip)
    held = shape.weights * chip.encoding.devices
    between = mean_share(torch.zeros(1, 1), chip)  # what lies beside the blocks of small groups, and in reference columns
    cells = held * read_pj(mean_share(weight, chip), chip) + (where.devices - held) * read_pj(between, chip)
    summed = cycles * where.conversions * figures.shift_add_pj if cycles * where.conversions > shape.groups * shape.outputs else 0.0
    scaled = where.conversions if chip.adc.range == "calibrated" else shape.groups * shape.outputs * where.row_tiles
    drive = figures.dac_pj(bits) + figures.row_pj(chip.array.columns, _cell_um(chip))
    return Energy(
        adc=shape.vectors * cycles * where.conversions * converter(chip, adc).energy_pj(chip),
        dac=shape.vectors * cycles * where.inputs * drive,
        cells=shape.vectors * cycles * cells,
        digital=shape.vectors * (summed + scaled * figures.scale_pj) + shape.results * figures.add_pj,
    )


def transport_energy(shape: LayerShape, chip: Chip, adc: AdcModel | None = None) -> Energy:
    """One inference of a layer: its inputs brought to every column tile, stored and read there; its partial sums brought together."""
    where, figures, bits = place(shape, chip), Technology.of(chip.system), input_bits(chip)
    memory = figures.memory_pj(chip.system.buffer_kib, chip.system.buffer)
    pitch = sqrt(tile_area(chip, adc).total) * 1e-3
    arriving, copies = shape.reads * bits, where.column_tiles
    partial = shape.vectors * shape.groups * shape.outputs * (where.row_tiles - 1) * _SUM_BITS
    far = pitch * max(1.0, sqrt(where.tiles) / 2)  # halfway across the tiles of the layer, then from column tile to column tile
    along = figures.hop_pj + figures.wire_pj(pitch)
    return Energy(
        buffers=(arriving * copies + shape.vectors * where.inputs * bits) * memory,
        interconnect=arriving * (figures.hop_pj + figures.wire_pj(far) + (copies - 1) * along) + partial * along,
    )


def loading_pj(shape: LayerShape, chip: Chip) -> float:
    """Writing all devices of a layer, and bringing its weights from the memory beside the chip."""
    return place(shape, chip).devices * chip.system.write_pj + 8 * shape.weights * DRAM_PJ_A_BIT


def tile_area(chip: Chip, adc: AdcModel | None = None) -> Area:
    """One tile with its converters, accumulators, buffer and share of a router."""
    figures, model, system = Technology.of(chip.system), converter(chip, adc), chip.system
    converters = ceil(chip.columns * len(chip.encoding.shifts) / chip.adc.columns)
    units = ceil(converters / max(1.0, model.sample_ns(chip) * system.clock_ghz))
    return Area(
        cells=chip.array.rows * chip.array.columns * _cell_um(chip) ** 2,
        adc=converters * model.area_um2(chip),
        dac=chip.array.rows * figures.dac_um2(_driven_bits(chip)),
        digital=converters * figures.shift_add_um2 + units * (figures.mac_um2 + figures.add_um2),
        buffers=figures.memory_um2(system.buffer_kib, system.buffer) / system.cluster,
        interconnect=figures.router_um2 / system.cluster,
    )


def interval_ns(chip: Chip, adc: AdcModel | None = None, where: Place | None = None) -> float:
    """Between two reads of a tile, which a layer fills to its last column unless it is told otherwise."""
    sample = max(converter(chip, adc).sample_ns(chip), 1 / chip.system.clock_ghz)
    return max(chip.system.read_ns, _turns_of_converter(chip, where) * sample)


def _turns_of_converter(chip: Chip, where: Place | None) -> int:
    """Columns that one converter has to sample after a read."""
    return chip.adc.columns if where is None else min(chip.adc.columns, where.columns)


def reads_of_vector(where: Place, chip: Chip) -> int:
    """Reads of a tile for one input vector: digits, and blocks in turn."""
    return chip.dac.cycles * where.turns


def vector_ns(where: Place, chip: Chip, adc: AdcModel | None = None) -> float:
    """From the first drive of a vector to its finished sums: row tiles are added two by two, then scaled."""
    converting = _turns_of_converter(chip, where) * converter(chip, adc).sample_ns(chip)
    adding = (ceil(log2(where.row_tiles)) + 2) / chip.system.clock_ghz
    return chip.system.read_ns + converting + (reads_of_vector(where, chip) - 1) * interval_ns(chip, adc, where) + adding


def _driven_bits(chip: Chip) -> int:
    return chip.dac.digit_bits if chip.dac.digit_bits is not None else input_bits(chip)


def _cell_um(chip: Chip) -> float:
    return sqrt(chip.system.cell_f2) * chip.system.node_nm * 1e-3
