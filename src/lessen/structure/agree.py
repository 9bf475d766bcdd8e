"""Sizes that the code itself makes equal: what a model writes down as one number is one axis.

    batch, seq, width = x.size()
    ...
    return self.out(heads.reshape(batch, seq, width))

says that heads times features of a head are as many as the features of `x`, whatever the operations in between say. Cutting one
without the other would make the `reshape` fail, so that neither could be cut. Unified, they can be cut together, as the width and the
heads of `nn.MultiheadAttention` are. Three kinds of number tell:

    a product of sizes of tensors       is the axis that it is given for
    an attribute given for two axes     makes them one, as it can have but one value
    the n-th part of the size of one    makes its n parts one, as they must go on being equally many: x[:, : c // 2], x[:, c // 2 :]

Axes that have leaves in common are left as they are: a shuffle puts them in another order, and an axis cannot be a part of itself.
"""

from collections.abc import Iterable

from lessen.structure.axes import Axes, Axis, leaves, parted
from lessen.structure.sizes import Attribute, Formula, formula_of
from lessen.structure.watch import Site


def agree(axes: Axes, sites: Iterable[Site]) -> None:
    """Unify what numbers that were given to calls make equal.

    Args:
        axes: where the axes were made.
        sites: the calls.
    """
    first: dict[tuple[str, Attribute], Axis] = {}
    for site in sites:
        for number, axis in zip(site.sizes, site.axes, strict=True):
            formula = formula_of(number)
            if number <= 1 or axis.size != number:
                continue
            axes.cause = f"one number in {site.call} in {site.module or 'the model'}"
            _equal_parts(axes, formula)
            if isinstance(formula, Attribute):
                # A configuration is copied for the module that asks it, so that each module has numbers of its own.
                place = site.module if formula.owner.startswith("config:") else ""
                other = first.setdefault((place, formula), axis)
            else:
                other = _product(axes, formula)
            if other is not None and other.size == axis.size and not {*leaves(other)} & {*leaves(axis)}:
                axes.unify(other, axis)


def _equal_parts(axes: Axes, formula: Formula) -> None:
    """Make the parts of an axis one, of which the code counts each as the n-th part of the whole."""
    if not isinstance(formula, tuple) or formula[0] != "//" or not isinstance(count := formula[2], int) or count < 2:
        return
    whole = _product(axes, formula[1])
    if whole is None or whole.size % count:
        return
    bounds = [whole.size // count * (i + 1) for i in range(count)]
    pieces = (axes.cut(whole, bounds) if parted(whole, bounds) else None) or []
    for piece in pieces[1:]:
        axes.unify(pieces[0], piece)


def _product(axes: Axes, formula: Formula) -> Axis | None:
    """The axis that a formula of nothing but sizes of tensors and products stands for."""
    if isinstance(formula, Axis):
        return formula
    if isinstance(formula, tuple) and formula[0] == "*":
        left, right = _product(axes, formula[1]), _product(axes, formula[2])
        return left and right and axes.join([left, right])
    return None
