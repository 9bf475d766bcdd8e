"""What a pruning method decides on: the units of a model, of the kinds that were asked for, without what is frozen.

    widths inside blocks    "ffn" and "channels" (of feed-forward layers and convolutions), "kv_group", "heads": unless others are asked for
    widths of other kinds   "head_dim" (features of every head), "width" (the residual stream, which norms look at as a whole),
                            "experts" (of which at least as many stay as a router chooses)
    whole layers            "layer": methods drop them, by BlockInfluence
    rows of tables          "vocab": token ids change

Of two units that cut the same indices of a tensor (features of heads, and the heads) one is taken: that of the kind which is named first.
The other has its turn on the smaller model, where the method has a ratio of its own; a budget is spent on the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, get_args

from torch import Tensor, nn

from lessen import recipe
from lessen.core.unit import Kind, Unit, View
from lessen.errors import UsageError, nearest
from lessen.methods.budget import Budget
from lessen.methods.ukmp import UKMP
from lessen.structure.found import Structure
from lessen.structure.held import why_none
from lessen.structure.numbers import WITH_WIDTH
from lessen.structure.resize import expressible
from lessen.structure.trace import trace

WIDTHS = ("ffn", "channels", "kv_group", "heads")
"""Kinds of unit that are pruned unless others are asked for: nothing that a norm couples, no head dimensions, whole groups before heads."""

Given = Structure | Sequence[Unit] | None


@dataclass(frozen=True)
class Choice:
    """Units to decide on.

    Attributes:
        units: these.
        structure: what was traced; None for units that were declared.
        frozen: names of the modules, parameters and buffers of which nothing may be cut.
        crossed: kinds that were asked for, of which units are left out since others cut the same tensors.
        notes: what was left out, and why, as sentences.
    """

    units: list[Unit]
    structure: Structure | None
    frozen: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    crossed: tuple[str, ...] = ()


def method_of(method: Any) -> Any:
    """A pruning method: itself, what a text such as "Magnitude(power=1)" spells, or UKMP where nothing is said.

    >>> method_of("Magnitud")
    Traceback (most recent call last):
    lessen.errors.UsageError: method: got the method Magnitud, wanted one that exists; did you mean Magnitude?
    """
    method = UKMP() if method is None else recipe.parse(method, "method")[0] if isinstance(method, str) else method
    if isinstance(method, type):
        raise UsageError("method", got=f"the class {method.__name__}", wanted="one of it", remedy=f"{method.__name__}()")
    if not hasattr(method, "decide"):
        known = [cls.__name__ for cls in _pruning()]
        remedy = f"choose from {', '.join(sorted(known))}"
        raise UsageError("method", got=f"{type(method).__name__}, which removes nothing", wanted="a pruning method", remedy=remedy)
    return method


def choose(model: nn.Module, example: Any, method: Any, given: Given, kinds: Sequence[str] | None, freeze: Sequence[str]) -> Choice:
    """The units that a method decides on.

    Args:
        model: any module.
        example: what it is called with.
        method: by which units are chosen where `kinds` says nothing.
        given: a structure, of which units of some kinds are taken; a list of units, all of which are; None: the model is traced.
        kinds: which; None: what the method is for.
        freeze: names of modules, parameters and buffers, or patterns of them.

    Raises:
        UsageError: unknown kinds or names, units of another model, or none that is left.
        LessenError: the model cannot be traced.
    """
    frozen = matching(model, freeze)
    notes: list[str] = []
    wanted = _kinds(method, kinds)
    if given is None or isinstance(given, Structure):
        structure = trace(model, example, freeze=frozen) if given is None else expressible(model, _own(model, given))
        units = _of_kinds(structure, wanted, plain=kinds is None)
    else:
        units, structure = _listed(model, example, given)
        wanted = [unit.kind for unit in units] if kinds is None else wanted
        units = [unit for unit in units if unit.kind in wanted]
    found, units = units, [unit for unit in units if not _frozen(unit, frozen)]
    units = _able(model, method, units, notes)
    if not units:
        if frozen and (found or _of_kinds(trace(model, example), wanted, plain=kinds is None)):
            got = f"everything that it could prune is frozen by freeze={list(freeze)}"
            raise UsageError(type(method).__name__, got=got, wanted="one unit at least that is not", remedy="freeze less")
        raise _nothing(method, structure, wanted, kinds)
    notes += _told(structure, wanted, units, plain=kinds is None)
    taken, crossed = _disjoint(units, list(dict.fromkeys([*wanted, *(unit.kind for unit in units)])))
    if crossed and not isinstance(given, Structure | None):
        one, other = next(iter(crossed.items()))
        wish, remedy = "units that share no indices", "prune twice, or name kinds= in the order in which they count"
        if kinds is None:
            raise UsageError("units", got=f"{one}, which cuts tensors where {other} does", wanted=wish, remedy=remedy)
    left = () if kinds is None else tuple(dict.fromkeys(unit.kind for unit in units if unit.name in crossed))
    return Choice(taken, structure, frozen, notes, left)


def _own(model: nn.Module, structure: Structure) -> Structure:
    """The structure, if it is one of this model."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, axes in structure.dims.items():
        traced, own = tuple(axis.size for axis in axes), tuple(tensors[name].shape) if name in tensors else None
        if traced != own:
            got = f"the structure of another model, in which {name} is {traced}; here it is {own or 'missing'}"
            remedy = "units=lessen.trace(model, example_inputs)"
            raise UsageError("units", got=got, wanted="the structure of this one", remedy=remedy)
    return structure


def _nothing(method: Any, structure: Structure | None, wanted: Sequence[str], kinds: Sequence[str] | None) -> UsageError:
    """Why there is nothing to prune."""
    where = type(method).__name__
    asked = "" if kinds is None else f" of kind {' or '.join(kinds)}"
    also = [unit.kind for unit in (() if structure is None else structure.units) if unit.kind in (*wanted, "width") and unit.normed]
    if also and kinds is None:
        remedy = f"norms look at all that there is as a whole: kinds={list(dict.fromkeys(also))} takes it all the same"
    elif structure is None:
        remedy = "give others in units="
    else:
        there = list(dict.fromkeys(unit.kind for unit in structure.units if unit.kind not in wanted))
        remedy = why_none(structure, wanted) + (f"; there are units of kind {', '.join(there)}" if there else "")
    return UsageError(where, got=f"no unit{asked} that it could prune", wanted="one at least", remedy=remedy)


def _told(structure: Structure | None, wanted: Sequence[str], units: Sequence[Unit], plain: bool) -> list[str]:
    """What of the kinds stays whole though it looks like a unit, and what goes with more than its name says, as sentences."""
    notes: list[str] = []
    stuck = [unit for unit in (() if structure is None else structure.stuck) if unit.kind in wanted and not (plain and unit.normed)]
    if stuck:
        some = ", ".join([*(unit.name for unit in stuck[:3]), *(["..."] if len(stuck) > 3 else [])])
        notes.append(f"{len(stuck)} unit{'s' * (len(stuck) > 1)} left whole ({some}), as the code cannot say it: {stuck[0].reason}.")
    if bound := [unit.name for unit in units if WITH_WIDTH in unit.reason]:
        notes.append(f"Heads of {', '.join(bound[:3])} take their part of the width with them: {WITH_WIDTH}.")
    return notes


def matching(model: nn.Module, freeze: Sequence[str]) -> tuple[str, ...]:
    """Names of the modules, parameters and buffers that names or patterns mean.

    >>> matching(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["*.bias"])
    ('0.bias', '1.bias')
    """
    tensors = [*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))]
    known = list(dict.fromkeys([*(name for name, _ in model.named_modules() if name), *tensors]))
    found: dict[str, None] = {}
    for pattern in freeze:
        hits = [name for name in known if fnmatchcase(name, pattern)]
        if not hits:
            wanted = "a module, parameter or buffer, or a pattern of them (*.attention)"
            raise UsageError("freeze", got=repr(pattern), wanted=wanted, remedy=_like(pattern, known))
        found |= dict.fromkeys(hits)
    return tuple(found)


def _like(pattern: str, known: Sequence[str]) -> str:
    found = nearest(pattern, known)
    return found if found.startswith("did you mean") else "such as " + ", ".join(known[:6])


def view_of(unit: Unit, tensors: Mapping[str, Tensor]) -> View:
    """The unit with its parameters and the biases beside them; buffers (running statistics) follow, but are not looked at."""
    slices = tuple(part for part in unit.slices if part.name in tensors)
    names = [part.name for part in slices]
    beside = [f"{name.removesuffix('.weight')}.bias" for name in names if name.endswith(".weight")]
    wanted = dict.fromkeys([*names, *(name for name in beside if name in tensors)])
    return View(replace(unit, slices=slices), {name: tensors[name].detach() for name in wanted})


def _pruning() -> list[type]:
    from lessen.methods import METHODS

    return [cls for cls in METHODS if hasattr(cls, "decide")]


def _kinds(method: Any, kinds: Sequence[str] | None) -> list[str]:
    """The kinds to decide on, the first ones before the others where two cut the same."""
    if kinds is None:
        own = list(getattr(method, "kinds", (method.kind,)))
        return list(WIDTHS) if set(own) & {"ffn", "kv_group", "channels"} and own != ["channels"] else own
    known = [*WIDTHS, "head_dim", "width", "experts", "layer", "vocab"]
    for kind in kinds:
        if kind not in get_args(Kind) or kind not in known:
            raise UsageError("kinds", got=repr(kind), wanted=f"kinds of unit: {', '.join(known)}", remedy=nearest(kind, known))
    if "layer" in kinds and isinstance(method, Budget):
        wanted = "a method that drops them"
        raise UsageError(f"kinds with {type(method).__name__}", got="layers", wanted=wanted, remedy="method=BlockInfluence(ratio=0.25)")
    # What traced feed-forward layers lose is called channels.
    return list(dict.fromkeys(other for kind in kinds for other in (("ffn", "channels") if kind == "ffn" else (kind,))))


def _of_kinds(structure: Structure, kinds: Sequence[str], plain: bool) -> list[Unit]:
    found = [*structure.units, *(structure.vocabulary if "vocab" in kinds else ())]
    return [unit for unit in found if unit.kind in kinds and not (plain and unit.normed)]


def _listed(model: nn.Module, example: Any, units: Sequence[Unit]) -> tuple[list[Unit], Structure | None]:
    """Units that were given by hand; those that come from a trace with what else the model's code needs to be told."""
    if not units or not all(unit.complete for unit in units):
        _fitting(model, units)
        return list(units), None
    traced = trace(model, example)
    own = {_what(unit): unit for unit in (*traced.units, *traced.vocabulary)}
    found: list[Unit] = []
    for unit in units:
        same = own.get(_what(unit))
        if same is None:
            remedy = "take them from lessen.trace(model, example_inputs)"
            raise UsageError("units", got=f"{unit.name}, which is no unit of this model", wanted="its own units", remedy=remedy)
        found.append(same)
    able = expressible(model, replace(traced, units=tuple(unit for unit in found if unit in traced.units)))
    for unit in found:
        if unit in traced.units and unit not in able.units:
            raise UsageError(unit.name, got=able.held[unit.name], wanted="a unit that the code can cut", remedy="leave it out of units=")
    return found, able


def _fitting(model: nn.Module, units: Sequence[Unit]) -> None:
    """Raise unless declared units lie in tensors of the model, which are as long as they were when the units were found."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for unit in units:
        for part in unit.slices:
            shape = tuple(tensors[part.name].shape) if part.name in tensors else ()
            last = int(part.indices(unit.size).max())
            if part.axis >= len(shape) or last >= shape[part.axis] or part.length not in (None, shape[part.axis]):
                got = f"{part.name} of shape {shape}" if shape else f"no tensor {part.name}"
                wanted = f"{part.length or last + 1} indices on its axis {part.axis}"
                raise UsageError(f"units: {unit.name}", got=got, wanted=wanted, remedy="declare units of this model")


def _what(unit: Unit) -> Any:
    """By what a unit is known again: names depend on what else was found."""
    return (unit.kind, unit.size, frozenset(unit.slices) or unit.name)


def _frozen(unit: Unit, names: Sequence[str]) -> bool:
    if unit.kind == "layer":
        return any(_inside(unit.name, name) or _inside(name, unit.name) for name in names)
    return any(_inside(part.name, name) for part in unit.slices for name in names)


def _inside(name: str, module: str) -> bool:
    return not module or f"{name}.".startswith(f"{module}.")


def _able(model: nn.Module, method: Any, units: Sequence[Unit], notes: list[str]) -> list[Unit]:
    """The units that a method can judge; what it cannot is noted."""
    channels = isinstance(method, Budget)
    fits = [unit for unit in units if (unit.kind == "layer") != channels] if channels or method.kind == "layer" else list(units)
    if gone := len(units) - len(fits):
        other = "BlockInfluence drops layers" if channels else "other methods narrow units"
        what = "whole layers" if channels else "units inside layers"
        notes.append(f"{gone} {what} are left as they are: {other}.")
    reason = getattr(method, "unable", None)
    if reason is None:
        return fits
    tensors = dict(model.named_parameters(remove_duplicate=False))
    told = {unit.name: why for unit in fits if (why := reason(view_of(unit, tensors)))}
    if told and len(told) < len(fits):
        some = ", ".join([*list(told)[:3], *(["..."] if len(told) > 3 else [])])
        notes.append(f"{len(told)} unit{'s' * (len(told) > 1)} left whole ({some}): {next(iter(told.values()))}.")
        return [unit for unit in fits if unit.name not in told]
    return fits


def _disjoint(units: Sequence[Unit], kinds: Sequence[str]) -> tuple[list[Unit], dict[str, str]]:
    """Units that share no index of any tensor, and those that are left out with one that they would share some with.

    Of two that do (a key/value group, and the heads in it) the kind that comes first is taken.
    """
    taken: dict[tuple[str, int], dict[int, str]] = {}
    crossed: dict[str, str] = {}
    for unit in sorted(units, key=lambda unit: kinds.index(unit.kind)):
        places = {(part.name, part.axis): part.indices(unit.size).flatten().tolist() for part in unit.slices if unit.kind != "layer"}
        other = next((taken[p][i] for p, indices in places.items() if p in taken for i in indices if i in taken[p]), None)
        if other is not None:
            crossed[unit.name] = other
            continue
        for place, indices in places.items():
            taken.setdefault(place, {}).update(dict.fromkeys(indices, unit.name))
    return [unit for unit in units if unit.name not in crossed], crossed
