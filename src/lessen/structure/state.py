"""The state of a model and of PyTorch while a model is looked at, and that both are afterwards what they were."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lessen.structure.sizes import is_configuration


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Composite operations taken apart, so that rules see products and sums; and no numbers from earlier calls."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    with sdpa_kernel(SDPBackend.MATH), torch.random.fork_rng(devices=[]), _einops_computes():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            # The public switch sets other flags along, with a warning on machines that do not have them.
            torch._C._set_mkldnn_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch._C._set_mkldnn_enabled(onednn)


@contextmanager
def _einops_computes() -> Iterator[None]:
    """Let einops work out shapes anew in every call: numbers that it has kept come from other tensors of the same sizes."""
    einops: Any = sys.modules.get("einops.einops")
    kept = getattr(einops, "_reconstruct_from_shape", None)
    computed = getattr(kept, "__wrapped__", None)
    if computed is None:
        yield
        return
    try:
        einops._reconstruct_from_shape = computed
        yield
    finally:
        einops._reconstruct_from_shape = kept


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module as it was: training flags, attributes, buffers, hooks, settings."""
    before = {module: (copy.copy(module.__dict__), _contents(module)) for module in model.modules()}
    values = {buffer: buffer.clone() for buffer in model.buffers()}
    try:
        model.eval()
        yield
    finally:
        for module, (attributes, contents) in before.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for held, content in contents:
                held.clear()
                held.extend(content) if isinstance(held, list) else held.update(content)
        for buffer, value in values.items():
            if buffer._version != value._version and not buffer.is_meta:
                buffer.copy_(value)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """What the lists, dictionaries and sets of a module hold (its hooks are in some), and the attributes of its configurations.

    A model may change them as it runs for the first time: those of transformers put hooks into their parts, and a flag beside them.
    """
    attributes = [value for key, value in module.__dict__.items() if key != "_modules"]
    held = [value for value in attributes if isinstance(value, dict | list | set)]
    held += [vars(value) for value in attributes if is_configuration(value)]
    return [(value, copy.copy(value)) for value in held]
