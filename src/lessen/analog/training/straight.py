"""Converters that can be trained through: they round and clip on the way forward and let gradients pass on the way back.

Rounding has a derivative of zero almost everywhere, so it is taken as the identity (straight through); where a converter clips, nothing
that lies behind it feels its input, and the gradient is zero.

    DAC     x_q = s clamp(round(x / s), -L, L), s = r / L            r: its full scale, which may be learned
    ADC     y_q = s clamp(round(y / s), -L, L), s: its step

A full scale is learned by what clipping does to the loss: it grows if the loss would fall were clipped inputs larger in magnitude, and
otherwise decays as long as nearly all inputs fit:

    dL/dr = r (sum over x >= r of min(dL/dx, 0) - sum over x <= -r of max(dL/dx, 0)) + decay r [share of inputs that fit > 0.95]

Source: rule of the full scale as in Büchel et al. 2025, Analog Foundation Models, https://arxiv.org/abs/2505.09663 (its toolkit
aihwkit-lightning); straight-through estimation: Bengio et al. 2013, https://arxiv.org/abs/1308.3432.
Changed: an input counts as clipped if it takes the highest code, which half a step of inputs within the range do too. So nothing has to
be kept for the way back but the codes, which the product that follows keeps anyway.
"""

from typing import Any

import torch
from torch import Tensor

FITS = 0.95  # share of inputs within a range from which on the range decays


class _Driven(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, full: Tensor, levels: int, decay: float) -> Tensor:
        step = full / levels
        driven = (x / step).round_().clamp_(-levels, levels).mul_(step)
        ctx.save_for_backward(driven, full)
        ctx.levels, ctx.decay = levels, decay
        return driven

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        driven, full = ctx.saved_tensors
        gradient = outer[0]
        clipped = driven.abs() > full * (1 - 0.5 / ctx.levels)
        inner = gradient.masked_fill(clipped, 0) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return inner, None, None, None
        outwards = (gradient * driven).masked_fill_(~clipped, 0).clamp_(max=0).sum()  # where clipped, driven is r or -r
        fits = 1 - clipped.sum() / clipped.numel()
        return inner, (outwards + full * (ctx.decay * (fits > FITS).to(full))).reshape(full.shape), None, None


def driven(x: Tensor, full: Tensor, levels: int, decay: float = 0.0) -> Tensor:
    """What a DAC makes of inputs.

    Args:
        x: any shape.
        full: full scale, a scalar or one that broadcasts; learned if it is a scalar that requires a gradient.
        levels: largest code.
        decay: of a learned full scale.

    >>> driven(torch.tensor([0.2, -3.0]), torch.tensor(1.0), 4)
    tensor([ 0.2500, -1.0000])
    """
    return _Driven.apply(x, full, levels, decay)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, step: Tensor, levels: int) -> Tensor:
        ctx.mark_dirty(sums)
        sums.div_(step).round_()
        ctx.save_for_backward(sums.abs() > levels)
        return sums.clamp_(-levels, levels).mul_(step)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return outer[0].masked_fill(ctx.saved_tensors[0], 0), None, None


def read(sums: Tensor, step: Tensor, levels: int) -> Tensor:
    """What an ADC makes of column sums, in place.

    Args:
        sums: any shape.
        step: what a code of 1 stands for; broadcasts.
        levels: largest code.

    >>> read(torch.tensor([0.2, -3.0]), torch.tensor(0.25), 4)
    tensor([ 0.2500, -1.0000])
    """
    return _Read.apply(sums, step, levels)
