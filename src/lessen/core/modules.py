"""What is borrowed of a plain module and given back: its mode, its gradients, an ear at its parts; and where its blocks lie."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from lessen.errors import LessenError, one_line

Hear = Callable[[str, tuple[Any, ...], Any], None]
"""Called with the name of a module, the positional arguments of a call, and what it returned (None before it ran)."""


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model.

    Raises:
        LessenError: it holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        remedy = "keep what the message speaks of out of its attributes"
        if any(hasattr(module, "weight_g") for module in model.modules()):
            remedy = "nn.utils.weight_norm leaves such a tensor: use nn.utils.parametrizations.weight_norm"
        raise LessenError(
            type(model).__name__, got=one_line(error)[:120], wanted="a model that copy.deepcopy takes", remedy=remedy
        ) from error


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while, and afterwards every module in the mode that it was in."""
    modes = _modes(models)
    try:
        for model in models:
            model.eval()
        yield
    finally:
        _give_back(modes)


@contextmanager
def as_it_was(*models: nn.Module) -> Iterator[None]:
    """No gradients at first; afterwards modes, gradients and `requires_grad` flags are what they were."""
    modes = _modes(models)
    before = [(p, p.requires_grad, p.grad) for model in models for p in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
        yield
    finally:
        _give_back(modes)
        for parameter, wanted, gradient in before:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


@contextmanager
def plain_experts(*models: nn.Module) -> Iterator[None]:
    """Packs of experts computed one by one for the while, as far as transformers lets one choose.

    The fused kernels take no float64, and in them nobody can see which rows belong to one expert.
    """
    with _eager(models, EXPERTS, "_can_set_experts_implementation"):
        yield


@contextmanager
def plain_attention(*models: nn.Module) -> Iterator[None]:
    """Attention as products and a softmax for the while, as far as transformers lets one choose.

    The fused kernel repeats keys and values by itself where there is no mask: the number that says how often is not asked for there, and
    is with padding. So what is right here is right there, and not the other way round.
    """
    with _eager(models, ATTENTION, "_can_set_attn_implementation"):
        yield


EXPERTS = "_experts_implementation_internal"
"""Where a configuration of transformers says how packs of experts are computed."""
ATTENTION = "_attn_implementation_internal"
"""Where it says how attention is computed."""


@contextmanager
def _eager(models: tuple[nn.Module, ...], key: str, may: str) -> Iterator[None]:
    found: dict[int, tuple[Any, str | None]] = {}
    for module in (module for model in models for module in model.modules()):
        own = getattr(getattr(module, "config", None), "__dict__", {})
        if id(own) not in found and key in own and getattr(module, may, bool)():
            found[id(own)] = own, own[key]
    try:
        for own, _ in found.values():
            own[key] = "eager"
        yield
    finally:
        for own, before in found.values():
            own[key] = before


def _modes(models: tuple[nn.Module, ...]) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for model in models for module in model.modules()]


def _give_back(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


@contextmanager
def heard(modules: Mapping[str, nn.Module], hear: Hear, before: bool = False) -> Iterator[None]:
    """For the while, every call of the modules is told; with `before`, before it runs.

    >>> import torch
    >>> relu = nn.ReLU()
    >>> with heard({"first": relu}, lambda name, args, output: print(name, args, output)):
    ...     _ = relu(torch.tensor(-1))
    first (tensor(-1),) tensor(0)
    """
    handles = []
    try:
        for name, module in modules.items():

            def note(_: nn.Module, args: tuple[Any, ...], output: Any = None, name: str = name) -> None:
                hear(name, args, output)

            handles.append(module.register_forward_pre_hook(note) if before else module.register_forward_hook(note))
        yield
    finally:
        for handle in handles:
            handle.remove()


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Lists of blocks by their paths: every `ModuleList` that lies in no other.

    >>> list(block_lists(nn.Sequential(nn.ReLU(), nn.ModuleList([nn.ModuleList([nn.ReLU()])]))))
    ['1']
    """
    lists: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in lists):
            lists[path] = module
    return lists
