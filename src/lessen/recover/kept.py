"""Which rows and columns of the dense tensors are left after a list of edits, tensor by tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.core.edit import Edit, Keep
from lessen.core.trace import Shape, kept, trace


@dataclass(frozen=True)
class Left:
    """What is left of one tensor.

    Attributes:
        place: its name in the dense model.
        axes: for every axis the indices of the dense tensor that stay, int64, in order.
        shape: of the dense tensor.
    """

    place: str
    axes: tuple[Tensor, ...]
    shape: Shape

    def gone(self, axis: int) -> Tensor:
        """Indices of the dense tensor that were cut away."""
        mask = torch.ones(self.shape[axis], dtype=torch.bool)
        mask[self.axes[axis]] = False
        return mask.nonzero()[:, 0]


def left(shapes: Mapping[str, Shape], edits: Sequence[Edit], tied: Mapping[str, str] | None = None) -> dict[str, Left]:
    """Follow every tensor of a model through edits.

    Args:
        shapes: of the dense model's tensors.
        edits: what was done to it, in order.
        tied: alias -> stored name.

    Returns:
        name after the edits -> what is left; tensors that edits brought in (biases) are missing.

    >>> from lessen.core.unit import Slice, Unit
    >>> edit = Keep(Unit("mlp", "ffn", 3, (Slice("up.weight", 0),)), torch.tensor([0, 2]))
    >>> left({"up.weight": (3, 5)}, [edit])["up.weight"].gone(0)
    tensor([1])
    """
    found: dict[str, Left] = {}
    for name, traced in trace(shapes, edits, tied).items():
        if traced.new:
            continue
        axes = [torch.arange(size) for size in traced.shape]
        for spoken, edit in traced.steps:
            if isinstance(edit, Keep):
                for axis, indices in kept(edit, spoken, tuple(len(a) for a in axes)).items():
                    axes[axis] = axes[axis][indices]
        found[name] = Left(traced.place, tuple(axes), traced.shape)
    return found
