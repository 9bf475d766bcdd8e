"""What a model answers: the logits it gives for token windows, without ever holding them all.

A checkpoint is run block by block over all windows; what stays are the hidden states after the last block, from which the head gives the
logits of any piece on demand. Memory is one block, the hidden states of the text, and one piece of logits, whatever the depth.

A module that is already in memory (a model opened by transformers, or any callable from tokens to logits) is simply called, window by
window: so the evaluator also scores models that lessen did not make, in runtimes it does not know.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lessen.core.event import Event, Listener
from lessen.errors import LessenError
from lessen.models.checkpoint import Checkpoint

Tokens = Mapping[str, Tensor]
"""Token ids "windows seq" by name of the text."""
Ref = Any
"""A `Checkpoint`, what `open_checkpoint` takes, a module, a callable from tokens "batch seq" to logits "batch seq vocab", or `Answers`."""

_TOKENS_AT_ONCE = 2048


class Answers(Protocol):
    """Logits on demand for the windows of each text."""

    label: str

    def logits(self, text: str, window: int, start: int, stop: int) -> Tensor:
        """Logits at positions start to stop of a window, "token vocab"."""
        ...


def answers(
    model: Ref, tokens: Tokens, *, precision: torch.dtype | None = None, device: str = "cpu", on_event: Listener | None = None
) -> Answers:
    """Prepare a model's answers to all windows.

    Args:
        model: see `Ref`.
        tokens: "windows seq" by name.
        precision: round weights, and hidden states between blocks, to this type first (the noise floor); checkpoints only.
        device: where to compute.
        on_event: hears of every block.

    Raises:
        LessenError: the model cannot be opened, or a token id lies outside its vocabulary.
    """
    checkpoint: Any = model  # what is none yet becomes one below, or is called
    if precision is None and (isinstance(model, nn.Module) or (callable(model) and not hasattr(model, "skeleton"))):
        return _Called(model, tokens, device)
    if precision is None and hasattr(model, "logits"):
        return checkpoint
    if isinstance(model, str | Path | nn.Module):
        from lessen.models import open_checkpoint

        checkpoint = open_checkpoint(model)
    if not hasattr(checkpoint, "skeleton"):
        wanted = "a checkpoint or module, whose weights can be rounded"
        raise LessenError(type(model).__name__, got="something that only answers", wanted=wanted, remedy="measure without the noise floor")
    return _Streamed(checkpoint, tokens, precision, device, on_event)


class _Streamed:
    """Answers of a checkpoint: hidden states after the last block, and the head."""

    def __init__(self, checkpoint: Checkpoint, tokens: Tokens, precision: torch.dtype | None, device: str, on_event: Listener | None):
        from lessen.models.stream import Stream

        self.label = checkpoint.label
        _check_ids(checkpoint, tokens)
        self._precision = precision
        read: Any = Rounded(checkpoint, precision) if precision else checkpoint
        self._stream = stream = Stream(read, device=device)
        self._hidden: dict[str, list[Tensor]] = {
            name: [self._round(stream.embed(part)) for part in ids.split(max(1, _TOKENS_AT_ONCE // ids.shape[1]))]
            for name, ids in tokens.items()
        }
        phase = f"evaluate {self.label}" + (f" in {str(precision).removeprefix('torch.')}" if precision else "")
        for i in range(stream.blocks):
            self._step(i)
            if on_event:
                on_event(Event(phase, i + 1, stream.blocks))
        self._windows = {name: [row for part in parts for row in part] for name, parts in self._hidden.items()}

    @torch.no_grad()
    def _step(self, index: int) -> None:
        block = self._stream.block(index)
        for parts in self._hidden.values():
            for k, part in enumerate(parts):
                parts[k] = self._round(self._stream.forward(block, index, part))

    def _round(self, hidden: Tensor) -> Tensor:
        return hidden.to(self._precision).to(hidden.dtype) if self._precision else hidden

    @torch.no_grad()
    def logits(self, text: str, window: int, start: int, stop: int) -> Tensor:
        return self._stream.head(self._windows[text][window][start:stop])


class _Called:
    """Answers of a module or callable: one forward per window, kept until the next window is asked for."""

    def __init__(self, model: Callable[[Tensor], Any], tokens: Tokens, device: str):
        self.label = str(getattr(model, "label", type(model).__name__))
        self._model, self._tokens, self._device = model, tokens, device
        self._last: tuple[str, int] | None = None
        self._logits = torch.empty(0)

    @torch.no_grad()
    def logits(self, text: str, window: int, start: int, stop: int) -> Tensor:
        if self._last != (text, window):
            out = self._model(self._tokens[text][window : window + 1].to(self._device))
            found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
            if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[1] != self._tokens[text].shape[1]:
                got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(out).__name__
                raise LessenError(self.label, got=got, wanted="logits of shape batch seq vocab, or an output with a field `logits`")
            self._logits, self._last = found[0], (text, window)
        return self._logits[start:stop]


class Rounded:
    """A checkpoint whose weights are read as the nearest numbers of a narrower type. Everything else is the original's."""

    def __init__(self, base: Checkpoint, dtype: torch.dtype):
        self._base, self._dtype = base, dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def read(self, name: str) -> Tensor:
        """The tensor, rounded and put back into its own type."""
        tensor = self._base.read(name)
        return tensor.to(self._dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor


def _check_ids(checkpoint: Checkpoint, tokens: Tokens) -> None:
    vocab = checkpoint.config.get("vocab_size")
    for name, ids in tokens.items():
        if vocab is not None and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            got = f"token ids from {int(ids.min())} to {int(ids.max())}"
            remedy = "encode the text with this model's own tokenizer"
            raise LessenError(f"text {name!r}", got=got, wanted=f"ids below the vocabulary of {vocab}", remedy=remedy)
