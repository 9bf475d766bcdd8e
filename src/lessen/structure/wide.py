"""Running a model in float64 without a second copy of it: weights are widened as they are used.

A proof wants sums whose rounding is far below what a wrong slice makes. A whole copy in float64 takes twice the memory of a float32 model,
four times that of one in half precision. But a model is a list of blocks that run one after the other: what lies outside of the blocks is
widened for the whole run, the weights of a block while it runs. So a model of N bytes takes a little more than N, not 3N or 5N, and the
arithmetic is the same.

`WideCasts` keeps in float64 what the code itself would compute in less, as norms of language models do, so that a difference which such
rounding makes is told from one that a slice makes. `GroupedProducts` multiplies experts by their matrices in float64, which the kernel
behind `torch.nn.functional.grouped_mm` does not.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lessen.environment import available_bytes
from lessen.structure.state import untouched

WHOLE = 20_000_000
"""Parameters up to which all are widened at once, so that it does not matter who uses whose weights."""
_SHARE = 0.8
"""Of the available memory, what a proof may take: activations and the kernels' own buffers need some."""


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and float64 while it lasts; the model, which must have no gradients, is afterwards what it was."""
    with untouched(model), ExitStack() as stack:
        blocks = _blocks(model)
        inside = {id(p) for block in blocks for p in block.parameters()}
        stack.enter_context(_wide(p for p in model.parameters() if id(p) not in inside))
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.double()
        for block in blocks:
            _follow(block, stack)
        yield


def _follow(block: nn.Module, stack: ExitStack) -> None:
    """Widen a block while it runs."""
    open_ones: list[ExitStack] = []

    def enter(module: nn.Module, args: Any) -> None:
        open_ones.append(ExitStack())
        open_ones[-1].enter_context(_wide(module.parameters()))

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if open_ones:
            open_ones.pop().close()

    stack.callback(block.register_forward_pre_hook(enter, prepend=True).remove)
    stack.callback(block.register_forward_hook(leave, always_call=True).remove)


@contextmanager
def _wide(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    before = [(p, p.data) for p in parameters if p.is_floating_point() and p.dtype != torch.float64]
    try:
        for parameter, data in before:
            parameter.data = data.double()
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Entries of the outermost lists of modules, of a model that is too large to be widened at once; none that shares weights."""
    if sum(p.numel() for p in model.parameters()) <= WHOLE:
        return []
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [module for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    holders = _holders(model)
    return [block for module in outer for block in module if _holders(block).items() <= holders.items()]


def _holders(model: nn.Module) -> dict[int, int]:
    """For each parameter, how many modules call it theirs."""
    return Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))


def needed(model: nn.Module) -> int:
    """Bytes that a proof takes beside the model and the smaller one: a masked copy, and what is widened at a time."""
    blocks = _blocks(model)
    inside = {id(p) for block in blocks for p in block.parameters()}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    largest = max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0)
    return sum(p.numel() * p.element_size() for p in model.parameters()) + 8 * (rest + largest)


def fits(model: nn.Module) -> str | None:
    """None if there is memory for a proof, else how much is missing, in words."""
    first = next(model.parameters(), None)
    if first is None:
        return None
    free = torch.cuda.mem_get_info(first.device)[0] if first.is_cuda else available_bytes()
    if free is None or needed(model) <= _SHARE * free:
        return None
    return f"it would take {needed(model) / 1e9:.3g} GB of the {free / 1e9:.3g} GB that are free"


class GroupedProducts(TorchDispatchMode):
    """`grouped_mm` in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name == "aten::_grouped_mm" and args[0].dtype == torch.float64:
            return grouped(*args, **kwargs)
        return func(*args, **kwargs)


def grouped(
    left: Tensor, right: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Products of rows with the matrices of their groups, (t, k) x (e, k, n); of matrices one by one; or of columns, (m, t) x (t, n).

    >>> rows, experts = torch.ones(3, 2).double(), torch.stack([torch.eye(2), 2 * torch.eye(2)]).double()
    >>> grouped(rows, experts, torch.tensor([1, 3])).tolist()
    [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    """
    if offs is None:
        return left @ right
    ends = offs.tolist()
    spans = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if left.dim() == 2 and right.dim() == 3:
        out = left.new_zeros(left.shape[0], right.shape[2])
        for span, matrix in zip(spans, right, strict=True):
            out[span] = left[span] @ matrix
        return out
    if left.dim() == 3:
        return torch.cat([matrix @ right[:, span] for span, matrix in zip(spans, left, strict=True)], 1)
    return torch.stack([left[:, span] @ right[span] for span in spans])


class WideCasts(TorchDispatchMode):
    """Casts to fewer bits, and tensors made in fewer, are float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("dtype")
        if isinstance(wanted, torch.dtype) and wanted.is_floating_point:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
