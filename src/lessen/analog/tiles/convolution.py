"""Convolutions on tiles by torch's own convolution, where all vectors share a range: the numbers that patches give, sooner.

    digits       are driven one after the other
    slices       are more output channels
    row tiles    are groups of input channels; each has to hold whole channels, rows = channels times the kernel's positions

Patches of a 3 x 3 kernel are nine copies of the input, and most of the time that a convolution on tiles takes.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lessen.analog.tiles import execute
from lessen.analog.tiles.crossbar import Layout, widened
from lessen.analog.tiles.execute import Numbers
from lessen.analog.tiles.streams import normal


def whole_channels(layer: Any, place: Layout) -> bool:
    """Whether every row tile of a convolution holds whole input channels."""
    fits = place.rows % layer.weight[0, 0].numel() == 0 and (place.groups == 1 or place.rows * place.row_tiles == place.inputs)
    return place.row_tiles == 1 or fits


def apart(layer: Any, x: Tensor, matrix: Tensor) -> Tensor:
    """Column sums of every tile by itself.

    Args:
        layer: the convolution, for its stride, borders and kernel size.
        x: "batch channel *space".
        matrix: `tile row column`, tiles of a group beside each other.

    Returns:
        `batch (tile column) *space`.
    """
    tiles, _, columns = matrix.shape
    kernel = matrix.to(x.dtype).transpose(1, 2).reshape(tiles * columns, -1, *layer.kernel_size)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    missing = tiles * kernel.shape[1] - x.shape[1]  # channels that the last row tile has no rows for
    if missing:
        x = F.pad(x, (*[0] * (2 * (x.dim() - 2)), 0, missing))
    convolve = F.conv1d if x.dim() == 3 else F.conv2d
    return convolve(x, kernel, None, layer.stride, padding, layer.dilation, tiles)


def run(layer: Any, x: Tensor) -> Tensor | None:
    """Outputs of a programmed convolution, "batch channel *space", float32 for half precision; None where it takes patches."""
    tiles, chip, place = layer.tiles, layer.tiles.chip, layer.tiles.place
    numbers: Numbers = tiles.ready()
    shared = chip.dac.bits is None or chip.dac.range == "calibrated"
    special = numbers.powers > 1 or numbers.load is not None or numbers.shared is not None
    if not shared or special or not (numbers.gain is None or whole_channels(layer, place)):
        return None
    codes, unit = execute.drive(widened(x), chip, tiles.ranges.input)
    ones = [1] * (x.dim() - 2)
    bias = None if layer.bias is None else layer.bias.reshape(-1, *ones)
    if numbers.gain is None:
        found = _read(layer, codes, numbers)
        found = found if chip.dac.bits is None else found.mul_(unit)
        return found if bias is None else found.add_(bias)
    parts, counts = execute.digits(codes, chip)
    total: Tensor | None = None
    for part, count in zip(parts, counts, strict=True):
        read = execute.read(_read(layer, part, numbers), chip).mul_((numbers.gain * (count * unit)).reshape(-1, *ones))
        read = _added(read, place, len(chip.encoding.shifts))
        total = read if total is None else total.add_(read)
    assert total is not None
    return total if bias is None else total.add_(bias)


def _read(layer: Any, codes: Tensor, numbers: Numbers) -> Tensor:
    """Column sums and the noise of reading them, in ADC steps, or in outputs if the layer is folded."""
    tiles = layer.tiles
    sums = apart(layer, codes, numbers.matrix)
    if numbers.variance is not None:
        sigma = apart(layer, codes.square(), numbers.variance).clamp_(min=0).sqrt_()
        sums += sigma.mul_(normal(sigma, tiles.generator))
    if tiles.chip.adc.noise:
        sums += tiles.chip.adc.noise * normal(sums, tiles.generator)
    return sums


def _added(sums: Tensor, place: Layout, slices: int) -> Tensor:
    """Row tiles and slices summed: `batch (group row_tile slice column) *space` to "batch channel *space"."""
    parts = place.row_tiles * slices
    if parts == 1:
        return sums
    return sums.unflatten(1, (place.groups, parts, place.outputs)).sum(2).flatten(1, 2)


def summed(sums: Tensor, place: Layout) -> Tensor:
    """Row tiles summed: `batch (group row_tile column) *space` to "batch channel *space"."""
    return _added(sums, place, 1)
