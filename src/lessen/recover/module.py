"""Closed-form compensation of any pruned model in memory: every Linear and Conv2d that lost inputs is fitted again, first to last.

The dense model says what the outputs should have been, the pruned one what inputs are left; a layer is fitted when all before it are, so
that it works with what it will really get. A convolution is a linear layer on patches (`unfold`), kernel and all; of outputs that were
pruned as well, only those that stay are asked for.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lessen.core.edit import Edit, Replace
from lessen.core.event import Event, Listener
from lessen.core.modules import evaluating, heard
from lessen.errors import LessenError
from lessen.recover.kept import Left, left
from lessen.recover.objective import Call, call, samples
from lessen.recover.order import collate
from lessen.recover.regression import Sums


@dataclass(frozen=True)
class _Layer:
    name: str
    left: Left

    @property
    def place(self) -> str:
        return self.left.place.removesuffix(".weight")


def compensate(
    student: nn.Module,
    dense: nn.Module,
    edits: Sequence[Edit],
    data: Any,
    *,
    damping: float = 0.01,
    batch: int = 8,
    run: Call = call,
    on_event: Listener | None = None,
) -> list[Edit]:
    """Fit what is left of a pruned model to the dense one.

    Args:
        student: the dense model after the edits; not changed.
        dense: the model before them.
        edits: what was decided.
        data: samples as for `lessen.recover`; labels are not looked at.
        damping: see `lessen.recover.regression`.
        batch: samples at a time.
        run: how to run a model on a batch.
        on_event: hears of every layer.

    Returns:
        `Replace` edits for `lessen.apply(student, ...)`.
    """
    working = copy.deepcopy(student).eval()
    shapes = {name: tuple(p.shape) for name, p in dense.named_parameters()}
    cut = [_Layer(name.removesuffix(".weight"), found) for name, found in left(shapes, edits).items() if _fits(working, name, found)]
    batches = [collate(data, range(start, min(start + batch, len(data)))) for start in range(0, len(data), batch)]
    made: list[Edit] = []
    with torch.no_grad(), evaluating(dense):
        for number, layer in enumerate(_ordered(working, cut, batches[0], run)):
            module = working.get_submodule(layer.name)
            weight = _fit(module, layer, working, dense, batches, damping, run)
            module.weight = nn.Parameter(weight, requires_grad=False)
            made.append(Replace(f"{layer.name}.weight", weight))
            if on_event:
                on_event(Event("compensate", number + 1, len(cut), layer.name))
    return made


def _fits(model: nn.Module, name: str, found: Left) -> bool:
    """Whether this is the weight of a layer that lost inputs and can be fitted."""
    if not name.endswith(".weight") or len(found.axes) < 2 or not len(found.gone(1)):
        return False
    module = model.get_submodule(name.removesuffix(".weight"))
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _ordered(model: nn.Module, layers: Sequence[_Layer], batch: Any, run: Call) -> list[_Layer]:
    """Layers in the order in which the model calls them; those it never calls are left out."""
    order: list[str] = []
    with heard({layer.name: model.get_submodule(layer.name) for layer in layers}, lambda name, *_: order.append(name)):
        run(model, batch)
    by_name = {layer.name: layer for layer in layers}
    return [by_name[name] for name in dict.fromkeys(order)]


def _fit(
    module: nn.Module, layer: _Layer, student: nn.Module, dense: nn.Module, batches: Sequence[Any], damping: float, run: Call
) -> Tensor:
    sums = Sums()
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    listening = heard({layer.name: module}, lambda _, args, __: inputs.append(args[0]), before=True)
    with listening, heard({layer.place: dense.get_submodule(layer.place)}, lambda _, __, output: outputs.append(output)):
        for batch in batches:
            run(student, batch)
            run(dense, batch)
            if len(inputs) != len(outputs) or any(len(a) != len(b) for a, b in zip(inputs, outputs, strict=True)):
                got = f"{len(inputs)} calls in the pruned model and {len(outputs)} in the dense one for {samples(batch)} samples"
                raise LessenError(layer.name, got=got, wanted="the same calls in both")
            for x, y in zip(inputs, outputs, strict=True):
                sums.update(*_rows(module, x, y, layer.left.axes[0]))
            inputs.clear()
            outputs.clear()
    weight: Any = module.weight
    bias: Any = module.bias
    return sums.solve(weight.flatten(1), damping, bias).to(weight).view_as(weight)


def _rows(module: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs "token in" and wanted outputs "token out" of one call."""
    if isinstance(module, nn.Linear):
        return x.flatten(0, -2), y[..., rows].flatten(0, -2)
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        padding: Any = module._reversed_padding_repeated_twice
        x = F.pad(x, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
        sides: Any = 0
    else:
        sides = module.padding
    patches = F.unfold(x, module.kernel_size, module.dilation, sides, module.stride)
    return patches.transpose(1, 2).flatten(0, 1), y[:, rows].flatten(2).transpose(1, 2).flatten(0, 1)
