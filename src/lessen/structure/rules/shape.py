"""Operations that move elements about without changing them."""

from collections.abc import Sequence
from itertools import accumulate
from math import prod

from lessen.structure.axes import Axis
from lessen.structure.rules.call import Call, Rule


def view(call: Call) -> list[Axis]:
    """Split and join axes: where products of sizes agree, the elements in between are the same."""
    return regroup(call, call.of("self"), list(call.out.shape))


def regroup(call: Call, axes: list[Axis], shape: list[int]) -> list[Axis]:
    """Axes of a tensor that is seen in another shape, block by block: the shortest runs of dimensions with the same number of elements."""
    if 0 in shape:
        kept = [a if a.size == n else None for a, n in zip(axes, shape, strict=False)] + [None] * len(shape)
        return [axis or call.fixed(n, "has no elements") for axis, n in zip(kept, shape, strict=False)]
    out: list[Axis] = []
    before, after = [a for a in axes if a.size > 1], list(shape)
    while after:
        if after[0] == 1:
            out.append(call.leaf(1))
            after.pop(0)
            continue
        group, sizes = [before.pop(0)], [after.pop(0)]
        while (have := prod(a.size for a in group)) != (want := prod(sizes)):
            if have < want:
                group.append(before.pop(0))
            else:
                sizes.append(after.pop(0))
        out += _block(call, group, sizes)
    return out


def _block(call: Call, group: list[Axis], sizes: list[int]) -> list[Axis]:
    """Cut the product of the axes into factors of these sizes; where they do not nest, such as 4 x 6 as 6 x 4, all are held."""
    if len(group) == len(sizes) == 1:
        return group
    out: list[Axis] = []
    rest = call.axes.join(group)
    for size in sizes:
        pair = call.axes.factor(rest, size) if size > 1 else (call.leaf(1), rest)
        if pair is None:
            reason = f"views {' x '.join(str(a.size) for a in group)} as {' x '.join(map(str, sizes))}"
            for axis in group:
                call.pin(axis, reason)
            return [call.fixed(n, reason) for n in sizes]
        out.append(pair[0])
        rest = pair[1]
    return out


def permute(call: Call) -> list[Axis]:
    """Dimensions in another order."""
    axes = call.of("self")
    return [axes[d] for d in call.dims("dims")]


def transpose(call: Call) -> list[Axis]:
    """Two dimensions swapped."""
    axes = call.of("self")
    if len(axes) < 2:
        return axes
    i, j = (call.get("dim0", 0) % len(axes), call.get("dim1", 1) % len(axes))
    axes[i], axes[j] = axes[j], axes[i]
    return axes


def expand(call: Call) -> list[Axis]:
    """Repeated dimensions are axes of their own."""
    axes, shape = call.of("self"), call.out.shape
    axes = [call.leaf(1)] * (len(shape) - len(axes)) + axes
    return [a if a.size == n else call.leaf(n) for a, n in zip(axes, shape, strict=True)]


def repeat(call: Call) -> list[Axis]:
    """n copies of an axis are n x axis."""
    axes, times = call.of("self"), call["repeats"]
    axes = [call.leaf(1)] * (len(times) - len(axes)) + axes
    return [a if n == 1 else call.axes.join([call.leaf(n), a]) for a, n in zip(axes, times, strict=True)]


def unsqueeze(call: Call) -> list[Axis]:
    """A dimension of 1 more."""
    axes = call.of("self")
    axes.insert(call["dim"] % (len(axes) + 1), call.leaf(1))
    return axes


def squeeze(call: Call) -> list[Axis]:
    """Dimensions of 1 fewer."""
    axes = call.of("self")
    gone = {d for d in call.dims("dim", len(axes)) if axes and axes[d].size == 1}
    return [a for d, a in enumerate(axes) if d not in gone]


def select(call: Call) -> list[Axis]:
    """One index of a dimension: which one is fixed."""
    axes = call.of("self")
    call.pin(axes.pop(call["dim"] % len(axes)), "selects one index")
    return axes


def slice_(call: Call) -> list[Axis]:
    """A range of a dimension."""
    axes = call.of("self")
    dim, step = call.get("dim", 0) % len(axes), call.get("step", 1)
    axis, length = axes[dim], call.out.shape[dim]
    if length == axis.size:
        return axes
    start = call.get("start", 0)
    start = min(max(start + axis.size if start < 0 else start, 0), axis.size)
    axes[dim] = strided(call, axis, start, step, length)
    return axes


def strided(call: Call, axis: Axis, start: int, step: int, length: int) -> Axis:
    """Every step-th index from a start."""
    if step == 1:
        pieces = call.axes.cut(axis, [start, start + length, axis.size])
        if pieces is not None:
            return pieces[1]
    elif axis.size % step == 0 and length == axis.size // step and start < step:
        pair = call.axes.factor(axis, axis.size // step)
        if pair is not None:
            call.pin(pair[1], f"takes every {step}. index")
            return pair[0]
    call.pin(axis, "takes indices out of it")
    return call.fixed(length, "takes these indices")


def split(call: Call) -> list[list[Axis]]:
    """Parts one behind the other."""
    axes = call.of("self")
    dim = call.get("dim", 0) % len(axes)
    sizes = [part.shape[dim] for part in call.out]
    pieces = call.axes.cut(axes[dim], list(accumulate(sizes)))
    if pieces is None:
        reason = f"splits {axes[dim]!r} into {'+'.join(map(str, sizes))}"
        call.pin(axes[dim], reason)
        pieces = [call.fixed(size, reason) for size in sizes]
    return [[*axes[:dim], piece, *axes[dim + 1 :]] for piece in pieces]


def unbind(call: Call) -> list[list[Axis]]:
    """Every index of a dimension by itself."""
    axes = call.of("self")
    call.pin(axes.pop(call.get("dim", 0) % len(axes)), "takes it apart")
    return [list(axes) for _ in call.out]


def cat(call: Call) -> list[Axis]:
    """Tensors one behind the other along one dimension, the same along the others."""
    tensors = [t for t in call["tensors"] if t.dim() == call.out.dim() and (t.numel() or t.dim() > 1)]
    dim = call.get("dim", 0) % call.out.dim()
    axes = call.of(tensors[0])
    pieces: list[Axis] = []
    for tensor in tensors:
        own = call.of(tensor)
        pieces.append(own[dim])
        for d, axis in enumerate(own):
            if d != dim:
                call.unify(axes[d], axis)
                axes[d] = axis if axes[d].size == 1 else axes[d]
    axes[dim] = call.axes.concat([p if p.size > 1 else call.fixed(p.size, "puts a single index here") for p in pieces])
    return axes


def stack(call: Call) -> list[Axis]:
    """Tensors along a dimension of their own."""
    axes: list[Axis] = []
    for tensor in call["tensors"]:
        axes = call.same(axes, call.of(tensor))
    axes.insert(call.get("dim", 0) % call.out.dim(), call.fixed(len(call["tensors"]), "stacks"))
    return axes


def pad(call: Call) -> list[Axis]:
    """Constant padding puts indices before and after; a negative one cuts."""
    axes, amounts = call.of("self"), call["pad"]
    for back in range(len(amounts) // 2):
        before, after = amounts[2 * back], amounts[2 * back + 1]
        dim = len(axes) - 1 - back
        axis = axes[dim]
        if before < 0 or after < 0:
            axis = strided(call, axis, max(-before, 0), 1, axis.size - max(-before, 0) - max(-after, 0))
        ends = [call.fixed(max(n, 0), "pads by a fixed number") for n in (before, after)]
        axes[dim] = call.axes.concat([ends[0], axis, ends[1]]) if before > 0 or after > 0 else axis
    return axes


def mirror_pad(call: Call) -> list[Axis]:
    """Padding with what lies inside: the padded dimensions are held."""
    axes, count = call.of("self"), len(call["padding"]) // 2
    for dim in range(len(axes) - count, len(axes)):
        call.pin(axes[dim], "pads with its own values")
        axes[dim] = call.fixed(call.out.shape[dim], "pads with its own values")
    return axes


def moved(name: str) -> Rule:
    """Values move along the dimensions `name`, so that their indices lose their meaning."""

    def rule(call: Call) -> list[Axis]:
        axes = call.of("self")
        for dim in call.dims(name):
            call.pin(axes[dim], "moves values along it")
        return axes

    return rule


def triangle(call: Call) -> list[Axis]:
    """Zeros above or below a diagonal tie both dimensions to their order."""
    axes = call.of("self")
    for axis in axes[-2:]:
        call.pin(axis, "depends on the order of its indices")
    return axes


def unfold(call: Call) -> list[Axis]:
    """Overlapping windows along one dimension."""
    axes = call.of("self")
    dim = call["dimension"] % len(axes)
    call.pin(axes[dim], "takes windows of it")
    axes[dim] = call.fixed(call.out.shape[dim], "counts windows")
    return [*axes, call.fixed(call.out.shape[-1], "is inside a window")]


def diagonal(call: Call) -> list[Axis]:
    """The diagonal of two dimensions; they are held."""
    axes = call.of("self")
    dims = {call.get("dim1", 0) % len(axes), call.get("dim2", 1) % len(axes)}
    for dim in dims:
        call.pin(axes[dim], "takes a diagonal")
    return [*(a for d, a in enumerate(axes) if d not in dims), call.fixed(call.out.shape[-1], "is a diagonal")]


def diag_embed(call: Call) -> list[Axis]:
    """A dimension becomes the diagonal of two."""
    axes, ndim = call.of("self"), call.out.dim()
    last = axes.pop()
    for dim in sorted((call.get("dim1", -2) % ndim, call.get("dim2", -1) % ndim)):
        axes.insert(dim, last if call.out.shape[dim] == last.size else call.fixed(call.out.shape[dim], "is a diagonal"))
    return axes


def pixel_shuffle(call: Call) -> list[Axis]:
    """channel x r x r becomes channel, and r times the height and width."""
    *lead, channels, _, _ = call.of("self")
    pair = call.axes.factor(channels, call.out.shape[-3])
    if pair is None:
        call.pin(channels, "spreads it over the image")
        pair = call.fixed(call.out.shape[-3], "comes from channels that are held"), None
    else:
        call.pin(pair[1], "spreads it over the image")
    return [*lead, pair[0], *(call.fixed(n, "makes pixels") for n in call.out.shape[-2:])]


def pixel_unshuffle(call: Call) -> list[Axis]:
    """The way back."""
    *lead, channels, height, width = call.of("self")
    call.pin(height, "takes pixels apart")
    call.pin(width, "takes pixels apart")
    inner = call.fixed(call.out.shape[-3] // channels.size, "collects pixels")
    return [*lead, call.axes.join([channels, inner]), *(call.fixed(n, "makes pixels") for n in call.out.shape[-2:])]


def channel_shuffle(call: Call) -> list[Axis]:
    """channel = group x inner becomes inner x group."""
    axes = call.of("self")
    pair = call.axes.factor(axes[1], call["groups"])
    if pair is None:
        call.pin(axes[1], "shuffles it")
    else:
        axes[1] = call.axes.join([pair[1], pair[0]])
    return axes


def im2col(call: Call) -> list[Axis]:
    """Windows of an image: channel x kernel, window."""
    axes = call.of("self")
    for axis in axes[-2:]:
        call.pin(axis, "takes windows of it")
    kernel = call.fixed(prod(call["kernel_size"]), "is inside a window")
    return [*axes[:-3], call.axes.join([axes[-3], kernel]), call.fixed(call.out.shape[-1], "counts windows")]


def col2im(call: Call) -> list[Axis]:
    """Windows added up to an image."""
    axes = call.of("self")
    pair = call.axes.factor(axes[-2], call.out.shape[-3])
    if pair is None:
        call.pin(axes[-2], "adds up windows")
        pair = call.fixed(call.out.shape[-3], "adds up windows"), call.leaf(1)
    call.pin(pair[1], "is inside a window")
    call.pin(axes[-1], "counts windows")
    return [*axes[:-2], pair[0], *(call.fixed(n, "makes pixels") for n in call.out.shape[-2:])]


def as_complex(call: Call) -> list[Axis]:
    """Pairs become complex numbers."""
    *axes, pair = call.of("self")
    call.pin(pair, "is a complex pair")
    return axes


def as_real(call: Call) -> list[Axis]:
    """Complex numbers become pairs."""
    return [*call.of("self"), call.fixed(2, "is a complex pair")]


def same(call: Call) -> list[Axis]:
    """The elements as they are."""
    return call.of("self")


def as_strided(call: Call) -> list[Axis]:
    """Any view of memory, windows that overlap for example: dimensions that are seen as they are keep their axes, the others are held."""
    tensor, axes = call["self"], call.of("self")
    size, stride = list(call["size"]), list(call["stride"])
    if size == list(tensor.shape) and stride == list(tensor.stride()):
        return axes
    offset = call.get("storage_offset")
    places = [(n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    dense = offset in (None, tensor.storage_offset()) and _dense(places)
    kept = {d for d, n in enumerate(size) if dense and n > 1 and (n, stride[d]) in places and _apart(size, stride, d, tensor.numel())}
    known = {(axis.size, step): axis for axis, step in zip(axes, tensor.stride(), strict=True) if axis.size > 1}
    found = [
        known[n, step] if d in kept else call.fixed(n, "sees memory in another way")
        for d, (n, step) in enumerate(zip(size, stride, strict=True))
    ]
    for axis in axes:
        if not any(axis is other for other in found):
            call.pin(axis, "sees its memory in another way")
    return found


def _dense(places: Sequence[tuple[int, int]]) -> bool:
    """Whether dimensions of these sizes and strides fill their memory, each place once."""
    expected = 1
    for n, step in sorted(places, key=lambda place: place[1]):
        if step != expected:
            return False
        expected *= n
    return True


def _apart(size: Sequence[int], stride: Sequence[int], dim: int, count: int) -> bool:
    """Whether index i of a dimension is index i of the dense dimension with its size and stride, wherever the others stand.

    In dense memory of `count` places an index of a dimension of n steps of s is (place mod n s) // s. The others leave that alone if
    each either stays within s, all of them together, or goes in multiples of n s.
    """
    step = stride[dim]
    span, low, high = size[dim] * step, 0, 0
    for d, (n, other) in enumerate(zip(size, stride, strict=True)):
        if d != dim and n > 1:
            if other % span == 0:
                high += (n - 1) * other
            else:
                low += (n - 1) * other
    return low < step and high + span <= count


def glu(call: Call) -> list[Axis]:
    """The first half of a dimension times the sigmoid of the second."""
    axes = call.of("self")
    dim = call["dim"] % len(axes)
    half = axes[dim].size // 2
    pieces = call.axes.cut(axes[dim], [half, 2 * half])
    if pieces is None:
        call.pin(axes[dim], "splits it in halves")
        pieces = [call.fixed(half, "splits in halves")] * 2
    call.unify(pieces[0], pieces[1])
    axes[dim] = pieces[0]
    return axes


def restride(call: Call) -> list[Axis]:
    """Pooling to one pixel writes the strides of its result anew; elements stay where they are."""
    axes, size, stride = call.of("self"), list(call["size"]), list(call["stride"])
    dense, expected = True, 1
    for n, step in zip(reversed(size), reversed(stride), strict=True):
        dense = dense and (n == 1 or step == expected)
        expected *= n
    if dense and size == [a.size for a in axes]:
        return axes
    for axis in axes:
        call.pin(axis, "sees its memory in another way")
    return [call.fixed(n, "sees memory in another way") for n in size]


def copy(call: Call) -> list[Axis]:
    """Values of another tensor are written into this one."""
    call.same(call.of("self"), call.of("src"))
    return call.of("self")


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_copy", "aten._reshape_alias"), view),
    **dict.fromkeys(("aten.detach", "aten.alias", "aten.clone", "aten._to_copy", "aten.lift_fresh", "aten.lift_fresh_copy"), same),
    **dict.fromkeys(("aten.contiguous", "aten.resolve_conj", "aten.resolve_neg", "aten.lift", "aten.zero", "aten.zero_"), same),
    **dict.fromkeys(("aten._conj", "aten.view_copy", "aten.fill", "aten.detach_"), same),
    **dict.fromkeys(("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.fill_"), same),
    **dict.fromkeys(("aten.rand_like", "aten.randn_like", "aten.bernoulli", "aten.bernoulli_", "aten.normal_", "aten.uniform_"), same),
    **dict.fromkeys(("aten.transpose", "aten.t", "aten.transpose_", "aten.t_"), transpose),
    **dict.fromkeys(("aten.split", "aten.split_with_sizes", "aten.unsafe_split", "aten.unsafe_split_with_sizes"), split),
    **dict.fromkeys(("aten.split_copy", "aten.chunk", "aten.unsafe_chunk"), split),
    **dict.fromkeys(("aten.unsqueeze", "aten.unsqueeze_"), unsqueeze),
    **dict.fromkeys(("aten.squeeze", "aten.squeeze_"), squeeze),
    **dict.fromkeys(("aten.tril", "aten.triu", "aten.tril_", "aten.triu_"), triangle),
    **{f"aten.{kind}_pad{n}d": mirror_pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "aten.permute": permute,
    "aten.expand": expand,
    "aten.repeat": repeat,
    "aten.select": select,
    "aten.slice": slice_,
    "aten.unbind": unbind,
    "aten.cat": cat,
    "aten.stack": stack,
    "aten.constant_pad_nd": pad,
    "aten.flip": moved("dims"),
    "aten.roll": moved("dims"),
    "aten.rot90": moved("dims"),
    "aten.unfold": unfold,
    "aten.diagonal": diagonal,
    "aten.diag_embed": diag_embed,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.channel_shuffle": channel_shuffle,
    "aten.native_channel_shuffle": channel_shuffle,
    "aten.im2col": im2col,
    "aten.col2im": col2im,
    "aten.view_as_complex": as_complex,
    "aten.view_as_real": as_real,
    "aten.as_strided": as_strided,
    "aten.as_strided_": restride,
    "aten.glu": glu,
    "aten.copy_": copy,
    "aten.copy": copy,
}
