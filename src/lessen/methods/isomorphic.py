"""Isomorphic: compare like with like. Units of one place in all blocks are ranked among themselves, with one ratio for each place.

Heads, feed-forward channels and the stages of a convolutional network differ in shape and so in the scale of any score; ranking them
against each other prunes whole kinds away. Sub-graphs of the same topology are comparable. So scores are divided by their mean among the
units of the same place (`partition = "alike"`: same kind, same slices, block numbers aside), and every place gives up its own share.

    score[c] = s[c] / mean of s over all channels of the same place          s: squared weights, or first-order Taylor

Paper: Fang et al. 2024, Isomorphic Pruning for Vision Models, https://arxiv.org/abs/2407.04616 (section 3.2)
Changed: places are told apart by the names of their slices rather than by matching traced graphs, which gives the same classes for
networks built from repeated blocks; one mean-normalised ranking replaces a ranking for each class, so that a budget is met exactly.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import View
from lessen.methods.objectives import Objectives
from lessen.methods.ranking import Normalise
from lessen.stats.gradients import Gradient, WeightTaylor


@dataclass(frozen=True)
class Isomorphic(Objectives):
    """Remove the channels that score least among those of the same place in all blocks."""

    normalise: Normalise = "mean"
    """How scores are made comparable inside a partition: divided by their mean, stretched to 0..1, or standardised."""
    partition: Literal["model", "unit", "kind", "block", "tower", "alike"] = "alike"
    """Inside what: the model, a unit, units of a kind, a block, a tower (vision, language), or units of one place in all blocks."""
    score_by: Literal["taylor", "magnitude"] = "taylor"
    """What is compared: first-order Taylor scores, or squared weights (no data needed)."""

    @property
    def gradient(self) -> type[Gradient]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return WeightTaylor

    @property
    def needs(self) -> tuple[type, ...]:
        return (WeightTaylor,) if self.score_by == "taylor" else ()

    def score(self, view: View, stats: Stats) -> Tensor:
        if self.score_by == "taylor":
            return super().score(view, stats)
        return view.sum_per_channel({name: tensor.float().square() for name, tensor in view.tensors.items()})
