"""What a rule sees: one executed operation, its arguments by name, and the axes of its tensors.

A rule takes a `Call` and returns the axes of the output, one list per output tensor:

    def roll(call):                                  # values move along `dims`: these axes lose their meaning for the weights
        axes = call.of("self")
        for dim in call.dims("dims"):
            call.pin(axes[dim], "is rolled")
        return axes
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lessen.structure.axes import Axes, Axis

Rule = Callable[["Call"], list[Axis] | list[list[Axis]]]


class Call:
    """One operation as it was executed.

    Attributes:
        name: "aten.view", without the overload.
        values: arguments by the names of the schema, defaults filled in.
        out: what it returned.
        axes: where axes are made and unified.
    """

    def __init__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any, book: "Book"):
        self.name = f"{func.namespace}.{func._schema.name.rpartition('::')[2]}"
        self.out = out
        self.axes: Axes = book.axes
        self._book = book
        self.values: dict[str, Any] = {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.name in kwargs:
                self.values[argument.name] = kwargs[argument.name]
            elif position < len(args):
                self.values[argument.name] = args[position]
            else:
                self.values[argument.name] = argument.default_value if argument.has_default_value() else None

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or the default if this overload does not have it or it is None."""
        value = self.values.get(name)
        return default if value is None else value

    def of(self, tensor: str | Tensor) -> list[Axis]:
        """Axes of a tensor, or of the argument of that name."""
        return list(self._book.axes_of(self.values[tensor] if isinstance(tensor, str) else tensor))

    def static(self, tensor: Tensor) -> bool:
        """Whether the tensor is made of parameters and buffers alone."""
        return self._book.is_static(tensor)

    def given(self, tensor: Tensor) -> bool:
        """Whether the tensor is an input of the model."""
        return self._book.is_input(tensor)

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments, those in lists too."""
        found: list[Tensor] = []
        for value in self.values.values():
            found += [x for x in (value if isinstance(value, list | tuple) else (value,)) if isinstance(x, Tensor)]
        return found

    def dims(self, name: str, ndim: int | None = None) -> list[int]:
        """An argument that names dimensions, as non-negative numbers; None or empty means all."""
        ndim = int(self.values["self"].dim()) if ndim is None else ndim
        value = self.values.get(name)
        if value is None or (isinstance(value, list | tuple) and not value):
            return list(range(ndim))
        return [d % ndim if ndim else 0 for d in (value if isinstance(value, list | tuple) else [value])]

    def leaf(self, size: int) -> Axis:
        """An axis that nothing is known of."""
        return self.axes.leaf(size)

    def fixed(self, size: int, reason: str) -> Axis:
        """An axis that cannot lose indices."""
        return self.axes.leaf(size, pin=f"{self.axes.cause} {reason}")

    def pin(self, axis: Axis, reason: str) -> None:
        """Let the axis keep all indices."""
        self.axes.pin(axis, f"{self.axes.cause} {reason}")

    def unify(self, a: Axis, b: Axis) -> None:
        """Make two axes the same."""
        self.axes.unify(a, b)

    def same(self, axes: Sequence[Axis], others: Sequence[Axis]) -> list[Axis]:
        """Unify dimension by dimension, aligned at the last, sizes of 1 broadcast; the broadcast axes."""
        long, short = (list(axes), list(others)) if len(axes) >= len(others) else (list(others), list(axes))
        offset = len(long) - len(short)
        for i, axis in enumerate(short):
            if long[offset + i].size == 1:
                long[offset + i] = axis
            elif axis.size != 1:
                self.unify(long[offset + i], axis)
        return long


class Book:
    """What a rule may ask about tensors; `lessen.structure.watch.Watch` is the one that knows."""

    axes: Axes

    def axes_of(self, tensor: Tensor) -> Sequence[Axis]:
        """Axes of a tensor, one per dimension."""
        raise KeyError(tuple(tensor.shape))

    def is_static(self, tensor: Tensor) -> bool:
        """Whether the tensor is made of parameters and buffers alone."""
        return tensor.is_leaf

    def is_input(self, tensor: Tensor) -> bool:
        """Whether the tensor is an input of the model."""
        return tensor.is_leaf


def elementwise(call: Call) -> list[Axis] | list[list[Axis]]:
    """Every tensor broadcasts against every other."""
    axes: list[Axis] = []
    for tensor in call.tensors():
        axes = call.same(axes, call.of(tensor))
    return [axes for _ in call.out] if isinstance(call.out, list | tuple) else axes


@cache
def is_pointwise(func: Any) -> bool:
    """Whether PyTorch itself declares the operation, or the one that it is the in-place form of, to be element by element."""
    if torch.Tag.pointwise in func.tags:
        return True
    name = func._schema.name.rpartition("::")[2]
    packet = getattr(getattr(torch.ops, func.namespace), name.removesuffix("_"), None) if name.endswith("_") else None
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())
