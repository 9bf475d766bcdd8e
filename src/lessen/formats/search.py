"""Scale search: the grid that loses least, instead of the grid that reaches the largest weight.

Dividing the largest weight of a group by the largest code wastes resolution: one outlier stretches the step for all. A smaller
step clips the outlier and serves the rest better. For a group with weights w_j and importances h_j, the loss of a grid is

    E(s, z) = sum_j h_j (w_j - s c_j)^2        c_j = clip(round(w_j / s), lowest - z, highest - z)

Two steps minimise it. First a sweep over shrunken steps (both signs of s where the code range is lopsided). Each candidate only
proposes codes; for given codes the best scale and its loss are known in closed form,

    s* = A / B        E(s*) = sum_j h_j w_j^2 - A^2 / B        A = sum_j h_j w_j c_j,   B = sum_j h_j c_j^2

so a candidate is ranked by A^2 / B and a coarse sweep is enough. Then alternate: codes for s*, then s* for these codes (Lloyd's
iteration; the loss can only fall). Asymmetric grids also try the neighbours of the zero point. At the end the rounded grid is
compared with the plain one, and the better is kept, group by group: a search is never worse than no search.

Importance: the diagonal of the input Gram matrix makes E the expected squared error of the layer's output for uncorrelated inputs.

Papers: Lloyd 1982, Least squares quantization in PCM (alternation); Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323
(grid search over shrink factors in its code); Lin et al. 2023, AWQ, https://arxiv.org/abs/2306.00978 (input-weighted error).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SLAB = 1 << 16
"""Weights that are searched together: small enough for the buffers to stay in the processor's cache."""

Dots = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(1/s, z) "group" -> (A, B) "group"."""


@dataclass(frozen=True)
class Slab:
    """Groups as columns: broadcasting over rows and summing over rows are the fast directions.

    Attributes:
        weight: "size group", float32.
        importance: "size group" or None.
        weighted: importance * weight.
        lowest, highest: smallest and largest code, before the zero point is taken off.
    """

    weight: Tensor
    importance: Tensor | None
    weighted: Tensor
    lowest: int
    highest: int

    @classmethod
    def of(cls, weight: Tensor, importance: Tensor | None, code_range: tuple[int, int]) -> "Slab":
        """From groups as rows, "group size"."""
        weight = weight.T.contiguous()
        importance = None if importance is None else importance.T.contiguous()
        return cls(weight, importance, weight if importance is None else weight * importance, *code_range)

    def codes(self, inverse: Tensor, zero: Tensor | None) -> Tensor:
        """Nearest codes, zero point taken off, as floats "size group"."""
        codes = (self.weight * inverse).round_()
        if zero is None:
            return codes.clamp_(self.lowest, self.highest)
        return codes.clamp_(self.lowest - zero, self.highest - zero)

    def dots(self, inverse: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """A and B of the header for the codes of a grid, "group"."""
        codes = self.codes(inverse, zero)
        a = (codes * self.weighted).sum(0)
        codes.square_()
        return a, (codes if self.importance is None else codes.mul_(self.importance)).sum(0)

    def loss(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """E of the header, summed directly (A^2 / B cancels to nothing at eight bits), "group"."""
        error = (self.codes(1 / scale, zero) * scale).sub_(self.weight).square_()
        return (error if self.importance is None else error.mul_(self.importance)).sum(0)


def sweep(dots: Dots, base: Tensor, zero: Tensor | None, factors: list[float], refits: int) -> tuple[Tensor, Tensor]:
    """The best scale over `factors` times `base`, refitted.

    Args:
        dots: A and B of a grid.
        base: scale to shrink, "group".
        zero: zero point to hold, "group", or None.
        factors: what to multiply `base` with; negative factors try the mirrored grid.
        refits: alternations of codes and scale after the sweep.

    Returns:
        scale "group" and its merit A^2 / B "group", larger is better.
    """
    best, scale = torch.full_like(base, -1.0), base
    inverse = 1 / base
    for step in [*factors, *[None] * refits]:
        # None: one more alternation from the best scale so far.
        a, b = dots(1 / scale if step is None else inverse / step, zero)
        merit = torch.where(b > 0, a * a / b, 0.0)
        better = merit > best
        best = torch.where(better, merit, best)
        scale = torch.where(better & (b > 0), a / b, scale)
    return scale, best
