"""How varied the angles are under which a weight vector meets its inputs.

A row w_d of a layer that sees all its inputs under the same angle says nothing about them; one that sees them under many angles tells
them apart. UKMP measures this as the entropy of a histogram:

    c_t = cos(x_t, w_d)     over all calibration tokens t
    p   = 100-bin histogram of c on [-1, 1]
    H_d = -sum p log(p + 1e-12)

Paper: Wu, Chen, Wang 2025, Unified Knowledge Maintenance Pruning and Progressive Recovery with Weight Recalling for Large Vision-Language
Models (AAAI 39(8), 8550-8558). Changed: padding is not counted (see `lessen.stats.inputs`).
"""

import torch
from torch import Tensor

BINS = 100
_CHUNK = 2**24  # cosines looked at together: 64 MB of float32


class AngleEntropy:
    """Entropy of the angles between a layer's inputs and each of its rows.

    >>> entropy = AngleEntropy(torch.eye(2))
    >>> entropy.update(torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [3.0, -4.0]]))
    >>> [round(h, 3) for h in entropy.value().tolist()]     # cosines 1, 1, .7, .6 and 0, 0, .7, -.8
    [1.04, 1.04]
    """

    paired = False

    def __init__(self, weight: Tensor):
        self.rows = torch.nn.functional.normalize(weight.float(), dim=1)
        self.histogram = torch.zeros(len(weight), BINS, dtype=torch.float64)
        self.count = 0

    def update(self, x: Tensor) -> None:
        """Add tokens, "token in"."""
        size = max(1, _CHUNK // len(self.rows))
        for part in x.split(size):
            cosines = torch.nn.functional.normalize(part.float(), dim=1) @ self.rows.T
            bins = ((cosines + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
            bins += torch.arange(len(self.rows), device=bins.device) * BINS
            self.histogram += torch.bincount(bins.flatten(), minlength=self.histogram.numel()).view_as(self.histogram).cpu()
        self.count += len(x)

    def value(self) -> Tensor:
        """Entropy in nats of every row, float64, "out"."""
        share = self.histogram / max(1, self.count)
        return -(share * (share + 1e-12).log()).sum(1)
