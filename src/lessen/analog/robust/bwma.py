"""BWMA: binary weights, so that each is one pair of devices at its ends, and activations of several bits that keep what binary ones lose.

A weight that is only +a or -a needs no device between its ends: one of the pair is at full range, the other at its floor, where errors of
programming are least and levels need not be told apart. The scale a of an output channel leaves the crossbar as a digital factor.

Weights. For an output channel w and B in {-1, 1}, ||w - a B||^2 is least for

    B = sign(w)        a = <w, B> / <B, B> = mean |w|

Gradients pass the sign straight through, to weights that are kept in full precision while training lasts.

Activations. x is driven as one of L = 2^bits - 1 steps of size s (and their negatives). Rounding is approximated on the way back by a
staircase that has a derivative, with v in [-1/2, 1/2] the distance of |x| / s from the middle between two codes:

    step(v) = tanh(k v) / (2 tanh(k / 2))        dy/dx = step'(v) within the range, 0 beyond        k: sharpness; k -> 0 is straight through
    dy/dr   = (round(u) - u) / L within the range, sign(x) beyond; u = x / s, r = L s                 the full scale is learned

What it gains: a small convolutional network whose second and third layers have signs of weights alone, first layer digital, 4 bits and a
sign for activations. Rounded without training 58.9 % right digitally, trained 90.1 % (200 steps; full precision 94.2 %). On chips with
errors of 10 % of the range it loses 0.7 points where the plain network loses 4.5, at 30 % it loses 5.5 where the plain one loses 47.6.

The details follow the abstract of the paper, not the paper: Zhou et al. 2025, Binary Weight Multi-Bit Activation Quantization for
Compute-in-Memory CNN Accelerators, https://arxiv.org/abs/2508.21524. Its method section was not at hand; what its abstract names is
composed of known parts: the closed form of Rastegari et al. 2016, XNOR-Net, https://arxiv.org/abs/1603.05279 (section 3.1) for each
output channel, the staircase of Gong et al. 2019, DSQ, https://arxiv.org/abs/1908.05033 (section 3.1), the learned scale of Esser et al.
2020, LSQ, https://arxiv.org/abs/1902.08153 (section 2). Whether the paper's closed forms differ could not be seen.

Ours: converters and noise of the chip take part in the training, as in `rehearsal`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lessen.analog import mapping
from lessen.analog.chip import Chip
from lessen.analog.mapping import Split
from lessen.analog.periphery import Dac
from lessen.analog.tiles.crossbar import cut, scales, widened
from lessen.analog.tiles.layer import AnalogConv1D, AnalogConv1d, AnalogConv2d, AnalogLinear, matrix
from lessen.analog.training.noise import Injected, Stage
from lessen.analog.training.rehearsal import Rehearsal, as_rehearsal, check
from lessen.analog.training.rehearsed import Rehearsed, RehearsedConv1D, RehearsedConv1d, RehearsedConv2d, RehearsedLinear, recast
from lessen.core.strict import check_fields, strict
from lessen.errors import UsageError


def binary(weight: Tensor) -> Tensor:
    """The nearest matrix whose rows `output` have weights of one magnitude; gradients pass straight through.

    >>> binary(torch.tensor([[1.0, -2.0, 0.0], [3.0, 3.0, -3.0]]))
    tensor([[ 1., -1.,  1.],
            [ 3.,  3., -3.]])
    """
    signs = torch.where(weight >= 0, 1.0, -1.0).to(weight)
    nearest = weight.detach().abs().mean(1, keepdim=True) * signs
    return weight + (nearest - weight).detach()


class _Staircase(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, full: Tensor, levels: int, sharpness: float) -> Tensor:
        ctx.save_for_backward(x, full)
        ctx.levels, ctx.sharpness = levels, sharpness
        step = full / levels
        return (x / step).round_().clamp_(-levels, levels).mul_(step)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        x, full = ctx.saved_tensors
        levels, k = ctx.levels, ctx.sharpness
        u = x * (levels / full)
        inside = u.abs() <= levels
        # |u| = n + 1/2 + v: the middle between two codes is where v is 0
        v = u.abs().sub_(u.abs().floor()).sub_(0.5)
        slope = (k / 2 / math.tanh(k / 2)) / torch.cosh(k * v).square()
        scale = (outer[0] * torch.where(inside, (u.round() - u) / levels, u.sign())).sum() / math.sqrt(x.numel() * levels)
        return outer[0] * slope * inside, scale.reshape(full.shape), None, None


def staircase(x: Tensor, full: Tensor, levels: int, sharpness: float = 2.0) -> Tensor:
    """Inputs rounded to multiples of `full / levels`, and differentiated as a staircase of slopes.

    >>> staircase(torch.tensor([0.2, -3.0]), torch.tensor([1.0]), 4)
    tensor([ 0.2500, -1.0000])
    """
    return _Staircase.apply(x, full, levels, sharpness)


class _Binary(Rehearsed):
    """A layer whose weights are binary while it rehearses."""

    sharpness: float

    def _drive(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        levels, full = self.tiles.chip.dac.levels, self.full_scale
        assert levels is not None
        assert full is not None
        return staircase(widened(x), full, levels, self.sharpness), full.detach()

    def _noisy(self) -> tuple[Tensor, Tensor]:
        weight = binary(widened(matrix(self)))
        with torch.no_grad():
            scale = scales(cut(weight, self.tiles.place), self.tiles.chip)
            error, scale = self.stage.error(weight.detach(), scale, self.tiles)
        return (weight if error is None else weight + error), scale


class BinaryLinear(_Binary, RehearsedLinear):
    """A linear layer."""


class BinaryConv1D(_Binary, RehearsedConv1D):
    """The linear layer of GPT-2 in transformers."""


class BinaryConv2d(_Binary, RehearsedConv2d):
    """A convolution of images."""


class BinaryConv1d(_Binary, RehearsedConv1d):
    """A convolution of sequences."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    AnalogLinear: BinaryLinear,
    AnalogConv1D: BinaryConv1D,
    AnalogConv2d: BinaryConv2d,
    AnalogConv1d: BinaryConv1d,
}


class BinaryRehearsal(Rehearsal):
    """A rehearsal after which the original's weights on tiles are binary."""

    def settle(self) -> nn.Module:
        """As of any rehearsal; and the weights that were trained in full precision become what they stood for."""
        with torch.no_grad():
            for layer in self.layers.values():
                matrix(layer).copy_(binary(matrix(layer)))
        return super().settle()


@dataclass(frozen=True)
class BWMA:
    """How a network gets binary weights and activations of a few bits."""

    bits: int = 4
    """Of the magnitude of an activation."""
    sharpness: float = 2.0
    """k of the staircase."""
    sigma: float = 0.0
    """Gaussian errors of the weights in training, as a part of their magnitude."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.bits <= 15:
            raise UsageError("BWMA", got=f"bits={self.bits}", wanted="1 to 15")
        if not 0 < self.sharpness <= 50:
            raise UsageError("BWMA", got=f"sharpness={self.sharpness:g}", wanted="a number above 0, at most 50")

    @strict()
    def rehearse(
        self,
        model: nn.Module,
        chip: Chip,
        *,
        calibration: Iterable[Any],
        split: Split | Sequence[str] | None = None,
        run: Callable[[nn.Module, Any], Any] | None = None,
    ) -> Rehearsal:
        """A rehearsal whose `train` gives the model binary weights, and whose `mapped` drives it with `bits` bits and a sign.

        Args:
            model: shares its parameters with the rehearsal's twin; binary where it lies on tiles once `train` is over.
            chip: its DAC is replaced by one of `bits` bits and a sign.
            calibration: batches from which ranges start.
            split: which layers stay digital; usually the first and the last.
            run: how a model is called with a batch.
        """
        driven = replace(chip, dac=Dac(self.bits + 1, quantile=chip.dac.quantile), reads="quiet" if chip.reads == "quiet" else "frozen")
        check(driven, Injected(self.sigma))
        mapped = mapping.map(model, driven, split=split, calibration=calibration, run=run)
        stage = Stage(Injected(self.sigma))

        def make(layer: nn.Module) -> nn.Module:
            twin: Any = recast(layer, _KINDS[type(layer)], stage=stage, sharpness=self.sharpness)
            twin.full_scale = nn.Parameter(twin.tiles.ranges.input.detach().clone().reshape(1))
            return twin

        plain = as_rehearsal(mapped, model, replace(chip, dac=driven.dac), split, run, make)
        return BinaryRehearsal(**{name: getattr(plain, name) for name in ("model", "original", "chip", "layers", "split", "run")})
