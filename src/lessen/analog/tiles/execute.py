"""Inputs to outputs on programmed tiles: all tiles of a layer in one batched matrix product.

    codes  = clamp(round(x L_in / r))                          inputs as the DAC drives them, all at once or digit by digit
    sums   = codes @ matrix + sqrt(codes^2 @ variance) n       one product for all tiles; fresh noise of every device, exactly (below)
    read   = clamp(round(sums))                                the ADC: `matrix` is scaled so that one step is 1
    output = sum over tiles, slices and digits of read * gain

If every device's noise is drawn anew for every input vector, eps_ij ~ N(0, s_ij^2), then sum_j eps_ij x_j is exactly
N(0, sum_j s_ij^2 x_j^2), independent for each output and vector: one more product instead of a new matrix for each vector.
Noise of a reference column is the same number for all columns of a tile, and is drawn so.

Without an ADC nothing happens between the product and the sum, so tiles, slices and digits are one matrix again (`fold`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.analog.chip import Chip
from lessen.analog.tiles.crossbar import Crossbar, Layout
from lessen.analog.tiles.streams import normal
from lessen.analog.tiles.wires import iterated, lost

_WIDENED = 4096  # columns of a matrix in half precision that are widened at one time


@dataclass
class Ranges:
    """Full scales of a layer's converters.

    Attributes:
        input: largest input that is driven; None: of each vector its own.
        sums: largest sum that is not clipped, `tile 1 (slice column)`, in fully driven rows times full range; None without an ADC.
    """

    input: Tensor | None = None
    sums: Tensor | None = None

    def widen(self, others: Sequence["Ranges"]) -> None:
        """Take what is missing from layers of the same sizes: the widest of theirs."""
        inputs, sums = ([t for r in others if (t := getattr(r, name)) is not None] for name in ("input", "sums"))
        if self.input is None and inputs:
            self.input = torch.stack(inputs).amax(0)
        if self.sums is None and sums:
            self.sums = torch.stack(sums).amax(0)


@dataclass
class Numbers:
    """A layer that is ready to run.

    Attributes:
        matrix: `tile (power row) (slice column)`, ADC steps for one input code; folded `group input output`, outputs for one code.
        gain: outputs for one ADC step, `tile 1 (slice column)`; None if folded.
        variance: as matrix, of fresh noise.
        shared: `tile row (slice reference)`, of fresh noise that the columns of a tile share.
        steps: its scale, `tile 1 (slice column)`, ADC steps for one unit of the crossbar.
        load: signed conductances of all devices, `tile row (plane column)`, where wires are reckoned at each read, else None.
        powers: 3 if rows of squares and cubes of the inputs follow.
    """

    matrix: Tensor
    gain: Tensor | None
    variance: Tensor | None = None
    shared: Tensor | None = None
    steps: Tensor | None = None
    load: Tensor | None = None
    powers: int = 1


def drive(x: Tensor, chip: Chip, full: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """Input codes, and what a code of 1 stands for.

    Args:
        x: `vector input`, or any other shape with a full scale for all.
        chip: whose DAC drives.
        full: its full scale; None: the largest input of each vector.
    """
    levels = chip.dac.levels
    if levels is None:
        return x, 1.0
    if full is None:
        largest = x.abs().amax(-1, keepdim=True)
        full = torch.where(largest == 0, torch.ones_like(largest), largest)
    return (x * (levels / full)).round_().clamp_(-levels, levels), full / levels


def digits(codes: Tensor, chip: Chip) -> tuple[list[Tensor], list[float]]:
    """Codes cut into what is driven at once, lowest digit first, and what each digit counts; digits take the sign of their code."""
    bits = chip.dac.digit_bits
    if bits is None or chip.dac.cycles == 1:
        return [codes], [1.0]
    base, left, parts = 2**bits, codes, []
    for _ in range(chip.dac.cycles):
        higher = (left * (1 / base)).trunc_()  # exact, since the base is a power of two
        parts.append(torch.sub(left, higher, alpha=base))
        left = higher
    return parts, [float(base**k) for k in range(chip.dac.cycles)]


def drive_levels(chip: Chip) -> float:
    """The code at which a row is fully driven."""
    if chip.dac.levels is None:
        return 1.0
    return float(2**chip.dac.digit_bits - 1) if chip.dac.cycles > 1 and chip.dac.digit_bits else float(chip.dac.levels)


def folds(crossbar: Crossbar, chip: Chip) -> bool:
    """Whether nothing happens between the product and the sum over tiles."""
    plain = chip.adc.bits is None and not chip.adc.noise and crossbar.held is None
    linear = crossbar.powers is None and crossbar.shared is None
    return plain and linear and (chip.dac.cycles == 1 or crossbar.variance is None)


def fold(crossbar: Crossbar, scale: Tensor, chip: Chip, place: Layout) -> Numbers:
    """One matrix for all tiles and slices, in units of the layer's output."""
    shifts = scale.new_tensor(chip.encoding.shifts)[None, :, None, None]

    def whole(values: Tensor, power: int = 1) -> Tensor:
        """`tile slice row column` to `group input output`."""
        summed = (values * (shifts * scale[:, None]) ** power).sum(1)
        return summed.reshape(place.groups, place.row_tiles * place.rows, place.outputs)[:, : place.inputs]

    variance = None if crossbar.variance is None else whole(crossbar.variance, 2)
    return Numbers(whole(crossbar.signed).contiguous(), None, variance)


def prepare(crossbar: Crossbar, scale: Tensor, chip: Chip, ranges: Ranges) -> Numbers:
    """Scale the crossbar to ADC steps for one input code."""
    tiles, slices, rows, columns = crossbar.signed.shape
    shifts = scale.new_tensor(chip.encoding.shifts)[None, :, None]
    gain = (shifts * scale).reshape(tiles, 1, slices * columns)
    steps = torch.full_like(gain, 1 / drive_levels(chip))
    if chip.adc.levels is not None and ranges.sums is not None:
        steps = steps * chip.adc.levels / ranges.sums

    def flat(values: Tensor) -> Tensor:
        """`tile slice row column` to `tile row (slice column)`."""
        return values.transpose(1, 2).reshape(tiles, rows, slices * columns)

    parts = [flat(crossbar.signed)]
    if crossbar.powers is not None:  # a code c drives the voltage c / levels of the read voltage
        parts += [flat(p) / drive_levels(chip) ** (k + 1) for k, p in enumerate(crossbar.powers)]
    load = None if crossbar.held is None else crossbar.held.transpose(1, 2).flatten(2).contiguous()
    variance = None if crossbar.variance is None else flat(crossbar.variance) * steps.square()
    shared = None if crossbar.shared is None else crossbar.shared.transpose(1, 2).flatten(2)
    return Numbers(torch.cat(parts, 1) * steps, gain / steps, variance, shared, steps, load, len(parts))


def wide(first: Numbers, place: Layout, slices: int, room: Callable[[tuple[int, ...]], Tensor]) -> Numbers:
    """Numbers for all columns of a layer, to be filled piece by piece.

    Args:
        first: those of its first piece.
        place: the layer's layout.
        slices: of its encoding.
        room: gives memory for the matrix.
    """

    def empty(like: Tensor | None, width: int) -> Tensor | None:
        return None if like is None else like.new_empty((*like.shape[:2], width))

    parts = 1 if first.gain is None else slices
    width = parts * place.outputs
    tensors = {name: empty(getattr(first, name), width) for name in ("gain", "variance", "steps")}
    shared = empty(first.shared, slices * place.column_tiles)
    planes = 0 if first.load is None or first.steps is None else slices * first.load.shape[-1] // first.steps.shape[-1]
    load = empty(first.load, planes * place.outputs)
    return Numbers(room((*first.matrix.shape[:2], width)), shared=shared, powers=first.powers, load=load, **tensors)


def fill(whole: Numbers, piece: Numbers, part: slice, tile: int, slices: int) -> None:
    """Put the numbers of some columns (whole tiles of `tile` columns) in their place."""
    parts = 1 if whole.gain is None else slices
    for name in ("matrix", "gain", "variance", "steps", "load"):
        target, value = getattr(whole, name), getattr(piece, name)
        if target is not None:
            count = value.shape[-1] // (part.stop - part.start) if name == "load" else parts
            target.unflatten(-1, (count, -1))[..., part] = value.unflatten(-1, (count, -1))
    if whole.shared is not None and piece.shared is not None:
        reference = slice(part.start // tile, -(-part.stop // tile))
        whole.shared.unflatten(-1, (slices, -1))[..., reference] = piece.shared.unflatten(-1, (slices, -1))


def columns(codes: Tensor, numbers: Numbers, chip: Chip, generator: torch.Generator | None) -> Tensor:
    """Column sums in ADC steps, noise and wires included: `tile vector row` to `tile vector (slice column)`."""
    if numbers.load is not None and chip.wires.model == "iterative":
        sums = _in_steps(iterated(codes / drive_levels(chip), numbers.load, chip), numbers, chip)
    else:
        driven = codes
        if numbers.powers > 1:
            driven = torch.cat([codes, codes * codes.abs(), codes**3], -1)  # a device's curve is that of the other sign, turned
        sums = _product(driven, numbers.matrix)
        if numbers.load is not None:
            sums -= _in_steps(lost(codes / drive_levels(chip), numbers.load, chip), numbers, chip)
    if numbers.variance is not None:
        sigma = _product(codes.square(), numbers.variance).clamp_(min=0).sqrt_()
        sums += sigma.mul_(normal(sigma, generator))
    if numbers.shared is not None and numbers.steps is not None:
        sigma = _product(codes.square(), numbers.shared).clamp_(min=0).sqrt_()
        noise = sigma.mul_(normal(sigma, generator))
        slices = len(chip.encoding.shifts)
        owner = torch.arange(sums.shape[-1] // slices, device=sums.device) // chip.columns
        sums += noise.unflatten(-1, (slices, -1))[..., owner].flatten(-2) * numbers.steps
    if chip.adc.noise:
        sums += chip.adc.noise * normal(sums, generator)
    return sums


def _in_steps(sums: Tensor, numbers: Numbers, chip: Chip) -> Tensor:
    """Sums `tile vector slice column` of inputs in parts of full drive, over the device's range, in ADC steps."""
    assert numbers.steps is not None
    return sums.flatten(-2).mul_(numbers.steps * drive_levels(chip))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """`tile vector row` by `tile row column`; a single tile takes the faster road of one product, a narrow matrix widens piece by piece."""
    if b.dtype != a.dtype:
        found = a.new_empty((a.shape[0], a.shape[1], b.shape[2]))
        for start in range(0, b.shape[2], _WIDENED):
            part = slice(start, start + _WIDENED)
            torch.bmm(a, b[..., part].to(a.dtype), out=found[..., part]) if a.shape[0] > 1 else torch.mm(
                a[0], b[0, :, part].to(a.dtype), out=found[0, :, part]
            )
        return found
    return (a[0] @ b[0])[None] if a.shape[0] == 1 else torch.bmm(a, b)


def read(sums: Tensor, chip: Chip) -> Tensor:
    """What the ADC makes of column sums in its steps, in place."""
    levels = chip.adc.levels
    return sums if levels is None else sums.round_().clamp_(-levels, levels)


def tiled(codes: Tensor, place: Layout) -> Tensor:
    """`vector (group input)` to `tile vector row`."""
    missing = place.row_tiles * place.rows - place.inputs
    if missing:
        codes = torch.nn.functional.pad(codes.reshape(-1, place.groups, place.inputs), (0, missing))
    return codes.reshape(-1, place.groups * place.row_tiles, place.rows).transpose(0, 1)


def combine(codes: Tensor, numbers: Numbers, chip: Chip, place: Layout, generator: torch.Generator | None) -> Tensor:
    """Outputs of a layer for codes `vector (group input)`, in units of what a code of 1 stands for: `vector (group output)`."""
    if numbers.gain is None:
        return _folded(codes, numbers, place, generator)
    vectors, slices = codes.shape[0], len(chip.encoding.shifts)
    found: Tensor | None = None
    for part, count in zip(*digits(codes, chip), strict=True):  # one after the other: sixteen at once would not fit into any cache
        sums = read(columns(tiled(part, place), numbers, chip, generator), chip)
        sums = _across(sums, numbers.gain if count == 1 else numbers.gain * count, place)
        sums = sums if slices == 1 else sums.reshape(place.groups, vectors, slices, place.outputs).sum(2)
        found = sums if found is None else found.add_(sums)
    assert found is not None
    return found[0] if place.groups == 1 else found.transpose(0, 1).reshape(vectors, -1)


def _across(sums: Tensor, gain: Tensor, place: Layout) -> Tensor:
    """Sums `tile vector column`, scaled and added up over row tiles, one after the other: `group vector column`."""
    if place.row_tiles == 1:
        return sums.mul_(gain)
    of, by = (t.unflatten(0, (place.groups, place.row_tiles)).unbind(1) for t in (sums, gain))
    found = of[0] * by[0]  # memory of its own, since the caller adds a bias in place
    for each, scale in zip(of[1:], by[1:], strict=True):
        found.addcmul_(each, scale)
    return found


def _folded(codes: Tensor, numbers: Numbers, place: Layout, generator: torch.Generator | None) -> Tensor:
    grouped = codes.reshape(-1, place.groups, place.inputs).transpose(0, 1)
    found = _product(grouped, numbers.matrix)
    if numbers.variance is not None:
        sigma = _product(grouped.square(), numbers.variance).clamp_(min=0).sqrt_()
        found += sigma.mul_(normal(sigma, generator))
    return found[0] if place.groups == 1 else found.transpose(0, 1).reshape(codes.shape[0], -1)
