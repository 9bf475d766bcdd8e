"""What the teacher says about windows of text that come again: with every epoch, and with every look at the held-out data.

On a processor the teacher's forward is a quarter of a step. Its answer does not change, and with the head left out (`recover.head`) it is
small: one hidden state a token, 1 kB for SmolLM2 where the logits would be 196 kB. Every window is answered by itself, so that an
answer does not depend on the batch in which it was first asked for, and a run that was killed goes on to the same bits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lessen.recover.head import lowered

ROOM = 1 << 30


class Answers:
    """Hidden states of a teacher by window of token ids.

    Args:
        ask: from a batch of one window to its hidden states, "1 seq dim".
        room: bytes that may be kept; what does not fit is asked for again.

    >>> asked = []
    >>> answers = Answers(lambda window: asked.append(window) or torch.ones(1, 2, 3))
    >>> answers.of(torch.tensor([[1, 2], [3, 4], [1, 2]])).shape, len(asked)
    (torch.Size([3, 2, 3]), 2)
    """

    def __init__(self, ask: Callable[[Tensor], Tensor], room: int = ROOM):
        self.ask, self.room = ask, room
        self.kept: dict[bytes, Tensor] = {}

    @staticmethod
    def fit(batch: Any) -> bool:
        """Whether a batch is windows of token ids on a processor; an accelerator answers faster than it looks up."""
        return isinstance(batch, Tensor) and batch.ndim == 2 and not batch.is_floating_point() and batch.device.type == "cpu"

    def of(self, batch: Tensor) -> Tensor:
        """Hidden states of a batch, "batch seq dim", rounded as a product with the head would round them."""
        return torch.cat([self._row(row) for row in batch])

    def _row(self, row: Tensor) -> Tensor:
        key = row.numpy().tobytes()
        if (known := self.kept.get(key)) is not None:
            return known
        found = lowered(self.ask(row[None]))
        assert found is not None
        size = found.numel() * found.element_size()
        if size <= self.room:
            self.room -= size
            self.kept[key] = found
        return found
