"""What arrives at the layers of a mapped network, while it computes digitally."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lessen.analog.mapping import Mapped, run_batch
from lessen.core.modules import evaluating
from lessen.errors import UsageError


def listen(
    mapped: Mapped, hear: Callable[[str, Tensor, Tensor], None], batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] | None = None
) -> None:
    """Run batches digitally and tell of the inputs of every layer.

    Args:
        mapped: the network; ranges and tiles stay as they are.
        hear: called with the name of a layer, its inputs `vector (group input)`, and its weight.
        batches: inputs.
        run: how the model is called with a batch.
    """
    batches = list(batches)
    if not batches:
        raise UsageError("calibration", got="no batch", wanted="at least one")

    def listener(name: str) -> Callable[[Tensor, Tensor], None]:
        return lambda x, weight: hear(name, x, weight)

    try:
        for name in mapped.layers:
            tiles = mapped.tiles(name)
            tiles.mode, tiles.listener = "digital", listener(name)
        with torch.no_grad(), evaluating(mapped.model):
            for batch in batches:
                (run or run_batch)(mapped.model, batch)
    finally:
        for name in mapped.layers:
            tiles = mapped.tiles(name)
            tiles.mode, tiles.listener = "run", None
