"""What a list of edits does to each tensor of a model, worked out from names and shapes alone, before anything is changed.

The rules of a list of edits:

    order       edits act one after the other; each speaks of the tensors as the earlier ones left them, so "prune, then quantize" is a
                longer list and the codes of a quantized tensor have its pruned shape
    drops       blocks after a dropped one move up, and later edits use their new numbers: who drops several drops the last one first
    fused       slices of one unit along one axis of one tensor act at once; indices outside all of them stay
    biases      only a bias beside an existing weight may be new; a cut through a weight's outputs goes through its bias too
    complete    units that a traced forward found name their biases and buffers themselves and may cross each other in one tensor (heads,
                features of heads): Keeps of such units that follow each other all speak of the tensors before the first of them
    ties        an alias means the tensor that it shares
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lessen.core.edit import Drop, Edit, Factor, Keep, Quantize, Replace, Resize
from lessen.core.unit import Slice, Unit
from lessen.errors import LessenError

Shape = tuple[int, ...]
_IN_BLOCK = re.compile(r".*?\.\d+\.(.+)\.(?:weight|bias)")


@dataclass(frozen=True)
class Traced:
    """One tensor of the edited model.

    Attributes:
        place: where it lies in the model before the edits (for a new bias: where it will be put).
        shape: before the edits; for a new bias, the shape of the zeros that it starts from.
        after: shape after the edits.
        steps: the edits that touch it, each with the name under which it speaks of the tensor.
        new: a bias that the model did not have before.
    """

    place: str
    shape: Shape
    after: Shape
    steps: tuple[tuple[str, Edit], ...] = ()
    new: bool = False


def trace(
    shapes: Mapping[str, Shape],
    edits: Sequence[Edit],
    tied: Mapping[str, str] | None = None,
    together: Sequence[tuple[str, ...]] = (),
) -> dict[str, Traced]:
    """Follow every tensor through the edits.

    Args:
        shapes: of every stored tensor, in model order.
        edits: what to do.
        tied: alias -> stored name.
        together: groups of linears (by their names inside a block) that have biases all or none.

    Returns:
        final name -> what becomes of it, in model order, new biases after their weights; dropped tensors are missing.

    Raises:
        LessenError: an edit names a tensor that is not there, or does not fit its shape.
    """
    current = {name: Traced(name, shape, shape) for name, shape in shapes.items()}
    aliases = dict(tied or {})
    dropped: dict[str, int] = {}
    for edit in _grouped(edits):
        if isinstance(edit, Resize):
            continue
        if isinstance(edit, tuple):
            _cut(current, aliases, edit)
            continue
        if isinstance(edit, Drop):
            list_of = edit.unit.name.rpartition(".")[0]
            _check_drop(current, edit, dropped.get(list_of, 0))
            dropped[list_of] = dropped.get(list_of, 0) + 1
            current = {new: traced for name, traced in current.items() if (new := renumbered(name, edit)) is not None}
            moved = {renumbered(alias, edit): renumbered(name, edit) for alias, name in aliases.items()}
            aliases = {alias: name for alias, name in moved.items() if alias is not None and name is not None}
            continue
        for name in touched(edit):
            if aliases.get(name, name) not in current:
                current = _with_biases(current, name, edit, together)
        beside = [f"{name.removesuffix('.weight')}.bias" for name in touched(edit)]
        for name in dict.fromkeys([*touched(edit), *beside]):
            if (name in current or name in aliases) and (spoken := spoken_of(name, edit)) is not None:
                stored = aliases.get(name, name)
                before = current[stored]
                after = _shape_after(spoken, before.after, edit)
                current[stored] = replace(before, after=after, steps=(*before.steps, (spoken, edit)))
    return current


def _grouped(edits: Sequence[Edit]) -> Iterator[Edit | tuple[Keep, ...]]:
    """The edits, with Keeps of complete units that act at once in one tuple.

    A unit that comes again starts the next, and so does one that was found when an axis had another length: on the smaller model.
    """
    group: list[Keep] = []
    lengths: dict[tuple[str, int], int | None] = {}
    for edit in edits:
        joining = edit if isinstance(edit, Keep) and edit.unit.complete else None
        own = {(part.name, part.axis): part.length for part in joining.unit.slices} if joining else {}
        again = any(joining is not None and joining.unit.name == keep.unit.name for keep in group)
        if group and (joining is None or again or any(lengths.get(place, length) != length for place, length in own.items())):
            yield tuple(group)
            group, lengths = [], {}
        if joining is not None:
            group.append(joining)
            lengths |= own
        else:
            yield edit
    if group:
        yield tuple(group)


def _cut(current: dict[str, Traced], aliases: Mapping[str, str], group: Sequence[Keep]) -> None:
    """Let Keeps of complete units act at once: for every axis that they cut, one Keep of what is left of it."""
    gone: dict[tuple[str, int], Tensor] = {}
    for keep in group:
        for part in keep.unit.slices:
            name = aliases.get(part.name, part.name)
            if name not in current:
                remedy = "plan again on this model"
                raise LessenError(part.name, got="a Keep edit", wanted="the name of a tensor of the model", remedy=remedy)
            shape = current[name].after
            _check_keep(part.name, shape, keep)
            mask = gone.setdefault((name, part.axis), torch.zeros(shape[part.axis], dtype=torch.bool))
            lost = torch.ones(keep.unit.size, dtype=torch.bool)
            lost[keep.indices.cpu()] = False
            mask[part.indices(keep.unit.size)[lost].flatten()] = True
    for (name, axis), mask in gone.items():
        before = current[name]
        indices = (~mask).nonzero()[:, 0]
        if not len(indices):
            got = f"edits that leave nothing of axis {axis} of shape {before.after}"
            raise LessenError(name, got=got, wanted="one index at least", remedy="ask for less")
        unit = Unit(name, "channels", before.after[axis], (Slice(name, axis),), complete=True)
        after = tuple(len(indices) if a == axis else size for a, size in enumerate(before.after))
        current[name] = replace(before, after=after, steps=(*before.steps, (name, Keep(unit, indices))))


def touched(edit: Edit) -> list[str]:
    """Names of the tensors that an edit (other than a Drop) speaks of, each once."""
    match edit:
        case Keep(unit):
            return list(dict.fromkeys(part.name for part in unit.slices))
        case Drop() | Resize():
            return []
        case _:
            return [edit.name]


def spoken_of(name: str, edit: Edit) -> str | None:
    """The name under which an edit touches a tensor: its own, or its weight's if it is a bias; None if it does not."""
    names = touched(edit)
    weight = f"{name.removesuffix('.bias')}.weight"
    implied = isinstance(edit, Keep) and not edit.unit.complete and name.endswith(".bias") and weight in names
    return name if name in names else weight if implied else None


def kept(edit: Keep, name: str, shape: Shape) -> dict[int, Tensor]:
    """For every axis of the tensor `name` that the edit cuts: the indices that stay, int64, sorted.

    >>> import torch
    >>> from lessen.core.unit import Slice, Unit
    >>> fused = Unit("mlp", "ffn", 3, (Slice("gate_up", 0), Slice("gate_up", 0, start=3)))
    >>> kept(Keep(fused, torch.tensor([0, 2])), "gate_up", (6, 5))
    {0: tensor([0, 2, 3, 5])}
    """
    stay: dict[int, Tensor] = {}
    for part in edit.unit.slices:
        # A bias that is spoken of by its weight's name has the first axis only.
        if part.name == name and part.axis < len(shape):
            mask = stay.setdefault(part.axis, torch.ones(shape[part.axis], dtype=torch.bool))
            places = part.indices(edit.unit.size)
            mask[places.flatten()] = False
            mask[places[edit.indices.cpu()].flatten()] = True
    return {axis: mask.nonzero()[:, 0] for axis, mask in stay.items()}


def renumbered(name: str, drop: Drop) -> str | None:
    """The name of a tensor or module after a block was dropped, None if it went with it.

    >>> from lessen.core.unit import Unit
    >>> drop = Drop(Unit("layers.1", "layer", 1, ()))
    >>> renumbered("layers.2.w", drop), renumbered("layers.1.w", drop), renumbered("norm.w", drop)
    ('layers.1.w', None, 'norm.w')
    """
    prefix, _, gone = drop.unit.name.rpartition(".")
    if not name.startswith(f"{prefix}."):
        return name
    number, dot, rest = name[len(prefix) + 1 :].partition(".")
    if not number.isdigit() or int(number) < int(gone):
        return name
    return None if number == gone else f"{prefix}.{int(number) - 1}{dot}{rest}"


def final_name(name: str, edits: Sequence[Edit]) -> str | None:
    """What a tensor, or a module, is called after the edits; None if it is dropped."""
    for edit in edits:
        if isinstance(edit, Drop):
            after = renumbered(name, edit)
            if after is None:
                return None
            name = after
    return name


def _check_drop(names: Iterable[str], drop: Drop, before: int) -> None:
    """Raise unless the drop names a block and another one is left; `before` is how many of the list are dropped already."""
    prefix, _, gone = drop.unit.name.rpartition(".")
    there = {name[len(prefix) + 1 :].split(".")[0] for name in names if name.startswith(f"{prefix}.")}
    if not gone.isdigit() or gone not in there:
        got, remedy = f"a request to drop it from {len(there)} blocks", "drop the last block first: the ones after a dropped one move up"
        raise LessenError(drop.unit.name, got=got, wanted="a block of the model", remedy=remedy)
    if drop.unit.among is not None and not len(there) <= drop.unit.among <= len(there) + before:
        got, wanted = f"{len(there)} blocks", f"{drop.unit.among}, as in the model that was planned for"
        raise LessenError(prefix, got=got, wanted=wanted, remedy="plan again on this model")
    if there == {gone}:
        raise LessenError(drop.unit.name, got="a request to drop the only block that is left", wanted="one block at least to stay")


def _with_biases(current: dict[str, Traced], name: str, edit: Edit, together: Sequence[tuple[str, ...]]) -> dict[str, Traced]:
    """The tensors with room for a bias after its weight, and for those that must come with it."""
    weight = f"{name.removesuffix('.bias')}.weight"
    if not isinstance(edit, Replace) or not name.endswith(".bias") or weight not in current:
        remedy = "see `lessen inspect --units`; only a bias beside an existing weight may be new"
        raise LessenError(name, got=f"a {type(edit).__name__} edit", wanted="the name of a tensor of the model", remedy=remedy)
    group = next((linears for linears in together if in_block(weight) in linears), ())
    grown: dict[str, Traced] = {}
    for key, traced in current.items():
        grown[key] = traced
        bias = f"{key.removesuffix('weight')}bias"
        if key == weight or (in_block(key) in group and key.endswith(".weight") and bias not in current):
            grown[bias] = Traced(f"{traced.place.removesuffix('weight')}bias", traced.after[:1], traced.after[:1], new=True)
    return grown


def in_block(name: str) -> str | None:
    """The module that holds a tensor, by its name inside its block.

    >>> in_block("model.layers.3.mlp.up_proj.weight")
    'mlp.up_proj'
    """
    found = _IN_BLOCK.fullmatch(name)
    return found and found[1]


def _shape_after(name: str, shape: Shape, edit: Edit) -> Shape:
    match edit:
        case Keep():
            _check_keep(name, shape, edit)
            cut = kept(edit, name, shape)
            return tuple(len(cut[axis]) if axis in cut else size for axis, size in enumerate(shape))
        case Quantize(_, _, codes):
            got = tuple(codes.values.shape)
        case Replace(_, weight):
            got = tuple(weight.shape)
        case Factor(_, u, v):
            got = (u.shape[0], v.shape[1]) if u.ndim == v.ndim == 2 and u.shape[1] == v.shape[0] else (*u.shape, *v.shape)
        case _:
            return shape
    if got != shape:
        raise LessenError(name, got=f"a {type(edit).__name__} of shape {got}", wanted=f"{shape}", remedy="plan again on this model")
    return shape


def _check_keep(name: str, shape: Shape, edit: Keep) -> None:
    unit, indices = edit.unit, edit.indices
    if indices.ndim != 1 or indices.dtype != torch.int64 or not len(indices):
        raise LessenError(unit.name, got=f"indices {tuple(indices.shape)} of {indices.dtype}", wanted="int64, one at least")
    if indices[0] < 0 or indices[-1] >= unit.size or bool((indices.diff() <= 0).any()):
        raise LessenError(unit.name, got="indices out of range or order", wanted=f"increasing numbers below {unit.size}")
    for part in unit.slices:
        if part.name == name and part.axis < len(shape) and part.length not in (None, shape[part.axis]):
            got, wanted = f"shape {shape}", f"{part.length} indices on axis {part.axis}, as in the model that {unit.name} was found in"
            raise LessenError(name, got=got, wanted=wanted, remedy="plan again on this model")
        stride = unit.size * part.span if part.stride is None else part.stride
        end = part.start + (part.repeat - 1) * stride + unit.size * part.span
        if part.name == name and part.axis < len(shape) and end > shape[part.axis]:
            got = f"shape {shape} for {unit.size} channels of {part.span} on axis {part.axis}"
            raise LessenError(name, got=got, wanted=f"{end} indices there at least", remedy="plan again on this model")
