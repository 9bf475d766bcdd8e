"""UKMP: one ranking over all towers of a vision-language model, by what the hard tokens say.

Four things go wrong when a vision-language model is pruned by first-order Taylor scores, and each has its remedy, which can be switched
off for an ablation:

    easy tokens drown the gradient     filter      only predictions with top-1 probability p_t <= max(T, min_t p_t) count, T = 0.4
    units differ in size               per         divide by the unit's number of parameters P_u: a head and a channel compare
    gradients see only the task        entropy     times H(u), the entropy of the angles between tokens and the rows that make u
    towers differ in scale             normalise   divide by the mean over the surviving units of the same tower, in every round

    I(u) = (1/P_u) sum over w in u of |w * sum_n dL_n/dw|  *  (H(u) if u is language)  /  mean of I over the survivors of u's tower

The `step` lowest units leave, the towers' means are taken again, and so on until the budget is met; gradients and entropies are taken
once. First order on purpose: with filtered or foreign calibration data the squared gradient is no estimate of the curvature (appendix B).

Paper: Wu, Chen, Wang 2025, Unified Knowledge Maintenance Pruning and Progressive Recovery with Weight Recalling for Large Vision-Language
Models, AAAI 39(8), 8550-8558, https://doi.org/10.1609/aaai.v39i8.32923; details from its released code and appendix.
Rounds are counted in units as in the paper: a head counts one, a channel counts one; `step` leave at a time, 100 once nine tenths of the
way are done or if the ratio is 0.2 or less. The budget is counted in true parameters, embeddings and all.
Changed: padding is left out of the entropies; equal scores leave in order instead of together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from lessen.core.method import Stats
from lessen.core.unit import View
from lessen.methods.budget import tower
from lessen.methods.objectives import Objectives
from lessen.methods.ranking import Normalise, Rules
from lessen.stats.angles import AngleEntropy
from lessen.stats.gradients import Gradient, WeightTaylor
from lessen.stats.objectives import TokenFilter


@dataclass(frozen=True)
class UKMP(Objectives):
    """Remove the units of all towers that hard tokens need least and whose rows see their inputs most alike."""

    normalise: Normalise = "mean"
    """How scores are made comparable inside a partition: divided by their mean, stretched to 0..1, or standardised."""
    partition: Literal["model", "unit", "kind", "block", "tower", "alike"] = "tower"
    """Inside what: the model, a unit, units of a kind, a block, a tower (vision, language), or units of one place in all blocks."""
    step: int | None = 1000
    """Channels that leave in a round, after which scores are normalised again; none: all at once."""
    threshold: float | None = 0.4
    """T of the token filter; none: every token counts."""
    by: Literal["top1", "label"] = "top1"
    """The probability that is held against T: of the model's first choice, or of the right answer."""
    entropy: Literal["language", "all", "off"] = "language"
    """Whose scores are multiplied by the entropy of angles."""

    gradient: ClassVar[type[Gradient]] = WeightTaylor

    @property
    def needs(self) -> tuple[type, ...]:
        return (WeightTaylor,) if self.entropy == "off" else (WeightTaylor, AngleEntropy)

    @property
    def token_filter(self) -> TokenFilter | None:
        return None if self.threshold is None else TokenFilter(self.threshold, self.by)

    @property
    def rules(self) -> Rules:
        small = 100 if self.step is not None and self.step > 100 else self.step
        return replace(super().rules, step=small if self.ratio <= 0.2 else self.step, fine=small)

    def score(self, view: View, stats: Stats) -> Tensor:
        """Taylor times entropy, "objective channel"; units that no linear layer makes keep their Taylor score."""
        score = super().score(view, stats)
        return score * stats[AngleEntropy] if self._told(view) and _seen(stats) else score

    def remarks(self, views: Sequence[View], stats: Sequence[Stats]) -> list[str]:
        """Units that the entropy should be of, but that no linear layer makes."""
        told = [view.unit.name for view in views if self._told(view)]
        without = [view.unit.name for view, own in zip(views, stats, strict=True) if self._told(view) and not _seen(own)]
        if not without:
            return []
        count = f"{len(without)} of {len(told)} units"
        return [f"UKMP: no entropy of angles for {count}, as no linear layer makes them: {without[0]} and the like."]

    def _told(self, view: View) -> bool:
        """Whether the score of a unit is multiplied by the entropy."""
        return self.entropy == "all" or (self.entropy == "language" and tower(view.unit, self.towers) == "language")


def _seen(stats: Stats) -> bool:
    return bool((stats[AngleEntropy] != 0).any())
