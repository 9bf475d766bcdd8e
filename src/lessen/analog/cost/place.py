"""Where a layer's matrices lie: how many tiles, how full, how often each is read.

A matrix with more inputs than a tile has rows is spread evenly over row tiles; with more outputs than the tile's weight columns, over
column tiles. Groups that are smaller than a tile lie on it block-diagonally, as many as fit both ways:

    groups on a tile = min(rows // K, columns // N)

A depthwise convolution of 3 x 3 on 512 x 512 cells, with a pair of devices for a weight, so fills 9 of 512 cells of each column and needs a
conversion for nine products: what makes it expensive on such chips. Blocks of a tile are read in turn (`turns` reads for one vector), as a
mapped network computes them (`tiles.crossbar.Layout`): each row is driven once, and the cells beside its block, which hold no weight,
conduct and are paid for, but their columns are not converted. `Array.blocks` trades tiles for time. Layers share no tiles.
"""

from dataclasses import dataclass

from lessen.analog.chip import Chip
from lessen.analog.cost.count import LayerShape
from lessen.analog.tiles.crossbar import layout


@dataclass(frozen=True)
class Place:
    """A layer on tiles.

    Attributes:
        row_tiles, column_tiles: over which each group is spread.
        tiles: of the whole layer.
        rows: that each tile drives, on average.
        utilisation: share of the weights which the tiles could hold that the layer uses.
        devices: that are read with one vector, those between the blocks and reference columns among them.
        inputs: row drives for one vector and digit: inputs, once for every column tile.
        conversions: for one vector and digit: outputs, once for every row tile and slice.
        turns: reads of a tile for one vector and digit: the blocks on it.
        columns: that are converted in one of them.
    """

    row_tiles: int
    column_tiles: int
    tiles: int
    rows: float
    utilisation: float
    devices: float
    inputs: int
    conversions: int
    turns: int
    columns: int


def place(shape: LayerShape, chip: Chip) -> Place:
    """Lay a layer out on a chip's tiles."""
    rows, columns = chip.array.rows, chip.columns
    encoding, slices = chip.encoding, len(chip.encoding.shifts)
    weights = shape.groups * shape.inputs * shape.outputs
    if shape.groups > 1 and shape.inputs <= rows and shape.outputs <= columns:
        where = layout(shape.groups, shape.inputs, shape.outputs, chip)
        tiles, row_tiles, column_tiles = where.tiles, 1, 1
        mean = shape.groups / tiles  # blocks on a tile
        cells = shape.groups * shape.outputs * mean * shape.inputs
        used = mean * shape.inputs
    else:
        where = layout(shape.groups, shape.inputs, shape.outputs, chip)
        tiles, row_tiles, column_tiles = where.tiles, where.row_tiles, where.column_tiles
        cells, used = float(weights), shape.inputs / row_tiles
    devices = cells * encoding.devices
    if encoding.references:  # one column for each slice of a tile
        devices += tiles * used * slices
    return Place(
        row_tiles=row_tiles,
        column_tiles=column_tiles,
        tiles=tiles,
        rows=used,
        utilisation=weights / (tiles * rows * columns),
        devices=devices,
        inputs=shape.groups * shape.inputs * column_tiles,
        conversions=shape.groups * shape.outputs * row_tiles * slices,
        turns=where.together,
        columns=min(shape.outputs, chip.columns) * slices,
    )
