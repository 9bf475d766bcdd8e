"""Taylor: remove the channels whose removal changes the loss least, to first order.

Setting a weight to zero changes the loss by about -w * dL/dw. Adding these up over what a channel owns estimates what its removal costs;
one backward pass estimates it for all channels at once.

    each weight    score[c] = sum over w of |w * sum_n dL_n/dw|          "weights": LLM-Pruner's element-wise estimate
    one switch     score[c] = sum_n |sum over w of w * dL_n/dw|          "switch": Molchanov's gate, w the weights that read c

Signs cancel inside a switch, as they do when the channel really goes; they do not cancel between weights, which protects channels whose
weights pull in different directions. Scores are divided by the number of parameters that leave with the channel, so that heads and
feed-forward channels compare (`per`).

Papers: Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient Inference, https://arxiv.org/abs/1611.06440
(eq. 7-8); Ma, Fang, Wang 2023, LLM-Pruner, https://arxiv.org/abs/2305.11627 (eq. 3-5, element-wise).
Changed: the sum over coupled matrices is the score of the unit; the papers also offer its maximum, product and last member.
"""

from dataclasses import dataclass
from typing import Literal

from lessen.methods.objectives import Objectives
from lessen.stats.gradients import Gradient, MaskTaylor, WeightTaylor


@dataclass(frozen=True)
class Taylor(Objectives):
    """Remove the channels whose weights times gradients are smallest."""

    at: Literal["weights", "switch"] = "weights"
    """Estimate the change for every weight by itself, or for a switch that turns the whole channel off."""

    @property
    def gradient(self) -> type[Gradient]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return WeightTaylor if self.at == "weights" else MaskTaylor
