"""Straight-through fake quantization: round in the forward pass, pretend in the backward pass that nothing was rounded.

Rounding is flat almost everywhere, so its true gradient is 0 and nothing could be learned through it. The straight-through estimator
passes the gradient as if the output were the input, and stops it where the input was clipped, since moving such a weight changes nothing:

    dL/dw = dL/dw_q   if w / s lies within half a step of the format's range, else 0

The scale can be learned as well (LSQ). With c the code of w (zero point taken off) and w_q = s c, treating the rounding error as
constant inside the range and the code as constant outside gives

    dw_q/ds = c - w / s   inside,      dw_q/ds = c   where clipped

A scale moves all n weights of its group at once, so its gradient is multiplied by 1 / sqrt(n c_max), which makes its relative steps about
as large as those of the weights. The scale is rounded to its stored type in the forward pass and that, too, is passed straight through.

Papers: Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons, https://arxiv.org/abs/1308.3432;
Esser et al. 2020, Learned Step Size Quantization, https://arxiv.org/abs/1902.08153 (eqs. 1-5; section 2.2 for the gradient's size).
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from lessen.formats.granularity import grouped
from lessen.formats.spec import Format


class StraightThrough(torch.autograd.Function):
    """`fake_quantize` on a matrix "out in" with a given grid."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, zero: Tensor | None, format: Format) -> Tensor:
        """float32 "out in"."""
        step = scale.to(format.scale_dtype).float().reshape(-1, 1)
        column = None if zero is None else zero.reshape(-1, 1).float()
        ratio = grouped(weight, format.granularity) / step
        low, high = format.bounds(column)
        inside = (ratio >= low) & (ratio <= high)
        codes = format.levels(ratio.clone(), column)
        slope = torch.where(inside, codes - ratio, codes) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(inside, slope)
        ctx.gain = 1 / sqrt(ratio.shape[1] * format.code_range[1])
        ctx.shapes = weight.dtype, scale.shape, scale.dtype
        return (codes * step).view(weight.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Gradients of weight and scale."""
        inside, slope = ctx.saved_tensors
        dtype, scale_shape, scale_dtype = ctx.shapes
        grad = grads[0].reshape(inside.shape)
        of_scale = None if slope is None else ((grad * slope).sum(1) * ctx.gain).view(scale_shape).to(scale_dtype)
        return (grad * inside).view(grads[0].shape).to(dtype), of_scale, None, None


def fake_quantize(weight: Tensor, format: Format, scale: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
    """What the weights (or activations) will be after quantization, differentiable by the straight-through estimator.

    Args:
        weight: "... in"; leading axes count as rows.
        format: the number format.
        scale: "row group", of any float type; learned if it requires a gradient. None: from the extreme values at every call.
        zero: "row group" for asymmetric formats with a given scale.

    Returns:
        The shape and type of `weight`; equal to `format.decode(format.round(weight, scale, zero))`.

    >>> from lessen.formats.affine import Int, PerRow
    >>> w = torch.tensor([[0.3, -1.2, 9.0]], requires_grad=True)
    >>> fake_quantize(w, Int(4, PerRow()), torch.ones(1, 1))
    tensor([[ 0., -1.,  7.]], grad_fn=<ViewBackward0>)
    >>> fake_quantize(w, Int(4, PerRow()), torch.ones(1, 1)).sum().backward()
    >>> w.grad
    tensor([[1., 1., 0.]])
    """
    matrix = weight.reshape(-1, weight.shape[-1])
    if scale is None:
        scale, zero = format.grid(matrix.detach())
    quantized: Tensor = StraightThrough.apply(matrix, scale, zero, format)
    return quantized.view(weight.shape).to(weight.dtype)
