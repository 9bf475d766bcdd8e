"""Where a forward spends its multiplications: every product as it runs, with the weight that takes part in it.

The operations are seen below PyTorch's modules (`TorchDispatchMode`), so it does not matter how a model is written. A weight is known by
the memory that it shares with its parameter, whatever views were taken of it. Products without a weight (attention) are charged to the
module in which they run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lessen.core.unit import Slice, Unit
from lessen.targets.cost import Elements

ATTENTION_KINDS = ("kv_group", "heads")


@dataclass(frozen=True)
class Use:
    """One product of a forward.

    Attributes:
        op: "matmul", "convolution", "batched" or "attention".
        weight: name of the parameter that takes part; None for products of activations.
        module: path of the innermost module that was running.
        macs: multiply-accumulates.
        shapes: of the operands: activations first, then the weight as it is stored; of queries and keys for attention.
        settings: of a convolution: stride, padding, dilation, transposed, output padding, groups.
    """

    op: str
    weight: str | None
    module: str
    macs: int
    shapes: tuple[tuple[int, ...], ...]
    settings: tuple[Any, ...] = ()


def profile(model: nn.Module, run: Callable[[], Any]) -> list[Use]:
    """Every product of one forward.

    Args:
        model: whose parameters are looked for.
        run: runs it once.
    """
    watching = _Watching(model)
    try:
        with torch.no_grad(), watching:
            run()
    finally:
        watching.stop()
    return watching.uses


def macs(model: nn.Module, run: Callable[[], Any], units: Sequence[Unit], uses: Sequence[Use] | None = None) -> Elements:
    """Multiply-accumulates of a forward as a cost.

    A weight's element takes part as often as its product has outputs for it, which narrowing does not change. Attention grows with the
    heads of the unit that lies in its module.
    """
    uses = profile(model, run) if uses is None else uses
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    per_weight: dict[str, float] = {}
    constant, charged = 0.0, list(units)
    for use in uses:
        if use.weight is not None:
            per_weight[use.weight] = per_weight.get(use.weight, 0.0) + use.macs / prod(shapes[use.weight])
        elif (place := attention_unit(units, use.module)) is not None:
            name, unit = f"{use.module}()", charged[place]
            if name not in shapes:
                shapes[name] = (unit.size,)
                charged[place] = Unit(unit.name, unit.kind, unit.size, (*unit.slices, Slice(name, 0)))
            per_weight[name] = per_weight.get(name, 0.0) + use.macs / unit.size
        else:
            constant += use.macs
    return Elements("macs", shapes, charged, per_weight, 0.0, constant)


def attention_unit(units: Sequence[Unit], module: str) -> int | None:
    """The unit of heads whose weights lie below a module; None if there is none."""
    inside = f"{module}." if module else ""
    fits = [i for i, u in enumerate(units) if u.kind in ATTENTION_KINDS and any(part.name.startswith(inside) for part in u.slices)]
    return fits[0] if len(fits) == 1 else None


class _Watching(TorchDispatchMode):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.uses: list[Use] = []
        self.names = {p.untyped_storage()._cdata: name for name, p in reversed(list(model.named_parameters()))}
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.path: list[str] = [""]
        self.handles: list[Any] = []
        for path, module in model.named_modules():
            self.handles.append(module.register_forward_pre_hook(lambda _, __, path=path: self.path.append(path)))
            self.handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))

    def _leave(self) -> None:
        self.path.pop()

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [a for a in args if isinstance(a, Tensor)]
        if name in ("mm", "addmm"):
            self._matmul(tensors[-2], tensors[-1], out)
        elif name in ("bmm", "baddbmm"):
            a, b = tensors[-2:]
            self._note("batched", self._weight(b) or self._weight(a), a.shape[1] * b.numel(), (tuple(a.shape), tuple(b.shape)))
        elif name in ("convolution", "_convolution"):
            weight = args[1]
            # Each output element sums over the weight's inner elements; a transposed convolution the other way round.
            positions = (args[0] if args[6] else out).numel() // weight.shape[0]
            self._note(
                "convolution", self._weight(weight), positions * weight.numel(), (tuple(args[0].shape), tuple(weight.shape)), args[3:9]
            )
        elif "scaled_dot_product" in name and "backward" not in name:
            q, k, v = tensors[:3]
            count = q.numel() * k.shape[-2] + q.shape[:-1].numel() * k.shape[-2] * v.shape[-1]
            self._note("attention", None, count, (tuple(q.shape), tuple(k.shape)))
        return out

    def _matmul(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        name = self._weight(b) or self._weight(a)
        tokens = out.shape[0] if self._weight(b) else out.shape[1]
        shape = self.shapes[name] if name else tuple(b.shape)
        self._note("matmul", name, out.numel() * a.shape[1], ((tokens, a.shape[1]), shape))

    def _weight(self, tensor: Tensor) -> str | None:
        return self.names.get(tensor.untyped_storage()._cdata)

    def _note(self, op: str, weight: str | None, count: int, shapes: tuple[tuple[int, ...], ...], settings: Any = ()) -> None:
        fixed = tuple(tuple(s) if isinstance(s, list | tuple) else s for s in settings)
        self.uses.append(Use(op, weight, self.path[-1], count, shapes, fixed))
