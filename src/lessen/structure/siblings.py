"""Entries of a list that took no part: they are cut like those beside them that did.

A router sends the tokens of an example to some of its experts, and the others are never seen. Left whole, they would fail on the first
token that is sent to them, since the width of the model is another. Entries of one `ModuleList` or `ModuleDict` that are of one class and
have tensors of the same shapes run the same code, so what is known of one of them holds for all: the axes that reach beyond the entry are
the same axes. What lies inside an entry that was not seen stays whole. Every such entry is told in the notes.
"""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from lessen.structure.axes import Axes, Axis, leaves

Dims = Mapping[str, Sequence[Axis]]


def adopt(model: nn.Module, axes: Axes, dims: Dims, used: set[str]) -> list[str]:
    """Unify axes of entries that were not seen with those of one that was, and count their tensors as used.

    Args:
        model: what was traced.
        axes: where its axes were made.
        dims: tensor name -> its axes.
        used: names of tensors that took part; those of the entries are added.

    Returns:
        One note for each entry.
    """
    places: dict[Axis, set[str]] = {}
    for name in used:
        for leaf in {leaf for axis in dims[name] for leaf in leaves(axis)}:
            places.setdefault(leaf, set()).add(name)
    notes: list[str] = []

    def reaches(axis: Axis, entry: str) -> bool:
        return any(not place.startswith(f"{entry}.") for leaf in leaves(axis) for place in places.get(leaf, ()))

    for path, entry, other in _unseen(model, dims, used):
        axes.cause = f"being an entry of {path.rpartition('.')[0]}"
        tensors = {name: dims[f"{other}{name.removeprefix(path)}"] for name in dims if name.startswith(f"{path}.")}
        if not any(reaches(axis, other) for known in tensors.values() for axis in known):
            continue
        for name, known in tensors.items():
            for own, twin in zip(dims[name], known, strict=True):
                if reaches(twin, other):
                    axes.unify(own, twin)
                else:
                    axes.pin(own, f"it takes no part in the example, as an entry beside {other}")
            used.add(name)
        notes.append(f"{path} ({type(entry).__name__}) takes no part in the example; its width follows {other}")
    return notes


def _unseen(model: nn.Module, dims: Dims, used: set[str]) -> Iterator[tuple[str, nn.Module, str]]:
    """(path, entry, path of an entry that was seen) of every entry whose tensors were not seen at all."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        entries = {f"{path}.{key}" if path else key: entry for key, entry in module.named_children()}
        shapes = {name: _shapes(name, dims) for name in entries}
        seen = [name for name, own in shapes.items() if own and all(f"{name}.{key}" in used for key in own)]
        for name, own in shapes.items():
            if own and not any(f"{name}.{key}" in used for key in own):
                twin = next((s for s in seen if type(entries[s]) is type(entries[name]) and shapes[s] == own), None)
                if twin is not None:
                    yield name, entries[name], twin


def _shapes(path: str, dims: Dims) -> dict[str, tuple[int, ...]]:
    return {name[len(path) + 1 :]: tuple(axis.size for axis in own) for name, own in dims.items() if name.startswith(f"{path}.")}
