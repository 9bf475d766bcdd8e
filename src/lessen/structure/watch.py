"""Watching one forward pass: every operation as it executes, and the axes of every tensor.

A `TorchDispatchMode` sees the ATen operations below autograd, after composite ones were taken apart, whatever the Python code above them
looks like: control flow, einops, custom modules. For each, the rule of its name says how the axes of its inputs and outputs relate.

    known       a table of rules, and PyTorch's own tag for pointwise operations
    harmless    no rule, but every axis involved is held already: outputs are held too, with a note
    unknown     an error that names the operation, the module and the remedy; never a guess

A second mode sits above the first, at the level of Python calls, and writes down every size that is given as a number
(`view(batch, seq, 9, 64)`, `split([576, 192, 192])`) with the axis that it stands for: a `Site`. Whoever makes the axes shorter has to
find where those numbers come from.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from lessen.errors import LessenError
from lessen.structure.axes import Axes, Axis, describe, pinned
from lessen.structure.rules import RULES, Call, Rule, elementwise, is_pointwise
from lessen.structure.rules.call import Book


@dataclass(frozen=True)
class Site:
    """A call that was given sizes as numbers.

    Attributes:
        module: path of the innermost module in whose forward the call ran.
        call: name of the Python function ("view", "split", "expand", "zeros", "group_norm", "conv2d", "getitem").
        sizes: the numbers, as given (-1 where the model left a size open).
        axes: for every number, the axis that it counts.
    """

    module: str
    call: str
    sizes: tuple[int, ...]
    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        given = ", ".join(f"{n} = {describe(a)}" for n, a in zip(self.sizes, self.axes, strict=True))
        return f"{self.module or 'the model'}: {self.call}({given})"


class Watch(Book):
    """Everything that is known while a model runs.

    Attributes:
        axes: where axes are made.
        ran: paths of modules in the order in which they were entered.
        operations: (module, operation) in order.
        flows: for every module that ran, the axes of its first input and first output tensors.
    """

    def __init__(self, names: Mapping[nn.Module, str], rules: Mapping[str, Rule]):
        self.axes = Axes()
        self.rules = {**RULES, **rules}
        self.names = names
        self.stack: list[str] = []
        self.ran: list[str] = []
        self.operations: list[tuple[str, str]] = []
        self.flows: dict[str, tuple[list[Axis], list[Axis]]] = {}
        self.notes: dict[str, None] = {}
        self.sites: list[Site] = []
        self.touched: set[int] = set()
        self._of: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._static: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._memory: dict[int, list[Tensor]] = {}

    @property
    def module(self) -> str:
        """Path of the module that is running."""
        return self.stack[-1] if self.stack else ""

    def name(self, tensor: Tensor, axes: Sequence[Axis], static: bool = False) -> None:
        """Enter a tensor with its axes."""
        self._of[tensor] = list(axes)
        self._static[tensor] = static
        if static:
            self._memory.setdefault(_memory(tensor), []).append(tensor)

    def axes_of(self, tensor: Tensor) -> list[Axis]:
        """Axes of a tensor; those of a constant that came from elsewhere are held."""
        found = self._of.get(tensor)
        if found is None:
            found = self._alias(tensor) or [
                self.axes.leaf(n, pin=f"a tensor that is no parameter, buffer or input is used in {self.module or 'the model'}")
                for n in tensor.shape
            ]
            self._of[tensor] = found
        return found

    def is_static(self, tensor: Tensor) -> bool:
        """Whether the tensor is made of parameters and buffers alone."""
        return bool(self._static.get(tensor, False))

    def _alias(self, tensor: Tensor) -> list[Axis] | None:
        """Another tensor object over a parameter's memory (`weight.data`)."""
        for known in self._memory.get(_memory(tensor), []):
            if known.shape == tensor.shape and known.stride() == tensor.stride() and known.storage_offset() == tensor.storage_offset():
                self._static[tensor] = True
                return self._of[known]
        return None

    def see(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Apply the rule of one executed operation."""
        self.axes.cause = f"{func._schema.name.rpartition('::')[2].strip('_')} in {self.module or 'the model'}"
        outs = [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, Tensor)]
        call = Call(func, args, kwargs, out, self)
        self.operations.append((self.module, call.name))
        tensors = call.tensors()
        self.touched |= {id(t) for t in tensors}
        if not outs:
            return
        rule = self.rules.get(call.name) or (elementwise if is_pointwise(func) else None)
        axes = rule(call) if rule else self._unknown(call, tensors, outs)
        several = isinstance(out, list | tuple)
        rows: list[Any] = list(axes) if several else [axes]
        if several:
            rows = [row for row, t in zip(rows, out, strict=False) if isinstance(t, Tensor)]
        static = bool(tensors) and all(self.is_static(t) for t in tensors)
        for tensor, row in zip(outs, rows, strict=True):
            self._enter(call, tensor, row, static)

    def _enter(self, call: Call, tensor: Tensor, row: list[Axis], static: bool) -> None:
        shape = tuple(tensor.shape)
        if len(row) != len(shape) or any(a.size not in (1, n) for a, n in zip(row, shape, strict=True)):
            raise LessenError(
                f"{call.name} in {self.module or 'the model'}",
                got=f"axes {row} from its rule for an output of shape {shape}",
                wanted="one axis of that size per dimension",
                remedy=f"pass a rule for it: rules={{{call.name!r}: ...}}, or freeze={[self.module]}",
            )
        row = [a if a.size == n else self.axes.leaf(n) for a, n in zip(row, shape, strict=True)]
        before = self._of.get(tensor)
        if before is not None and len(before) == len(row):
            for old, new in zip(before, row, strict=True):
                self.axes.unify(old, new)
            self._static[tensor] = static and self.is_static(tensor)
        else:
            self.name(tensor, row)
            self._static[tensor] = static

    def _unknown(self, call: Call, tensors: Sequence[Tensor], outs: Sequence[Tensor]) -> Any:
        if any(not pinned(axis) for tensor in tensors for axis in self.axes_of(tensor)):
            raise LessenError(
                f"{call.name} in {self.module or 'the model'}",
                got="an operation without a rule",
                wanted="to know which axes of its outputs are axes of its inputs",
                remedy=f"pass freeze={[self.module]} to leave it alone, or a rule: rules={{{call.name!r}: lambda call: call.of('self')}}",
            )
        self.notes[f"{call.name} in {self.module or 'the model'} has no rule; all that it touches was held already"] = None
        axes = [[call.fixed(n, "has no rule") for n in t.shape] for t in outs]
        return axes if isinstance(call.out, list | tuple) else axes[0]

    @contextmanager
    def following(self) -> Any:
        """Know which module is running, by hooks that every module shares and that are taken away again."""

        def enter(module: nn.Module, args: Any) -> None:
            path = self.names.get(module)
            self.stack.append(self.module if path is None else path)
            if path is not None:
                self.ran.append(path)

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if not self.stack:
                return
            self.stack.pop()
            path = self.names.get(module)
            first, last = first_tensor(args), first_tensor(out)
            if path is not None and path not in self.flows and last is not None and first is not None:
                self.flows[path] = (list(self.axes_of(first)), list(self.axes_of(last)))

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            stack.callback(register_module_forward_hook(leave, always_call=True).remove)
            stack.enter_context(_Calls(self))
            stack.enter_context(_Operations(self))
            yield


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((t for v in value if (t := first_tensor(v)) is not None), None)
    return None


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return -1


class _Operations(TorchDispatchMode):
    """ATen operations as they execute."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about a tensor ("on which device?"), not operations
            return func(*args, **kwargs)
        name = f"{func.namespace}.{func._schema.name.rpartition('::')[2]}"
        if name not in self.watch.rules and not is_pointwise(func) and _composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        self.watch.see(func, args, kwargs, out)
        return out


def _composite(func: Any) -> bool:
    return func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


class _Calls(TorchFunctionMode):
    """Python calls that are given sizes as numbers."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        note = _NOTES.get(name)
        if note is not None:
            for sizes, axes in note(self.watch, args, kwargs, out):
                if any(n > 1 for n in sizes):
                    self.watch.sites.append(Site(self.watch.module, name.strip("_"), tuple(sizes), tuple(axes)))
        return out


Found = list[tuple[list[int], list[Axis]]]


def _numbers(values: Sequence[Any]) -> list[int]:
    flat = values[0] if len(values) == 1 and isinstance(values[0], list | tuple) else values
    return [int(v) if isinstance(v, int) and not isinstance(v, bool) else -1 for v in flat]


def _whole_shape(watch: Watch, args: Any, kwargs: Any, out: Any) -> Found:
    """view, reshape, expand and constants: the numbers are the shape of the result."""
    given = [a for a in args if not isinstance(a, Tensor)]
    named = kwargs.get("size", kwargs.get("shape"))
    sizes = _numbers([named] if named is not None else given)
    axes = watch.axes_of(out)
    return [(sizes, axes[-len(sizes) :])] if sizes and len(sizes) <= len(axes) else []


def _unflatten(watch: Watch, args: Any, kwargs: Any, out: Any) -> Found:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    sizes = _numbers([kwargs.get("sizes", args[-1])])
    if not isinstance(dim, int):
        return []
    first = dim % args[0].dim()
    return [(sizes, watch.axes_of(out)[first : first + len(sizes)])]


def _parts(watch: Watch, args: Any, kwargs: Any, out: Any) -> Found:
    """split: one number for all parts, or a list of them."""
    sizes = kwargs.get("split_size_or_sections", kwargs.get("split_size", kwargs.get("split_sizes", args[1] if len(args) > 1 else None)))
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    axes = [watch.axes_of(part)[dim] for part in out]
    if isinstance(sizes, int):
        return [([sizes], axes[:1])]
    return [(_numbers([sizes]), axes)] if isinstance(sizes, list | tuple) else []


def _range(watch: Watch, args: Any, kwargs: Any, out: Any) -> Found:
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


def _narrow(watch: Watch, args: Any, kwargs: Any, out: Any) -> Found:
    dim, length = kwargs.get("dim", args[1] if len(args) > 1 else 0), kwargs.get("length", args[-1])
    return [([length], [watch.axes_of(out)[dim]])] if isinstance(dim, int) and isinstance(length, int) else []


def _groups(watch: Watch, args: Any, kwargs: Any, out: Any) -> Found:
    """group_norm(x, groups)."""
    groups = kwargs.get("num_groups", args[1] if len(args) > 1 else 1)
    pair = watch.axes.factor(watch.axes_of(args[0])[1], groups)
    return [([groups], [pair[0]])] if pair else []


def _conv(watch: Watch, args: Any, kwargs: Any, out: Any) -> Found:
    """conv(x, weight, bias, stride, padding, dilation, groups)."""
    groups = kwargs.get("groups", args[-1] if len(args) > 6 else 1)
    dim = -(args[1].dim() - 1) if len(args) > 1 else 1
    if not isinstance(groups, int) or groups == 1:
        return []
    pair = watch.axes.factor(watch.axes_of(args[0])[dim], groups)
    return [([groups], [pair[0]])] if pair else []


def _normal_shape(watch: Watch, args: Any, kwargs: Any, out: Any) -> Found:
    sizes = _numbers([kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())])
    return [(sizes, watch.axes_of(out)[-len(sizes) :])] if sizes else []


_NOTES: dict[str, Any] = {
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
    "group_norm": _groups,
}
