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
def untouched(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module as it was: training flags, attributes, buffers, hooks, settings.

    What a forward counts or collects for itself (`self.steps += 1`, a list of losses) is as if it had not run.

    >>> class Counting(nn.Module):
    ...     seen = ()
    ...     def forward(self, x):
    ...         self.seen += (1,)
    ...         return x
    >>> model = Counting()
    >>> with untouched(model):
    ...     _ = model(torch.zeros(1))
    >>> model.seen, model.training
    ((), True)
    """
    modules = [module for model in models for module in model.modules()]
    before = [(module, copy.copy(module.__dict__), _contents(module)) for module in dict.fromkeys(modules)]
    values = [(buffer, buffer._version, buffer.clone()) for model in models for buffer in model.buffers()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, attributes, contents in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for held, content in contents:
                held.clear()
                held.extend(content) if isinstance(held, list) else held.update(content)
        for buffer, version, value in values:
            if buffer._version != version and not buffer.is_meta:
                buffer.copy_(value)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """What the lists, dictionaries and sets of a module hold (its hooks are in some), and the attributes of its configurations.

    A model may change them as it runs for the first time: those of transformers put hooks into their parts, and a flag beside them.
    """
    found: dict[int, Any] = {}
    open_ones = [value for key, value in module.__dict__.items() if key != "_modules"]
    while open_ones:
        value = open_ones.pop()
        held = vars(value) if is_configuration(value) else value
        if isinstance(held, dict | list | set) and id(held) not in found:
            found[id(held)] = held
            open_ones += held.values() if isinstance(held, dict) else held
        elif isinstance(held, tuple):
            open_ones += [item for item in held if isinstance(item, dict | list | set)]
    return [(held, copy.copy(held)) for held in found.values()]
