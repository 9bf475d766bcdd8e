"""HaLoRA: a large noisy matrix on tiles, a small exact one beside it that has learned to live with the noise.

    y = (W + N) x + c B A x            W, frozen: on tiles, N differs from chip to chip       A, B: rank r, digital, trained

A branch that is trained beside the clean W is wrong beside W + N. Two things make it right for all chips: it is trained beside matrices
that are noisy in another way for every batch (the rehearsal: with `Programmed` the chip's own errors), and what makes the path of
training with noise leave the path without is held small. The distance of the two updates is bounded by the norms of A A^T and B^T B, so

    L_total = L + mu sum over layers (|A A^T|_2 + |B^T B|_2)             |.|_2 the largest singular value

Is the regulariser worth it? On a small Llama that learned another language with branches of rank 8, four seeds, eight chips each with
errors of a fifth of the range, loss in nats less that with mu = 0, and its standard error:

    mu                   1e-4               1e-3               1e-2               1e-1
    512 sentences   -0.0016 (0.0004)   -0.0068 (0.0023)   -0.0007 (0.0047)    0.193 (0.010)          of 2.145 with mu = 0
     64 sentences    0.0004 (0.0009)    0.0003 (0.0027)   -0.0082 (0.0061)    0.053 (0.009)          of 2.464

So the noise in training does nearly all of the work (a branch trained without it loses half a nat and more), a little mu gives three
thousandths at best, and much harms. The default is among the best and never harmed; `mu=0` leaves the term out and hardly costs a thing.

`W` stays on its tiles as it is: one programming serves many tasks, each with a branch of its own.

    method = HaLoRA(targets=("*_proj",))
    hybrid = method.attach(model)
    method.train(hybrid, chip, data, heldout, losses=(NextToken(),), epochs=1)
    mapped = analog.map(hybrid.model, chip, split=hybrid.split, calibration=batches)

Paper: Wu, Ding, Zhou et al. 2025, HaLoRA, https://arxiv.org/abs/2502.19747 (total loss; the branch on SRAM, the base on RRAM).
Ours: errors of the chip that is described rather than Gaussian ones alone, converters included, by
`lessen.analog.training.rehearsal`; held-out data is scored on noisy chips, so that the state that is kept is the best there.
Initial values are those of `lessen.recover.adapters`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lessen.analog.chip import Chip
from lessen.analog.mapping import Split
from lessen.analog.tiles.branches import Beside, Hybrid, divided, linear, linears, thin
from lessen.analog.training.noise import Injected, Programmed
from lessen.analog.training.rehearsal import rehearse
from lessen.core.strict import check_fields
from lessen.errors import UsageError
from lessen.recover.adapters import Adapters, Delta
from lessen.recover.loop import Recovered
from lessen.recover.options import Options


@dataclass(frozen=True)
class LowNorm:
    """The regulariser of the header, a loss for `lessen.recover`."""

    branches: Mapping[str, Beside]
    """Layers whose A and B are held small."""
    weight: float = 1e-3
    """mu."""

    def of_output(self, output: Any, batch: Any) -> Tensor:
        """Sum over the layers, whatever the output is."""
        found = []
        for branch in self.branches.values():
            a, b = branch.down.weight.float(), branch.up.weight.float()
            with torch.autocast(a.device.type, enabled=False):  # singular values are not computed in half precision
                found += [torch.linalg.matrix_norm(a @ a.t(), 2), torch.linalg.matrix_norm(b.t() @ b, 2)]
        return torch.stack(found).sum()


@dataclass(frozen=True)
class HaLoRA:
    """Train a digital low-rank branch beside layers on tiles."""

    rank: int = 8
    """Of every branch."""
    alpha: float = 16.0
    """Branches are scaled by alpha / rank (c)."""
    mu: float = 1e-3
    """Weight of the regulariser; 0 leaves it out."""
    noise: Injected | Programmed | None = None
    """Errors of the weights on tiles while the branch is trained; None: what the chip itself makes of them (`Programmed`)."""
    targets: tuple[str, ...] = ()
    """Names or patterns of linear layers; empty takes all."""
    seed: int = 0
    """Of the random half."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rank < 1 or not self.mu >= 0:
            raise UsageError("HaLoRA", got=f"rank={self.rank}, mu={self.mu}", wanted="a rank of at least 1 and mu of at least 0")

    def attach(self, model: nn.Module) -> Hybrid:
        """A copy of the model with branches that do nothing yet; the weights are those of the model."""
        names = [name for name in linears(model) if not self.targets or any(fnmatchcase(name, t) for t in self.targets)]
        if not names:
            raise UsageError(
                "HaLoRA", got=f"targets={self.targets}", wanted="linear layers", remedy=f"such as {', '.join(linears(model)[:2])}"
            )
        options = Adapters(rank=self.rank, alpha=self.alpha, recall=False)
        parts: dict[str, Beside] = {}
        for number, name in enumerate(names):
            layer = linear(model, name)
            delta = Delta(layer.weight.detach(), options, torch.Generator().manual_seed(self.seed * 1_000_003 + number))
            base = thin(layer.weight.detach(), layer.bias)
            base.weight = layer.weight
            parts[name] = Beside(base, thin(delta.a.detach()), thin(delta.b.detach()), scale=delta.scale)
        return divided(model, parts)

    def train(
        self,
        hybrid: Hybrid,
        chip: Chip,
        data: Any,
        heldout: Any = None,
        *,
        calibration: Iterable[Any] | None = None,
        split: Split | None = None,
        **settings: Any,
    ) -> Recovered:
        """Train the branches, in place, beside chips that differ from batch to batch.

        Args:
            hybrid: from `attach`.
            chip: on which the layers lie.
            data: as `lessen.recover` takes it.
            heldout: likewise; scored on noisy chips.
            calibration: batches for the ranges of the converters, if the chip has any to calibrate.
            split: what else stays digital.
            **settings: of `lessen.recover.options.Options`.
        """
        branches = {name: part for name, part in hybrid.model.named_modules() if isinstance(part, Beside)}
        digital = Split.of(split).also(hybrid.split.digital)
        rehearsal = rehearse(
            hybrid.model, chip, noise=self.noise or Programmed(), ranges="calibrated", split=digital, calibration=calibration
        )
        options = Options(**settings)
        regulariser = (LowNorm(branches, self.mu),) if self.mu else ()
        names = tuple(f"{name}.{half}." for name in branches for half in ("down", "up"))
        return rehearsal.train(data, heldout, replace(options, losses=(*options.losses, *regulariser), train=names))
