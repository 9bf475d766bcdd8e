"""Recall adapters: low-rank updates that can look up what pruning removed, merged into the weight exactly afterwards.

Plain LoRA adds a small matrix BA to a frozen weight. After pruning, more is at hand than that: the rows and columns that were cut away.
They are not needed to run the model, but they hold what the model once knew, and a low-rank map can bring it back in:

    W' = W + s (B A  +  W0[Ko, Pi] Bi Ai  +  Bo Ao W0[Po, Ki])        s = alpha / rank

    W0         the dense weight "out in"; Ko, Ki rows and columns that stay, Po, Pi those that were pruned
    Bi Ai      tell the lost inputs from those that stay ("Pi Ki"); W0[Ko, Pi] does with them what it always did
    Bo Ao      feed the lost outputs ("Po") back into those that stay

B, Bi and Bo start at zero, so training starts from the pruned model. The sum does not depend on the input: it is added to the weight
once and for all, and the model runs as fast as without. A convolution is the same with its kernel as further columns.

The adapter is a parametrization of torch (`torch.nn.utils.parametrize`) for as long as training lasts; the module stays what it was.

Papers: Wu et al. 2025, UKMP, https://doi.org/10.1609/aaai.v39i8.32923 (eq. 12, weight recalling); Hu et al. 2021, LoRA,
https://arxiv.org/abs/2106.09685.
Changed: no dropout on the plain branch (it would make the loss depend on how a batch is cut); convolutions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lessen.core.edit import Edit
from lessen.errors import UsageError
from lessen.models.checkpoint import Checkpoint
from lessen.recover.kept import Left, left


@dataclass(frozen=True)
class Adapters:
    """How adapters are built."""

    rank: int = 8
    """Rank of every branch."""
    alpha: float = 16.0
    """Updates are scaled by alpha / rank."""
    recall: bool = True
    """Add the branches that look up what was pruned; without them this is LoRA."""
    targets: tuple[str, ...] = ()
    """Adapt only modules whose name contains one of these; empty takes every Linear and Conv2d that shares its weight with nobody."""
    seed: int = 0
    """Of the random halves."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError("Adapters", got=f"rank={self.rank}", wanted="1 or more")


class Delta(nn.Module):
    """The update of one weight; called with the weight, returns weight plus update.

    Args:
        weight: "out in" or "out in height width".
        options: rank and scale.
        random: for the halves that do not start at zero.
        lost_inputs: W0[Ko, Pi], "out lost ..."; None without that branch.
        lost_outputs: W0[Po, Ki], "lost in ..."; None without that branch.
    """

    def __init__(
        self,
        weight: Tensor,
        options: Adapters,
        random: torch.Generator,
        lost_inputs: Tensor | None = None,
        lost_outputs: Tensor | None = None,
    ):
        super().__init__()
        self.scale = options.alpha / options.rank
        out, columns, inputs = weight.shape[0], weight[0].numel(), weight.shape[1]

        def pair(rows: int, wide: int) -> tuple[nn.Parameter, nn.Parameter]:
            spread = (3 / wide) ** 0.5  # uniform with variance 1 / columns
            a = (2 * torch.rand(options.rank, wide, generator=random, dtype=torch.float64) - 1) * spread
            return nn.Parameter(weight.new_zeros(rows, options.rank)), nn.Parameter(a.to(weight))

        self.b, self.a = pair(out, columns)
        if lost_inputs is not None:
            self.register_buffer("lost_inputs", lost_inputs.to(weight), persistent=False)
            self.b_in, self.a_in = pair(lost_inputs.shape[1], inputs)
        if lost_outputs is not None:
            self.register_buffer("lost_outputs", lost_outputs.to(weight), persistent=False)
            self.b_out, self.a_out = pair(out, lost_outputs.shape[0])

    def forward(self, weight: Tensor) -> Tensor:
        update = (self.b @ self.a).view_as(weight)
        if hasattr(self, "lost_inputs"):
            # "out lost kernel" x "lost rank" x "rank in": the thin product first.
            thin = torch.einsum("op...,pr->or...", self.get_buffer("lost_inputs"), self.b_in)
            update = update + torch.einsum("or...,ri->oi...", thin, self.a_in)
        if hasattr(self, "lost_outputs"):
            update = update + (self.b_out @ (self.a_out @ self.get_buffer("lost_outputs").flatten(1))).view_as(weight)
        return weight + self.scale * update


def attach(
    student: nn.Module, options: Adapters | None = None, dense: Checkpoint | nn.Module | None = None, edits: Sequence[Edit] = ()
) -> list[str]:
    """Put adapters on a pruned model; `lessen.recover` then trains them alone.

    Args:
        student: the pruned model.
        options: how.
        dense: the model before pruning, in memory or on disk; None leaves the branches that recall out.
        edits: what was done to it.

    Returns:
        Names of the adapted modules.

    Raises:
        UsageError: no module to adapt, or adapters that are there already.
    """
    options = options or Adapters()
    whole: Any = _Dense(dense) if isinstance(dense, nn.Module) else dense
    shapes = {} if whole is None else {name: whole.shape(name) for name in whole.names}
    traces = left(shapes, edits, whole.tied) if whole is not None and options.recall else {}
    uses: dict[int, int] = {}
    for _, parameter in student.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    names: list[str] = []
    for name, module in list(student.named_modules()):
        if not isinstance(module, nn.Linear | nn.Conv2d) or (options.targets and not any(t in name for t in options.targets)):
            continue
        if parametrize.is_parametrized(module):
            raise UsageError(name, got="an adapter already", wanted="none", remedy="merge first")
        if uses[id(module.weight)] > 1:
            continue
        random = torch.Generator().manual_seed(options.seed * 1_000_003 + len(names))
        lost = _lost(module, traces.get(f"{name}.weight"), whole) if whole is not None else (None, None)
        parametrize.register_parametrization(module, "weight", Delta(module.weight.detach(), options, random, *lost), unsafe=True)
        names.append(name)
    if not names:
        remedy = "targets are parts of names of Linear and Conv2d modules"
        raise UsageError("attach", got=f"targets={options.targets}", wanted="a module to adapt", remedy=remedy)
    return names


def merge(student: nn.Module) -> list[str]:
    """Add the updates to the weights for good and take the adapters off; names of the modules that had one."""
    names: list[str] = []
    for name, module in list(student.named_modules()):
        parts: Any = getattr(module, "parametrizations", {})
        if "weight" not in parts or not isinstance(parts["weight"][0], Delta):
            continue
        trained = parts["weight"].original.requires_grad
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        module.get_parameter("weight").requires_grad_(trained)
        names.append(name)
    return names


class _Dense:
    """What adapters ask of a checkpoint, of any module in memory."""

    def __init__(self, module: nn.Module):
        first: dict[int, str] = {}
        named = list(module.named_parameters(remove_duplicate=False))
        tensors = {name: p for name, p in named if first.setdefault(id(p), name) == name}
        self.tied = {name: first[id(p)] for name, p in named if first[id(p)] != name}
        self._tensors: dict[str, Tensor] = {**tensors, **dict(module.named_buffers())}
        self.names = list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()


def _lost(module: nn.Module, trace: Left | None, dense: Any) -> tuple[Tensor | None, Tensor | None]:
    """(W0[Ko, Pi], W0[Po, Ki]) of a module; None where nothing was lost."""
    if trace is None or getattr(module, "groups", 1) != 1:
        return None, None
    inputs, outputs = trace.gone(1), trace.gone(0)
    if not len(inputs) and not len(outputs):
        return None, None
    weight = dense.read(trace.place)
    return (
        weight[trace.axes[0]][:, inputs] if len(inputs) else None,
        weight[outputs][:, trace.axes[1]] if len(outputs) else None,
    )
