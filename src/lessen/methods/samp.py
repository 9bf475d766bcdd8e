"""SAMP-style: pruning that asks every task of a multi-task network, and empties no layer early.

A channel that detection hardly uses may be what re-identification lives on. So every task is asked by itself, its answers are brought to
one scale, and only then merged; and because tasks differ most in the middle layers, which a global ranking likes to empty first, the
least that every layer keeps is lowered step by step while the budget is spent.

    F_t[c] = sum_n (dL_t(n)/dm_c)^2 / parameters that leave with c        t: a named loss, m_c a switch on channel c
    S[c]   = merge over t of  lambda_t F_t[c] / mean over surviving channels of F_t
    floor  = ceil(n_l (1 - g(s) (1 - least)))                             at stage s of `stages`, g from 0 to 1

`merge = "max"` protects what any task needs; "sum" lets tasks outvote each other, "harmonic" keeps what all need, "rank" ignores scale.

After: Wu, Chen, Wang 2023, SAMP: Sub-task Aware Model Pruning with Layer-wise Channel Balancing for Person Search, PRCV 2023, LNCS
199-211, https://doi.org/10.1007/978-981-99-8549-4_17. The paper's formulae are not public: the squared switch gradients follow Group Fisher
(https://arxiv.org/abs/2108.00708), the merge rules and the floor are ours. This is no reproduction.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lessen.errors import UsageError
from lessen.methods.objectives import Objectives
from lessen.methods.ranking import Merge, Normalise, Rules
from lessen.stats.gradients import Gradient, MaskFisher


@dataclass(frozen=True)
class SAMP(Objectives):
    """Remove the channels that no task needs, without emptying any layer early."""

    normalise: Normalise = "mean"
    """How scores are made comparable inside a partition: divided by their mean, stretched to 0..1, or standardised."""
    partition: Literal["model", "unit", "kind", "block", "tower", "alike"] = "model"
    """Inside what: the model, a unit, units of a kind, a block, a tower (vision, language), or units of one place in all blocks."""
    merge: Merge = "max"
    """Several objectives into one score: their sum, the largest, their harmonic mean, or the mean of their ranks."""
    stages: int = 5
    """Parts in which the budget is spent while the floor falls to `least`; 1: no progressive floor."""

    gradient: ClassVar[type[Gradient]] = MaskFisher

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages < 1:
            raise UsageError("SAMP", got=f"stages={self.stages}", wanted="1 or more")

    @property
    def rules(self) -> Rules:
        return replace(super().rules, stages=self.stages)
