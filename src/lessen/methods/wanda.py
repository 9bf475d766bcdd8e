"""Wanda: remove channels by |weight| times input norm.

A weight matters if it is large *or* if its input is usually large. Magnitude pruning sees only the first; in language models a few
features are far larger than the rest, so the second decides.

    S[o, i]  = |W[o, i]| * ||X[:, i]||_2                X: every token of the calibration text, stacked
    score[c] = sum over o and over the inputs i of channel c of S[o, i]

W is the linear that writes the unit's output (down_proj, o_proj), whose input features are the channels. The linears that read
(gate, up, q, k, v) are not counted: all their rows see the same input, and what they make of it is in the norm already.

Paper: Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models, https://arxiv.org/abs/2306.11695 (eq. 1)
Changed: the paper removes single weights, comparing within each row of W; summing to whole channels is our structural extension.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import View
from lessen.methods.budget import Budget
from lessen.stats.accumulators import InputNorm
from lessen.structure.decoder import writer


@dataclass(frozen=True)
class Wanda(Budget):
    """Remove the channels with the smallest weights times inputs."""

    reads: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[type, ...]:
        return (InputNorm,)

    def score(self, view: View, stats: Stats) -> Tensor:
        """Shape "channel"; `stats[InputNorm]` is the mean square of the writer's inputs.

        >>> import torch
        >>> from lessen.core.unit import Slice, Unit
        >>> view = View(Unit("mlp", "ffn", 2, (Slice("down", 1),)), {"down": torch.tensor([[1.0, -2.0], [1.0, 2.0]])})
        >>> Wanda().score(view, {InputNorm: torch.tensor([100.0, 1.0])})
        tensor([20.,  4.])
        """
        name = writer(view.unit).name
        return view.sum_per_channel({name: view.tensors[name].float().abs() * stats[InputNorm].sqrt().float()})
