"""Operations that reduce an axis, or mix values along it.

A sum (or a norm that is a sum) does not notice indices that are zero. A mean, a variance does, by its divisor: the axis is marked
"normed". Everything else (softmax, sorting, running sums, extremes) would give another result for zeros than for nothing, and pins it.
"""

from lessen.structure.axes import Axis, free
from lessen.structure.rules.call import Call, Rule


def _left(call: Call, axes: list[Axis], dims: list[int], keep: bool) -> list[Axis]:
    return [call.leaf(1) if d in dims else a for d, a in enumerate(axes) if keep or d not in dims]


def summed(call: Call) -> list[Axis]:
    """Sums over dimensions."""
    return _left(call, call.of("self"), call.dims("dim"), call.get("keepdim", False))


def averaged(call: Call) -> list[Axis] | list[list[Axis]]:
    """Means and variances over dimensions."""
    axes, dims = call.of("self"), call.dims("dim")
    for dim in dims:
        if axes:
            call.axes.mark(axes[dim], "normed")
    out = _left(call, axes, dims, call.get("keepdim", False))
    return [out for _ in call.out] if isinstance(call.out, list | tuple) else out


def picked(call: Call) -> list[Axis] | list[list[Axis]]:
    """Extremes, products and counts over dimensions."""
    axes, dims = call.of("self"), call.dims("dim")
    for dim in dims:
        if axes:
            call.pin(axes[dim], "picks from it")
    out = _left(call, axes, dims, call.get("keepdim", False))
    return [out for _ in call.out] if isinstance(call.out, list | tuple) else out


def norm(call: Call) -> list[Axis]:
    """Sums of powers; an extreme if the order is infinite or zero."""
    order = call.get("ord", call.get("p", 2))
    return summed(call) if 0 < abs(float(order)) < float("inf") else picked(call)  # pyright: ignore[reportReturnType]


def softmax(call: Call) -> list[Axis]:
    """Weights that add up to one along a dimension: without an index the others would grow."""
    axes = call.of("self")
    dim = call["dim"] % len(axes) if axes else 0
    for d, axis in enumerate(axes):
        if d == dim:
            call.pin(axis, "weighs its indices against each other")
        else:
            for leaf in free(axis):
                call.axes.mark(leaf, "softmax")
    return axes


def along(call: Call) -> list[Axis] | list[list[Axis]]:
    """Running sums, sorting: values depend on those before or beside them."""
    axes = call.of("self")
    dim = call.get("dim", -1)
    if axes:
        call.pin(axes[dim], "runs along it")
    return [axes for _ in call.out] if isinstance(call.out, list | tuple) else axes


def topk(call: Call) -> list[list[Axis]]:
    """The largest along a dimension, of which any may be meant."""
    axes = call.of("self")
    dim = call.get("dim", -1) % len(axes)
    call.pin(axes[dim], "picks from it")
    call.axes.mark(axes[dim], f"top {call['k']}")
    axes[dim] = call.fixed(call.out[0].shape[dim], "picks")
    return [axes, axes]


def log_sigmoid(call: Call) -> list[list[Axis]]:
    """Element by element, with a buffer beside."""
    axes = call.of("self")
    return [axes, axes if call.out[1].numel() else [call.leaf(n) for n in call.out[1].shape]]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten.sum", "aten.nansum"), summed),
    **dict.fromkeys(("aten.mean", "aten.var", "aten.std", "aten.var_mean", "aten.std_mean", "aten.nanmean"), averaged),
    **dict.fromkeys(("aten.max", "aten.min", "aten.amax", "aten.amin", "aten.aminmax", "aten.argmax", "aten.argmin"), picked),
    **dict.fromkeys(("aten.any", "aten.all", "aten.prod", "aten.logsumexp", "aten.median", "aten.nanmedian"), picked),
    **dict.fromkeys(("aten.count_nonzero", "aten.mode", "aten.kthvalue"), picked),
    **dict.fromkeys(("aten.linalg_vector_norm", "aten.norm"), norm),
    **dict.fromkeys(("aten._softmax", "aten._log_softmax", "aten._safe_softmax", "aten.softmax", "aten.log_softmax"), softmax),
    **dict.fromkeys(("aten.cumsum", "aten.cumsum_", "aten.cumprod", "aten.cummax", "aten.cummin", "aten.logcumsumexp"), along),
    **dict.fromkeys(("aten.sort", "aten.argsort"), along),
    "aten.topk": topk,
    "aten.log_sigmoid_forward": log_sigmoid,
}
