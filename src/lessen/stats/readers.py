"""Who reads a unit's channels: the layers whose input axis carries them, each as a matrix "rows in".

A channel acts on the rest of a network through the layers that read it. Scores made for linear layers (Wanda, FLAP) hold for every layer
that is linear in its input once its weight is written as a matrix with one column per input feature:

    Linear              out in                              as it is
    Conv, n dims        out in/g k.. in g groups            rows (out/g k..), columns (g, in/g): a row of every group side by side
    ConvTranspose       in out/g k.. in g groups            rows (out/g k..), columns in
    Conv1D              in out (GPT-2's own linear)         transposed

For a convolution the mean over tokens becomes the mean over positions; windows at the border, which see padding, are counted as if they
saw the mean.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lessen.core.unit import Slice, Unit, View

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Reader:
    """One layer that reads the channels of a unit.

    Attributes:
        path: of its module.
        part: the slice of its weight.
        module: the layer.
    """

    path: str
    part: Slice
    module: nn.Module

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as "rows in"."""
        groups = getattr(self.module, "groups", 1)
        if isinstance(self.module, _CONV):
            split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return split.permute(1, 3, 0, 2).reshape(-1, groups * weight.shape[1])
        if isinstance(self.module, _TRANSPOSED):
            return weight.reshape(weight.shape[0], -1).T
        return weight.T if is_conv1d(self.module) else weight

    @property
    def outputs(self) -> int:
        """The number of output features."""
        weight: Any = self.module.weight
        if isinstance(self.module, _TRANSPOSED):
            return weight.shape[1] * self.module.groups
        return weight.shape[1] if is_conv1d(self.module) else weight.shape[0]

    def tokens(self, x: Tensor) -> Tensor:
        """The layer's input as "token in"."""
        if isinstance(self.module, _CONV + _TRANSPOSED):
            spatial = self.module.weight.ndim - 2
            x = x.movedim(-spatial - 1, -1)
        return x.reshape(-1, x.shape[-1])

    def view(self, unit: Unit, weight: Tensor) -> View:
        """The unit as seen by this reader alone: one matrix, channels on axis 1."""
        name = self.part.name
        part = replace(self.part, axis=1)
        return View(replace(unit, slices=(part,)), {name: self.matrix(weight)})


def input_axis(module: nn.Module) -> int | None:
    """The axis of a layer's weight along which its input features lie; None if it has none of its own.

    >>> input_axis(nn.Linear(2, 3)), input_axis(nn.LayerNorm(2))
    (1, None)
    """
    if isinstance(module, nn.Linear):
        return 1
    if isinstance(module, _CONV):
        return 1 if module.groups == 1 else None
    if isinstance(module, _TRANSPOSED) or is_conv1d(module):
        return 0
    return None


def output_axis(module: nn.Module) -> int | None:
    """The axis of a layer's weight along which its output features lie; None if it is not linear."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 0
    return 1 if isinstance(module, _TRANSPOSED) or is_conv1d(module) else None


def readers(model: nn.Module, unit: Unit) -> list[Reader]:
    """Every layer that reads the unit's channels, in the order of its slices."""
    return _found(model, unit, input_axis)


def makers(model: nn.Module, unit: Unit) -> list[Reader]:
    """Every layer that makes the unit's channels."""
    return _found(model, unit, output_axis)


def _found(model: nn.Module, unit: Unit, axis_of: Any) -> list[Reader]:
    found: list[Reader] = []
    for part in unit.slices:
        path, _, key = part.name.rpartition(".")
        module: Any = model.get_submodule(path)
        if key == "weight" and axis_of(module) == part.axis:
            found.append(Reader(path, part, module))
    return found


def is_conv1d(module: nn.Module) -> bool:
    """Transformers' `Conv1D`, a linear layer with a transposed weight, without importing transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
