"""Fisher: remove the channels whose switches the loss is least curved in, for what they cost.

In a trained network the first-order term averages out over the data, and what is left is the curvature. The Fisher information of a
switch m_c that multiplies channel c estimates it without second derivatives:

    F[c]     = sum_n (dL_n/dm_c)^2,    dL_n/dm_c = sum over the weights w that read c of w * dL_n/dw
    score[c] = F[c] / parameters that leave with c

Coupled layers share one switch: their gradients are added before they are squared. A batch counts as one sample n, so batches of one
sample give the estimate of the paper.

Paper: Liu et al. 2021, Group Fisher Pruning for Practical Network Compression, https://arxiv.org/abs/2108.00708 (eq. 3-9)
Changed: the paper removes one channel at a time between steps of training; here all are ranked at once. Its memory normalisation is the
budget `of`; with `per = "parameter"` cost is counted in parameters.
"""

from dataclasses import dataclass
from typing import ClassVar

from lessen.methods.objectives import Objectives
from lessen.stats.gradients import Gradient, MaskFisher


@dataclass(frozen=True)
class Fisher(Objectives):
    """Remove the channels with the smallest squared switch gradients for each parameter."""

    gradient: ClassVar[type[Gradient]] = MaskFisher
