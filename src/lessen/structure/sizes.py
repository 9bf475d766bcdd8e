"""Which numbers a model keeps for itself, and what they must become: integers that remember where they come from.

Pruning heads makes tensors smaller; `self.num_heads`, `self.all_head_size` and `config.hidden_size` go on saying the old sizes, and the
next `view` fails or, worse, does not. Guessing them by name or by value goes wrong as soon as two sizes agree. So while the forward is
traced, every integer attribute of a module or its configuration is a `Size`: an `int` that carries a formula. Arithmetic on it makes
longer formulae, and the shapes of tensors are Sizes too, whose formula is the axis. When the model then asks for

    x.view(batch, seq, self.num_heads, self.hidden_size // self.num_heads)

the site holds, for each number, the formula (what the code computes) and the axis (what it stands for). After a cut the sizes of all
axes are known, and every formula must give the size of its axis. These equations are solved for the attributes: first those that stand
alone, then those that are left in a formula with one unknown. No solution means that the code cannot express the cut: the unit is held,
with the call as the reason.

The idea is dynamic taint analysis (Schwartz et al. 2010, https://doi.org/10.1109/SP.2010.26) put to use for sizes; the application is ours.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lessen.structure.axes import Axis

Formula = Any
"""An int, an `Attribute`, an `Axis`, or (operation, formula, formula)."""

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


@dataclass(frozen=True)
class Attribute:
    """An integer that an object keeps: `owner` is the path of a module, or a key of a configuration; `key` its attribute."""

    owner: str
    key: str


class Size(int):
    """An integer with the formula that it was computed by.

    >>> heads = Size(4, Attribute("attn", "num_heads"))
    >>> (heads * 8).formula
    ('*', Attribute(owner='attn', key='num_heads'), 8)
    """

    formula: Formula
    book: list[Formula] | None

    def __new__(cls, value: int, formula: Formula, book: "list[Formula] | None" = None) -> "Size":
        made = int.__new__(cls, value)
        made.formula = formula
        made.book = book
        return made

    def use(self) -> int:
        """The plain value, for a computation that is not about sizes: a scale of one over the root of the width. It must not change."""
        if self.book is not None:
            self.book.append(self)
        return int(self)

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int):
            return NotImplemented
        equal = int.__eq__(self, other)
        if equal and self.book is not None and isinstance(other, Size) and self.formula != other.formula:
            # Code that compares a size with its own idea of it expects them to go on being equal.
            self.book.append(("==", self.formula, other.formula))
        return equal

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __float__(self) -> float:
        return float(self.use())

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        return pow(self.use(), other, modulus)

    def __rpow__(self, other: Any, modulus: Any = None) -> Any:
        return pow(other, self.use(), modulus)

    def __truediv__(self, other: Any) -> Any:
        return self.use() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.use()

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __copy__(self) -> "Size":
        return self

    def __deepcopy__(self, memo: Any) -> "Size":
        return self

    def __neg__(self) -> "Size":
        return Size(-int(self), ("-", 0, self.formula), self.book)

    def __abs__(self) -> int:
        return self if self >= 0 else -self


def _formula(word: str, left: Formula, right: Formula) -> Formula:
    """A formula of two others; one times something is that."""
    if word == "*" and (type(left) is int or type(right) is int) and 1 in (left, right):
        return right if type(left) is int and left == 1 else left
    return (word, left, right)


def _arithmetic(name: str, word: str) -> None:
    apply = _OPERATIONS[word]
    plain, plain_right = getattr(int, f"__{name}__"), getattr(int, f"__r{name}__")

    def forward(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return plain(self, other) if not isinstance(other, float) else getattr(float(self), f"__{name}__")(other)
        return Size(apply(int(self), int(other)), _formula(word, self.formula, formula_of(other)), self.book)

    def backward(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return plain_right(self, other) if not isinstance(other, float) else getattr(float(self), f"__r{name}__")(other)
        return Size(apply(int(other), int(self)), _formula(word, formula_of(other), self.formula), self.book)

    setattr(Size, f"__{name}__", forward)
    setattr(Size, f"__r{name}__", backward)


for _name, _word in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//"), ("mod", "%")):
    _arithmetic(_name, _word)


def formula_of(value: int) -> Formula:
    """The formula of a Size; any other integer stands for itself."""
    return value.formula if isinstance(value, Size) else int(value)


def evaluate(formula: Formula, attribute: Callable[[Attribute], int], axis: Callable[[Axis], int]) -> int:
    """The value of a formula.

    Raises:
        ZeroDivisionError: it divides by nothing.
    """
    if isinstance(formula, Attribute):
        return attribute(formula)
    if isinstance(formula, Axis):
        return axis(formula)
    if isinstance(formula, tuple):
        word, a, b = formula
        return _OPERATIONS[word](evaluate(a, attribute, axis), evaluate(b, attribute, axis))
    return formula


def attributes_in(formula: Formula) -> Iterator[Attribute]:
    """Every attribute in a formula."""
    if isinstance(formula, Attribute):
        yield formula
    elif isinstance(formula, tuple):
        yield from attributes_in(formula[1])
        yield from attributes_in(formula[2])


def shape_of(shape: Sequence[int], axes: Sequence[Axis], book: list[Formula]) -> torch.Size:
    """A shape whose numbers know their axes."""
    return torch.Size([Size(n, axis, book) for n, axis in zip(shape, axes, strict=True)])


@contextmanager
def remembered(model: nn.Module, book: list[Formula]) -> Iterator[None]:
    """While it lasts, integers of modules and of configurations are Sizes; afterwards they are what they were.

    Args:
        model: whose integers.
        book: takes the formulae that are used for their value, not as sizes.
    """
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    seen: set[int] = set()

    def tag(owner: str, space: dict[str, Any], deep: bool) -> None:
        if id(space) in seen:
            return
        seen.add(id(space))
        changed = {key: value for key, value in space.items() if not key.startswith("__")}
        marked: dict[str, Any] = {}
        for key, value in changed.items():
            kind: Any = type(value)
            if kind is int and value > 0:
                marked[key] = Size(value, Attribute(owner, key), book)
            elif kind in (tuple, list) and value and all(type(v) is int for v in value):
                marked[key] = kind(Size(v, Attribute(owner, f"{key}[{i}]"), book) for i, v in enumerate(value))
            elif deep and is_configuration(value):
                tag(f"config:{id(value)}", vars(value), True)
        before.append((space, {key: space[key] for key in marked}))
        space.update(marked)

    try:
        for path, module in model.named_modules():
            tag(path, module.__dict__, True)
        yield
    finally:
        for space, values in before:
            space.update({key: value for key, value in values.items() if key in space and space[key] == value})


def is_configuration(value: Any) -> bool:
    """Whether an attribute is an object that holds settings."""
    return hasattr(value, "to_dict") and hasattr(value, "__dict__") and not isinstance(value, type | nn.Module)


def holder(model: nn.Module, start: str, key: str) -> str | None:
    """Path from a module to a configuration: "attn.config", asked of the module `start` and then of those around it."""
    words = start.split(".") if start else []
    for end in range(len(words), -1, -1):
        path = ".".join(words[:end])
        module = model.get_submodule(path)
        for name, value in module.__dict__.items():
            if is_configuration(value):
                if f"config:{id(value)}" == key:
                    return ".".join(filter(None, (path, name)))
                inner = next((n for n, v in vars(value).items() if is_configuration(v) and f"config:{id(v)}" == key), None)
                if inner is not None:
                    return ".".join(filter(None, (path, name, inner)))
    return None


Values = Mapping[Attribute, int]
