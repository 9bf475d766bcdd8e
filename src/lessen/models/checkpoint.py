"""A model on disk, read tensor by tensor. Everything that streams (engine, evaluation, export) sees models through this.

Names are those of the Hugging Face module (`model.layers.0.self_attn.q_proj.weight`), whatever file they come from.
"""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from lessen.core.edit import Quantize


class Checkpoint(Protocol):
    """Lazily read weights with the configuration that gives them meaning.

    Attributes:
        label: what to call it in messages: a path or a factory.
        config: the Hugging Face configuration as a dict (`config.json`), true for the tensors as they are read.
        names: parameter names in model order; a tied tensor appears once, under the name that is stored.
        tied: alias -> stored name (`{"lm_head.weight": "model.embed_tokens.weight"}`).
        size_bytes: bytes of the weights as they lie in the source.
    """

    label: str
    config: dict[str, Any]
    names: list[str]
    tied: dict[str, str]
    size_bytes: int

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str) -> Tensor:
        """The tensor, dequantized if need be; float32 unless the file holds float16/bfloat16. Aliases are accepted."""
        ...

    def quantized(self, name: str) -> Quantize | None:
        """The codes behind a tensor that lessen quantized, or None."""
        ...

    def skeleton(self) -> nn.Module:
        """A fresh module of the right shapes on the meta device (buffers such as rotary tables real)."""
        ...

    def tokenizer(self) -> Any:
        """The tokenizer; LessenError that says how to provide one if it is missing."""
        ...

    def copy_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer files (and generation config) that the source has into `folder`."""
        ...

    def fingerprint(self) -> str:
        """sha256 hex of the headers and of samples of every tensor: cheap, and blind to a change between the samples; see `stamps`."""
        ...


def stamps(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Bytes and time of change (ns) of each file that holds weights, by name; nothing for a model that lies in memory.

    They tell what a fingerprint of samples may miss, of the same files on the same disk; a copy has times of its own.
    """
    found: dict[str, list[int]] = {}
    for path in getattr(checkpoint, "files", ()):
        facts = path.stat()
        found[path.name] = [facts.st_size, facts.st_mtime_ns]
    return found
