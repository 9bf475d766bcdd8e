"""GPTQ: round a matrix column by column, and let the columns not yet rounded absorb the error.

Rounding each weight to its nearest code ignores that inputs are correlated: an error in one column can be paid back in another. With
H the mean of x x^T over calibration text, the error of the layer's output is tr(E H E^T), E = W_hat - W. GPTQ takes the columns in
some order; after rounding column j it moves every later column by the amount that minimises this error, which is exact conditional
least squares, and with the upper Cholesky factor U of H^-1 costs one outer product:

    e = (W[:, j] - Q(W[:, j])) / U[j, j]          W[:, j+1:] -= e U[j, j+1:]

What is done around it:
- **Static groups, group-aware order** (GAR): scales are fixed first, for groups of neighbouring columns, so codes need no
  permutation at run time; columns are then visited by the curvature of their group, and inside the group by their own.
- **Scales from the true loss**: the grid of each group minimises sum_j h_j (w_j - Q(w_j))^2 with h_j = 1 / U[j, j]^2, the curvature
  that is left for column j once all later columns have answered, instead of H[j, j]. This choice of weight is ours.
- **Refit and polish**: with codes fixed the best scale of a group is a ratio, s += -(q . (E H)_g) / (q^T H_gg q); with scales fixed, each
  code in turn moves to the value that minimises the full error (coordinate descent, QuantEase). Alternated `polish` times; every
  step lowers tr(E H E^T), measured on scales already rounded to their stored type.
- **Shrinkage** multiplies the off-diagonal entries of H by 1 - a (Ledoit and Wolf's idea with the diagonal as target): error fed along
  correlations that only the calibration text has is error added on any other text.
- **Damping** grows by 3 until the float64 Cholesky succeeds; if it never does, the layer falls back to RTN and says so. Columns whose
  input was never active have no curvature: they are rounded to nearest, not zeroed, since other text may use them.
- **Correction** (QEP): the target W is replaced by W + a W D H^-1, D = mean of (x_original - x) x^T, so that a layer also undoes part of
  the error that it inherits from the layers before it.

Papers: Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323 (algorithm 1); Gafni et al. 2025, group-aware reordering,
https://arxiv.org/abs/2505.14638; Behdin et al. 2023, QuantEase, https://arxiv.org/abs/2309.01885; Arai and Ichikawa 2025,
Quantization Error Propagation, https://arxiv.org/abs/2504.09629 (eq. for the corrected weight).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.core.edit import Edit, Quantize
from lessen.core.method import Stats
from lessen.core.unit import Kind, View
from lessen.errors import UsageError
from lessen.formats.affine import Codes, Int
from lessen.methods.rounding import Rounding
from lessen.stats.accumulators import Drift, Gram


@dataclass(frozen=True)
class GPTQ(Rounding):
    """Round with error feedback along the input's correlations."""

    reorder: bool = True
    """Visit columns by curvature, group by group; False keeps their order."""
    damping: float = 0.01
    """Added to the diagonal of H, as a fraction of its mean."""
    shrinkage: float = 0.1
    """Share of H's off-diagonal entries to drop: correlations seen in a sample are weaker on other text."""
    polish: int = 2
    """Rounds of scale refit and coordinate descent after the solve."""
    correction: float = 0.0
    """Share of the inherited error to undo (QEP), from 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("shrinkage", 0, 1), ("damping", 0, 10), ("polish", 0, 100), ("correction", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"GPTQ.{name}", got=f"{getattr(self, name):g}", wanted=f"a number from {low} to {high}")

    kind: ClassVar[Kind] = "linear"
    scope: ClassVar[str] = "block"

    @property
    def needs(self) -> tuple[type, ...]:
        return (Gram, Drift) if self.correction else (Gram,)

    def __call__(self, view: View, stats: Stats) -> list[Edit]:
        format = self.format
        name, weight = view.unit.slices[0].name, view.weight.float()
        problem = factorise(shrunk(stats[Gram], self.shrinkage), self.damping)
        if problem is None:
            note = "no damping made the Gram matrix positive definite: rounded to nearest instead"
            return [Quantize(name, format, format.round(weight, *self.grid(weight, None)), note)]
        gram, inverse = problem
        if self.correction:
            shift = torch.linalg.solve(gram, stats[Drift].T.to(gram), left=True).T
            weight = weight + self.correction * (weight.double() @ shift).float()
        return [Quantize(name, format, self.solve(weight, gram, inverse))]

    def solve(self, weight: Tensor, gram: Tensor, inverse: Tensor) -> Codes:
        """Codes that keep tr(E H E^T) small.

        Args:
            weight: float32 "out in".
            gram: damped H, float64 "in in".
            inverse: its inverse, float64 "in in".
        """
        format = self.format
        columns = weight.shape[1]
        size = columns // format.granularity.groups(columns)
        order = by_curvature(torch.diagonal(gram), size) if self.reorder else torch.arange(columns)
        factor = torch.linalg.cholesky(inverse[order][:, order], upper=True)
        importance = torch.empty(columns, dtype=torch.float64)
        importance[order] = torch.diagonal(factor).reciprocal().square()
        scale, zero = self.grid(weight, importance)
        column_scale = scale.float().T.repeat_interleave(columns // scale.shape[1], 0)  # "in out"
        column_zero = None if zero is None else zero.float().T.repeat_interleave(columns // zero.shape[1], 0)
        grid = Grid(column_scale, column_zero, *format.code_range)
        values = feed_back(weight.T.contiguous()[order], factor.float(), grid.select(order))
        values = values[order.argsort()]
        curvature = gram.float()
        for _ in range(self.polish):
            refit(values, weight.T, curvature, grid, size, format.scale_dtype)
            descend(values, weight.T, curvature, grid)
        return codes(values, grid, format, size)


@dataclass
class Grid:
    """Per-column scales and zero points, "in out", with the range of codes."""

    scale: Tensor
    zero: Tensor | None
    low: int
    high: int

    def select(self, rows: Tensor) -> "Grid":
        return Grid(self.scale[rows], None if self.zero is None else self.zero[rows], self.low, self.high)

    def nearest(self, w: Tensor, j: int) -> Tensor:
        """Nearest code of column j's values, "out"."""
        code = w / self.scale[j]
        if self.zero is not None:
            code += self.zero[j]
        return code.round_().clamp_(self.low, self.high)

    def value(self, code: Tensor, rows: int | slice) -> Tensor:
        if self.zero is not None:
            code = code - self.zero[rows]
        return code * self.scale[rows]


def shrunk(gram: Tensor, share: float) -> Tensor:
    """The Gram matrix with its off-diagonal entries made smaller by `share`.

    >>> shrunk(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.5)
    tensor([[2.0000, 0.5000],
            [0.5000, 2.0000]])
    """
    return (1 - share) * gram + share * torch.diag(torch.diagonal(gram))


def factorise(gram: Tensor, damping: float, tries: int = 8) -> tuple[Tensor, Tensor] | None:
    """Damped H and its inverse in float64, or None if no damping makes H positive definite."""
    gram = gram.double()
    diagonal = torch.diagonal(gram)
    if not bool(torch.isfinite(gram).all()) or not bool((diagonal > 0).any()):
        return None
    step = damping * diagonal.mean()
    idle = torch.where(diagonal > 0, 0.0, diagonal.mean())
    for _ in range(tries):
        damped = gram + torch.diag(idle + step)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return damped, torch.cholesky_inverse(factor)
        step = max(3 * step, 1e-4 * diagonal.mean())
    return None


def by_curvature(diagonal: Tensor, size: int) -> Tensor:
    """Column order: groups by their largest curvature, columns inside a group by their own, largest first."""
    groups = diagonal.reshape(-1, size)
    inside = groups.argsort(dim=1, descending=True, stable=True)
    order = groups.amax(1).argsort(descending=True, stable=True)
    return (inside + torch.arange(len(groups))[:, None] * size)[order].flatten()


def feed_back(weight: Tensor, factor: Tensor, grid: Grid, block: int = 64) -> Tensor:
    """Codes of every column in turn, errors fed to later columns.

    Works on the transpose, "in out", so that a column is contiguous; updates inside a block of columns are outer products, updates
    of everything after it one matrix product.
    """
    values = torch.empty_like(weight)
    for start in range(0, len(weight), block):
        end = min(start + block, len(weight))
        errors = torch.empty_like(weight[start:end])
        for j in range(start, end):
            values[j] = grid.nearest(weight[j], j)
            error = (weight[j] - grid.value(values[j], j)).div_(factor[j, j])
            errors[j - start] = error
            weight[j + 1 : end].addr_(factor[j, j + 1 : end], error, alpha=-1)
        weight[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return values


def descend(values: Tensor, target: Tensor, gram: Tensor, grid: Grid, block: int = 64) -> None:
    """One sweep of coordinate descent on the codes, in place: tr(E H E^T) never rises."""
    error = grid.value(values, slice(None)) - target
    for start in range(0, len(values), block):
        end = min(start + block, len(values))
        gradient = gram[start:end] @ error
        for j in range(start, end):
            now = grid.value(values[j], j)
            values[j] = grid.nearest(now - gradient[j - start] / gram[j, j], j)
            change = grid.value(values[j], j).sub_(now)
            error[j] += change
            gradient[j - start + 1 :].addr_(gram[j + 1 : end, j], change)


def refit(values: Tensor, target: Tensor, gram: Tensor, grid: Grid, size: int, dtype: torch.dtype) -> None:
    """Best scale of every group in turn with the codes as they are, rounded to `dtype`; changes `grid.scale`."""
    error = grid.value(values, slice(None)) - target
    for start in range(0, len(values), size):
        group = slice(start, start + size)
        codes = values[group] if grid.zero is None else values[group] - grid.zero[group]
        slope = (codes * (gram[group] @ error)).sum(0)
        curve = (codes * (gram[group, group] @ codes)).sum(0)
        scale = grid.scale[start]
        best = (scale - slope / curve).to(dtype).float()
        change = best - scale
        # Rounding to the stored type can overshoot a tiny step, and an all-zero group has no curve: keep the old scale there.
        better = (2 * change * slope + change.square() * curve < 0) & best.isfinite() & (best != 0)
        change = torch.where(better, change, 0)
        grid.scale[group] += change
        error[group] += codes * change


def codes(values: Tensor, grid: Grid, format: Int, size: int) -> Codes:
    """Columns "in out" back to a matrix of codes with one scale per group."""
    scale = grid.scale[::size].T.contiguous().to(format.scale_dtype)
    if grid.zero is None:
        return Codes(values.T.contiguous().to(torch.int8), scale)
    return Codes(values.T.contiguous().to(torch.uint8), scale, grid.zero[::size].T.contiguous().to(torch.uint8))
