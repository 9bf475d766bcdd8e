"""REAP: remove the experts whose contributions, weighted by their router, are smallest.

A mixture of experts adds to each token the outputs of a few experts, weighted by the router. An expert that is chosen often may still add
little, and one that is chosen seldom a lot. What counts is what it adds where it is chosen:

    score[j] = mean over tokens t routed to j of  g_j(t) * ||f_j(t)||_2          g_j: router weight, f_j: output of expert j

Removing an expert gives its tokens to the next best ones; the paper shows that this does less harm than merging experts, which makes the
router's choice between them impossible. Every layer keeps at least as many experts as its router chooses.

Paper: Lasby et al. 2025, REAP the Experts: Why Pruning Prevails for One-Shot MoE compression, https://arxiv.org/abs/2510.13999 (eq. 9)
"""

from dataclasses import dataclass

from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import Kind, View
from lessen.methods.budget import Budget
from lessen.stats.routed import RoutedNorm


@dataclass(frozen=True)
class REAP(Budget):
    """Remove the experts that add least to the tokens that are routed to them."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("experts",)

    @property
    def needs(self) -> tuple[type, ...]:
        return (RoutedNorm,)

    def score(self, view: View, stats: Stats) -> Tensor:
        """Shape "channel"; an expert that was never chosen scores 0."""
        return stats[RoutedNorm]
