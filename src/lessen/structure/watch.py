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

from collections.abc import Iterator, Mapping, Sequence
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
from lessen.structure.numbers import NOTES, VALUES
from lessen.structure.rules import RULES, Call, Rule, elementwise, is_pointwise
from lessen.structure.rules.call import Book
from lessen.structure.sizes import Formula, Size, attributes_in, formula_of, shape_of
from lessen.structure.zeros import Zeros, memory


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


class _Values(list[Any]):
    """Formulae whose value was used, each with the module that ran."""

    def __init__(self, watch: "Watch"):
        super().__init__()
        self.watch = watch
        self.where: dict[tuple[str, Formula, int], None] = {}

    def append(self, formula: Formula) -> None:
        """Note a formula, or a number that has one."""
        number = int(formula) if isinstance(formula, Size) else formula.size if isinstance(formula, Axis) else 0
        self.where[self.watch.module, formula_of(formula) if isinstance(formula, Size) else formula, number] = None


class Watch(Book):
    """Everything that is known while a model runs.

    Attributes:
        axes: where axes are made.
        ran: paths of modules in the order in which they were first entered.
        operations: (module, operation), each once.
        failed: path of the module that was running when a pass ended in an exception.
        inputs: ids of the tensors that the model was called with.
        residual: blocks of a `ModuleList` whose output is something that came in, plus something.
    """

    def __init__(self, names: Mapping[nn.Module, str], rules: Mapping[str, Rule], freeze: Sequence[str] = ()):
        self.axes = Axes()
        self.rules = {**RULES, **rules}
        self.names, self.freeze = names, freeze
        self.failed = ""
        self.blocks = {path for module, path in names.items() if _is_block(module, path, names)}
        self.stack: list[str] = []
        self.ran: dict[str, None] = {}
        self.operations: dict[tuple[str, str], None] = {}
        self.inputs: set[int] = set()
        self.residual: dict[str, None] = {}
        self.notes: dict[str, None] = {}
        self.sites: list[Site] = []
        self.values = _Values(self)
        self.touched: set[int] = set()
        self._of: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._static: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._memory: dict[int, list[Tensor]] = {}
        self._lines: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._clock = 0
        self.zeros = Zeros()

    def constants(self) -> list[Site]:
        """Sizes whose values were used in arithmetic, as sites that cannot change, and those that were compared, which stay equal."""
        found: list[Site] = []
        for module, formula, number in self.values.where:
            compared = formula[1:] if isinstance(formula, tuple) and formula[0] == "==" else ()
            for one, other in (compared, compared[::-1]) if compared else ():
                if isinstance(other, Axis) and any(True for _ in attributes_in(one)):
                    found.append(Site(module, "comparison", (Size(other.size, one),), (other,)))
            if number > 0:
                found.append(Site(module, "arithmetic", (Size(number, formula),), (self.axes.leaf(number, pin="its value is used"),)))
        return found

    @property
    def module(self) -> str:
        """Path of the module that is running."""
        return self.stack[-1] if self.stack else ""

    def name(self, tensor: Tensor, axes: Sequence[Axis], static: bool = False) -> None:
        """Enter a tensor with its axes."""
        self._of[tensor] = list(axes)
        self._static[tensor] = static
        if static:
            self.zeros.name(tensor, axes)
            self._memory.setdefault(memory(tensor), []).append(tensor)

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

    def is_input(self, tensor: Tensor) -> bool:
        """Whether the tensor is an input of the model."""
        return id(tensor) in self.inputs

    def _line(self, tensor: Tensor) -> frozenset[int]:
        """Serial numbers of the activations that the tensor is a sum of, its own included."""
        found = self._lines.get(tensor)
        if found is None:
            self._clock += 1
            found = self._lines[tensor] = frozenset() if self.is_static(tensor) else frozenset([self._clock])
        return found

    def _descend(self, call: Call, outs: Sequence[Tensor]) -> None:
        """Follow the residual stream: sums, and the same elements in another form."""
        line: frozenset[int] = frozenset()
        if call.name in _SUMS:
            line = line.union(*(self._line(t) for t in call.tensors()))
        elif call.name in _FORMS:
            line = self._line(call["self"])
        for tensor in outs:
            self._clock += 1
            self._lines[tensor] = line | {self._clock}

    def _alias(self, tensor: Tensor) -> list[Axis] | None:
        """Another tensor object over a parameter's memory (`weight.data`)."""
        for known in self._memory.get(memory(tensor), []):
            if known.shape == tensor.shape and known.stride() == tensor.stride() and known.storage_offset() == tensor.storage_offset():
                self._static[tensor] = True
                self.zeros.name(tensor, self._of[known])
                return self._of[known]
        return None

    def see(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Apply the rule of one executed operation."""
        self.axes.cause = f"{func._schema.name.rpartition('::')[2].strip('_')} in {self.module or 'the model'}"
        outs = [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, Tensor)]
        call = Call(func, args, kwargs, out, self)
        self.operations[self.module, call.name] = None
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
        if not static:
            self._descend(call, outs)
        self.zeros.see(call, outs)

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
        if before is not None and call.name not in _REFORMED:
            for old, new in zip(before, row, strict=True):
                self.axes.unify(old, new)
            self._static[tensor] = static and self.is_static(tensor)
        else:
            self.name(tensor, row)
            self._static[tensor] = static

    def _unknown(self, call: Call, tensors: Sequence[Tensor], outs: Sequence[Tensor]) -> Any:
        frozen = next((name for name in self.freeze if f"{self.module}.".startswith(f"{name}.") or not name), None)
        if frozen is not None:
            for axis in (axis for tensor in tensors for axis in self.axes_of(tensor)):
                self.axes.pin(axis, f"{call.name} in {self.module} has no rule, and {frozen or 'everything'} is frozen")
        if any(not pinned(axis) for tensor in tensors for axis in self.axes_of(tensor)):
            raise LessenError(
                f"{call.name} in {self.module or 'the model'}",
                got="an operation without a rule",
                wanted="to know which axes of its outputs are axes of its inputs",
                remedy=(f"pass freeze={[self.module]} to leave it alone, or " if self.module else "pass ") + _RULE.format(call.name),
            )
        self.notes[f"{call.name} in {self.module or 'the model'} has no rule; all that it touches was held already"] = None
        axes = [[call.fixed(n, "has no rule") for n in t.shape] for t in outs]
        return axes if isinstance(call.out, list | tuple) else axes[0]

    @contextmanager
    def following(self) -> Any:
        """Know which module is running, by hooks that every module shares and that are taken away again."""
        since: list[int] = []

        def enter(module: nn.Module, args: Any) -> None:
            path = self.names.get(module)
            self.stack.append(self.module if path is None else path)
            for tensor in tensors_in(args):
                self._line(tensor)
            since.append(self._clock)
            self.failed = self.module
            if path is not None:
                self.ran[path] = None

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if not self.stack:
                return
            path, start = self.stack.pop(), since.pop()
            if out is not None:
                self.failed = self.module
            last = next(tensors_in(out), None)
            if path in self.blocks and last is not None and any(0 < serial <= start for serial in self._line(last)):
                self.residual[path] = None

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            stack.callback(register_module_forward_hook(leave, always_call=True).remove)
            stack.enter_context(_Calls(self))
            stack.enter_context(_Operations(self))
            yield


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors_in(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from tensors_in(v)


_REFORMED = frozenset(f"aten.{name}_" for name in ("transpose", "t", "squeeze", "unsqueeze", "as_strided", "swapaxes", "set", "resize"))
"""In-place operations that give their tensor another shape."""
_RULE = "a rule: rules={{{!r}: lambda call: call.of('self')}} if the output has the axes of its first argument"
_SUMS = frozenset(("aten.add", "aten.add_"))
_FORMS = frozenset(
    f"aten.{name}" for name in ("view", "_unsafe_view", "clone", "_to_copy", "permute", "transpose", "unsqueeze", "squeeze", "alias")
)


def _is_block(module: nn.Module, path: str, names: Mapping[nn.Module, str]) -> bool:
    parent, _, number = path.rpartition(".")
    return number.isdigit() and any(isinstance(m, nn.ModuleList) and p == parent and len(m) > 1 for m, p in names.items())


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


_SHAPE = torch.Tensor.shape.__get__  # pyright: ignore[reportAttributeAccessIssue]


_LEAVING = ("numpy", "tolist", "__array__", "__dlpack__")
"""Calls after which nobody can see what becomes of a tensor's values: all of its channels must stay."""


def _counting(args: Any) -> bool:
    """Whether tensors of whole numbers meet sizes of tensors: positions and counts, which after a cut are reckoned anew."""
    sizes = [value for value in args if isinstance(value, Size)]
    whole = all(not value.is_floating_point() and not value.is_complex() for value in args if isinstance(value, torch.Tensor))
    return whole and not any(attribute for value in sizes for attribute in attributes_in(value.formula))


class _Calls(TorchFunctionMode):
    """Python calls that are given sizes as numbers."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("__get__", "size") and (func == _SHAPE or func == torch.Tensor.size):
            axes = self.watch.axes_of(args[0])
            if isinstance(out, torch.Size):
                return shape_of(out, axes, self.watch.values)
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return Size(out, axes[dim], self.watch.values) if isinstance(dim, int) else out
        if name in _LEAVING and isinstance(args[0], torch.Tensor):
            for axis in self.watch.axes_of(args[0]):
                self.watch.axes.pin(axis, f"{name} takes its values out of what is traced, in {self.watch.module or 'the model'}")
        if name in VALUES and not _counting(args):
            for value in (*args, *kwargs.values()):
                if isinstance(value, Size):
                    value.use()
        note = NOTES.get(name)
        if note is not None:
            for sizes, axes in note(self.watch, args, kwargs, out):
                if any(n > 1 for n in sizes):
                    self.watch.sites.append(Site(self.watch.module, name.strip("_"), tuple(sizes), tuple(axes)))
        return out
