"""Where zero weights make zeros: which sums can tell a channel that is masked from one that is cut away.

A cut of channels is proven by comparing two networks: one with zeros in their weights, one without them. They agree if every sum over
the channels gets zeros from those that are masked. It does when one of its factors is a parameter that has the channels, which is how
most channels end (`down_proj`). It does not when something in between turned the zeros into numbers and no parameter follows: the mean
over heads after a softmax, a sum over streams weighed by a sigmoid, a norm over attention outputs of queries that are zero (a softmax of
zeros is uniform). A network without such channels is a network too, but not the one that the mask describes, and there is nothing to
prove it by. Such axes are held.

So beside its axes every tensor has a set of axes along which it is zero wherever their channels are masked:

    parameters and buffers      all axes that they have
    f(x) with f(0) = 0          those of x
    other functions             none
    x * y                       those of x and those of y
    x + y                       those that both have
    sums over an axis           those of its factors that remain; the axis itself must be among those of one factor
    normalisations              those of the gain that also the bias has

This is an abstract interpretation (Cousot and Cousot 1977) with one bit per axis; all approximations are on the safe side.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lessen.structure.axes import Axis, leaves
from lessen.structure.rules.call import Call

ALIVE = "alive"
"""The mark of an axis over which something sums that masked weights do not make zero."""

_EVERY: frozenset[Axis] | None = None
"""Zero everywhere."""

Zero = frozenset[Axis] | None


class Zeros:
    """The axes along which each tensor is zero where channels are masked."""

    def __init__(self) -> None:
        self._of: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._since: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._writes: dict[int, list[tuple[int, Zero]]] = {}
        self._clock = 0

    def name(self, tensor: Tensor, axes: Iterable[Axis]) -> None:
        """Enter a tensor that is zero along these axes."""
        self._enter(tensor, frozenset(axes))

    def of(self, tensor: Tensor) -> Zero:
        """Leaves along which a tensor is zero; None if it is zero everywhere."""
        own = self._of.get(tensor, frozenset())
        found = own if own is None else frozenset(leaf for axis in own for leaf in leaves(axis))
        since: int = self._since.get(tensor) or 0
        for clock, written in self._writes.get(memory(tensor), []):
            if clock > since:
                found = _both([found, written])
        return found

    def see(self, call: Call, outs: Sequence[Tensor]) -> None:
        """Follow one executed operation."""
        name = call.name.removeprefix("aten.")
        name = name.removesuffix("_")
        tensors = [t for t in call.tensors() if t.is_floating_point() or t.is_complex()]
        if name in _SUMS:
            self._check(call, [call["self"]], [call.of("self")[d] for d in call.dims("dim")])
        found = self._contracted(call, name) if name in _CONTRACTIONS else self._plain(call, name, tensors)
        for tensor in outs:
            changed = any(tensor is t for t in call.tensors())
            if changed:
                self._clock += 1
                self._writes.setdefault(memory(tensor), []).append((self._clock, found))
            self._enter(tensor, found)

    def _plain(self, call: Call, name: str, tensors: Sequence[Tensor]) -> Zero:
        zeros = [self.of(t) for t in tensors]
        if name in _MADE or (name in ("full", "new_full", "full_like", "fill") and call.get("fill_value", call.get("value")) == 0):
            return _EVERY
        if name == "cat":
            return self._joined(call)
        if name in _NORMS:
            return self._normed(call, name)
        if name in _SAME:
            return _both(zeros[:1]) if zeros else frozenset()
        if name in _PRODUCTS:
            return _EVERY if None in zeros else frozenset().union(*(z for z in zeros if z is not None))
        if name in ("copy", "copy_", "add", "sub") and (len(tensors) == 2 or name == "copy"):
            return _both(zeros[1:] if name == "copy" else zeros)
        if name in _TOGETHER:
            return _both(zeros)
        if name == "pow" and isinstance(call.get("exponent"), int | float) and call["exponent"] > 0:
            return _both(zeros[:1])
        if name in ("clamp", "hardtanh", "clamp_min", "clamp_max"):
            low, high = call.get("min", call.get("min_val", 0)), call.get("max", call.get("max_val", 0))
            return _both(zeros[:1]) if not isinstance(low, Tensor) and not isinstance(high, Tensor) and low <= 0 <= high else frozenset()
        if name == "masked_fill" and not isinstance(call["value"], Tensor) and call["value"] == 0:
            return _both(zeros[:1])
        return frozenset()

    def _contracted(self, call: Call, name: str) -> Zero:
        left, right, bias = _CONTRACTIONS[name]
        a, b = call[left], call[right]
        over = _summed(call, name, call.of(a), call.of(b))
        self._check(call, [a, b], over)
        found: set[Axis] = set()
        for tensor, dim in ((a, _dim(name, call, a, 0)), (b, _dim(name, call, b, 1))):
            zero = self.of(tensor)
            if zero is None:
                return _EVERY
            # A square weight has its width twice: what is summed over is a dimension, not an axis.
            rest = {leaf for d, axis in enumerate(call.of(tensor)) if d != dim for leaf in leaves(axis)}
            found |= zero & rest
        extra = call.get(bias) if bias else None
        if isinstance(extra, Tensor) and call.get("beta", 1) != 0:
            return _both([frozenset(found), self.of(extra)])
        return frozenset(found)

    def _normed(self, call: Call, name: str) -> Zero:
        """Statistics over an axis need zeros along it; the gain makes zeros anew."""
        x = call["input"]
        axes = call.of(x)
        if name not in _BATCH:
            over = axes[1:] if name == "native_group_norm" else axes[-len(call["normalized_shape"]) :]
            self._check(call, [x], over)
        affine = [call[key] for key in ("weight", "bias") if isinstance(call.get(key), Tensor)]
        if not affine:
            return self.of(x) if name in ("rms_norm", "_fused_rms_norm") else frozenset()
        gain = _both([self.of(t) for t in affine])
        if call.get("bias") is None:
            # Without a bias, what is zero for all features stays so.
            over = {leaf for axis in axes[-len(call.get("normalized_shape", [0])) :] for leaf in leaves(axis)}
            kept = self.of(x)
            return gain if gain is None or kept is None else gain | {leaf for leaf in kept if leaf not in over or name.endswith("rms_norm")}
        return gain

    def _joined(self, call: Call) -> Zero:
        """Parts one behind the other: each is asked only for the channels that it has."""
        tensors = [t for t in call["tensors"] if t.numel()]
        if not tensors:
            return _EVERY
        dim = call.get("dim", 0) % call.out.dim()
        zeros = [self.of(t) for t in tensors]
        along = {leaf for t in tensors for leaf in leaves(call.of(t)[dim])}
        able = set().union(*(z for z in zeros if z is not None))
        own = [{leaf for axis in call.of(t) for leaf in leaves(axis)} for t in tensors]
        fine = {
            leaf
            for leaf in able
            if all(z is None or leaf in z or (leaf not in have and leaf in along) for z, have in zip(zeros, own, strict=True))
        }
        return frozenset(fine)

    def _check(self, call: Call, factors: Sequence[Tensor], over: Sequence[Axis]) -> None:
        zeros = [self.of(t) for t in factors]
        if None in zeros:
            return
        able = frozenset().union(*(z for z in zeros if z is not None))
        for axis in over:
            for leaf in leaves(axis):
                if leaf not in able:
                    call.axes.mark(leaf, ALIVE)

    def _enter(self, tensor: Tensor, zero: Zero) -> None:
        self._of[tensor] = zero
        self._clock += 1
        self._since[tensor] = self._clock


def _summed(call: Call, name: str, a: Sequence[Axis], b: Sequence[Axis]) -> list[Axis]:
    """The axes over which a product of two tensors is summed."""
    if name == "convolution":
        spatial = len(b) - 2
        channels = a[-spatial - 1]
        if call["groups"] == 1:
            return [channels]
        pair = call.axes.factor(channels, call["groups"])
        return [pair[1]] if pair else []
    return [a[-1]]


def _dim(name: str, call: Call, tensor: Tensor, side: int) -> int:
    """The dimension of a factor that is summed over; that of a convolution's groups stays."""
    if name == "convolution":
        if side == 0:
            return -1 if call["groups"] > 1 else tensor.dim() - (call["weight"].dim() - 2) - 1
        return -1 if call["groups"] > 1 and call["transposed"] else 0 if call["transposed"] else 1
    return tensor.dim() - 2 if side == 1 and tensor.dim() > 1 and name != "linear" else tensor.dim() - 1


def _both(zeros: Sequence[Zero]) -> Zero:
    """Zero along an axis only if all are."""
    found: Zero = _EVERY
    for zero in zeros:
        found = zero if found is None else found if zero is None else found & zero
    return found


def memory(tensor: Tensor) -> int:
    """The memory that a tensor lies in, as a number that its views share; -1 if it has none."""
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return -1


_CONTRACTIONS = {
    "mm": ("self", "mat2", None),
    "addmm": ("mat1", "mat2", "self"),
    "bmm": ("self", "mat2", None),
    "baddbmm": ("batch1", "batch2", "self"),
    "mv": ("self", "vec", None),
    "addmv": ("mat", "vec", "self"),
    "dot": ("self", "tensor", None),
    "vdot": ("self", "other", None),
    "linear": ("input", "weight", "bias"),
    "convolution": ("input", "weight", "bias"),
    "_grouped_mm": ("self", "mat2", None),
}
_SUMS = frozenset(("sum", "mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "nansum", "nanmean"))
_BATCH = frozenset(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"))
_NORMS = frozenset(("native_layer_norm", "rms_norm", "_fused_rms_norm", "native_group_norm", *_BATCH))
_MADE = frozenset(("zeros", "new_zeros", "zeros_like", "zero"))
_PRODUCTS = frozenset(("mul", "complex_mul", "_weight_norm_interface"))
_WRITES = ("index_put", "_index_put_impl", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "masked_scatter")
_TOGETHER = frozenset(
    ("stack", "where", "maximum", "minimum", "lerp", "hypot", "fmax", "fmin", "slice_scatter", "select_scatter", *_WRITES)
)
# fmt: off
_MOVES = (
    "view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "detach", "alias", "clone", "_to_copy", "lift_fresh",
    "lift_fresh_copy", "contiguous", "permute", "transpose", "t", "expand", "repeat", "select", "slice", "unbind", "split",
    "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unsqueeze", "squeeze", "tril", "triu", "constant_pad_nd", "flip",
    "roll", "rot90", "unfold", "diagonal", "diag_embed", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "im2col", "col2im", "view_as_complex", "view_as_real", "as_strided", "index", "index_select", "gather",
    "embedding", "_embedding_bag", "_embedding_bag_forward_only", "_unsafe_index", "masked_select", "index_fill", "real", "imag",
    "conj", "_conj", "_conj_physical",
)
_MIXES = (
    "sum", "mean", "var", "std", "linalg_vector_norm", "norm", "amax", "amin", "max", "cumsum", "_fft_r2c", "_fft_c2r", "_fft_c2c",
    "grid_sampler_2d", "grid_sampler_3d", "linalg_solve_triangular", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
)
_CURVES = (
    "div", "true_divide", "relu", "gelu", "silu", "tanh", "neg", "abs", "sqrt", "sin", "sinh", "tan", "erf", "sign", "sgn",
    "leaky_relu", "elu", "celu", "selu", "hardswish", "relu6", "mish", "softsign", "square", "floor", "ceil", "round", "trunc",
    "native_dropout", "dropout", "hardshrink", "softshrink", "log1p", "expm1", "asinh", "atan", "asin", "_prelu_kernel",
    "nan_to_num", "bernoulli", "frac", "glu", "polar",
)
# fmt: on
_SAME = frozenset(
    (
        *_MOVES,
        *_MIXES,
        *_CURVES,
        *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        *(f"{kind}{n}d" for kind in ("avg_pool", "adaptive_avg_pool", "upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
        *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
        *(f"upsample_{kind}" for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
        *(f"_upsample_{kind}2d_aa" for kind in ("bilinear", "bicubic")),
    )
)
"""Functions that are zero where their first argument is."""
