"""What the training loop asks of a module: what to train, in which mode and precision, and everything put back afterwards."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lessen.core.modules import block_lists
from lessen.errors import UsageError


def trainable(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Names of the parameters to train: those that contain a pattern; without patterns the adapters, or all if there are none.

    Raises:
        UsageError: no parameter has such a name.
    """
    names = [name for name, p in model.named_parameters() if p.is_floating_point()]
    adapters = [name for name in names if ".parametrizations." in name and not name.endswith(".original")]
    found = [name for name in names if any(p in name for p in patterns)] if patterns else adapters or names
    if not found:
        raise UsageError("recover", got=f"train={tuple(patterns)}", wanted="parts of names of parameters", remedy=f"such as {names[0]}")
    return frozenset(found)


def precision(wanted: str | None, device: torch.device) -> str:
    """What matrix products are computed in: what is wanted, else bfloat16 where the processor multiplies it."""
    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"
    return "bfloat16"


def autocast(wanted: str | None, device: torch.device) -> torch.autocast:
    """Matrix products in the precision that `precision` gives, while weights and sums stay as they are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(wanted, device) == "bfloat16")


def training_modes(student: nn.Module, teacher: nn.Module | None, norms: bool) -> None:
    """No dropout on either side; batch norms of the student follow the data if wanted."""
    student.eval()
    if teacher is not None:
        teacher.eval()
    if norms:
        for module in student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Randomness inside models from this seed, and the global state as it was afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed % (1 << 63))
        yield


def bare(model: nn.Module) -> nn.Module:
    """A copy of the module without memory for its parameters."""
    memo: Any = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def repeated(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model: what its outermost module lists hold."""
    return [block for blocks in block_lists(model).values() for block in blocks]
