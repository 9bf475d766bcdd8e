"""Linear and convolution layers whose products happen on tiles.

They take the place of their digital counterparts in a twin of the model, share its parameters, and are instances of the same classes, so
that code that asks a layer for its sizes or its weight finds them. What the chip has made of the weights lies in `numbers`, which is no
parameter and no buffer: it is made again from the weights for every chip and moment (`crossbar`), and kept narrower than it is
computed if asked to. Biases are added digitally.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.analog.chip import Chip
from lessen.analog.tiles import convolution, execute
from lessen.analog.tiles.arrangement import Arrangement
from lessen.analog.tiles.crossbar import Crossbar, Layout, Moment, Written, joined, layout, over_tiles, pieces, realise, scales, widened
from lessen.analog.tiles.execute import Numbers, Ranges
from lessen.analog.tiles.quantiles import quantile
from lessen.errors import LessenError

_SAMPLES = 2**20  # magnitudes from which a quantile is taken
_VECTORS = 4096  # column sums from which a quantile is taken
_LEAST = 0.03  # range of a column, in parts of the widest of its layer, if it has seen many vectors
_FEW = 2.0  # up to its square as many vectors, all columns share the widest range
_REACH = 0.5  # quantile over the columns of a layer of how far their largest sum reaches beyond the usual one


@dataclass
class Tiles:
    """The analog half of a layer.

    Attributes:
        name: of the layer, the address of its draws.
        chip: on which it lies.
        place: how.
        ranges: full scales of its converters.
        numbers: ready to run; None before the chip is programmed.
        mode: "run"; "digital", in which the layer computes as if it were not on tiles; or, while ranges are calibrated, "inputs" and
            "sums", in which it computes digitally and looks.
        generator: of noise that is fresh in every read.
        room: memory of `numbers.matrix`, reserved once.
        before: mean magnitude of the columns just after programming, for the compensation of drift, by number of the piece, with the chip
            instance and a mark of the weights for which it holds.
        arranged: another order of the weights on their tiles, by number of the piece (`pieces`); it holds for one chip instance.
        listener: told of the inputs, `vector (group input)`, and the weight of every digital call; None: nobody asks.
    """

    name: str
    chip: Chip
    place: Layout
    ranges: Ranges = field(default_factory=Ranges)
    numbers: Numbers | None = None
    mode: Literal["run", "digital", "inputs", "sums"] = "run"
    generator: torch.Generator | None = None
    room: Tensor | None = None
    before: dict[int, tuple[int, float, Tensor]] = field(default_factory=dict)
    arranged: dict[int, Arrangement] = field(default_factory=dict)
    listener: Callable[[Tensor, Tensor], None] | None = None

    def programmed(self, weight: Tensor, moment: Moment) -> tuple[Crossbar, Tensor]:
        """What the chip makes of a weight, and the digital scale of its columns, drift compensated."""
        found = [self._piece(number, tiles, moment) for number, _, tiles in pieces(weight.detach(), self.place)]
        return joined([crossbar for crossbar, _ in found]), torch.cat([scale for _, scale in found], -1)

    def _piece(self, number: int, tiles: Tensor, moment: Moment) -> tuple[Crossbar, Tensor]:
        """Some columns of it."""
        order = self.arranged.get(number)
        order = order if order is not None and order.chip == moment.chip else None
        tiles = tiles if order is None else order.place(tiles)
        scale = scales(tiles, self.chip)
        scaled = tiles / scale
        written: Written = {}
        crossbar = realise(scaled, self.chip, moment, number, written)
        scale = scale * self._compensation(number, scaled, crossbar, moment, written)
        return (crossbar, scale) if order is None else order.take(crossbar, scale)

    def _compensation(self, number: int, scaled: Tensor, crossbar: Crossbar, moment: Moment, written: Written) -> Tensor | float:
        """By how much known inputs read less than they did just after programming."""
        if self.chip.compensation == "none" or moment.seconds is None:
            return 1.0
        known, mark = self.before.get(number), _mark(scaled)
        if known is None or known[:2] != (moment.chip, mark):
            start = self.chip.device.first
            first = crossbar if moment.seconds == start else realise(scaled, self.chip, replace(moment, seconds=start), number, written)
            known = self.before[number] = (moment.chip, mark, self._reading(first))
        return known[2] / self._reading(crossbar).clamp(min=1e-4 * known[2])

    def _reading(self, crossbar: Crossbar) -> Tensor:
        """Mean magnitude of columns, `tile 1 column`: each row driven alone, as a chip can."""
        shifts = crossbar.signed.new_tensor(self.chip.encoding.shifts)[:, None, None]
        mean = (crossbar.signed * shifts).sum(1).abs().mean(1, keepdim=True)
        if self.chip.compensation == "tile":
            mean = torch.cat([p.mean(-1, keepdim=True).expand_as(p) for p in mean.split(self.chip.columns, -1)], -1)
        return mean.clamp(min=1e-12)

    def wanted(self, weight: Tensor, store: torch.dtype | None) -> tuple[torch.dtype, torch.device, int]:
        """Type, place and size of the memory for what is programmed; a size of 0 if it is there."""
        size = len(self.chip.encoding.shifts) * self.place.groups * self.place.row_tiles * self.place.rows * self.place.outputs
        kind = widened(weight[:0]).dtype if store is None else store
        there = self.room is not None and (self.room.dtype, self.room.device) == (kind, weight.device)
        return kind, weight.device, 0 if there else size

    def reserve(self, weight: Tensor, store: torch.dtype | None) -> None:
        """Take the memory for what is programmed before any passing copies are made, and keep it for all moments to come."""
        kind, device, size = self.wanted(weight, store)
        if size:
            self.room = torch.empty(size, dtype=kind, device=device)

    def program(self, weight: Tensor, moment: Moment, store: torch.dtype | None) -> None:
        """Make the layer ready for a moment of a chip's life."""
        self._check_ranges()
        self.reserve(weight, store)
        slices, whole = len(self.chip.encoding.shifts), None
        for number, columns, tiles in pieces(weight.detach(), self.place):
            numbers = self._ready(*self._piece(number, tiles, moment), columns)
            whole = execute.wide(numbers, self.place, slices, self._room) if whole is None else whole
            execute.fill(whole, numbers, columns, self.place.columns, slices)
        self.numbers = whole

    def _room(self, shape: tuple[int, ...]) -> Tensor:
        """The reserved memory in a shape; anew if devices that are not ohmic need more of it."""
        assert self.room is not None
        if self.room.numel() < prod(shape):
            self.room = self.room.new_empty(prod(shape))
        return self.room[: prod(shape)].view(shape)

    def _ready(self, crossbar: Crossbar, scale: Tensor, columns: slice) -> Numbers:
        """The numbers of some columns."""
        chip = self.chip
        if execute.folds(crossbar, chip):
            return execute.fold(crossbar, scale, chip, replace(self.place, outputs=scale.shape[-1]))
        sums = self.ranges.sums
        if sums is not None:
            sums = sums.unflatten(-1, (len(chip.encoding.shifts), -1))[..., columns].flatten(-2)
        return execute.prepare(crossbar, scale, chip, Ranges(self.ranges.input, sums))

    def _check_ranges(self) -> None:
        chip = self.chip
        missing = (chip.dac.bits is not None and chip.dac.range == "calibrated" and self.ranges.input is None) or (
            chip.adc.bits is not None and self.ranges.sums is None
        )
        if missing:
            raise LessenError(
                f"analog layer {self.name}",
                got="converters without ranges",
                wanted="calibration data",
                remedy="map(..., calibration=batches), or a stated range of the ADC with a dynamic DAC",
            )

    def look(self, x: Tensor, weight: Tensor) -> None:
        """Widen the ranges so that they cover a quantile of what these inputs, `vector (group input)`, ask for."""
        if self.mode == "digital":
            if self.listener is not None:
                self.listener(x.detach(), weight)
            return
        chip, x = self.chip, widened(x)
        if not x.isfinite().all():
            got, remedy = "inputs that are not finite", "calibration data and weights without NaN and infinity"
            raise LessenError(f"calibration of {self.name}", got=got, wanted="numbers to set the converters by", remedy=remedy)
        if self.mode == "inputs":
            flat = x.detach().abs().flatten()
            largest = quantile(flat[:: max(1, flat.numel() // _SAMPLES)].float(), chip.dac.quantile)[0].to(x.dtype)
            largest = largest if largest > 0 else flat.max().clamp(min=torch.finfo(x.dtype).tiny)
            self.ranges.input = largest if self.ranges.input is None else torch.maximum(largest, self.ranges.input)
            return
        x = x.detach()[:: -(-x.shape[0] // _VECTORS)]
        found = [self._asked(x, tiles) for _, _, tiles in pieces(weight.detach(), self.place)]
        largest, usual = torch.cat([a for a, _ in found], -1), torch.cat([b for _, b in found], -1)
        # How far the rare sums reach beyond the usual ones is much alike for the columns of a layer, and each of them has seen little.
        reach = torch.where(usual > 0, largest / usual.clamp(min=torch.finfo(x.dtype).tiny), 0.0).flatten()
        wide = torch.maximum(largest, usual * quantile(reach[:: -(-reach.numel() // _SAMPLES)].float(), _REACH).to(x.dtype))
        # Few vectors say little of a single column (a class that calibration did not show): it gets the more of the layer's widest range.
        widest = float(wide.max())
        wide = wide.clamp(min=widest * min(1.0, max(_LEAST, _FEW / len(x) ** 0.5))) if widest > 0 else torch.ones_like(wide)
        wide = (over_tiles(wide, chip.columns) if chip.adc.per == "tile" else wide).flatten(-2)
        self.ranges.sums = wide if self.ranges.sums is None else torch.maximum(wide, self.ranges.sums)

    def _asked(self, x: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """A quantile of the column sums of ideal tiles, and their root mean square: `tile 1 slice column`."""
        sums = self.sums(x, tiles).abs_()
        largest = quantile(sums.float(), self.chip.adc.quantile, dim=1).to(x.dtype)
        slices = len(self.chip.encoding.shifts)
        usual = sums.square_().mean(1, keepdim=True).sqrt_()
        return largest.unflatten(-1, (slices, -1)), usual.unflatten(-1, (slices, -1))

    def sums(self, x: Tensor, tiles: Tensor) -> Tensor:
        """What `vector (group input)` asks of ideal tiles: `tile vector (slice column)`, in fully driven rows times full range."""
        chip = self.chip
        scale = scales(tiles, chip)
        crossbar = realise(tiles / scale, chip, Moment(0, self.name, None))
        quiet = replace(chip, adc=replace(chip.adc, bits=None, noise=0.0), wires=replace(chip.wires, ohm=0.0), reads="quiet")
        numbers = execute.prepare(crossbar, scale, quiet, Ranges())
        codes, _ = execute.drive(widened(x), chip, self.ranges.input)
        parts, _ = execute.digits(codes, chip)
        return execute.columns(execute.tiled(torch.cat(parts), self.place), numbers, quiet, None)

    def state_ranges(self, weight: Tensor) -> None:
        """Ranges that need no data: a stated range of the ADC."""
        if isinstance(self.chip.adc.range, str):
            return
        shape = (self.place.groups * self.place.row_tiles, 1, len(self.chip.encoding.shifts) * self.place.outputs)
        self.ranges.sums = widened(weight[:0]).new_full(shape, float(self.chip.adc.range))

    def run(self, x: Tensor) -> Tensor:
        """Outputs of `vector (group input)`, without the bias; float32 for inputs in half precision."""
        numbers = self.ready()
        codes, unit = execute.drive(widened(x), self.chip, self.ranges.input if self.chip.dac.range == "calibrated" else None)
        found = execute.combine(codes, numbers, self.chip, self.place, self.generator)
        return found.mul_(unit) if self.chip.dac.bits is not None else found

    def ready(self) -> Numbers:
        """The numbers; an error before programming."""
        if self.numbers is None:
            raise LessenError(f"analog layer {self.name}", got="no programmed tiles", wanted="a chip", remedy="call program(seed) first")
        return self.numbers


class AnalogLinear(nn.Linear):
    """A linear layer on tiles."""

    tiles: Tiles

    def forward(self, input: Tensor) -> Tensor:
        """`... input` to `... output`."""
        tiles, x = self.tiles, input.reshape(-1, self.in_features)
        if tiles.mode != "run":
            tiles.look(x, self.weight)
            return F.linear(input, self.weight, self.bias)
        found = tiles.run(x)
        found = found if self.bias is None else found.add_(self.bias)
        return found.reshape(*input.shape[:-1], self.out_features).to(input.dtype)


class AnalogConv1D(nn.Module):
    """The linear layer of GPT-2 in transformers, whose weight is stored `in out`."""

    tiles: Tiles
    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`... input` to `... output`."""
        tiles, flat = self.tiles, x.reshape(-1, self.weight.shape[0])
        if tiles.mode != "run":
            tiles.look(flat, self.weight.t())
            return x @ self.weight + self.bias
        return tiles.run(flat).add_(self.bias).reshape(*x.shape[:-1], self.weight.shape[1]).to(x.dtype)


class _AnalogConv(nn.modules.conv._ConvNd):
    """What convolutions of one and two dimensions share: patches are the vectors that drive the tiles."""

    tiles: Tiles

    def forward(self, input: Tensor) -> Tensor:
        """`batch channel *space` to `batch channel *space`."""
        tiles = self.tiles
        if tiles.mode == "digital" and tiles.listener is None:
            return self._conv_forward(input, self.weight, self.bias)
        flat = input.dim() == self.weight.dim() - 1
        x = input[None] if flat else input
        if tiles.mode == "run" and (found := convolution.run(self, x)) is not None:
            return (found[0] if flat else found).to(input.dtype)
        patches, space = self._patches(x)
        if tiles.mode != "run":
            tiles.look(patches, self.weight.flatten(1))
            return self._conv_forward(input, self.weight, self.bias)
        found = tiles.run(patches)
        found = found if self.bias is None else found.add_(self.bias)
        found = found.reshape(x.shape[0], -1, self.out_channels).transpose(1, 2).reshape(x.shape[0], self.out_channels, *space)
        return (found[0] if flat else found).to(input.dtype)

    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """`vector (group input)`, and the space of the output."""
        raise LessenError("analog convolution", got=type(self).__name__, wanted="AnalogConv1d or AnalogConv2d")


class AnalogConv2d(_AnalogConv, nn.Conv2d):
    """A convolution of images on tiles, grouped or not."""

    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        (ky, kx), (sy, sx), (dy, dx) = self.kernel_size, self.stride, self.dilation
        sides = self._reversed_padding_repeated_twice
        if any(sides):
            x = F.pad(x, sides, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        patches = F.unfold(x, (ky, kx), (dy, dx), 0, (sy, sx))
        height, width = ((n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[2:], (dy, dx), (ky, kx), (sy, sx), strict=True))
        return patches.transpose(1, 2).reshape(-1, patches.shape[1]), (height, width)


class AnalogConv1d(_AnalogConv, nn.Conv1d):
    """A convolution of sequences on tiles, grouped or not."""

    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        (k,), (s,), (d,) = self.kernel_size, self.stride, self.dilation
        sides = self._reversed_padding_repeated_twice
        if any(sides):
            x = F.pad(x, sides, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        patches = F.unfold(x[:, :, None], (1, k), (1, d), 0, (1, s))
        return patches.transpose(1, 2).reshape(-1, patches.shape[1]), ((x.shape[2] - d * (k - 1) - 1) // s + 1,)


def _mark(scaled: Tensor) -> float:
    """Tells weights and their order, `tile row column`, from others, as far as float32 shows in a sum over all of them."""
    found = scaled.detach()
    while found.dim():
        found = found @ torch.arange(found.shape[-1], dtype=found.dtype, device=found.device).add_(1).cos_()
    return float(found)


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """Which layer takes its place on tiles; None if none does. A subclass with a forward of its own is another layer.

    >>> kind_of(nn.Linear(2, 2)).__name__, kind_of(nn.LayerNorm(2))
    ('AnalogLinear', None)
    """
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return AnalogConv1D
    for plain, analog in ((nn.Linear, AnalogLinear), (nn.Conv1d, AnalogConv1d), (nn.Conv2d, AnalogConv2d)):
        if isinstance(module, plain) and type(module).forward is plain.forward:
            return analog
    return None


def matrix(module: nn.Module) -> Tensor:
    """The weight of a layer that can lie on tiles as `(group output) input`."""
    weight = cast(Tensor, module.weight)
    return weight.t() if kind_of(module) is AnalogConv1D or isinstance(module, AnalogConv1D) else weight.flatten(1)


def on_tiles(module: nn.Module, name: str, chip: Chip) -> nn.Module:
    """The analog counterpart of a layer; it shares the layer's parameters."""
    kind = kind_of(module)
    if kind is None:
        raise LessenError(f"analog layer {name}", got=type(module).__name__, wanted="a linear layer or a convolution")
    weight = matrix(module)
    groups = cast(int, getattr(module, "groups", 1))
    tiles = Tiles(name, chip, layout(groups, weight.shape[1], weight.shape[0] // groups, chip))
    tiles.state_ranges(weight)
    twin = kind.__new__(kind)
    own = {"_parameters": dict(module._parameters), "_modules": dict(module._modules), "_buffers": dict(module._buffers)}
    twin.__dict__ = {**module.__dict__, **own, "tiles": tiles}
    return twin
