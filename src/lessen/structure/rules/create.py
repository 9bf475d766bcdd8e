"""Tensors that are made inside a model. Constants take any length; values that follow from their position do not."""

from lessen.structure.axes import Axis
from lessen.structure.rules.call import Call, Rule


def constant(call: Call) -> list[Axis]:
    """Zeros, ones, noise: the same at every index, so of any size."""
    return [call.leaf(n) for n in call.out.shape]


def counted(call: Call) -> list[Axis] | list[list[Axis]]:
    """Values that depend on their index."""
    reason = "makes values that depend on their position"
    if isinstance(call.out, list | tuple):
        return [[call.fixed(n, reason) for n in out.shape] for out in call.out]
    return [call.fixed(n, reason) for n in call.out.shape]


RULES: dict[str, Rule] = {
    **dict.fromkeys((f"aten.{name}" for name in ("empty", "zeros", "ones", "full", "rand", "randn", "scalar_tensor")), constant),
    **dict.fromkeys((f"aten.{name}" for name in ("new_zeros", "new_ones", "new_full", "new_empty", "empty_strided")), constant),
    **dict.fromkeys((f"aten.{name}" for name in ("new_empty_strided", "empty_permuted", "randint", "normal")), constant),
    **dict.fromkeys((f"aten.{name}" for name in ("arange", "linspace", "logspace", "eye", "randperm", "tril_indices")), counted),
    **dict.fromkeys((f"aten.{name}" for name in ("triu_indices", "hann_window", "hamming_window", "bartlett_window")), counted),
    **dict.fromkeys((f"aten.{name}" for name in ("blackman_window", "kaiser_window", "range", "vander", "randint_like")), counted),
}
