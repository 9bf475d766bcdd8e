"""Proof of a cut: the model with channels removed gives what the model with those channels zeroed gives.

Both models are copies, and run in float64 on the same inputs (see `lessen.structure.wide`). If slices were coupled wrongly, or a number
that a module keeps for itself is wrong, the two disagree or the smaller one does not run; either is an error, and the model is as it was.

One thing must be allowed for. A norm divides by something that it takes over *all* channels; zeroed ones still count. So the masked
model is run with norms that count only channels that are left (`KeptNorms`). Channels of a masked residual stream are exactly zero,
since all that writes to them is. Channels that an activation happens to leave at zero for the whole example are zero, too, but they
count: so the channels that are left are looked up among those that the cut left in any tensor, and must cover all that are not zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from lessen.core.apply import apply
from lessen.core.edit import Edit
from lessen.core.modules import copied, plain_attention
from lessen.core.sizes import refresh
from lessen.errors import LessenError, one_line
from lessen.structure.example import arguments, mapped
from lessen.structure.routers import Unchosen
from lessen.structure.state import untouched
from lessen.structure.watch import tensors_in
from lessen.structure.wide import GroupedProducts, WideCasts, widened

TOLERANCE = 1e-6
"""Of the largest output: float64 rounding of two orders of summation stays below 1e-9; a wrong slice is of order one."""


class KeptNorms(TorchDispatchMode):
    """Means, variances and norms over a masked axis count only what is not zero everywhere.

    Args:
        left: size before -> the index sets that are left of axes of this size, from `left_of`.
    """

    def __init__(self, left: "Left"):
        super().__init__()
        self.sets = left
        self._centred: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        if name not in _ACTIONS and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        action = _ACTIONS.get(name)
        done = action(self, func, args, kwargs) if action else None
        return func(*args, **kwargs) if done is None else done

    def left(self, x: Tensor, dim: int) -> Tensor | None:
        """Indices along a dimension that are not zero everywhere; None if nothing was cut there."""
        sets = self.sets.get(x.shape[dim % x.dim()], ())
        if not sets:
            return None
        alive = _alive(x, dim)
        fits = [kept for kept in sets if alive <= kept]
        kept = fits[0] if len(fits) == 1 else alive if any(len(alive) == len(kept) for kept in sets) else None
        return None if kept is None else torch.tensor(sorted(kept))

    def reduced(self, func: Any, args: Any, kwargs: Any) -> Any:
        """mean and var over dimensions."""
        x = args[0]
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not isinstance(dims, list | tuple | int) or not x.is_floating_point():
            return None
        smaller, cut = x, []
        for dim in [dims] if isinstance(dims, int) else dims:
            kept = self.left(x, dim)
            if kept is not None:
                smaller = smaller.index_select(dim % x.dim(), kept)
                cut.append((dim % x.dim() - x.dim(), kept))
        if not cut:
            return None
        out = func(smaller, *args[1:], **kwargs)
        for tensor in out if isinstance(out, tuple) else [out]:
            self._centred[tensor] = cut
        return out

    def difference(self, func: Any, args: Any, kwargs: Any) -> Any:
        """x minus its mean: what was cut away stays zero."""
        cut = self._centred.get(args[1]) if isinstance(args[1], Tensor) else None
        if cut is None:
            return None
        out = func(*args, **kwargs)
        for dim, kept in cut:
            full = torch.zeros_like(out)
            out = full.index_copy(dim % out.dim(), kept, out.index_select(dim % out.dim(), kept))
        return out

    def layer_norm(self, func: Any, args: Any, kwargs: Any) -> Any:
        """native_layer_norm(x, shape, weight, bias, eps) and _fused_rms_norm(x, shape, weight, eps)."""
        x, shape, *rest = args
        if len(shape) != 1 or (kept := self.left(x, -1)) is None:
            return None
        rest = [r.index_select(0, kept) if isinstance(r, Tensor) else r for r in rest]
        out, *others = func(x.index_select(-1, kept), [len(kept)], *rest, **kwargs)
        return torch.zeros_like(x).index_copy(-1, kept, out), *others

    def group_norm(self, func: Any, args: Any, kwargs: Any) -> Any:
        """native_group_norm(x, weight, bias, batch, channels, positions, groups, eps)."""
        x, weight, bias, batch, channels, positions, groups, eps = args
        if (kept := self.left(x, 1)) is None:
            return None
        inside = torch.zeros(channels, dtype=torch.int64).index_fill(0, kept, 1).view(groups, -1).sum(1)
        whole = int((inside > 0).sum())
        rest = [r if r is None else r.index_select(0, kept) for r in (weight, bias)]
        out, *others = func(x.index_select(1, kept).contiguous(), *rest, batch, len(kept), positions, whole, eps, **kwargs)
        return torch.zeros_like(x).index_copy(1, kept, out), *others


_Action = Callable[[KeptNorms, Any, Any, Any], Any]
_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(("mean", "var", "std", "var_mean", "std_mean"), KeptNorms.reduced),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), KeptNorms.layer_norm),
    "native_group_norm": KeptNorms.group_norm,
    "sub": KeptNorms.difference,
}


Left = Mapping[int, set[frozenset[int]]]
"""Size of an axis before the cut -> the sets of indices that are left of axes of this size."""


def left_of(masked: Mapping[str, Tensor], sliced: Mapping[str, Tensor]) -> Left:
    """What is left of every axis that became shorter: as many indices of the masked tensor as are not zero everywhere.

    >>> masked = {"w": torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, 1.5]])}
    >>> left_of(masked, {"w": torch.ones(2, 2)})
    {3: {frozenset({0, 2})}}
    """
    found: dict[int, set[frozenset[int]]] = {}
    for name in masked.keys() & sliced.keys():
        whole, part = masked[name].detach(), sliced[name]
        if whole.dim() != part.dim() or not whole.numel():
            continue
        for dim, (before, after) in enumerate(zip(whole.shape, part.shape, strict=True)):
            if before != after:
                kept = _alive(whole, dim)
                if len(kept) == after:
                    found.setdefault(before, set()).add(kept)
    return found


def _alive(x: Tensor, dim: int) -> frozenset[int]:
    """Indices along a dimension at which a tensor is not zero everywhere."""
    return frozenset((x != 0).movedim(dim, 0).reshape(x.shape[dim], -1).any(1).nonzero()[:, 0].tolist())


def answers(out: Any) -> Iterator[Tensor]:
    """Floating-point tensors of an answer, in order."""
    return (tensor for tensor in tensors_in(out) if tensor.is_floating_point())


def check(model: nn.Module, edits: Sequence[Edit], inputs: Any, tolerance: float = TOLERANCE) -> nn.Module:
    """Prove edits on copies of a model, which is not changed.

    Args:
        model: what the edits are for.
        edits: see `lessen.apply`.
        inputs: what the model is called with: a tensor, a tuple of arguments, or a dictionary of keyword arguments.
        tolerance: largest difference that is allowed, relative to the largest output.

    Returns:
        The smaller model, in the dtype of the model.

    Raises:
        LessenError: the smaller model does not run, differs, or lost what tied or described its tensors.
    """
    where = type(model).__name__
    smaller = apply(copied(model), edits)
    described(smaller)
    _still_tied(model, smaller)
    masked = apply(copied(model), edits, mode="mask")
    kept = left_of(_named(masked), _named(smaller))
    worst = _difference(masked, smaller, edits, kept, inputs, [], where)
    if not worst <= tolerance:
        # Code that computes in float32 itself rounds in both models otherwise; without its casts what is left is the slices.
        with suppress(LessenError):
            worst = _difference(masked, smaller, edits, kept, inputs, [WideCasts()], where)
    if not worst <= tolerance:
        got = f"outputs of the cut model that differ by {worst:.2g} from those of the masked one"
        remedy = "a unit is coupled wrongly or a number is out of date: freeze the module it lies in, and report the model"
        raise LessenError(where, got=got, wanted=f"{tolerance:g} at most", remedy=remedy)
    return smaller


def _difference(
    masked: nn.Module, smaller: nn.Module, edits: Sequence[Edit], kept: Left, inputs: Any, modes: Sequence[TorchDispatchMode], where: str
) -> float:
    """The largest difference between the outputs of both, relative to the largest output.

    Both compute attention step by step, where every number that a module keeps is asked for; the smaller one must run as it is, too.
    """
    modes = [GroupedProducts(), *modes]
    run(smaller, inputs, lambda: modes, where)
    with plain_attention(masked, smaller):
        wanted = run(masked, inputs, lambda: [*modes, Unchosen(masked, edits), KeptNorms(kept)], where)
        found = run(smaller, inputs, lambda: modes, where)
    pairs = [(a, b) for a, b in zip(found, wanted, strict=len(found) == len(wanted)) if a.shape == b.shape]
    if not pairs:
        raise LessenError(
            where, got="no output of the same shape after the cut", wanted="one at least", remedy="freeze what makes the output"
        )
    return max(float((a - b).abs().max()) / max(1.0, float(b.abs().max())) if a.numel() else 0.0 for a, b in pairs)


def described(model: nn.Module) -> None:
    """Raise unless PyTorch's layers say the sizes that their tensors have."""
    for name, module in model.named_modules():
        before = {k: v for k, v in module.__dict__.items() if isinstance(v, int | tuple)}
        refresh(module)
        changed = next((k for k, v in before.items() if module.__dict__.get(k) != v), None)
        if changed:
            got = f"{changed} of {before[changed]}"
            raise LessenError(name or type(model).__name__, got=got, wanted=f"{module.__dict__.get(changed)} by its tensors")


def _named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def _still_tied(model: nn.Module, smaller: nn.Module) -> None:
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    own = dict(smaller.named_parameters(remove_duplicate=False))
    for names in groups.values():
        if len({id(own[name]) for name in names if name in own}) > 1:
            raise LessenError(names[0], got=f"a tensor of its own for {names[1]}", wanted="one tensor, as before the cut")


def run(model: nn.Module, inputs: Any, modes: Callable[[], Sequence[TorchDispatchMode]], where: str) -> list[Tensor]:
    """The answers of a model in float64, which is as it was afterwards, while the modes last."""
    args, kwargs = arguments(mapped(inputs, _widened))
    try:
        with untouched(model), torch.no_grad(), torch.random.fork_rng(devices=[]), widened(model), ExitStack() as stack:
            # One kernel for a whole layer would hide its norms from `KeptNorms`.
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            for mode in modes():
                stack.enter_context(mode)
            torch.manual_seed(0)
            return list(answers(model(*args, **kwargs)))
    except Exception as error:
        remedy = "a number that a module keeps is out of date: freeze the module that the message speaks of"
        raise LessenError(where, got=f"after the cut, {one_line(error)}", wanted="a model that runs", remedy=remedy) from error


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
