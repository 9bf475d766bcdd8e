"""AWQ: scale salient inputs up before rounding, and let whatever produces them scale down.

Multiplying an input column of a weight by s and dividing the input by s changes nothing, but the column is then rounded on a grid that
is finer for it by s. The features worth it are those with large activations:

    s_j = (mean |x_j|)^a / sqrt(max s min s),   a in {0, 1/n, ..} minimising tr(E H E^T),  E = Q(W diag(s)) diag(1/s) - W

All linears that read the same input share s; the division is folded into what produces the input: the gain of a norm, the rows of
up_proj (for down_proj), the rows of v_proj (for o_proj; with grouped queries one value row feeds several columns, which then share s).
The loss is evaluated with the Gram matrix H, so no activations are kept; the paper compares outputs of a small batch instead.

Paper: Lin et al. 2023, AWQ, https://arxiv.org/abs/2306.00978 (section 3.2, eq. 4-5).
Left out: the paper's separate clipping search; the grid's own scale search does that job.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.core.edit import Edit, Quantize, Replace
from lessen.core.method import Stats
from lessen.core.unit import Kind, Slice, View
from lessen.methods.rounding import Rounding
from lessen.stats.accumulators import Gram, InputMagnitude


@dataclass(frozen=True)
class AWQ(Rounding):
    """Round to nearest after migrating scale from weights to their inputs' producer."""

    steps: int = 10
    """Exponents to try between 0 (plain rounding) and 1."""

    kind: ClassVar[Kind] = "inputs"
    scope: ClassVar[str] = "block"

    @property
    def needs(self) -> tuple[type, ...]:
        return (Gram, InputMagnitude)

    def __call__(self, view: View, stats: Stats) -> list[Edit]:
        producer = view.unit.producer
        weights = {part.name: view.tensors[part.name].float() for part in view.unit.slices}
        gram = stats[Gram].float()
        importance = torch.diagonal(stats[Gram])
        best, gain = float("inf"), torch.ones(len(gram))
        for step in range(self.steps if producer else 1):
            trial = gains(stats[InputMagnitude].float(), step / self.steps, producer, view)
            error = sum(self._error(weight, trial, gram, importance) for weight in weights.values())
            if error < best:
                best, gain = error, trial
        edits: list[Edit] = []
        if producer is not None and bool((gain != 1).any()):
            edits += _absorb(view, producer, gain)
        for name, weight in weights.items():
            scaled = weight * gain
            scale, zero = self.grid(scaled, importance / gain.double().square())
            edits += [Quantize(name, self.format, self.format.round(scaled, scale, zero))]
        return edits

    def _error(self, weight: Tensor, gain: Tensor, gram: Tensor, importance: Tensor) -> float:
        scaled = weight * gain
        scale, zero = self.grid(scaled, importance / gain.double().square())
        error = self.format.decode(self.format.round(scaled, scale, zero)) / gain - weight
        return float(((error @ gram) * error).sum())


def gains(magnitude: Tensor, exponent: float, producer: Slice | None, view: View) -> Tensor:
    """Scale of every input feature, "in": equal for all columns that one producer row feeds."""
    if exponent == 0 or producer is None:
        return torch.ones_like(magnitude)
    rows = len(view.tensors[producer.name])
    shared = magnitude.reshape(-1, len(magnitude) // rows, producer.span) if rows != len(magnitude) else magnitude.reshape(-1, 1, 1)
    shared = shared.mean(1, keepdim=True).expand_as(shared).flatten()
    raised = shared.clamp_min(1e-4 * float(shared.max()) + 1e-12) ** exponent
    return raised / (raised.max() * raised.min()).sqrt()


def _absorb(view: View, producer: Slice, gain: Tensor) -> list[Edit]:
    """The producer's tensors divided by the gain of the feature that each of their rows makes."""
    rows = len(view.tensors[producer.name])
    per_row = gain if rows == len(gain) else gain.reshape(-1, len(gain) // rows, producer.span)[:, 0].flatten()
    tensors = {producer.name, producer.name.removesuffix("weight") + "bias"} & view.tensors.keys()
    divided = {name: view.tensors[name].float() / per_row.reshape(-1, *[1] * (view.tensors[name].ndim - 1)) for name in sorted(tensors)}
    return [Replace(name, tensor.to(view.tensors[name].dtype)) for name, tensor in divided.items()]
