"""Surgeon: remove the channels whose removal costs the loss least after the others have made up for it.

What a channel carries can partly be told from the other channels. A score that ignores this removes both of two twins, or neither. The
optimal brain surgeon asks what is left of the damage once the weights that stay have been refitted. With the curvature of a reading layer
y = W x factored into A = E[x x^T] and G = E[g g^T] (`lessen.stats.curvature`), removing the input columns S costs

    dL(S) = 1/2 trace( W_S^T G W_S  ([A^-1]_SS)^-1 )          and the others become   W - W_S ([A^-1]_SS)^-1 [A^-1]_S,:

(the update does not depend on G: whole columns leave). Channels leave one small group after the other, and after each the weights and
A^-1 are those of what is left, so that of two twins the second becomes dear when the first is gone. The loss at which a channel leaves is
its score. It is in the same unit everywhere, since G knows how much the loss minds each layer; so heads and channels of all layers are
ranked by loss for each parameter, without any normalisation.

Papers: Hassibi and Stork 1993, Second order derivatives for network pruning: Optimal Brain Surgeon (NeurIPS 5); van der Ouderaa et al.
2024, The LLM Surgeon, https://arxiv.org/abs/2312.17244 (section 3, structured removal under K-FAC).
Changed: only the layers that read a channel count, as their columns leave exactly; the rows that make it go along at no loss of their own.
One shot instead of 40 rounds with new curvature; groups of a hundredth of a unit leave together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.core.edit import Edit, Keep, Replace
from lessen.core.method import Stats
from lessen.core.unit import View
from lessen.errors import UsageError
from lessen.methods.objectives import Objectives
from lessen.stats.accumulators import Gram
from lessen.stats.curvature import OutputFisher
from lessen.stats.gradients import Gradient
from lessen.stats.inputs import Read
from lessen.stats.readers import output_axis
from lessen.targets.cost import Goal


@dataclass(frozen=True)
class Surgeon(Objectives):
    """Remove the channels that cost the loss least once the others have made up for them."""

    damping: float = 0.01
    """Added to the diagonal of the input moments, as a fraction of its mean."""
    update: bool = True
    """Refit the weights that stay; without it only the choice is made."""

    gradient: ClassVar[type[Gradient]] = OutputFisher

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping <= 0:
            raise UsageError("Surgeon", got=f"damping={self.damping}", wanted="a positive number")

    @property
    def needs(self) -> tuple[type, ...]:
        return (OutputFisher,)

    def unable(self, view: View) -> str | None:
        """Layers that read a unit must be linear ones: moments of patches are not taken."""
        convolved = any(part.axis == 1 and part.name in view.tensors and view.tensors[part.name].ndim > 2 for part in view.unit.slices)
        return "convolutions read their channels, which Fisher or Taylor judges" if convolved else None

    def score(self, view: View, stats: Stats) -> Tensor:
        """The loss at which each channel leaves, "channel", float64."""
        layers = [_Layer(read, read.view(view).weight, self.damping) for read in stats[Read]]
        if not layers:
            wanted, remedy = "one, to weigh its input", "use Taylor or Fisher"
            raise UsageError(f"Surgeon: {view.unit.name}", got="no layer that reads its channels", wanted=wanted, remedy=remedy)
        return eliminate(layers, view.unit.size, max(1, view.unit.size // 100))

    def decide(self, views: Sequence[View], stats: Sequence[Stats], goal: Goal | None = None) -> list[Edit]:
        keeps = [edit for edit in super().decide(views, stats, goal) if isinstance(edit, Keep)]
        return [*keeps, *self._updates(keeps, views, stats)] if self.update else [*keeps]

    def _updates(self, keeps: Sequence[Keep], views: Sequence[View], stats: Sequence[Stats]) -> Iterable[Replace]:
        """The refitted weights of every layer that lost inputs: W' = (W A)_:,K (A_KK)^-1, cut to the outputs that stay."""
        by_unit = {keep.unit.name: keep for keep in keeps}
        weights: dict[str, tuple[Read, Tensor, list[Keep]]] = {}
        for view, stat in zip(views, stats, strict=True):
            if (keep := by_unit.get(view.unit.name)) is not None:
                for read in stat[Read]:
                    name = read.reader.part.name
                    _, _, cuts = weights.setdefault(name, (read, view.tensors[name], []))
                    cuts.append(keep)
        for name, (read, weight, cuts) in weights.items():
            stay = _left(weight.shape[read.reader.part.axis], cuts, name, read.reader.part.axis)
            fitted = refitted(read.reader.matrix(weight), read.stats[Gram], stay, self.damping)
            axis = output_axis(read.reader.module) or 0
            rows = _left(weight.shape[axis], keeps, name, axis)
            yield Replace(name, (fitted[rows] if axis == 0 else fitted[rows].T).to(weight.dtype))


class _Layer:
    """One reading layer under elimination: its weight as it is refitted, and the inverse moments of the inputs that are left."""

    def __init__(self, read: Read, weight: Tensor, damping: float):
        self.part = read.reader.part
        moments = _damped(read.stats[Gram], damping)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments)).float()
        self.weight = weight.float().clone()
        # G W changes with W by the same combinations of columns, so the large product is worked out once.
        self.bent = read.stats[OutputFisher].float() @ self.weight

    def costs(self, at: Tensor) -> Tensor:
        """Loss that the removal of each channel costs; `at` holds the columns of every channel, "channel index"."""
        if at.shape[1] == 1:
            columns = at[:, 0]
            return 0.5 * (self.bent * self.weight).sum(0)[columns] / self.inverse.diagonal()[columns].clamp_min(1e-30)
        found = []
        for columns in at:
            inner = self.weight[:, columns].double().T @ self.bent[:, columns].double()
            found.append(0.5 * torch.linalg.solve(self.inverse[columns][:, columns].double(), inner).trace())
        return torch.stack(found).float()

    def remove(self, columns: Tensor) -> None:
        """Take columns out, and let the others make up for them."""
        block = self.inverse[columns][:, columns].double()
        carried = torch.linalg.solve(block, self.inverse[columns].double()).float()
        self.weight -= self.weight[:, columns] @ carried
        self.bent -= self.bent[:, columns] @ carried
        self.inverse -= self.inverse[:, columns] @ carried
        # What is gone must stay gone, whatever rounding left of it.
        self.weight[:, columns] = 0
        self.bent[:, columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0


def eliminate(layers: Sequence[_Layer], size: int, together: int) -> Tensor:
    """The loss at which each channel leaves when the cheapest ones leave first, `together` at a time; it never falls.

    Args:
        layers: that read the channels; changed.
        size: number of channels.
        together: how many leave before costs are worked out again.

    Returns:
        float64, "channel".
    """
    places = [layer.part.indices(size) for layer in layers]
    left = torch.arange(size)
    score = torch.zeros(size, dtype=torch.float64)
    highest = 0.0
    while len(left):
        costs = torch.stack([layer.costs(at[left]) for layer, at in zip(layers, places, strict=True)]).sum(0).double()
        order = costs.argsort(stable=True)[:together]
        for place in order.tolist():
            highest = max(highest, float(costs[place]))
            score[left[place]] = highest
        gone = left[order]
        left = left[torch.ones(len(left), dtype=torch.bool).index_fill_(0, order, False)]
        if len(left):
            for layer, at in zip(layers, places, strict=True):
                layer.remove(at[gone].flatten())
    return score


def refitted(weight: Tensor, moments: Tensor, stay: Tensor, damping: float) -> Tensor:
    """The columns that stay, fitted to do the work of all: argmin E||W x - W' x_K||^2.

    Args:
        weight: "out in".
        moments: mean of x x^T, "in in".
        stay: mask "in".
        damping: see `Surgeon`.

    Returns:
        float64, "out kept".

    >>> twins = torch.ones(2, 2, dtype=torch.float64)          # two inputs that are always equal
    >>> refitted(torch.tensor([[1.0, 2.0]]), twins, torch.tensor([True, False]), 1e-9).round(decimals=3)
    tensor([[3.]], dtype=torch.float64)
    """
    damped = _damped(moments, damping)
    factor = torch.linalg.cholesky(damped[stay][:, stay])
    return torch.cholesky_solve(damped[stay] @ weight.double().T, factor).T


def _damped(moments: Tensor, damping: float) -> Tensor:
    moments = moments.double()
    strength = max(damping * float(moments.diagonal().mean()), torch.finfo(torch.float64).tiny)
    return moments + strength * torch.eye(len(moments), dtype=torch.float64, device=moments.device)


def _left(length: int, keeps: Iterable[Keep], name: str, axis: int) -> Tensor:
    """The indices of an axis of a tensor that are left after cuts, as a mask."""
    stay = torch.ones(length, dtype=torch.bool)
    for keep in keeps:
        for part in keep.unit.slices:
            if part.name == name and part.axis == axis:
                lost = torch.ones(keep.unit.size, dtype=torch.bool)
                lost[keep.indices] = False
                stay[part.indices(keep.unit.size)[lost].flatten()] = False
    return stay
