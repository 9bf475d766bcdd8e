"""BNScale: remove the channels that their batch normalisation scales down most.

A BatchNorm layer multiplies every channel by a learned gain. Trained with an L1 penalty on the gains (or simply trained long), the
gains of channels that are not needed shrink, and can be read off without any data.

    score[c] = sum over the unit's norms of |gain[c]|

Paper: Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming, https://arxiv.org/abs/1708.06519 (section 3)
For convolutional networks (`lessen.prune`); the norms of language models scale the residual stream, not the units.
Changed: where several norms share a channel (residual connections), their gains add up. A unit without a norm is left whole: its scores
would not compare with those of the others.
"""

from dataclasses import dataclass

from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import Kind, View
from lessen.errors import UsageError
from lessen.methods.budget import Budget


@dataclass(frozen=True)
class BNScale(Budget):
    """Remove the channels with the smallest normalisation gains."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("channels",)

    def score(self, view: View, stats: Stats) -> Tensor:
        """Shape "channel".

        >>> import torch
        >>> from lessen.core.unit import Slice, Unit
        >>> unit = Unit("conv", "channels", 2, (Slice("conv.weight", 0), Slice("bn.weight", 0), Slice("bn.bias", 0)))
        >>> tensors = {"conv.weight": torch.ones(2, 3, 1, 1), "bn.weight": torch.tensor([0.5, -2.0]), "bn.bias": torch.ones(2)}
        >>> BNScale().score(View(unit, tensors), {})
        tensor([0.5000, 2.0000])
        """
        gains = {name: view.tensors[name].float().abs() for name in _gains(view)}
        if not gains:
            wanted, remedy = "a normalisation with a gain per channel", "use another method, or freeze this unit"
            raise UsageError(f"BNScale: {view.unit.name}", got="a unit without one", wanted=wanted, remedy=remedy)
        return view.sum_per_channel(gains)

    def unable(self, view: View) -> str | None:
        return None if _gains(view) else "no normalisation scales their channels"


def _gains(view: View) -> list[str]:
    """Gains of norms: one-dimensional weights with a bias beside them, which slopes of activations have not."""
    found = [part.name for part in view.unit.slices if part.name.endswith("weight") and view.tensors[part.name].ndim == 1]
    return [name for name in dict.fromkeys(found) if f"{name.removesuffix('weight')}bias" in view.tensors]
