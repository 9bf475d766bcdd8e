"""Why a model has no unit of a kind: what looks like one, and holds it."""

from collections.abc import Iterator, Sequence

from lessen.structure.axes import Axis, leaves
from lessen.structure.found import Structure
from lessen.structure.numbers import WITH_WIDTH

_MARKS = {"heads": "heads", "kv_group": "heads", "head_dim": "inner", "width": "normed"}
"""The mark by which an axis of a kind would be known, see `lessen.structure.couple`."""

_NONE = {
    "heads": "no attention over several heads was seen",
    "kv_group": "no key/value heads that several queries read were seen",
    "head_dim": "no attention over several heads was seen",
    "width": "no norm over a whole width was seen",
    "experts": "no router with a pack of experts was seen",
    "layer": "no block of a ModuleList adds to its own input",
    "vocab": "no table is looked up by what the caller passes",
    "channels": "nothing was seen that is made and read inside the model",
}


def why_none(structure: Structure, kinds: Sequence[str], most: int = 2) -> str:
    """One sentence: what holds the axes of these kinds, or that there are none.

    Args:
        structure: what `trace` found.
        kinds: of unit.
        most: reasons to tell.
    """
    told = list(dict.fromkeys(_reasons(structure, kinds)))
    if told:
        more = f", and {len(told) - most} more" if len(told) > most else ""
        return f"held: {'; '.join(told[:most])}{more}"
    known = [kind for kind in kinds if kind in _NONE]
    return " and ".join(dict.fromkeys(_NONE[kind] for kind in known)) or "no such unit was seen"


def _reasons(structure: Structure, kinds: Sequence[str]) -> Iterator[str]:
    for unit in structure.stuck:
        if unit.kind in kinds:
            yield f"{unit.name}, since {unit.reason}"
    seen: set[str] = set()
    for name, own in structure.dims.items():
        for dim, axis in enumerate(own):
            for leaf in leaves(axis):
                if leaf.size > 1 and leaf.pin is not None and _looks(leaf, kinds) and leaf.pin not in seen:
                    seen.add(leaf.pin)
                    bound = f", and {WITH_WIDTH}" if WITH_WIDTH in leaf.marks and "heads" in kinds else ""
                    yield f"{name}[{dim}], since {leaf.pin}{bound}"


def _looks(leaf: Axis, kinds: Sequence[str]) -> bool:
    """Whether a held axis would be of one of the kinds."""
    if "experts" in kinds and any(mark.startswith("top ") for mark in leaf.marks):
        return True
    if any(_MARKS.get(kind) in leaf.marks for kind in kinds):
        return True
    return bool({"channels", "ffn"} & {*kinds}) and not {*_MARKS.values()} & leaf.marks.keys()
