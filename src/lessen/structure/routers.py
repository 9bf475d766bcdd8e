"""Masked experts are not chosen: what a mask must say to a router so that the network with fewer experts proves it.

A router makes a number for every expert, weighs the numbers against each other and takes the largest. Rows of zeros make a number of zero,
which may well be the largest, and has its share in any softmax. A network without the expert has no number at all, and that is minus
infinity: it is never among the largest, and its share of a softmax is exactly zero. So while the masked network runs, the products with a
router's matrix are minus infinity where experts are gone, and so are the numbers that a router adds to choose by.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lessen.core.edit import Edit, Keep
from lessen.structure.zeros import memory


class Unchosen(TorchDispatchMode):
    """While it lasts, products with masked routers are minus infinity for experts that are gone.

    Args:
        masked: the masked model; what its routers add is changed at once.
        edits: that it was masked by.
    """

    def __init__(self, masked: nn.Module, edits: Sequence[Edit]):
        super().__init__()
        self._gone: dict[int, tuple[int, Tensor]] = {}
        self._copies: list[Tensor] = []  # kept, so that nothing else comes to lie where they lie
        tensors: Mapping[str, Tensor] = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
        for edit in edits:
            if isinstance(edit, Keep) and edit.unit.kind == "experts":
                gone = torch.ones(edit.unit.size, dtype=torch.bool).index_fill(0, edit.indices.cpu(), False).nonzero()[:, 0]
                for part in edit.unit.slices:
                    self._enter(tensors[part.name], edit.unit.size, gone)

    def _enter(self, tensor: Tensor, size: int, gone: Tensor) -> None:
        if tensor.numel() == size and tensor.is_floating_point():
            tensor.data.view(-1).index_fill_(0, gone, float("-inf"))
        elif tensor.dim() == 2:
            self._gone[memory(tensor)] = size, gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = next((self._gone[m] for a in args if isinstance(a, Tensor) and (m := memory(a)) in self._gone), None)
        if known is None or not isinstance(out, Tensor):
            return out
        name = func._schema.name.rpartition("::")[2]
        size, gone = known
        if name in ("mm", "addmm", "linear", "bmm", "baddbmm") and out.shape[-1] == size:
            return out.index_fill(-1, gone, float("-inf"))
        if name in ("_to_copy", "clone") and out.dim() == 2:
            self._gone[memory(out)] = known
            self._copies.append(out)
        return out
