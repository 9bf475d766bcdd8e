"""Hardware-aware training: a network that has met noise, clipping and coarse converters in training minds them less on the chip.

Every batch is computed by another noisy chip (`rehearsal`); three more things belong to it:

    W'   = W + eta max_row|W| n            n standard normal, fresh for every batch; gradients straight through to W
    W   <- clamp(W, -c s_row, c s_row)     after every step, s_row the standard deviation of the row: one outlier would take the range of
                                           its column, and all its other weights would drown in errors relative to that range
    r    learned                           full scale of each layer's DAC

Noise at outputs and inputs costs networks more than noise of weights, so `output_noise` and the converters of the chip take part.

`foundation` is the recipe of analog foundation models, scaled down: distillation from the digital network alone, static inputs of 8 bits
with learned ranges, 254 output levels over 14 fully driven rows, 3 % noise for each column, rows clipped at 2.5 deviations. Theirs is for
20 billion tokens at a learning rate of 5e-7 and starts ranges at 18 deviations of the inputs, decaying by 0.01.

Papers: Joshi et al. 2020, Nature Communications 11, 2473, https://www.nature.com/articles/s41467-020-16108-9 (noise injection, clipping);
Rasch et al. 2023, Nature Communications 14, 5282, https://www.nature.com/articles/s41467-023-40770-4 (which noise matters);
Büchel et al. 2025, Analog Foundation Models, https://arxiv.org/abs/2505.09663 (section 3, learned ranges, distillation).
Ours: errors of the chip's own devices at any age (`Programmed`), where the papers take Gaussian ones; ranges start from a quantile of
calibration inputs where theirs follow the first batches; s_row is taken about zero, since a row of nearly equal weights has none about its
mean and would be clipped to nothing, step after step.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from lessen.analog.chip import Chip
from lessen.analog.mapping import Split
from lessen.analog.periphery import Adc, Dac
from lessen.analog.training.noise import Injected, Programmed
from lessen.analog.training.rehearsal import Clipped, Rehearsal, rehearse
from lessen.core.strict import check_fields, strict
from lessen.errors import UsageError
from lessen.recover.losses import Logits
from lessen.recover.options import Options


@dataclass(frozen=True)
class HardwareAware:
    """How a network is made ready for a chip by training.

    >>> import torch
    >>> from lessen.recover.losses import Logits
    >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> model = nn.Linear(8, 4)
    >>> rehearsal = HardwareAware(Injected(0.1)).rehearse(model, Chip(dac=Dac(8)), calibration=[x])
    >>> rehearsal.train(x, losses=(Logits(),), steps=2).steps      # distilled from the model as it was
    2
    >>> mapped = rehearsal.mapped([x]).program(seed=0)
    """

    noise: Injected | Programmed = field(default_factory=Programmed)
    """Of the weights: what the chip's devices make of them at some time, or Gaussian as in the papers (`Injected`)."""
    clip: float | None = 2.5
    """Standard deviations of its row beyond which a weight is clipped after each step; none leaves weights alone."""
    output_noise: float = 0.0
    """Of column sums, as a part of a fully driven row's largest weight."""
    ranges: Literal["learned", "calibrated"] = "learned"
    """Full scales of the DACs: trained, or left where calibration has put them."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise UsageError("HardwareAware", got=f"clip={self.clip:g}", wanted="a positive number of deviations, or none")

    @strict()
    def rehearse(
        self,
        model: nn.Module,
        chip: Chip,
        *,
        split: Split | Sequence[str] | None = None,
        calibration: Iterable[Any] | None = None,
        run: Callable[[nn.Module, Any], Any] | None = None,
    ) -> Rehearsal:
        """A rehearsal whose `train` trains the model this way.

        Args:
            model: shares its parameters with the rehearsal's twin.
            chip: for which it trains.
            split: which layers stay digital.
            calibration: batches from which ranges start.
            run: how a model is called with a batch.
        """
        settings: dict[str, Any] = {"noise": self.noise, "ranges": self.ranges, "output_noise": self.output_noise}
        rehearsal = rehearse(model, chip, **settings, split=split, calibration=calibration, run=run)
        if self.clip is not None:
            rehearsal.after_step = Clipped(self.clip, tuple(rehearsal.layers))
        return rehearsal


def foundation(chip: Chip, learning_rate: float = 1e-4, **limits: Any) -> tuple[Chip, HardwareAware, Options]:
    """The recipe of analog foundation models, scaled down: a chip with its converters, the training, and settings of the loop.

    Args:
        chip: whose devices and tiles are kept.
        learning_rate: peak.
        **limits: more fields of `Options`; steps, epochs or minutes among them.

    >>> chip, training, options = foundation(Chip(), steps=100)
    >>> chip.adc.levels, training.noise.sigma, options.betas
    (127, 0.03, (0.9, 0.98))
    """
    converters = replace(chip, dac=Dac(8, range="calibrated"), adc=Adc(8, range=14.0))
    settings: dict[str, Any] = {"losses": (Logits(),), "learning_rate": learning_rate, "weight_decay": 0.01, "betas": (0.9, 0.98)}
    return converters, HardwareAware(Injected(0.03, "column"), clip=2.5), Options(**{**settings, **limits})
