"""SAMP-style: pruning that asks every task of a multi-task network, and believes no layer's scores further than it must.

A channel that detection hardly uses may be what re-identification lives on. So every task is asked by itself, its answers are brought to
one scale, and only then merged. And scores say what the network loses where it stands, not where it will stand once a third of it is gone:
a global ranking that believes them empties layers. So the budget is spent in rounds (`lessen.prune(..., rounds=5)`), scores are taken
anew before each, and in each a layer has a minimum, which falls from round to round as far as the budget has fallen.

    F_t[c]   = sum_n (dL_t(n)/dm_c)^2 / cost that leaves with c            t: a named loss, m_c a switch on channel c
    S[c]     = merge over t of  lambda_t F_t[c] / mean over surviving channels of F_t
    n_l(r)  >= n_l(r-1) (1 - slack u_r)  and  >= least n_l(0)              u_r: what each would lose in round r if all lost the same

`merge = "max"` protects what any task needs; "sum" lets tasks outvote each other, "harmonic" keeps what all need, "rank" ignores scale.
`slack = 1` narrows all layers alike, with none only `least` holds. In one round the minimum is one floor, of that budget and those scores.
What the falling does beside it: while scores stand still, nothing; with scores taken anew, other channels go, and the widths come out as
even as under a single floor of the height that the falling one ends at, which nobody knows beforehand. Against other rankings by gradients
with the same rounds and floor it has measured no better (docs/person-search.md).

After: Wu, Chen, Wang 2023, SAMP: Sub-task Aware Model Pruning with Layer-wise Channel Balancing for Person Search, PRCV 2023, LNCS
199-211, https://doi.org/10.1007/978-981-99-8549-4_17. The paper's formulae are not public: that it gives each layer progressively a least
number of channels is known, the number is ours, and so are the merge rules; the squared switch gradients follow Group Fisher
(https://arxiv.org/abs/2108.00708). This is no reproduction.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lessen.errors import UsageError
from lessen.methods.objectives import Objectives
from lessen.methods.ranking import Merge, Normalise, Rules
from lessen.stats.gradients import Gradient, MaskFisher


@dataclass(frozen=True)
class SAMP(Objectives):
    """Remove the channels that no task needs, from no layer much more than from the others."""

    normalise: Normalise = "mean"
    """How scores are made comparable inside a partition: divided by their mean, stretched to 0..1, or standardised."""
    partition: Literal["model", "unit", "kind", "block", "tower", "alike"] = "model"
    """Inside what: the model, a unit, units of a kind, a block, a tower (vision, language), or units of one place in all blocks."""
    merge: Merge = "max"
    """Several objectives into one score: their sum, the largest, their harmonic mean, or the mean of their ranks."""
    slack: float | None = 1.5
    """No layer loses more than this many times the share that all would lose if all lost the same; none: down to `least`."""

    gradient: ClassVar[type[Gradient]] = MaskFisher

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slack is not None and not self.slack >= 1:
            raise UsageError("SAMP", got=f"slack={self.slack}", wanted="1 (all lose the same share) or more")

    @property
    def rules(self) -> Rules:
        return replace(super().rules, slack=self.slack)
