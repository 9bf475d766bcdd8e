"""Which samples make up which step.

Every epoch is a permutation of its own, drawn from the seed and the number of the epoch, and the steps read one permutation after the
other. So the samples of step 1000 follow from the number 1000: a resumed run needs no position to be stored, and two processes that take
turns see together what one process sees alone.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lessen.errors import UsageError


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    random = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(count, generator=random).tolist()


def indices(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Samples of one step.

    Args:
        step: number of the step, from 0.
        batch: samples of a step.
        count: samples in all.
        seed: of the order.

    >>> sorted(indices(0, 2, 4, seed=0) + indices(1, 2, 4, seed=0))
    [0, 1, 2, 3]
    """
    places = range(step * batch, (step + 1) * batch)
    return [_permutation(count, seed, place // count)[place % count] for place in places]


def pieces(chosen: Sequence[int], rank: int, ranks: int, micro: int | None) -> list[list[int]]:
    """The share of one process, cut into what it computes at a time.

    >>> pieces([5, 6, 7, 8], rank=1, ranks=2, micro=1)
    [[7], [8]]
    """
    share = len(chosen) // ranks
    mine = list(chosen[rank * share : (rank + 1) * share])
    size = micro or share
    return [mine[start : start + size] for start in range(0, share, size)]


def collate(data: Any, chosen: Sequence[int]) -> Any:
    """A batch of some samples: rows of a tensor, or samples of a data set stacked."""
    if isinstance(data, Tensor):
        return data[torch.tensor(chosen)]
    return _stack([data[i] for i in chosen])


def _stack(found: Sequence[Any]) -> Any:
    first = found[0]
    if isinstance(first, Mapping):
        return {key: _stack([sample[key] for sample in found]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(_stack(column) for column in zip(*found, strict=True))
    if isinstance(first, Tensor):
        if any(sample.shape != first.shape for sample in found):
            raise UsageError("recover", got="samples of different shapes", wanted="one shape", remedy="pad them, or pass batch=1")
        return torch.stack(list(found))
    return torch.tensor(found) if isinstance(first, int | float) else list(found)


def moved(batch: Any, device: torch.device) -> Any:
    """A batch on a device."""
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(moved(value, device) for value in batch)
    return batch.to(device) if isinstance(batch, Tensor) else batch


def fingerprint(data: Any) -> str:
    """sha256 of the number of samples, and of the first, middle and last of them."""
    from hashlib import sha256

    state = sha256(str(len(data)).encode())
    for place in {0, len(data) // 2, len(data) - 1}:
        for tensor in _tensors(data[place]):
            state.update(f"{place}{tuple(tensor.shape)}{tensor.dtype}".encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _tensors(sample: Any) -> list[Tensor]:
    if isinstance(sample, Mapping):
        return [tensor for value in sample.values() for tensor in _tensors(value)]
    if isinstance(sample, tuple | list):
        return [tensor for value in sample for tensor in _tensors(value)]
    return [sample] if isinstance(sample, Tensor) else [torch.tensor(sample)] if isinstance(sample, int | float) else []
