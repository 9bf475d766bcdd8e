"""Normalisations: statistics over an axis couple its indices through a number, which is marked ("normed") and does not forbid a cut.

A network without some of the channels normalises over those that are left. That is another function, and a sound one: it is what the
masked network computes if its norms, too, look only at the channels that are kept.
"""

from lessen.structure.axes import Axis
from lessen.structure.rules.call import Call, Rule


def layer_norm(call: Call) -> list[Axis] | list[list[Axis]]:
    """Over the last dimensions, with a gain and a bias for each index."""
    axes = call.of("input")
    count = len(call["normalized_shape"])
    _affine(call, axes[-count:])
    for axis in axes[-count:]:
        call.axes.mark(axis, "normed")
    if not isinstance(call.out, list | tuple):
        return axes
    statistics = [*axes[:-count], *(call.leaf(1) for _ in range(count))]
    return [axes, *(statistics for _ in call.out[1:])]


def group_norm(call: Call) -> list[list[Axis]]:
    """channel = group x inner, statistics over inner and the pixels."""
    axes = call.of("input")
    groups = call["group"]
    pair = call.axes.factor(axes[1], groups)
    if pair is None:
        call.pin(axes[1], f"has {groups} groups across it")
        pair = call.fixed(groups, "counts groups"), call.leaf(1)
    call.axes.mark(pair[1], "normed")
    for axis in axes[2:]:
        call.axes.mark(axis, "normed")
    _affine(call, [axes[1]])
    return [axes, [axes[0], pair[0]], [axes[0], pair[0]]]


def batch_norm(call: Call) -> list[list[Axis]]:
    """Channel by channel, with statistics that are buffers."""
    axes = call.of("input")
    channels = axes[1] if len(axes) > 1 else axes[0]
    _affine(call, [channels])
    for name in ("running_mean", "running_var"):
        if call.get(name) is not None:
            call.unify(channels, call.of(name)[0])
    rest = [[channels if n == channels.size else call.leaf(n) for n in out.shape] for out in call.out[1:]]
    return [axes, *rest]


def _affine(call: Call, axes: list[Axis]) -> None:
    for name in ("weight", "bias"):
        if call.get(name) is not None:
            for axis, own in zip(axes, call.of(name), strict=True):
                call.unify(axis, own)


def weight_norm(call: Call) -> list[list[Axis]]:
    """v times g / |v|: the norm is a sum, to which indices that are zero add nothing."""
    axes = call.of("v")
    call.same(axes, call.of("g"))
    return [axes, call.of("g")]


RULES: dict[str, Rule] = {
    "aten.native_layer_norm": layer_norm,
    "aten.rms_norm": layer_norm,
    "aten._fused_rms_norm": layer_norm,
    "aten.native_group_norm": group_norm,
    "aten.native_batch_norm": batch_norm,
    "aten._native_batch_norm_legit": batch_norm,
    "aten._native_batch_norm_legit_no_training": batch_norm,
    "aten._batch_norm_with_update": batch_norm,
    "aten._weight_norm_interface": weight_norm,
}
