"""FLAP: remove the channels that fluctuate least, and put their mean into a bias.

A feature that is large but constant can be removed for free: what it contributes is a constant, and a constant is a bias. So what
counts is not how large a feature is but how much it varies.

    S[i]      = Var(x_i) * ||W[:, i]||_2^2                fluctuation that removing input feature i of W would cost
    score[c]  = sum of S over the features of channel c, standardised within the unit when the whole model competes
    b        += W[:, removed] @ mean(x)[removed]          the mean of what is removed, as a bias

W is the linear that writes the unit's output (down_proj for feed-forward channels, o_proj for key/value groups), x its input. The bias
is the least-squares optimum for a constant correction: the error that is left is the fluctuation alone.

Paper: An et al. 2023, Fluctuation-based Adaptive Structured Pruning for Large Language Models, https://arxiv.org/abs/2312.11983
(the score, its standardisation for a global ranking, and the bias; AAAI 2024)
Changed: heads leave in key/value groups, so that grouped attention stays regular; feed-forward channels and groups are pruned by
separate steps of a recipe, each with its own ratio, instead of one ranking of both.
Beware: architectures whose configuration has no switch for such a bias (Qwen2, Mistral, Phi-3) need `bias=False` for stock loaders.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lessen.core.edit import Edit, Keep, Replace
from lessen.core.method import Stats
from lessen.core.unit import Unit, View
from lessen.methods.budget import Budget
from lessen.methods.ranking import Rules
from lessen.stats.accumulators import InputMean, InputVariance
from lessen.stats.inputs import Read
from lessen.stats.readers import Reader, output_axis
from lessen.structure.decoder import writer
from lessen.targets.cost import Goal


@dataclass(frozen=True)
class FLAP(Budget):
    """Remove the channels that vary least over the calibration text."""

    bias: bool = True
    """Put the mean of what is removed into a bias."""

    reads: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[type, ...]:
        return (InputVariance, InputMean) if self.bias else (InputVariance,)

    def score(self, view: View, stats: Stats) -> Tensor:
        """Fluctuation per channel, shape "channel".

        >>> from lessen.core.unit import Slice, Unit
        >>> view = View(Unit("mlp", "ffn", 2, (Slice("down", 1),)), {"down": torch.tensor([[3.0, 1.0], [4.0, 0.0]])})
        >>> FLAP().score(view, {InputVariance: torch.tensor([1.0, 2.0])})
        tensor([25.,  2.])
        """
        name = writer(view.unit).name
        return view.sum_per_channel({name: view.tensors[name].float().square() * stats[InputVariance].float()})

    @property
    def rules(self) -> Rules:
        if self.across == "layer" and self.normalise == "none":
            return super().rules
        return replace(super().rules, normalise="zscore", renew=False)

    def _partition(self, unit: Unit) -> str:
        return unit.name if self.normalise == "none" else super()._partition(unit)

    def decide(self, views: Sequence[View], stats: Sequence[Stats], goal: Goal | None = None) -> list[Edit]:
        edits = super().decide(views, stats, goal)
        return self.compensated(edits, views, stats) if self.bias else edits

    def compensated(self, edits: Sequence[Edit], views: Sequence[View], stats: Sequence[Stats]) -> list[Edit]:
        """Every `Keep` with the biases that make up for it.

        A layer that reads several units makes up for all of them in one bias, which is cut where its outputs are.
        """
        units = {edit.unit.name: edit for edit in edits if isinstance(edit, Keep)}
        biases: dict[str, tuple[Reader, Replace]] = {}
        found: list[Edit] = []
        for view, stat in zip(views, stats, strict=True):
            if (edit := units.get(view.unit.name)) is None:
                continue
            found.append(edit)
            if Read not in stat:
                found.append(self.compensation(view, stat, edit.indices))
                continue
            for read in stat[Read]:
                seen = _with_bias(read, view)
                own = f"{read.reader.part.name.removesuffix('.weight')}.bias"
                if own in biases:
                    seen = View(seen.unit, {**seen.tensors, own: biases[own][1].weight})
                biases[own] = read.reader, self.compensation(seen, read.stats, edit.indices)
        return [*found, *(Replace(bias.name, bias.weight[_outputs(reader, units.values())]) for reader, bias in biases.values())]

    def compensation(self, view: View, stats: Stats, stay: Tensor) -> Replace:
        """The bias that carries the mean of everything but the channels `stay`."""
        part = writer(view.unit)
        gone = torch.ones(view.unit.size, dtype=torch.bool)
        gone[stay] = False
        features = part.indices(view.unit.size)[gone].flatten().sort().values
        # The products are few and their sum is kept for good, so it is taken in float64.
        lost = view.tensors[part.name][:, features].double() @ stats[InputMean].double()[features]
        name = f"{part.name.removesuffix('.weight')}.bias"
        return Replace(name, (lost + view.tensors[name].double() if name in view.tensors else lost).float())


def _with_bias(read: Read, view: View) -> View:
    """The unit as one reader sees it, with that reader's bias; a convolution's positions are added up to one row per output."""
    seen, part = read.view(view), read.reader.part
    weight = seen.tensors[part.name]
    outputs = read.reader.outputs
    summed = weight.reshape(outputs, -1, weight.shape[1]).sum(1)
    bias = f"{part.name.removesuffix('.weight')}.bias"
    return View(seen.unit, {part.name: summed} | ({bias: view.tensors[bias]} if bias in view.tensors else {}))


def _outputs(reader: Reader, keeps: Iterable[Keep]) -> Tensor:
    """The outputs of a layer that are left after the cuts, as a mask."""
    stay = torch.ones(reader.outputs, dtype=torch.bool)
    for keep in keeps:
        for part in keep.unit.slices:
            if part.name == reader.part.name and part.axis == output_axis(reader.module):
                lost = torch.ones(keep.unit.size, dtype=torch.bool)
                lost[keep.indices] = False
                stay[part.indices(keep.unit.size)[lost].flatten()] = False
    return stay
