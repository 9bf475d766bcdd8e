"""EST: train through a chip that has no derivative, with the gradient of the clean network.

A model of a chip that is near the truth (programming in steps, drift, faults, converters, wires, slices) has no useful derivative, and
where it has one, automatic differentiation keeps every intermediate tensor of it. Straight-through estimation, known from rounding, is
extended to the whole chip: the chip decides what the layer puts out, the clean layer decides how the error flows back.

    forward     y     = chip(W)(x)             anything at all
    backward    dL/dx = dL/dy W                dL/dW = dL/dy^T x               W without errors, in both

Nothing is kept for the way back but x and W, and W is there anyway. If the error of the chip has no bias, E[chip(W)(x)] = W x, the
estimate points where the gradient of the expected loss does, up to terms of second order in the error.

    trained = EST().rehearse(model, chip, calibration=batches).train(data, losses=(NextToken(),), epochs=1)

When it is worth it: where errors are large. A small convolutional network (92.9 % of 1500 pictures digitally), 240 steps, means of 12
chips of Gaussian errors of a fifth of the range: mapped as it is 70.9 %, after as many steps without a chip 68.2 %, after EST 78.0 %
(chip by chip 9.9 points more than those steps, with a standard error of 2.4). Training through the noise by automatic differentiation,
which keeps more, came to 80.5 %. At a tenth of the range 120 steps of EST (89.7 %) and without a chip (89.6 %) were alike: there it has
nothing to teach.

Paper: Feng, Zhou et al. 2025, Extending Straight-Through Estimation for Robust Neural Networks on Analog CIM Hardware,
https://arxiv.org/abs/2508.11940.
Ours: the forward is the mapped layer itself (`layer`), with every part of the chip's description; a fresh instance of the chip for every
batch, at a random time of its life. The text of the paper's method section was not at hand; this follows its abstract.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from lessen.analog import mapping
from lessen.analog.chip import Chip
from lessen.analog.mapping import Split
from lessen.analog.tiles.crossbar import Moment
from lessen.analog.tiles.layer import AnalogConv1D, AnalogConv1d, AnalogConv2d, AnalogLinear, Tiles, matrix
from lessen.analog.training.noise import Programmed, Stage
from lessen.analog.training.rehearsal import Clipped, Rehearsal, as_rehearsal
from lessen.analog.training.rehearsed import recast
from lessen.core.strict import strict


class _Clean(torch.autograd.Function):
    """What `compute` makes of x on the way forward, the clean layer on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Module, compute: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.biased = layer, bias is not None
        return compute(x)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if isinstance(ctx.layer, nn.modules.conv._ConvNd):
            found = _through_convolution(ctx.layer, x, weight, outer[0], wanted)
        else:
            found = _through_product(x, weight, outer[0], wanted, stored_in_out=isinstance(ctx.layer, AnalogConv1D))
        return *found, None, None


def _through_product(x: Tensor, weight: Tensor, outer: Tensor, wanted: Sequence[bool], stored_in_out: bool) -> tuple[Tensor | None, ...]:
    rows, inputs = outer.reshape(-1, outer.shape[-1]), x.reshape(-1, x.shape[-1])
    back = outer @ (weight.t() if stored_in_out else weight) if wanted[0] else None
    own = (inputs.t() @ rows if stored_in_out else rows.t() @ inputs) if wanted[1] else None
    return back, own, rows.sum(0) if wanted[2] else None


def _through_convolution(layer: Any, x: Tensor, weight: Tensor, outer: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    space = weight.dim() - 2
    plain = not isinstance(layer.padding, str) and layer.padding_mode == "zeros" and x.dim() == space + 2
    if plain:
        settings = (list(layer.stride), list(layer.padding), list(layer.dilation), False, [0] * space, layer.groups)
        found = torch.ops.aten.convolution_backward(outer, x, weight, [weight.shape[0]], *settings, list(wanted))
        return tuple(each if needed else None for each, needed in zip(found, wanted, strict=True))
    with torch.enable_grad():  # other borders: computed once more, cleanly
        inner, kernel = x.detach().requires_grad_(), weight.detach().requires_grad_()
        clean = layer._conv_forward(inner, kernel, None)
        back, own = torch.autograd.grad(clean, (inner, kernel), outer)
    channels = outer.transpose(0, -space - 1).flatten(1).sum(1) if wanted[2] else None
    return back if wanted[0] else None, own if wanted[1] else None, channels


class _Estimated(nn.Module):
    """A layer on tiles that is programmed anew for every batch, and differentiated as if it were digital."""

    tiles: Tiles
    stage: Stage

    def forward(self, input: Tensor) -> Tensor:
        """As the layer that it stands for."""
        layer = cast(Any, self)
        return _Clean.apply(input, layer.weight, layer.bias, self, self._on_chip)

    def _on_chip(self, x: Tensor) -> Tensor:
        noise = cast(Programmed, self.stage.noise)
        instance, seconds = self.stage.drawn or noise.draw(self.tiles.chip, self.stage.generator)
        self.tiles.generator = self.stage.generator
        self.tiles.program(matrix(self).detach(), Moment(instance, self.tiles.name, seconds), None)
        try:
            return super().forward(x)
        finally:
            self.tiles.numbers = None  # the noisy weights live for one product


class EstimatedLinear(_Estimated, AnalogLinear):
    """A linear layer."""


class EstimatedConv1D(_Estimated, AnalogConv1D):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The linear layer of GPT-2 in transformers."""


class EstimatedConv2d(_Estimated, AnalogConv2d):
    """A convolution of images."""


class EstimatedConv1d(_Estimated, AnalogConv1d):
    """A convolution of sequences."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    AnalogLinear: EstimatedLinear,
    AnalogConv1D: EstimatedConv1D,
    AnalogConv2d: EstimatedConv2d,
    AnalogConv1d: EstimatedConv1d,
}


@dataclass(frozen=True)
class EST:
    """How a network is trained through a chip with the gradient of the clean network."""

    times: Programmed = field(default_factory=Programmed)
    """When in the chip's life a batch meets it."""
    clip: float | None = None
    """Standard deviations of its row beyond which a weight is clipped after each step; none leaves weights alone."""

    @strict()
    def rehearse(
        self,
        model: nn.Module,
        chip: Chip,
        *,
        split: Split | Sequence[str] | None = None,
        calibration: Iterable[Any] | None = None,
        run: Callable[[nn.Module, Any], Any] | None = None,
    ) -> Rehearsal:
        """A rehearsal whose `train` trains the model this way.

        Args:
            model: shares its parameters with the rehearsal's twin.
            chip: any; also one with digits, slices, curved devices and wires.
            split: which layers stay digital.
            calibration: batches from which converters get their ranges, where they need some.
            run: how a model is called with a batch.
        """
        mapped = mapping.map(model, chip, split=split, calibration=calibration, run=run)
        stage = Stage(self.times)
        rehearsal = as_rehearsal(mapped, model, chip, split, run, lambda layer: recast(layer, _KINDS[type(layer)], stage=stage))
        rehearsal.model.register_forward_pre_hook(lambda *_: stage.another(chip))
        if self.clip is not None:
            rehearsal.after_step = Clipped(self.clip, tuple(rehearsal.layers))
        return rehearsal


def estimated(compute: Callable[[Tensor], Tensor], x: Tensor, layer: nn.Linear) -> Tensor:
    """Any forward in place of a linear layer's, with the linear layer's gradients.

    Args:
        compute: `... input` to `... output`; bias included.
        x: inputs.
        layer: what is differentiated instead.

    >>> layer, x = nn.Linear(3, 2), torch.ones(1, 3, requires_grad=True)
    >>> estimated(lambda x: torch.zeros(1, 2), x, layer).sum().backward()
    >>> bool(torch.equal(x.grad[0], layer.weight.sum(0)))
    True
    """
    return _Clean.apply(x, layer.weight, layer.bias, layer, compute)
