"""AdaBS: batch norms learn again what the drifted chip puts out.

As devices drift, every column sum shrinks, each by its own factor, and the statistics by which batch norms divide no longer fit. A few
percent of the training data are pushed through the network as it is on the chip at that moment, and running means and variances are
estimated anew; gamma and beta stay. No gradient, no reprogramming: the chip's own readings are the correction.

    mean, variance  <-  average over the batches of what each batch norm sees on the chip         gamma, beta unchanged

    simulate(mapped, evaluate, adapt=AdaBS(batches))

Networks with layer norms have no such statistics; for them there is the compensation of drift (`Chip.compensation`).

Paper: Joshi et al. 2020, Accurate deep neural network inference using computational phase-change memory, Nature Communications 11, 2473,
https://www.nature.com/articles/s41467-020-16108-9 (AdaBS).
Changed: a plain average over the batches, where theirs decays exponentially from the statistics of training, so the order of the batches
does not matter and nothing is left of an earlier time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lessen.analog.mapping import Mapped
from lessen.core.modules import evaluating
from lessen.errors import UsageError
from lessen.recover.objective import call


@dataclass(frozen=True)
class AdaBS:
    """Re-estimates the statistics of batch norms on a mapped network; called with it, as often as it has changed.

    The statistics are the twin's own buffers: those of the model that was mapped stay as they are.
    """

    batches: Sequence[Any]
    """Inputs, a few percent of the training data."""
    run: Callable[[nn.Module, Any], Any] = call
    """How a model is called with a batch."""

    def __post_init__(self) -> None:
        if not len(self.batches):
            raise UsageError("AdaBS", got="no batch", wanted="a few percent of the training data")

    def __call__(self, mapped: Mapped) -> list[str]:
        """Adapt in place.

        Returns:
            Names of the batch norms.

        Raises:
            UsageError: the network has none with running statistics.
        """
        found = {name: m for name, m in mapped.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        norms = {name: m for name, m in found.items() if m.track_running_stats and m.running_mean is not None}
        if not norms:
            raise UsageError("AdaBS", got="no batch norm with running statistics", wanted="one at least", remedy='compensation="column"')
        momenta = {name: norm.momentum for name, norm in norms.items()}
        with torch.no_grad(), evaluating(mapped.model):
            try:
                for norm in norms.values():
                    norm.reset_running_stats()
                    norm.momentum = None  # torch's way to say: the average of all batches
                    norm.train()
                for batch in self.batches:
                    self.run(mapped.model, batch)
            finally:
                for name, norm in norms.items():
                    norm.momentum = momenta[name]
        return list(norms)
