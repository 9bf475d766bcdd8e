"""BlockInfluence: drop the decoder blocks that change the residual stream least.

A block adds to the residual stream. If what comes out points the same way as what went in, the block did little, and the model runs
without it: depth is the one thing whose removal saves time on every runtime, at every batch size.

    BI[l] = 1 - mean over tokens of cos(x_l, x_{l+1})          x_l: input of block l, x_{l+1}: its output

The `ratio` of blocks with the smallest influence go, all ranked once on the whole model.

Paper: Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, https://arxiv.org/abs/2403.03853
(eq. 1, section 3.2)
Not implemented: ranking again after each removal; put several steps with small ratios into a recipe for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lessen.core.edit import Drop, Edit
from lessen.core.method import Stats
from lessen.core.strict import check_fields
from lessen.core.unit import Kind, View
from lessen.errors import UsageError
from lessen.methods.budget import keep
from lessen.stats.accumulators import BlockSimilarity


@dataclass(frozen=True)
class BlockInfluence:
    """Drop the blocks whose output is most like their input."""

    ratio: float = 0.1
    """Fraction of the decoder blocks to drop, in [0, 1)."""

    kind: ClassVar[Kind] = "layer"
    scope: ClassVar = "model"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.ratio < 1:
            raise UsageError("BlockInfluence", got=f"ratio={self.ratio}", wanted="a fraction to drop, at least 0 and below 1")

    @property
    def needs(self) -> tuple[type, ...]:
        return (BlockSimilarity,)

    def score(self, view: View, stats: Stats) -> Tensor:
        """Influence of one block, between 0 and 2, shape "1".

        >>> from lessen.core.unit import Unit
        >>> BlockInfluence().score(View(Unit("layers.0", "layer", 1, ()), {}), {BlockSimilarity: torch.tensor(0.75)})
        tensor([0.2500], dtype=torch.float64)
        """
        return 1 - torch.as_tensor(stats[BlockSimilarity], dtype=torch.float64).reshape(1)

    def decide(self, views: Sequence[View], stats: Sequence[Stats]) -> list[Edit]:
        """Drops, the last block first: dropping one renumbers only those after it. Of every list of blocks one stays."""
        scores = torch.cat([self.score(view, stat) for view, stat in zip(views, stats, strict=True)])
        stay = set(keep([scores], self.ratio)[0].tolist())
        stacks: dict[str, list[int]] = {}
        for place, view in enumerate(views):
            stacks.setdefault(view.unit.name.rpartition(".")[0], []).append(place)
        # A tower without any block is no tower.
        stay |= {max(places, key=lambda place: float(scores[place])) for places in stacks.values()}
        gone = [view.unit for place, view in enumerate(views) if place not in stay]
        return [Drop(unit) for unit in reversed(gone)]
