"""Operations that look elements up. What is looked up by number cannot be renumbered; the other dimensions go through."""

from torch import Tensor

from lessen.structure.axes import Axis
from lessen.structure.rules.call import Call, Rule


def embedding(call: Call) -> list[Axis]:
    """Rows of a table."""
    rows, *width = call.of("weight")
    call.pin(rows, "looks rows up")
    if call.given(call["indices"]):
        call.axes.mark(rows, "vocabulary")
    return [*call.of("indices"), *width]


def embedding_bag(call: Call) -> list[list[Axis]]:
    """Sums of rows of a table."""
    rows, width = call.of("weight")
    call.pin(rows, "looks rows up")
    outs = [[call.fixed(n, "counts bags") for n in out.shape] for out in call.out]
    return [[outs[0][0], width], *outs[1:]]


def index(call: Call) -> list[Axis]:
    """Advanced indexing."""
    return indexed(call, call["self"], call["indices"], list(call.out.shape))


def indexed(call: Call, tensor: Tensor, indices: list[Tensor | None], shape: list[int]) -> list[Axis]:
    """Axes of `tensor[indices]`, of the given shape.

    Indexed dimensions give way to those of the index tensors, in place if they are neighbours, else in front; a boolean mask takes up as
    many dimensions as it has and yields one.
    """
    axes, picked, kept, lead = call.of(tensor), [], [], []
    dim = 0
    for entry in indices:
        count = 1 if entry is None or entry.dtype not in _MASKS else entry.dim()
        if entry is None:
            kept.append(axes[dim])
        else:
            for axis in axes[dim : dim + count]:
                call.pin(axis, "looks indices up")
            found = [call.leaf(0)] if entry.dtype in _MASKS else call.of(entry)
            lead = found if entry.dtype in _MASKS else call.same(lead, found)
            picked.append(len(kept))
        dim += count
    kept += axes[dim:]
    together = picked == [picked[0]] * len(picked) if picked else True
    place = picked[0] if together and picked else 0
    count = len(shape) - len(kept)
    lead = lead if len(lead) == count and not any(e is not None and e.dtype in _MASKS for e in indices) else []
    found = lead or [call.fixed(n, "counts what it found") for n in shape[place : place + count]]
    return [*kept[:place], *found, *kept[place:]]


def index_put(call: Call) -> list[Axis]:
    """Values written to indexed places: the dimensions that are not indexed are the same."""
    probe = call["self"][tuple(slice(None) if i is None else i for i in call["indices"])] if not call["self"].is_meta else None
    shape = list(probe.shape if probe is not None else call["values"].shape)
    if len(shape) >= call["values"].dim():
        call.same(indexed(call, call["self"], call["indices"], shape), call.of("values"))
    return call.of("self")


def index_select(call: Call) -> list[Axis]:
    """Indices of one dimension."""
    axes = call.of("self")
    if not axes:
        return axes
    dim = call["dim"] % len(axes)
    call.pin(axes[dim], "looks indices up")
    axes[dim] = call.fixed(call.out.shape[dim], "looks indices up")
    return axes


def gather(call: Call) -> list[Axis]:
    """Element by element along one dimension; the others are the same up to their length."""
    own = call.of("index")
    _beside(call, call.of("self"), own, "looks indices up")
    return own


def scatter(call: Call) -> list[Axis]:
    """Element by element into places along one dimension."""
    axes = call.of("self")
    _beside(call, axes, call.of("index"), "writes to numbered places")
    source = call.get("src")
    if isinstance(source, Tensor) and source.dim() == len(axes):
        _beside(call, axes, call.of(source), "writes to numbered places")
    return axes


def index_add(call: Call) -> list[Axis]:
    """Slices added or copied into places along one dimension."""
    axes = call.of("self")
    _beside(call, axes, call.of("source"), "writes to numbered places")
    return axes


def _beside(call: Call, axes: list[Axis], others: list[Axis], reason: str) -> None:
    """Two tensors side by side: the same in every dimension but the numbered one and those where they differ in length."""
    dim = call["dim"] % max(len(axes), 1)
    for d, (axis, other) in enumerate(zip(axes, others, strict=True)):
        if d != dim and axis.size == other.size:
            call.unify(axis, other)
        else:
            call.pin(axis, reason)
            call.pin(other, "says where")


def index_fill(call: Call) -> list[Axis]:
    """A number written to places along one dimension."""
    axes = call.of("self")
    if axes:
        call.pin(axes[call["dim"]], "writes to numbered places")
    return axes


def found(call: Call) -> list[Axis] | list[list[Axis]]:
    """Results whose shape depends on the values: everything is held."""
    for tensor in call.tensors():
        for axis in call.of(tensor):
            call.pin(axis, "depends on values")
    outs = call.out if isinstance(call.out, list | tuple) else [call.out]
    axes = [[call.fixed(n, "depends on values") for n in out.shape] for out in outs]
    return axes if isinstance(call.out, list | tuple) else axes[0]


def bucketize(call: Call) -> list[Axis]:
    """Each value's place among sorted boundaries."""
    for axis in call.of("boundaries"):
        call.pin(axis, "is sorted")
    return call.of("self") if isinstance(call["self"], Tensor) else []


def masked_scatter(call: Call) -> list[Axis]:
    """Values, in order, to the places where a mask is true: a mask that is the same along a dimension copies it whole.

    Rows of image features that take the place of image tokens: the mask is expanded along the width, so the widths are the same.
    """
    axes, source = call.of("self"), call.of("source")
    axes = call.same(axes, call.of("mask"))
    if source and source[-1].size == axes[-1].size and _uniform(call["mask"]):
        call.unify(axes[-1], source[-1])
    else:
        for axis in axes[-1:] + source[-1:]:
            call.pin(axis, "writes values in order")
    for axis in axes[:-1] + source[:-1]:
        call.pin(axis, "writes values in order")
    return axes


def _uniform(mask: Tensor) -> bool:
    """Whether a mask is the same along its last dimension, by its strides or its values."""
    if mask.stride(-1) == 0:
        return True
    if mask.is_meta or type(mask) is not Tensor:
        return False
    return bool((mask == mask[..., :1]).all())


def one_hot(call: Call) -> list[Axis]:
    """A dimension of classes, counted by number."""
    return [*call.of("self"), call.fixed(call.out.shape[-1], "numbers classes")]


def _masks() -> tuple[object, ...]:
    import torch

    return torch.bool, torch.uint8


_MASKS = _masks()

RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten.index_put", "aten.index_put_", "aten._unsafe_index_put", "aten._index_put_impl_"), index_put),
    **dict.fromkeys(("aten.scatter", "aten.scatter_", "aten.scatter_add", "aten.scatter_add_", "aten.scatter_reduce"), scatter),
    **dict.fromkeys(("aten.scatter_reduce_",), scatter),
    **dict.fromkeys(("aten.index_add", "aten.index_add_", "aten.index_copy", "aten.index_copy_", "aten.index_reduce"), index_add),
    **dict.fromkeys(("aten.index_fill", "aten.index_fill_"), index_fill),
    **dict.fromkeys(("aten.nonzero", "aten.masked_select", "aten.unique", "aten._unique2", "aten.bincount", "aten.histc"), found),
    **dict.fromkeys(("aten.unique_consecutive", "aten.unique_dim", "aten.multinomial", "aten.searchsorted"), found),
    **dict.fromkeys(("aten.take", "aten.put", "aten.repeat_interleave", "aten.equal", "aten.isin"), found),
    **dict.fromkeys(("aten.masked_scatter", "aten.masked_scatter_"), masked_scatter),
    "aten.embedding": embedding,
    "aten._embedding_bag": embedding_bag,
    "aten._embedding_bag_forward_only": embedding_bag,
    "aten.index": index,
    "aten._unsafe_index": index,
    "aten.index_select": index_select,
    "aten.gather": gather,
    "aten.bucketize": bucketize,
    "aten.one_hot": one_hot,
}
