"""Operations that sum products: matrix products and convolutions. What is summed over is the same axis on both sides."""

from lessen.structure.axes import Axis, free
from lessen.structure.rules.call import Call, Rule


def mm(call: Call) -> list[Axis]:
    """(m, k) x (k, n)."""
    (m, k), (k2, n) = call.of("self"), call.of("mat2")
    call.unify(k, k2)
    return [m, n]


def addmm(call: Call) -> list[Axis]:
    """bias + (m, k) x (k, n)."""
    (m, k), (k2, n) = call.of("mat1"), call.of("mat2")
    call.unify(k, k2)
    return call.same([m, n], call.of("self"))


def bmm(call: Call, left: str = "self", right: str = "mat2") -> list[Axis]:
    """(b, m, k) x (b, k, n). Two activations make it attention: b holds heads, and k and n are inside a head."""
    (b, m, k), (b2, k2, n) = call.of(left), call.of(right)
    call.unify(b, b2)
    call.unify(k, k2)
    batch = b2 if b.size == 1 else b
    if not call.static(call[left]) and not call.static(call[right]):
        for leaf in free(batch):
            call.axes.mark(leaf, "heads")
        for axis in (m, k, n):
            for leaf in free(axis):
                call.axes.mark(leaf, "inner")
    return [batch, m, n]


def baddbmm(call: Call) -> list[Axis]:
    """bias + (b, m, k) x (b, k, n)."""
    return call.same(bmm(call, "batch1", "batch2"), call.of("self"))


def mv(call: Call) -> list[Axis]:
    """(m, k) x (k)."""
    (m, k), (k2,) = call.of("self"), call.of("vec")
    call.unify(k, k2)
    return [m]


def addmv(call: Call) -> list[Axis]:
    """bias + (m, k) x (k)."""
    (m, k), (k2,) = call.of("mat"), call.of("vec")
    call.unify(k, k2)
    return call.same([m], call.of("self"))


def dot(call: Call) -> list[Axis]:
    """(k) x (k)."""
    call.unify(call.of("self")[0], call.of("tensor" if "tensor" in call.values else "other")[0])
    return []


def linear(call: Call) -> list[Axis]:
    """(..., k) x (n, k), plus bias."""
    *lead, k = call.of("input")
    weight = call.of("weight")
    call.unify(k, weight[-1])
    if call["bias"] is not None:
        call.unify(weight[0], call.of("bias")[0])
    return [*lead, *weight[:-1]]


def convolution(call: Call) -> list[Axis]:
    """Channels contract group by group: input g x i, weight (g x o, i) or transposed (g x i, o), output g x o."""
    axes, weight = call.of("input"), call.of("weight")
    groups, transposed = call["groups"], call["transposed"]
    spatial = len(weight) - 2
    batched = len(axes) == spatial + 2
    channels = axes[1] if batched else axes[0]
    for kernel in weight[2:]:
        call.pin(kernel, "has it as the size of its kernel")
    if groups == 1:
        inside, out = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
        call.unify(channels, inside)
    else:
        out = _grouped(call, channels, weight[:2], groups)
    if call["bias"] is not None:
        call.unify(out, call.of("bias")[0])
    return [*([axes[0]] if batched else []), out, *_pixels(call, axes[-spatial:], weight[2:])]


def _grouped(call: Call, channels: Axis, weight: list[Axis], groups: int) -> Axis:
    pair, outer = call.axes.factor(channels, groups), call.axes.factor(weight[0], groups)
    if pair is None or outer is None:
        for axis in (channels, *weight):
            call.pin(axis, f"has {groups} groups across it")
        size = weight[1].size * groups if call["transposed"] else weight[0].size
        return call.fixed(size, f"has {groups} groups across it")
    call.unify(pair[0], outer[0])
    call.axes.mark(outer[0], "groups")
    if call["transposed"]:
        call.unify(pair[1], outer[1])
        return call.axes.join([outer[0], weight[1]])
    call.unify(pair[1], weight[1])
    return weight[0]


def _pixels(call: Call, before: list[Axis], kernels: list[Axis]) -> list[Axis]:
    """A kernel of one pixel without stride leaves the pixels what they are."""
    shape = list(call.out.shape[-len(before) :])
    count = len(before)
    plain = all(call[name] in ([0], [0] * count) for name in ("padding", "output_padding"))
    if plain and all(k.size == 1 for k in kernels) and call["stride"] in ([1], [1] * count):
        return before
    for axis in before:
        call.pin(axis, "slides a kernel along it")
    return [call.fixed(n, "slides a kernel along it") for n in shape]


def cdist(call: Call) -> list[Axis]:
    """Distances between the rows of two matrices."""
    *lead, m, k = call.of("x1")
    *lead2, n, k2 = call.of("x2")
    call.unify(k, k2)
    return [*call.same(lead, lead2), m, n]


def grouped_mm(call: Call) -> list[Axis]:
    """Rows of the left side belong to experts, each with a matrix of its own: (t, k) x (e, k, n)."""
    left, right = call.of("self"), call.of("mat2")
    call.unify(left[-1], right[-2])
    if len(left) == 3 and len(right) == 3:
        call.unify(left[0], right[0])
        return [left[0], left[1], right[2]]
    if len(left) == 2 and len(right) == 3:
        call.pin(right[0], "counts rows per expert")
        return [left[0], right[2]]
    for axis in (*left, *right):
        call.pin(axis, "groups rows of both sides")
    return [call.fixed(n, "groups rows of both sides") for n in call.out.shape]


RULES: dict[str, Rule] = {
    "aten.mm": mm,
    "aten.addmm": addmm,
    "aten.addmm_": addmm,
    "aten.bmm": bmm,
    "aten.baddbmm": baddbmm,
    "aten.baddbmm_": baddbmm,
    "aten.mv": mv,
    "aten.addmv": addmv,
    "aten.addmv_": addmv,
    "aten.dot": dot,
    "aten.vdot": dot,
    "aten.linear": linear,
    "aten.convolution": convolution,
    "aten._cdist_forward": cdist,
    "aten._euclidean_dist": cdist,
    "aten._grouped_mm": grouped_mm,
}
