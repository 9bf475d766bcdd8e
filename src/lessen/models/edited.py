"""A checkpoint with edits on top: every tensor is read from the base and edited on the way, so nothing is held but the edits.

Names, shapes, configuration and skeleton are those of the edited model: blocks after a dropped one are renumbered, and biases appear
where edits put them. Where the architecture switches biases for a whole group of linears (Llama's `mlp_bias`), the others of the group
are zeros, so that stock loaders take the result.
"""

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.core.apply import apply, carry_out
from lessen.core.config import bias_groups, config_changes
from lessen.core.edit import Edit, Quantize
from lessen.core.trace import Traced, final_name, trace
from lessen.errors import LessenError
from lessen.models.checkpoint import Checkpoint


class Edited:
    """See `Checkpoint`.

    A quantized tensor is read as its codes decode, in float32 even if the base holds float16 or bfloat16: rounding to fewer digits is
    for the runtime to do.

    Args:
        base: where tensors are read.
        edits: what to do to them, in order (see `lessen.core.trace`).

    Raises:
        LessenError: the edits do not fit the base.
    """

    def __init__(self, base: Checkpoint, edits: Sequence[Edit]):
        self.base = base
        self.label = base.label
        self.size_bytes = base.size_bytes
        shapes = {name: base.shape(name) for name in base.names}
        self._edits = tuple(edits)
        self._traced = trace(shapes, edits, base.tied, tuple(bias_groups(base.config).values()))
        self.names = list(self._traced)
        self.config: dict[str, Any] = {**base.config, **config_changes(base.config, edits, self._traced)}
        now = {tensor.place: name for name, tensor in self._traced.items()}
        followed = {alias: final_name(alias, edits) for alias in base.tied}
        self.tied = {new: now[base.tied[alias]] for alias, new in followed.items() if new is not None and base.tied[alias] in now}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).after

    def read(self, name: str) -> Tensor:
        tensor = self._find(name)
        if tensor.new:
            weight = self.base.read(f"{tensor.place.removesuffix('bias')}weight")
            return carry_out(weight.new_zeros(tensor.shape), tensor.steps)
        before = self.base.read(tensor.place)
        if before.dtype in (torch.float16, torch.bfloat16) and any(isinstance(edit, Quantize) for _, edit in tensor.steps):
            before = before.float()
        return carry_out(before, tensor.steps)

    def quantized(self, name: str) -> Quantize | None:
        name = self.tied.get(name, name)
        tensor = self._find(name)
        last = tensor.steps[-1][1] if tensor.steps else self.base.quantized(tensor.place) if not tensor.new else None
        return Quantize(name, last.format, last.codes) if isinstance(last, Quantize) else None

    def skeleton(self) -> nn.Module:
        return apply(self.base.skeleton(), self._edits)

    def tokenizer(self) -> Any:
        return self.base.tokenizer()

    def copy_tokenizer(self, folder: Path) -> None:
        self.base.copy_tokenizer(folder)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        state = sha256(self.base.fingerprint().encode())
        for edit in self._edits:
            for tensor in _tensors(edit):
                state.update(f"{type(edit).__name__}{tuple(tensor.shape)}{tensor.dtype}".encode())
                state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            state.update(str(getattr(edit, "name", None) or edit.unit.name).encode())  # pyright: ignore[reportAttributeAccessIssue]
        return state.hexdigest()

    def _find(self, name: str) -> Traced:
        name = self.tied.get(name, name)
        if name not in self._traced:
            raise LessenError(self.label, got=f"a request for {name}", wanted=f"one of its {len(self.names)} tensors")
        return self._traced[name]


def _tensors(edit: Edit) -> list[Tensor]:
    parts = [getattr(edit, key, None) for key in ("indices", "weight", "u", "v")]
    if isinstance(edit, Quantize):
        parts += [edit.codes.values, edit.codes.scale, edit.codes.zero]
    return [part for part in parts if part is not None]
