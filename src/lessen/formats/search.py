"""Scale search: the grid that loses least, instead of the grid that reaches the largest weight.

Dividing the largest weight of a group by the largest code wastes resolution: one outlier stretches the step for all. A smaller
step clips the outlier and serves the rest better. For a group with weights w_j and importances h_j, the loss of a grid is

    E(s, z) = sum_j h_j (w_j - s c_j)^2        c_j = the nearest code of w_j / s, zero point taken off

Two steps minimise it. First a sweep over shrunken scales (of both signs where the code range is lopsided). Each candidate only
proposes codes; for given codes the best scale and its loss are known in closed form,

    s* = A / B        E(s*) = sum_j h_j w_j^2 - A^2 / B        A = sum_j h_j w_j c_j,   B = sum_j h_j c_j^2

so candidates are ranked by A^2 / B and a coarse sweep is enough: twelve steps come within 0.5 % of the loss of a hundred. Then
alternate: codes for s*, s* for these codes (Lloyd's iteration; the loss can only fall). Asymmetric grids also try the four nearest
other zero points. At the end the winner, rounded as it will be stored, meets the plain grid, and the better of the two is kept, group
by group: a search is never worse than no search.

Importance: with the diagonal of the input Gram matrix, E is the squared error of the layer's output if inputs are uncorrelated.

Papers: Lloyd 1982, Least squares quantization in PCM (the alternation); Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323
(a sweep over shrink factors, in its code); Lin et al. 2023, AWQ, https://arxiv.org/abs/2306.00978 (error weighted by the input).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.errors import LessenError, UsageError
from lessen.formats.granularity import Granularity, PerTensor, grouped

SLAB = 1 << 17
"""Weights that are searched together: few enough for the buffers to stay in the processor's cache."""


@dataclass(frozen=True)
class Space:
    """What may vary.

    Attributes:
        levels: (w / s, zero) "size group" -> nearest codes, zero point taken off; may write over its input.
        factors: multiples of the plain scale to try; negative ones mirror the grid.
        shifts: displacements of the zero point to try; (0,) without zero points.
        highest: largest zero point.
        refits: alternations of codes and least-squares scale after the sweep.
    """

    levels: Callable[[Tensor, Tensor | None], Tensor]
    factors: tuple[float, ...]
    shifts: tuple[int, ...] = (0,)
    highest: int = 0
    refits: int = 3


def minimise(
    weight: Tensor, importance: Tensor | None, plain: tuple[Tensor, Tensor | None], granularity: Granularity, space: Space, where: str
) -> tuple[Tensor, Tensor | None]:
    """(scale, zero) that minimise E in each group, starting from the plain grid and never worse than it.

    Args:
        weight: "out in".
        importance: h, "in" or "out in", finite, non-negative; None, or zeros throughout a group, counts all weights alike.
        plain: scale and zero point "out group" of the grid that reaches the extremes, as stored.
        granularity: who shares a scale.
        space: what to try.
        where: name of the tensor, for errors.
    """
    check_importance(importance, weight, where)
    rows = max(1, SLAB // weight.shape[1])
    peak = importance.max().float() if importance is not None and isinstance(granularity, PerTensor) else None
    parts = [slice(start, start + rows) for start in range(0, weight.shape[0], rows)]

    def slab(part: slice, scale: Tensor) -> Slab:
        h = importance if importance is None or importance.ndim == 1 else importance[part]
        h = None if h is None else grouped(h.expand_as(weight[part]), granularity)
        return Slab.of(grouped(weight[part], granularity) / scale.float().view(-1, 1), h, space, peak)

    scale, zero = plain
    if isinstance(granularity, PerTensor):
        # One group over all rows: its sums run over the slabs, made afresh for each candidate so that memory stays bounded.
        return _best(lambda: (slab(part, scale) for part in parts), scale, zero, space)
    found = []
    for part in parts:
        one = slab(part, scale[part])
        found.append(_best(lambda one=one: iter([one]), scale[part], None if zero is None else zero[part], space))
    return torch.cat([s for s, _ in found]), None if zero is None else torch.cat([z for _, z in found])


def check_importance(importance: Tensor | None, weight: Tensor, where: str) -> None:
    """UsageError for a wrong shape, LessenError for values that are not finite and >= 0."""
    if importance is None:
        return
    if importance.shape not in (weight.shape, weight.shape[1:]):
        wanted = f"{tuple(weight.shape)} or {tuple(weight.shape[1:])}"
        raise UsageError(where, got=f"importance of shape {tuple(importance.shape)}", wanted=wanted)
    low, high = torch.aminmax(importance)
    if not (bool(low >= 0) and bool(high.isfinite())):
        raise LessenError(where, got="negative, NaN or infinite importance", wanted="finite numbers from 0")


@dataclass(frozen=True)
class Slab:
    """Groups as columns (the direction in which broadcasting and summing are fast), in units of the plain scale.

    Attributes:
        weight: "size group", float32.
        importance: "size group", scaled so that the largest of a group is 1; or None.
        weighted: importance * weight.
        space: what may vary.
    """

    weight: Tensor
    importance: Tensor | None
    weighted: Tensor
    space: Space

    @classmethod
    def of(cls, weight: Tensor, importance: Tensor | None, space: Space, peak: Tensor | None = None) -> "Slab":
        """From groups as rows, "group size"; peak: largest importance, where a group spans several slabs."""
        weight = weight.T.contiguous()
        if importance is None:
            return cls(weight, None, weight, space)
        importance = importance.T
        peak = importance.amax(0) if peak is None else peak
        # Only the ratios within a group matter; without this, tiny importances would underflow when squared sums are formed.
        # A group whose inputs were all zero has told nothing: its weights count alike.
        importance = torch.where(peak > 0, importance / peak.clamp(min=torch.finfo().tiny), 1.0).contiguous()
        return cls(weight, importance, weight * importance, space)

    def dots(self, inverse: Tensor | float, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """A and B for the codes of scale 1 / `inverse`, "group"."""
        codes = self.space.levels(self.weight * inverse, zero)
        a = (codes * self.weighted).sum(0)
        codes.square_()
        return a, (codes if self.importance is None else codes.mul_(self.importance)).sum(0)

    def loss(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """E, summed directly (h w^2 - A^2 / B would cancel to nothing at eight bits), "group"."""
        error = (self.space.levels(self.weight / scale, zero) * scale).sub_(self.weight).square_()
        return (error if self.importance is None else error.mul_(self.importance)).sum(0)


Slabs = Callable[[], Iterator[Slab]]


def _best(slabs: Slabs, scale: Tensor, zero: Tensor | None, space: Space) -> tuple[Tensor, Tensor | None]:
    """The best grid of the groups in `slabs`; sums run over the slabs."""

    def loss(trial: Tensor, zero: Tensor | None) -> Tensor:
        return torch.stack([slab.loss(trial / plain, zero) for slab in slabs()]).sum(0)

    plain = scale.float().view(-1)
    start = None if zero is None else zero.float().view(-1)
    best, found, found_zero = loss(plain, start), plain, start
    for shift in space.shifts:
        shifted = None if start is None else (start + shift).clamp_(0, space.highest)
        trial = (sweep(slabs, plain, shifted, space) * plain).to(scale.dtype).float()
        trial = torch.where(trial.isfinite() & (trial != 0), trial, plain)
        trial_loss = loss(trial, shifted)
        better = trial_loss < best
        best, found = torch.where(better, trial_loss, best), torch.where(better, trial, found)
        if found_zero is not None and shifted is not None:
            found_zero = torch.where(better, shifted, found_zero)
    stored_zero = None if zero is None or found_zero is None else found_zero.to(zero.dtype).view(zero.shape)
    return found.to(scale.dtype).view(scale.shape), stored_zero


def sweep(slabs: Slabs, plain: Tensor, zero: Tensor | None, space: Space) -> Tensor:
    """The best scale found, in units of `plain`, "group"."""
    merit, scale = torch.full_like(plain, -1.0), torch.ones_like(plain)
    for factor in (*space.factors, *[None] * space.refits):
        # None: once more from the best scale so far.
        inverse = 1 / scale if factor is None else 1 / factor
        sums = [slab.dots(inverse, zero) for slab in slabs()]
        a, b = (torch.stack(part).sum(0) for part in zip(*sums, strict=True))
        trial = a / b
        trial_merit = torch.where((b > 0) & (a != 0), a * trial, -1.0)
        better = trial_merit > merit
        merit, scale = torch.where(better, trial_merit, merit), torch.where(better, trial, scale)
    return scale


def symmetric_factors(low: float, high: float, steps: int, mirrored: bool) -> tuple[float, ...]:
    """`steps` even steps from `low` to `high`, and their negatives.

    >>> symmetric_factors(0.5, 1.0, 2, True)
    (0.5, 1.0, -0.5, -1.0)
    """
    factors = tuple(torch.linspace(low, high, steps).tolist())
    return factors + tuple(-f for f in factors) if mirrored else factors
