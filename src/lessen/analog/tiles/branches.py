"""Layers of which one part is digital and one lies on tiles, in a copy of a model that shares all other parameters.

    Pair     y = left(right(x))                          two thin matrices, one after the other: right digital, left on tiles
    Beside   y = base(x) + c up(down(x))                 a large matrix on tiles and a thin digital one beside it
             y = base(x - D^T D x) + up(D x)             the same, and what the thin one has seen is taken from the inputs of the large one

Parts are ordinary linear layers with names of their own (`...out_proj.left`), so that a `Split` says where each of them computes.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lessen.analog.mapping import Split
from lessen.analog.tiles.exchange import Places
from lessen.analog.tiles.layer import kind_of
from lessen.errors import UsageError, nearest


def thin(weight: Tensor, bias: nn.Parameter | None = None) -> nn.Linear:
    """A linear layer on a matrix `out in`, in evaluation mode."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    layer.bias = bias  # pyright: ignore[reportAttributeAccessIssue]
    return layer.eval()


class Pair(nn.Module):
    """Two matrices in place of one; the product of both is its `weight`."""

    digital = ("right",)

    def __init__(self, left: nn.Linear, right: nn.Linear):
        super().__init__()
        self.left, self.right = left, right

    @property
    def weight(self) -> Tensor:
        """What both amount to, `out in`."""
        return self.left.weight @ self.right.weight

    def forward(self, x: Tensor) -> Tensor:
        """`... input` to `... output`."""
        return self.left(self.right(x))

    @property
    def digital_macs(self) -> int:
        """Digital multiplications for one vector."""
        return self.right.weight.numel()


class Beside(nn.Module):
    """A layer and a low-rank branch, which with `remove` takes its directions (orthonormal rows of `down`) out of the layer's inputs."""

    digital = ("up", "down")

    def __init__(self, base: nn.Linear, down: nn.Linear, up: nn.Linear, remove: bool = False, scale: float = 1.0):
        super().__init__()
        self.base, self.down, self.up, self.remove, self.scale = base, down, up, remove, scale

    @property
    def weight(self) -> Tensor:
        """What both amount to, `out in`."""
        return self.base.weight if self.remove else self.base.weight + self.scale * (self.up.weight @ self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`... input` to `... output`."""
        seen = self.down(x)
        found = self.up(seen)
        found = found if self.scale == 1 else self.scale * found
        return self.base(x - seen @ self.down.weight if self.remove else x) + found

    @property
    def digital_macs(self) -> int:
        """Digital multiplications for one vector."""
        return self.up.weight.numel() + self.down.weight.numel() * (2 if self.remove else 1)


@dataclass(frozen=True)
class Hybrid:
    """A model with divided layers.

    Attributes:
        model: a copy; parameters that were not divided are shared with the original.
        split: the digital parts, for `map(model, chip, split=...)`.
        digital_macs: digital multiplications of each divided layer for one input vector.
        macs: multiplications of each such layer before.
    """

    model: nn.Module
    split: Split
    digital_macs: Mapping[str, int]
    macs: Mapping[str, int]


def divided(model: nn.Module, parts: Mapping[str, Pair | Beside]) -> Hybrid:
    """Put divided layers in place of linear ones, in a copy."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    before: dict[str, int] = {}
    places = Places(twin)
    for name, part in parts.items():
        before[name] = linear(model, name).weight.numel()
        places.exchange(twin.get_submodule(name), part.train(model.training))
    digital = tuple(f"{name}.{half}" for name, part in parts.items() for half in part.digital)
    return Hybrid(twin, Split(digital), {name: part.digital_macs for name, part in parts.items()}, before)


def linear(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of that name.

    Raises:
        UsageError: it is not there, or no `nn.Linear`.
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise UsageError("layer", got=repr(name), wanted="a module of the model", remedy=nearest(name, linears(model)))
    module = modules[name]
    if not isinstance(module, nn.Linear) or kind_of(module) is None:
        raise UsageError(f"layer {name}", got=type(module).__name__, wanted="an nn.Linear")
    return module


def linears(model: nn.Module) -> list[str]:
    """Names of the linear layers that can be divided."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and kind_of(module) is not None and name]
