"""LAMP: magnitudes made comparable across layers by asking what each channel is worth among those that outlive it.

Layers differ in scale, so a global ranking of magnitudes empties the small ones. LAMP divides the square of every weight by the sum of
the squares that are at least as large in its layer:

    score[c] = m_c^2 / sum over d with m_d >= m_c of m_d^2            m_c^2: squared norm of all weights of channel c

The largest channel of every layer scores 1, so no layer is ever emptied; how many channels outlive c decides how low it scores. The
score of a layer bounds the relative distortion of its output that removing everything below causes.

Paper: Lee et al. 2020, Layer-adaptive Sparsity for the Magnitude-based Pruning, https://arxiv.org/abs/2010.07611 (eq. 3)
Changed: the paper scores single weights; here a channel with all its coupled weights takes the place of a weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import View
from lessen.methods.budget import Across, Budget


@dataclass(frozen=True)
class LAMP(Budget):
    """Remove the channels that are small among those that outlive them, layers compared with each other."""

    across: Across = "model"
    """Who competes: channels of one layer (all lose the same share), places of a block (each as wide in all blocks), or the whole model."""

    def score(self, view: View, stats: Stats) -> Tensor:
        """Shape "channel".

        >>> from lessen.core.unit import Slice, Unit
        >>> view = View(Unit("l", "ffn", 3, (Slice("w", 0),)), {"w": torch.tensor([[1.0], [2.0], [2.0]])})
        >>> LAMP().score(view, {})
        tensor([0.1111, 0.5000, 1.0000], dtype=torch.float64)
        """
        squares = view.sum_per_channel({name: tensor.double().square() for name, tensor in view.tensors.items()}).double()
        order = squares.argsort(stable=True)
        outlive = squares[order].flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.empty_like(squares).index_copy_(0, order, squares[order] / outlive)
