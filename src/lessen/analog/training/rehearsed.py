"""Layers of a rehearsal: what `rehearsal` says of one layer, for linear layers and convolutions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.analog.tiles import convolution, execute, wires
from lessen.analog.tiles.crossbar import cut, scales, widened
from lessen.analog.tiles.layer import AnalogConv1D, AnalogConv1d, AnalogConv2d, AnalogLinear, Tiles, matrix
from lessen.analog.training.noise import Stage
from lessen.analog.training.straight import driven, read
from lessen.errors import LessenError


class Rehearsed(nn.Module):
    """What rehearsing layers have in common.

    Attributes:
        tiles: name, chip, layout, and the ranges that calibration found.
        stage: shared by all layers of the rehearsal.
        full_scale: of the DAC, a parameter if it is learned; None without one.
    """

    tiles: Tiles
    stage: Stage
    full_scale: Tensor | None

    def _drive(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Inputs behind the DAC, and their full scale."""
        chip, x = self.tiles.chip, widened(x)
        if chip.dac.levels is None:
            return x, 1.0
        if chip.dac.range == "dynamic":
            largest = x.detach().abs().amax(-1, keepdim=True)
            full = torch.where(largest == 0, torch.ones_like(largest), largest)
            return driven(x, full, chip.dac.levels), full
        if self.full_scale is None:
            raise LessenError(
                f"analog layer {self.tiles.name}", got="no full scale", wanted="calibration data", remedy="calibration=batches"
            )
        return driven(x, self.full_scale, chip.dac.levels, self.stage.decay), self.full_scale.detach()

    def _noisy(self) -> tuple[Tensor, Tensor]:
        """The weight with this batch's errors, `(group output) input`, and scales of its columns, `tile 1 column`."""
        weight = widened(matrix(self))
        with torch.no_grad():
            scale = scales(cut(weight, self.tiles.place), self.tiles.chip)
            error, scale = self.stage.error(weight.detach(), scale, self.tiles)
        return (weight if error is None else weight + error), scale

    @property
    def _tiled(self) -> bool:
        """Whether every tile has to be seen by itself."""
        chip, place = self.tiles.chip, self.tiles.place
        return (chip.wires.ohm > 0 and chip.wires.model == "fast") or (place.row_tiles > 1 and chip.adc.bits is not None)

    def _vectors(self, x: Tensor) -> Tensor:
        """Outputs of `vector (group input)`, without the bias: `vector (group output)`."""
        place = self.tiles.place
        inputs, full = self._drive(x)
        weight, scale = self._noisy()
        if not self._tiled and place.groups == 1:
            return self._finish(F.linear(inputs, weight), full, scale, False, (-1,))
        spreadout, crossbar = execute.tiled(inputs, place), cut(weight, place)
        sums = torch.bmm(spreadout, crossbar)
        if self.tiles.chip.wires.ohm and self.tiles.chip.wires.model == "fast":
            sums = sums - self._lost(spreadout, crossbar, full, scale)
        sums = self._finish(sums, full, scale, True, tuple(scale.shape))
        sums = sums.reshape(place.groups, place.row_tiles, x.shape[0], place.outputs).sum(1)
        return sums[0] if place.groups == 1 else sums.transpose(0, 1).reshape(x.shape[0], -1)

    def _finish(self, sums: Tensor, full: Tensor | float, scale: Tensor, apart: bool, shape: tuple[int, ...]) -> Tensor:
        """Noise of column sums and the ADC.

        Args:
            sums: of all tiles apart, or of whole outputs.
            full: scale of the inputs.
            scale: `tile 1 column`.
            apart: which of the two the sums are.
            shape: in which scales lie over the sums.
        """
        chip, place, stage = self.tiles.chip, self.tiles.place, self.stage
        if stage.output_noise:
            each = scale / place.row_tiles**0.5
            each = each if apart else each.reshape(place.groups, place.row_tiles, -1).square().sum(1).sqrt()
            sums = sums + stage.normal(sums).mul_(each.reshape(shape) * full * stage.output_noise)
        if chip.adc.levels is None or self.tiles.ranges.sums is None:
            return sums
        step = (self.tiles.ranges.sums * scale).reshape(shape) * full * (chip.encoding.shifts[0] / chip.adc.levels)
        if chip.adc.noise:
            sums = sums + stage.normal(sums).mul_(step * chip.adc.noise)
        return read(sums, step, chip.adc.levels)

    @torch.no_grad()
    def _lost(self, inputs: Tensor, crossbar: Tensor, full: Tensor | float, scale: Tensor) -> Tensor:
        """What wires keep of the sums, by the fast model: all devices load them, those too that hold nothing of a weight."""
        chip = self.tiles.chip
        planes = chip.encoding.planes((crossbar / scale).clamp(-1, 1))
        low, high = chip.device.g_min, chip.device.g_max
        load = wires.held(planes, [low + plane.share * (high - low) for plane in planes]).transpose(1, 2).flatten(2)
        shifts = crossbar.new_tensor(chip.encoding.shifts)[:, None]
        return (wires.lost(inputs / full, load, chip) * shifts).sum(2) * scale * full


class RehearsedLinear(Rehearsed, AnalogLinear):
    """A linear layer that rehearses."""

    def forward(self, input: Tensor) -> Tensor:
        """`... input` to `... output`."""
        found = self._vectors(input.reshape(-1, self.in_features))
        found = found if self.bias is None else found + self.bias
        return found.reshape(*input.shape[:-1], self.out_features).to(input.dtype)


class RehearsedConv1D(Rehearsed, AnalogConv1D):
    """The linear layer of GPT-2 in transformers, rehearsing."""

    def forward(self, x: Tensor) -> Tensor:
        """`... input` to `... output`."""
        found = self._vectors(x.reshape(-1, self.weight.shape[0])) + self.bias
        return found.reshape(*x.shape[:-1], self.weight.shape[1]).to(x.dtype)


class _RehearsedConv(Rehearsed):
    def forward(self, input: Tensor) -> Tensor:
        """`batch channel *space` to `batch channel *space`."""
        self_: Any = self
        flat = input.dim() == self_.weight.dim() - 1
        x = input[None] if flat else input
        space = x.dim() - 2
        bias = None if self_.bias is None else self_.bias.reshape(-1, *[1] * space)
        chip, place = self.tiles.chip, self.tiles.place
        fast_wires = chip.wires.ohm > 0 and chip.wires.model == "fast"
        if chip.dac.range == "calibrated" and not fast_wires and (not self._tiled or convolution.whole_channels(self_, place)):
            inputs, full = self._drive(x)
            weight, scale = self._noisy()
            whole = weight.reshape(place.groups, place.outputs, -1).transpose(1, 2)
            sums = convolution.apart(self_, inputs, cut(weight, place) if self._tiled else whole)
            found = self._finish(sums, full, scale, self._tiled, (-1, *[1] * space))
            found = convolution.summed(found, place) if self._tiled else found
        else:
            patches, sides = self_._patches(x)
            found = self._vectors(patches).reshape(x.shape[0], -1, self_.out_channels).transpose(1, 2)
            found = found.reshape(x.shape[0], self_.out_channels, *sides)
        found = found if bias is None else found + bias
        return (found[0] if flat else found).to(input.dtype)


class RehearsedConv2d(_RehearsedConv, AnalogConv2d):
    """A convolution of images that rehearses."""


class RehearsedConv1d(_RehearsedConv, AnalogConv1d):
    """A convolution of sequences that rehearses."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    AnalogLinear: RehearsedLinear,
    AnalogConv1D: RehearsedConv1D,
    AnalogConv2d: RehearsedConv2d,
    AnalogConv1d: RehearsedConv1d,
}


def recast(layer: nn.Module, kind: type[nn.Module], **more: Any) -> nn.Module:
    """The same layer as one of another class; it shares all that the first one holds."""
    twin = kind.__new__(kind)
    own = {key: dict(layer.__dict__[key]) for key in ("_parameters", "_modules", "_buffers")}
    twin.__dict__ = {**layer.__dict__, **own, **more}
    return twin


def on_stage(layer: nn.Module, stage: Stage, learned: bool) -> nn.Module:
    """The layer of a rehearsal that takes the place of one on tiles."""
    twin: Any = recast(layer, _KINDS[type(layer)], stage=stage)
    found = twin.tiles.ranges.input
    if found is None:
        twin.full_scale = None
    elif learned:
        twin.full_scale = nn.Parameter(found.detach().clone().reshape(1))
    else:
        twin.register_buffer("full_scale", found.detach().clone().reshape(1), persistent=False)
    return twin
