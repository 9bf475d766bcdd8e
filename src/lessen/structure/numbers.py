"""Python calls that are given sizes as numbers, and which axis each number counts.

One function per way of giving them. Where the numbers themselves say that axes are equal, as `chunk(2)` does of its halves, the axes are
made one here: nothing else would ever tell.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lessen.structure.axes import Axis

if TYPE_CHECKING:
    from lessen.structure.watch import Watch

Found = list[tuple[list[int], list[Axis]]]
"""Numbers as they were given, each with the axis that it counts."""
WITH_WIDTH = "nn.MultiheadAttention wants heads times features of a head to be its embed_dim"
"""The mark of heads that cannot go without a part of the width."""
Note = Callable[["Watch", Any, Any, Any], Found]
"""From the watch, the arguments and the result of a call to the numbers in it."""


def _numbers(values: Sequence[Any]) -> list[int]:
    flat = values[0] if len(values) == 1 and isinstance(values[0], list | tuple) else values
    return [v if isinstance(v, int) and not isinstance(v, bool) else -1 for v in flat]


def _whole_shape(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """view, reshape, expand and constants: the numbers are the shape of the result."""
    given = [a for a in args if not isinstance(a, Tensor)]
    named = kwargs.get("size", kwargs.get("shape"))
    sizes = _numbers([named] if named is not None else given)
    axes = watch.axes_of(out)
    return [(sizes, axes[-len(sizes) :])] if sizes and len(sizes) <= len(axes) else []


def _unflatten(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    sizes = _numbers([kwargs.get("sizes", args[-1])])
    if not isinstance(dim, int):
        return []
    first = dim % args[0].dim()
    return [(sizes, watch.axes_of(out)[first : first + len(sizes)])]


def _parts(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """split: one number for all parts, of which the last may be shorter, or a list of them."""
    sizes = kwargs.get("split_size_or_sections", kwargs.get("split_size", kwargs.get("split_sizes", args[1] if len(args) > 1 else None)))
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    axes = [watch.axes_of(part)[dim] for part in out]
    if isinstance(sizes, int):
        whole = [axis for axis in axes if axis.size == sizes]
        return [([sizes] * len(whole), whole)]
    return [(_numbers([sizes]), axes)] if isinstance(sizes, list | tuple) else []


def _chunks(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """chunk: as many indices in every part, so that a cut takes the same ones from each; parts that differ are held."""
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    if not isinstance(dim, int):
        return []
    watch.axes.cause = f"chunk in {watch.module or 'the model'}"
    first, *rest = axes = [watch.axes_of(part)[dim] for part in out]
    if any(axis.size != first.size for axis in rest):
        for axis in axes:
            watch.axes.pin(axis, f"{watch.axes.cause} makes parts that differ")
    for axis in rest:
        watch.axes.unify(first, axis)
    return []


def _bounds(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """tensor_split: as chunk, or by the ends of its parts."""
    ends = kwargs.get("sections", kwargs.get("indices", kwargs.get("tensor_indices_or_sections", args[1] if len(args) > 1 else 1)))
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    if isinstance(ends, int):
        return _chunks(watch, args, kwargs, out)
    if not isinstance(ends, list | tuple) or not isinstance(dim, int):
        return []
    axes = [watch.axes_of(part)[dim] for part in out]
    return [([end], [watch.axes.concat(axes[: i + 1])]) for i, end in enumerate(_numbers([ends])) if 0 < end < args[0].shape[dim]]


def _repeated(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """repeat and tile: n copies of a dimension, one behind the other."""
    times = _numbers([a for a in args[1:] if not isinstance(a, Tensor)] or list(kwargs.values()))
    pairs = [(n, watch.axes.factor(axis, n)) for n, axis in zip(times[::-1], watch.axes_of(out)[::-1], strict=False) if n > 1]
    return [([n], [pair[0]]) for n, pair in pairs if pair]


def _repeated_inside(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """repeat_interleave: every index of a dimension n times."""
    times, dim = kwargs.get("repeats", args[1] if len(args) > 1 else None), kwargs.get("dim", args[2] if len(args) > 2 else None)
    if not isinstance(times, int) or not isinstance(dim, int):
        return []
    axis = watch.axes_of(out)[dim]
    pair = watch.axes.factor(axis, axis.size // times)
    return [([times], [pair[1]])] if pair else []


def _range(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """x[..., :n]: each bound counts the indices before it."""
    entries = args[1] if isinstance(args[1], tuple) else (args[1],)
    if not isinstance(args[0], Tensor) or not any(isinstance(e, slice) for e in entries):
        return []
    given = sum(e is not None and e is not Ellipsis for e in entries)
    dim, found = 0, []
    for entry in entries:
        if entry is Ellipsis:
            dim += args[0].dim() - given
        elif isinstance(entry, slice):
            axis = watch.axes_of(args[0])[dim]
            for bound in (entry.start, entry.stop):
                if isinstance(bound, int) and 0 < abs(bound) < axis.size:
                    place = bound % axis.size
                    pieces = watch.axes.cut(axis, [place, axis.size]) if entry.step in (None, 1) else None
                    found.append(([abs(bound)], [pieces[bound < 0] if pieces else watch.axes.leaf(abs(bound), pin="is a bound")]))
            dim += 1
        elif entry is not None:
            dim += entry.dim() if isinstance(entry, Tensor) and entry.dtype == torch.bool else 1
    return found


def _narrow(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    dim, length = kwargs.get("dim", args[1] if len(args) > 1 else 0), kwargs.get("length", args[-1])
    return [([length], [watch.axes_of(out)[dim]])] if isinstance(dim, int) and isinstance(length, int) else []


def _groups(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """group_norm(x, groups) and channel_shuffle(x, groups)."""
    groups = kwargs.get("num_groups", kwargs.get("groups", args[1] if len(args) > 1 else 1))
    pair = watch.axes.factor(watch.axes_of(args[0])[1], groups)
    return [([groups], [pair[0]])] if pair else []


def _conv(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """conv(x, weight, bias, stride, padding, dilation, groups)."""
    groups = kwargs.get("groups", args[-1] if len(args) > 6 else 1)
    dim = -(args[1].dim() - 1) if len(args) > 1 else 1
    if not isinstance(groups, int) or groups == 1:
        return []
    pair = watch.axes.factor(watch.axes_of(args[0])[dim], groups)
    return [([groups], [pair[0]])] if pair else []


def _normal_shape(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    sizes = _numbers([kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())])
    return [(sizes, watch.axes_of(out)[-len(sizes) :])] if sizes else []


def _attention(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """scaled_dot_product_attention without a scale divides by the root of the number of features."""
    if kwargs.get("scale") is None:
        axis = watch.axes_of(args[0] if args else kwargs["query"])[-1]
        watch.values.append(axis)
    return []


def _multi_head(watch: "Watch", args: Any, kwargs: Any, out: Any) -> Found:
    """multi_head_attention_forward(query, key, value, embed_dim, num_heads, ...) wants heads times features to be the width."""
    if len(args) < 12 or not isinstance(args[11], Tensor):
        return []
    width, inside = watch.axes_of(args[0])[-1], watch.axes_of(args[11])[1]
    watch.axes.cause = f"multi_head_attention_forward in {watch.module or 'the model'}"
    watch.axes.unify(width, inside)
    if isinstance(args[5], Tensor) and args[5].shape[0] == 3 * width.size:
        pieces = watch.axes.cut(watch.axes_of(args[5])[0], [width.size, 2 * width.size, 3 * width.size])
        for piece in pieces or ():
            watch.axes.unify(width, piece)
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        if isinstance(kwargs.get(name), Tensor):
            watch.axes.unify(width, watch.axes_of(kwargs[name])[0])
    pair = watch.axes.factor(inside, args[4])
    if pair:
        watch.values.append(pair[1])  # scores are divided by its root
        watch.axes.mark(pair[0], WITH_WIDTH)
    return [([args[3]], [width]), *([([args[4]], [pair[0]])] if pair else [])]


VALUES = frozenset(
    f"{under}{name}{under}"
    for name in ("mul", "rmul", "div", "truediv", "rtruediv", "true_divide", "add", "sub", "rsub", "pow", "rpow")
    for under in ("", "__")
)

NOTES: dict[str, Note] = {
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    **dict.fromkeys(
        ("view", "reshape", "expand", "zeros", "ones", "full", "empty", "randn", "new_zeros", "new_ones", "new_empty"), _whole_shape
    ),
    **dict.fromkeys(("broadcast_to",), _whole_shape),
    **dict.fromkeys(("split", "split_with_sizes"), _parts),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normal_shape),
    "unflatten": _unflatten,
    "__getitem__": _range,
    "narrow": _narrow,
    **dict.fromkeys(("group_norm", "channel_shuffle", "native_channel_shuffle"), _groups),
    **dict.fromkeys(("chunk", "unsafe_chunk"), _chunks),
    **dict.fromkeys(("repeat", "tile"), _repeated),
    "repeat_interleave": _repeated_inside,
    "tensor_split": _bounds,
}
