"""Options shared by every method that looks at gradients: several objectives, and memory."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import View
from lessen.errors import UsageError
from lessen.methods.budget import Across, Budget, Counted
from lessen.methods.ranking import Merge, Rules
from lessen.stats.gradients import Collecting, Gradient
from lessen.stats.objectives import Objective, TokenFilter


@dataclass(frozen=True)
class Objectives(Budget):
    """A budget whose scores come from the gradients of one or several losses."""

    unit: Literal["ffn", "kv_group", "all"] = "all"
    """What to remove in a language model: feed-forward channels, key/value heads with their queries, or both in one ranking."""
    across: Across = "model"
    """Who competes: channels of one layer (all lose the same share), places of a block (each as wide in all blocks), or the whole model."""
    of: Counted = "parameters"
    """What the ratio counts: channels, or what the whole model costs (embeddings included) in one of the other units."""
    per: Literal["channel", "parameter", "cost"] = "parameter"
    """Rank by the score of a channel, or by its score for each parameter, or each unit of what is budgeted, that leaves with it."""
    merge: Merge = "sum"
    """Several objectives into one score: their sum, the largest, their harmonic mean, or the mean of their ranks."""
    weights: tuple[float, ...] = ()
    """Of the objectives, in their order; empty weighs all alike."""
    step: int | None = None
    """Channels that leave in a round, after which scores are normalised again; none: all at once."""
    passes: int = 1
    """Parts of the model whose gradients are summed one after the other: less memory, more work."""
    recompute: bool = True
    """Compute the activations of blocks again in the backward pass: less memory, more work; the scores are the same."""

    gradient: ClassVar[type[Gradient]]

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__
        if self.passes < 1 or (self.step is not None and self.step < 1):
            raise UsageError(where, got=f"passes={self.passes}, step={self.step}", wanted="1 or more")
        if any(weight < 0 for weight in self.weights):
            raise UsageError(where, got=f"weights={self.weights}", wanted="numbers of 0 or more")
        if self.merge == "harmonic" and self.normalise == "zscore":
            remedy = "normalise by mean or minmax"
            raise UsageError(where, got="a harmonic mean of standardised scores", wanted="scores of one sign", remedy=remedy)

    @property
    def needs(self) -> tuple[type, ...]:
        return (self.gradient,)

    @property
    def rules(self) -> Rules:
        return replace(super().rules, merge=self.merge, weights=self.weights, step=self.step)

    def collecting(self, objective: Objective | None = None) -> Collecting:
        """How the engine is to collect gradients for this method."""
        return Collecting(objective, self.token_filter, self.passes, self.recompute)

    @property
    def token_filter(self) -> TokenFilter | None:
        """Which predictions of a cross entropy count; None: all."""
        return None

    def score(self, view: View, stats: Stats) -> Tensor:
        """Shape "objective channel"."""
        found = torch.atleast_2d(stats[self.gradient])
        if self.weights and len(self.weights) != len(found):
            wanted = f"{len(found)}, one for each objective"
            raise UsageError(type(self).__name__, got=f"{len(self.weights)} weights", wanted=wanted)
        return found
