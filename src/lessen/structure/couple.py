"""From axes to units: every class of axes that can lose indices, with all the places where it lies in parameters and buffers.

slices      where the channels of a leaf axis lie in a dimension: runs of `span` indices a channel, `repeat` times at a `stride`
kind        from the marks that the rules left: a batch axis of a product of activations is "heads" ("kv_group" if it is repeated for
            several queries), what is summed inside a head "head_dim", an axis that norms look at as a whole "width" (also where it is
            seen as heads times this axis, and stands on both sides of a matrix), else "channels"
name        the module that holds all of its tensors, or the tensor that makes it
chain       tensor by tensor, through which operations it is tied to the ones before
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from math import prod

from lessen.core.unit import PER_GROUP, Kind, Slice, Unit
from lessen.structure.axes import Axes, Axis, describe, factors, find, leaves
from lessen.structure.numbers import WITH_WIDTH
from lessen.structure.zeros import ALIVE

Dims = Mapping[str, Sequence[Axis]]


def couple(axes: Axes, dims: Dims, taken: Iterable[str] = ()) -> tuple[list[Unit], dict[Axis, str]]:
    """Units of every free class of axes, in the order of the tensors, and the name of the unit of each leaf.

    Args:
        axes: where they were made.
        dims: tensor name -> its axes, of the tensors that took part in the forward pass.
        taken: names that other units have.
    """
    places = _places(dims)
    for leaf in places:
        if leaf.pin is None and ALIVE in leaf.marks:
            axes.pin(leaf, f"{leaf.marks[ALIVE]} sums over it what zero weights do not make zero, so that a cut could not be proven")
    places = {leaf: at for leaf, at in places.items() if leaf.pin is None}
    kinds: dict[Axis, Kind] = {leaf: _kind(leaf, dims, at) for leaf, at in places.items()}
    names = _names({leaf: [name for name, _ in at] for leaf, at in places.items()}, kinds, taken)
    return [_unit(axes, dims, leaf, at, names[leaf], kinds[leaf]) for leaf, at in places.items()], names


def _places(dims: Dims) -> dict[Axis, list[tuple[str, int]]]:
    """For every leaf: the tensors, and the dimensions of them, that it lies in."""
    places: dict[Axis, list[tuple[str, int]]] = {}
    for name, own in dims.items():
        for dim, axis in enumerate(own):
            for leaf in dict.fromkeys(leaves(axis)):
                if leaf.size > 1:
                    places.setdefault(leaf, []).append((name, dim))
    return places


def _unit(axes: Axes, dims: Dims, leaf: Axis, at: Sequence[tuple[str, int]], name: str, kind: Kind) -> Unit:
    normed = leaf.marks.get("normed")
    count = len({tensor for tensor, _ in at})
    grouped = kind == "heads" and any(_in_groups(dims[tensor][dim], leaf) for tensor, dim in at)
    what = f"these query heads {PER_GROUP}" if grouped else _WORDS[kind]
    reason = f"{count} tensor{'s' * (count > 1)} share{'s' * (count == 1)} {what}"
    if kind == "heads" and WITH_WIDTH in leaf.marks:
        reason += f", and with them the width: {WITH_WIDTH} ({leaf.marks[WITH_WIDTH]})"
    if normed:
        reason += f", which a norm looks at as a whole ({normed})"
    return Unit(
        name,
        kind,
        leaf.size,
        _slices(dims, leaf, at),
        _block(name),
        reason=reason,
        normed=normed is not None,
        chain=_chain(axes, dims, at),
        complete=True,
    )


def _slices(dims: Dims, leaf: Axis, at: Sequence[tuple[str, int]]) -> tuple[Slice, ...]:
    return tuple(part for tensor, dim in at for part in slices_of(tensor, dim, dims[tensor][dim], leaf))


def experts(dims: Dims) -> tuple[list[Unit], dict[Axis, str]]:
    """Experts packed in one tensor, with the rows of the router that chooses among them by number; and the unit of each of their leaves.

    The router's axis is held, since its numbers are compared and looked up, and so is that of the packed weights; but where one router
    stands beside one pack of the same size, the numbers of the one are the numbers of the other, and both can lose the same ones. At
    least as many must stay as the router chooses.
    """
    places = _places(dims)
    packs: dict[tuple[str, int], list[Axis]] = {}
    routers: dict[tuple[str, int], list[Axis]] = {}
    # A module that packs matrices may pack biases beside them.
    matrices = {(name.rpartition(".")[0], own[0].size) for name, own in dims.items() if len(own) == 3}
    for leaf, at in places.items():
        holder = _holder([name for name, _ in at])
        if not leaf.holds or leaf.holds.keys() - _BY_NUMBER:
            continue
        if any(mark.startswith("top ") for mark in leaf.marks):
            routers.setdefault((holder.rpartition(".")[0], leaf.size), []).append(leaf)
        elif all(dim == 0 for _, dim in at) and (holder, leaf.size) in matrices:
            packs.setdefault((holder.rpartition(".")[0], leaf.size), []).append(leaf)
    found: list[Unit] = []
    named: dict[Axis, str] = {}
    for (path, size), pack in packs.items():
        chosen = [leaf for (holder, n), all_ in routers.items() if n == size and f"{holder}.".startswith(f"{path}.") for leaf in all_]
        if len(chosen) != 1:
            continue
        least = max(int(mark.split()[1]) for mark in chosen[0].marks if mark.startswith("top "))
        parts = tuple(part for leaf in (*chosen, *pack) for part in _slices(dims, leaf, places[leaf]))
        reason = f"one expert each, of which the router chooses {least}"
        found.append(Unit(f"{path}.experts", "experts", size, parts, _block(path), reason=reason, complete=True, floor=least))
        named |= dict.fromkeys((*chosen, *pack), found[-1].name)
    return found, named


_BY_NUMBER = {"softmax", "topk", "select", "index", "gather", "scatter", "grouped", "one", "bincount", "histc", "safe"}


def layers(residual: Iterable[str], freeze: Sequence[str], tensors: Iterable[str]) -> list[Unit]:
    """Blocks whose output is their input plus something; how many there are is known by the names of all tensors."""
    reason = "adds to the residual stream, so the model runs without it"
    free = [path for path in residual if not any(f"{name}.".startswith(f"{path}.") or f"{path}.".startswith(f"{name}.") for name in freeze)]
    beside: dict[str, set[str]] = {path.rpartition(".")[0]: set() for path in free}
    for name in tensors:
        for path, entries in beside.items():
            if name.startswith(f"{path}."):
                entries.add(name[len(path) + 1 :].split(".")[0])
    return [
        Unit(path, "layer", 1, (), _block(path), reason=reason, complete=True, among=len(beside[path.rpartition(".")[0]])) for path in free
    ]


def vocabulary(dims: Dims) -> list[Unit]:
    """Rows of tables that are looked up by what the caller passes, with those of an output head of the same size."""
    places = _places(dims)
    heads = {leaf: at for leaf, at in places.items() if leaf.holds.keys() == {"outputs"}}
    found: list[Unit] = []
    for leaf, at in places.items():
        if "vocabulary" in leaf.marks and not leaf.holds.keys() - {"embedding", "outputs"}:
            tied = [head for head in heads if head.size == leaf.size and head is not leaf]
            parts = tuple(part for one in (leaf, *tied) for part in _slices(dims, one, places[one]))
            path = at[0][0].rpartition(".")[0]
            found.append(Unit(path, "vocab", leaf.size, parts, reason="what the caller passes and gets by number", complete=True))
    return found


_WORDS: dict[str, str] = {
    "channels": "these channels",
    "heads": "these heads",
    "kv_group": "these key/value heads with the queries that read them",
    "head_dim": "these features of every head",
    "width": "this width",
}


def slices_of(tensor: str, dim: int, axis: Axis, leaf: Axis) -> list[Slice]:
    """Where the channels of a leaf lie in one dimension of a tensor.

    >>> from lessen.structure.axes import Axes
    >>> axes = Axes()
    >>> fused = axes.leaf(24)
    >>> heads, inner = axes.factor(fused, 2)
    >>> slices_of("qkv.weight", 0, fused, heads)
    [Slice(name='qkv.weight', axis=0, span=12, start=0, repeat=1, stride=None)]
    >>> q, k = axes.cut(inner, [6, 12])
    >>> slices_of("qkv.weight", 0, fused, k)
    [Slice(name='qkv.weight', axis=0, span=1, start=6, repeat=2, stride=12)]
    """
    by_span: dict[int, list[int]] = {}
    for start, span in _runs(axis, leaf):
        by_span.setdefault(span, []).append(start)
    parts = [part for span, starts in by_span.items() for part in _series(tensor, dim, sorted(starts), span, leaf.size)]
    return [replace(part, length=axis.size) for part in parts]


def _runs(axis: Axis, leaf: Axis) -> list[tuple[int, int]]:
    """(start, span): channel c of the leaf lies at start + c * span and the span - 1 indices after it."""
    root = find(axis)
    if root is leaf:
        return [(0, 1)]
    found: list[tuple[int, int]] = []
    if root.kind == "concat":
        offset = 0
        for part in root.parts:
            found += [(offset + start, span) for start, span in _runs(part, leaf)]
            offset += part.size
    elif root.kind == "product":
        flat = factors(root)
        for i, factor in enumerate(flat):
            inner = prod(f.size for f in flat[i + 1 :])
            for start, span in _runs(factor, leaf):
                outer = range(0, root.size, factor.size * inner)
                found += [(o + start * inner, span * inner) for o in outer]
    return found


def _series(tensor: str, dim: int, starts: Sequence[int], span: int, size: int) -> list[Slice]:
    """Starts at equal distances become one slice."""
    gaps = {b - a for a, b in pairwise(starts)}
    if len(starts) == 1:
        return [Slice(tensor, dim, span, starts[0])]
    if len(gaps) == 1:
        stride = gaps.pop()
        return [Slice(tensor, dim, span, starts[0], len(starts), None if stride == size * span else stride)]
    # Two levels of repetition: as many series as there are in the inner one.
    first = next(i for i, (a, b) in enumerate(pairwise(starts)) if b - a != starts[1] - starts[0]) + 1
    return _series(tensor, dim, starts[:first], span, size) + _series(tensor, dim, starts[first:], span, size)


def _kind(leaf: Axis, dims: Dims, at: Sequence[tuple[str, int]]) -> Kind:
    if "heads" in leaf.marks:
        repeated = any(_has_query_factor(dims[name][dim], leaf) for name, dim in at)
        return "kv_group" if repeated else "heads"
    both_sides = len({name for name, _ in at}) < len({*at})
    if (
        "inner" in leaf.marks
        and any(_beside_heads(dims[name][dim], leaf) for name, dim in at)
        and not (both_sides and "normed" in leaf.marks)
    ):
        return "head_dim"
    return "width" if "normed" in leaf.marks else "channels"


def _has_query_factor(axis: Axis, leaf: Axis) -> bool:
    """Whether heads stand inside these heads in a tensor: q as group x query x feature."""
    flat = factors(axis)
    return any(a is leaf and "heads" in b.marks for a, b in pairwise(flat))


def _in_groups(axis: Axis, leaf: Axis) -> bool:
    """Whether these heads stand inside others in a tensor: they are the queries of one key/value head."""
    return any(b is leaf and "heads" in a.marks for a, b in pairwise(factors(axis)))


def _beside_heads(axis: Axis, leaf: Axis) -> bool:
    root = find(axis)
    if root.kind == "concat":
        return any(_beside_heads(p, leaf) for p in root.parts)
    flat = factors(root)
    seen = False
    for factor in flat:
        if seen and leaf in leaves(factor):
            return True
        seen = seen or any("heads" in below.marks for below in leaves(factor))
    return False


def _names(tensors: Mapping[Axis, Sequence[str]], kinds: Mapping[Axis, str], others: Iterable[str]) -> dict[Axis, str]:
    """A unique name for each: the module that holds all tensors, else the module of the first, with the kind where that is taken."""
    common = {leaf: _holder(names) for leaf, names in tensors.items()}
    counts: dict[str, int] = {}
    for path in common.values():
        counts[path] = counts.get(path, 0) + 1
    taken = set(others)
    named: dict[Axis, str] = {}
    for leaf, names in tensors.items():
        path = common[leaf]
        kind = kinds[leaf]
        maker = names[0].rpartition(".")[0] or names[0]
        plain = [path] if path and counts[path] == 1 and kind not in ("width", "head_dim") else []
        options = [*plain, ".".join(filter(None, (path, kind)))] if kind in ("heads", "kv_group", "width", "head_dim") else [*plain, maker]
        options += [f"{maker}.{kind}", *(f"{maker}.{kind}{n}" for n in range(2, 10_000))]
        # `experts` counts experts, see below; what is inside them is called otherwise.
        named[leaf] = next(option for option in options if option not in taken and option.rpartition(".")[2] != "experts")
        taken.add(named[leaf])
    return named


def _holder(names: Sequence[str]) -> str:
    modules = [name.rpartition(".")[0].split(".") for name in names]
    shared = takewhile(lambda words: len(set(words)) == 1, zip(*modules, strict=False))
    return ".".join(words[0] for words in shared)


def _block(name: str) -> int | None:
    found = re.search(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(found[1]) if found else None


def _chain(axes: Axes, dims: Dims, at: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """One line per dimension after the first: what it is tied to, and through which operations."""
    nodes = {dims[name][dim]: f"{name}[{dim}]" for name, dim in at}
    start, *rest = nodes
    ways = axes.why(start, rest)
    lines = [f"{nodes[start]} is {describe(start)}"]
    for node in rest:
        other, causes = ways[node]
        lines.append(f"{nodes[node]} is tied to {nodes[other]} by {', '.join(c for c in causes if c) or 'being the same tensor'}")
    return tuple(lines)
