"""Straight-through estimators: the forward pass is the format, the backward pass is the rule in the header."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from lessen.formats import Float, Format, Int, PerGroup, PerRow, PerTensor, fake_quantize

FORMATS = [
    Int(4, PerGroup(16)),
    Int(3, PerRow(), True, False),
    Int(2, PerTensor()),
    Int(4, PerGroup(16), symmetric=False),
    Int(8, PerRow(), symmetric=False, scale_dtype=torch.float32),
    Float("e4m3", PerRow()),
    Float("e2m1", PerGroup(16), torch.bfloat16),
]
every_format = pytest.mark.parametrize("format", FORMATS, ids=str)


def weight(seed: int = 0) -> Tensor:
    return torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))


def shrunken_grid(format: Format, w: Tensor, factor: float = 0.5) -> tuple[Tensor, Tensor | None]:
    """A grid that clips some weights."""
    scale, zero = format.grid(w)
    return (scale.float() * factor).to(format.scale_dtype), zero


def per_weight(format: Format, value: Tensor, w: Tensor) -> Tensor:
    """A "row group" tensor spread over its weights."""
    if isinstance(format.granularity, PerTensor):
        return value.expand_as(w)
    return value.repeat_interleave(w.shape[1] // value.shape[1], 1)


@every_format
def test_forward_is_what_the_format_decodes(format: Format):
    w = weight()
    assert torch.equal(fake_quantize(w, format), format.decode(format.encode(w)))
    scale, zero = shrunken_grid(format, w)
    assert torch.equal(fake_quantize(w, format, scale, zero), format.decode(format.round(w, scale, zero)))


@every_format
def test_the_gradient_is_one_inside_the_range_and_zero_where_clipped(format: Format):
    w = weight().requires_grad_()
    scale, zero = shrunken_grid(format, w.detach())
    upstream = weight(1)
    (fake_quantize(w, format, scale, zero) * upstream).sum().backward()
    decoded = format.decode(format.round(w.detach(), scale, zero))
    low, high = format.code_range
    step, offset = per_weight(format, scale.float(), w), 0 if zero is None else per_weight(format, zero.float(), w)
    ends = step * (low - offset), step * (high - offset)
    reach = step.abs() * (0.5 if isinstance(format, Int) else format.bounds()[1] - high)
    outside = (decoded == ends[0]) | (decoded == ends[1])
    clipped = outside & ((w.detach() - decoded).abs() > reach)
    assert 0 < int(clipped.sum()) < w.numel()
    assert w.grad is not None and torch.equal(w.grad, torch.where(clipped, 0.0, upstream))


@every_format
def test_the_scale_s_gradient_is_that_of_lsq(format: Format):
    w = weight()
    start, zero = shrunken_grid(format, w)
    scale = start.float().requires_grad_()
    upstream = weight(1)
    w_with_gradient = w.clone().requires_grad_()
    (fake_quantize(w_with_gradient, format, scale, zero) * upstream).sum().backward()
    assert w_with_gradient.grad is not None and scale.grad is not None
    inside = w_with_gradient.grad == upstream
    ratio = w / per_weight(format, start.float(), w)
    code = format.decode(format.round(w, start, zero)) / per_weight(format, start.float(), w)
    slope = torch.where(inside, code - ratio, code) * upstream
    gain = 1 / sqrt(w.numel() / scale.numel() * format.code_range[1])
    torch.testing.assert_close(scale.grad, slope.view(*scale.shape, -1).sum(2) * gain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", [Int(4, PerRow(), scale_dtype=torch.float32), Float("e2m1", PerRow())], ids=str)
def test_where_everything_is_clipped_the_scale_s_gradient_is_the_finite_difference(format: Format):
    w = weight().sign() * 100
    scale = torch.ones(6, 1, requires_grad=True)
    fake_quantize(w, format, scale).square().sum().backward()
    assert scale.grad is not None
    gain = 1 / sqrt(32 * format.code_range[1])
    with torch.no_grad():
        plus, minus = (fake_quantize(w, format, scale + d).double().square().sum(1, keepdim=True) for d in (2**-7, -(2**-7)))
    # The loss is quadratic in the scale, so the central difference is exact up to float32.
    torch.testing.assert_close(scale.grad.double() / gain, (plus - minus) / 2**-6, rtol=1e-5, atol=0)


def test_a_scale_learned_by_its_gradient_wins_most_of_what_the_search_wins():
    w, format = weight() * weight().abs(), Int(3, PerRow(), scale_dtype=torch.float32)
    scale = format.grid(w)[0].clone().requires_grad_()
    optimizer = torch.optim.Adam([scale], lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (fake_quantize(w, format, scale) - w).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    searched = float((format.decode(format.round(w, *format.search(w))) - w).square().sum())
    # Descent stays in the valley of its start, the search looks into all of them: measured three quarters, half demanded.
    assert losses[0] - min(losses) > 0.5 * (losses[0] - searched) > 0


@every_format
def test_leading_axes_types_and_frozen_scales(format: Format):
    x = weight().view(2, 3, 32).to(torch.bfloat16).requires_grad_()
    out = fake_quantize(x, format)
    assert out.shape == x.shape and out.dtype == torch.bfloat16
    assert torch.equal(out.view(6, 32), format.decode(format.encode(x.detach().view(6, 32))).to(torch.bfloat16))
    out.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    # A grid that reaches the extremes clips nothing, except on the short side of a lopsided range.
    assert float(x.grad.float().mean()) > 0.6
