"""Magnitude: remove the channels whose weights are smallest.

The oldest criterion and the one that needs no data: a channel with small weights changes little when it goes.

    score[c] = sum over the unit's slices of |w|^p          w: every weight that belongs to channel c

It is blind to how large the inputs are, which in language models differ by orders of magnitude; it is here as the baseline. Weights
of different layers differ in scale too, so comparing across the model is rarely better than within each layer.

Papers: Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks, https://arxiv.org/abs/1506.02626 (single
weights); Li et al. 2017, Pruning Filters for Efficient ConvNets, https://arxiv.org/abs/1608.08710 (whole channels by p = 1, section 3.1).
Changed: the sum runs over all coupled matrices, not only the one that makes the channel.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import View
from lessen.methods.budget import Budget


@dataclass(frozen=True)
class Magnitude(Budget):
    """Remove the channels with the smallest weights."""

    power: Literal[1, 2] = 2
    """Exponent p: 2 lets the largest weights decide, 1 their sum."""

    def score(self, view: View, stats: Stats = MappingProxyType({})) -> Tensor:
        """Shape "channel".

        >>> import torch
        >>> from lessen.core.unit import Slice, Unit
        >>> unit = Unit("mlp", "ffn", 2, (Slice("up", 0), Slice("down", 1)))
        >>> Magnitude().score(View(unit, {"up": torch.tensor([[1.0], [2.0]]), "down": torch.tensor([[0.0, 3.0]])}))
        tensor([ 1., 13.])
        """
        parts = {part.name for part in view.unit.slices}
        return view.sum_per_channel({name: view.tensors[name].float().abs() ** self.power for name in parts})
