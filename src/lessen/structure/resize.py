"""The edits that make a model's own numbers fit a cut: see `lessen.structure.sizes` for where the equations come from.

equations   formula(attributes, axes) = size of the axis, for every number that was given to a call
solving     an attribute that is a whole formula is what the equation says; what is left is searched, one unknown at a time
conflict    two equations want different values, or a formula without attributes has the wrong one: the cut cannot be expressed
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lessen.core.edit import Edit, Keep, Resize
from lessen.errors import LessenError
from lessen.structure.axes import Axis, find, leaves
from lessen.structure.found import Structure
from lessen.structure.sizes import Attribute, Formula, attributes_in, evaluate, formula_of, holder


@dataclass(frozen=True)
class Equation:
    """What the code computes for one number of a call, and the axis that it stands for."""

    formula: Formula
    axis: Axis
    before: int
    module: str
    call: str


class Resizer:
    """The equations of a structure, solved for one choice of kept channels after the other.

    Args:
        model: what was traced.
        structure: what `trace` found.
    """

    def __init__(self, model: nn.Module, structure: Structure):
        self.model, self.structure = model, structure
        self.equations: list[Equation] = []
        self.by_unit: dict[str, list[Equation]] = {}
        self._before: dict[Attribute, int] = {}
        self._places: dict[tuple[str, str], str | None] = {}
        seen: set[tuple[object, int]] = set()
        for site in structure.sites:
            for number, axis in zip(site.sizes, site.axes, strict=True):
                if number < 0:
                    continue
                formula = self._localised(formula_of(number), site.module)
                if (key := (formula, id(find(axis)))) in seen:
                    continue
                seen.add(key)
                if equation := self._equation(formula, axis, int(number), site.module, site.call):
                    self.equations.append(equation)
        for equation in self.equations:
            involved = {self.structure.leaves.get(leaf) for axis in _axes_in(equation) for leaf in leaves(axis)}
            for unit in involved - {None}:
                self.by_unit.setdefault(str(unit), []).append(equation)
        self.by_attribute: dict[Attribute, list[Equation]] = {}
        for equation in self.equations:
            for attribute in set(attributes_in(equation.formula)):
                self.by_attribute.setdefault(attribute, []).append(equation)

    def solve(self, kept: Mapping[str, int]) -> list[Resize]:
        """The numbers that change when units have this many channels left.

        Raises:
            LessenError: the code cannot express the cut; the message names the call and the module.
        """
        sizes: dict[Axis, int] = {}

        def after(axis: Axis) -> int:
            root = find(axis)
            if root not in sizes:
                sizes[root] = self.structure.size_after(root, kept)
            return sizes[root]

        values: dict[Attribute, int] = {}

        def value(attribute: Attribute) -> int:
            return values.get(attribute, self._before[attribute])

        def holds(equation: Equation) -> bool:
            try:
                return evaluate(equation.formula, value, after) == after(equation.axis)
            except ZeroDivisionError:
                return False

        concerned = list(dict.fromkeys(e for unit in kept for e in self.by_unit.get(unit, ())))
        for equation in concerned:
            if isinstance(equation.formula, Attribute) and not holds(equation):
                if equation.formula in values:
                    raise self._conflict(equation, after(equation.axis))
                values[equation.formula] = after(equation.axis)
        wider = [*concerned, *(e for a in values for e in self.by_attribute[a])]
        open_ones: list[Equation] = []
        for _ in range(4):
            open_ones = [e for e in dict.fromkeys(wider) if not holds(e)]
            if not open_ones:
                return [Resize(f"{a.owner}.{a.key}" if a.owner else a.key, self._before[a], v) for a, v in values.items()]
            for equation in open_ones:
                if not holds(equation):
                    wider += self._search(equation, values, holds, after)
        raise self._conflict(open_ones[0], after(open_ones[0].axis))

    def _search(
        self, equation: Equation, values: dict[Attribute, int], holds: Callable[[Equation], bool], after: Callable[[Axis], int]
    ) -> list[Equation]:
        """Give one attribute of the formula the value that makes it hold, where that breaks no other equation."""
        for attribute in dict.fromkeys(attributes_in(equation.formula)):
            if attribute in values:
                continue
            others = self.by_attribute[attribute]
            had = [e for e in others if holds(e)]
            for guess in range(1, 2 * self._before[attribute] + 1):
                values[attribute] = guess
                if holds(equation) and all(holds(e) for e in had):
                    return others
            del values[attribute]
        raise self._conflict(equation, after(equation.axis))

    def _conflict(self, equation: Equation, wanted: int) -> LessenError:
        names = ", ".join(f"{a.owner}.{a.key}" for a in dict.fromkeys(attributes_in(equation.formula)))
        got = f"{equation.call} with a size of {equation.before} from {names or 'a number in the code'}, which cannot become {wanted}"
        if equation.call == "arithmetic":
            # Of this number the value counts: the scale of attention scores, the mean over a width.
            got = f"arithmetic with the value {equation.before} of {names or 'a size'}, which would be another after a cut"
        return LessenError(
            equation.module or type(self.model).__name__,
            got=got,
            wanted="a size that follows from attributes of the module",
            remedy=f"leave it whole: freeze={[equation.module]}",
        )

    def _equation(self, formula: Formula, axis: Axis, number: int, module: str, call: str) -> Equation | None:
        """An equation that can matter: something in it can change, and it holds before anything does."""
        equation = Equation(formula, axis, number, module, call)
        free = any(leaf in self.structure.leaves for part in _axes_in(equation) for leaf in leaves(part))
        if not free and not any(True for _ in attributes_in(formula)):
            return None
        return equation if find(axis).size == number else None

    def _localised(self, formula: Formula, module: str) -> Formula:
        """Configuration keys become paths from the module that runs."""
        if isinstance(formula, tuple):
            return (formula[0], self._localised(formula[1], module), self._localised(formula[2], module))
        if not isinstance(formula, Attribute):
            return formula
        owner = formula.owner
        if owner.startswith("config:"):
            if (module, owner) not in self._places:
                self._places[module, owner] = holder(self.model, module, owner)
            place = self._places[module, owner]
            if place is None:
                return self._read(formula)
            local = Attribute(place, formula.key)
        else:
            local = formula
        self._before[local] = self._read_at(local)
        return local

    def _read_at(self, attribute: Attribute) -> int:
        found: Any = self.model
        key, _, index = attribute.key.partition("[")
        for word in [*filter(None, attribute.owner.split(".")), key]:
            found = found._modules[word] if isinstance(found, nn.Module) and word in found._modules else getattr(found, word)
        return int(found[int(index[:-1])]) if index else int(found)

    def _read(self, attribute: Attribute) -> int:
        raise LessenError(attribute.key, got="a configuration that no module holds", wanted="one that is an attribute of a module")


def _axes_in(equation: Equation) -> Iterator[Axis]:
    yield equation.axis
    stack = [equation.formula]
    while stack:
        formula = stack.pop()
        if isinstance(formula, Axis):
            yield formula
        elif isinstance(formula, tuple):
            stack += formula[1:]


def resizes(model: nn.Module, structure: Structure, edits: Sequence[Edit]) -> list[Edit]:
    """The edits with those that make the model's own numbers fit what they keep.

    Raises:
        LessenError: the code cannot express the cut.
    """
    kept = {edit.unit.name: len(edit.indices) for edit in edits if isinstance(edit, Keep)}
    return [*edits, *Resizer(model, structure).solve(kept)]


def expressible(model: nn.Module, structure: Structure) -> Structure:
    """The structure without units that the model's code cannot express a cut of; they are `stuck`, with the call as the reason."""
    resizer = Resizer(model, structure)
    units, held, stuck = [], dict(structure.held), list(structure.stuck)
    for unit in structure.units:
        try:
            for kept in {max(1, unit.size - 1), max(1, unit.size // 2)}:
                resizer.solve({unit.name: kept})
        except LessenError as error:
            held[unit.name] = f"{error.where}: {error.got}"
            stuck.append(replace(unit, reason=held[unit.name]))
        else:
            units.append(unit)
    return replace(structure, units=tuple(units), held=held, stuck=tuple(stuck))
