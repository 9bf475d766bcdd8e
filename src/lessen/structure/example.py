"""Examples to call a model with, and one to trace it with for those who only name a model: its own, or one that its configuration tells.

A model may carry an attribute `example_inputs`: a tensor, a tuple of arguments or a dictionary of keyword arguments, or a function that
returns one. Else a configuration with a vocabulary means token ids, and one with an image size an image.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import UsageError

TOKENS = 8
"""Length of the example of a language model: long enough that no dimension is one, short enough to cost nothing."""


def example_of(model: nn.Module, label: str = "model") -> Any:
    """Inputs for a model.

    Raises:
        UsageError: nothing tells what it takes.

    >>> model = nn.Linear(3, 2)
    >>> model.example_inputs = torch.zeros(1, 3)
    >>> example_of(model).shape
    torch.Size([1, 3])
    """
    own = getattr(model, "example_inputs", None)
    if own is not None:
        return own() if callable(own) else own
    config: Any = getattr(model, "config", None)
    known: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict() if hasattr(config, "to_dict") else {}
    if known.get("vocab_size"):
        ids = torch.arange(1, TOKENS + 1)[None] % int(known["vocab_size"])
        return {"input_ids": ids, **({"decoder_input_ids": ids} if known.get("is_encoder_decoder") else {})}
    size = known.get("image_size")
    if size:
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(1, int(known.get("num_channels", 3)), height, width)}
    raise UsageError(
        label,
        got="no example to trace it with",
        wanted="an attribute example_inputs: a tensor, a tuple of arguments or a dictionary of keyword arguments",
        remedy="set model.example_inputs in the factory, or call lessen.trace(model, example_inputs) from Python",
    )


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a module is called with an example: positional and keyword arguments.

    >>> arguments((1, 2)), arguments({"x": 1}), arguments(1)
    (((1, 2), {}), ((), {'x': 1}), ((1,), {}))
    """
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, list | tuple) else ((example,), {})


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples, lists and mappings with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: mapped(v, change) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(v, change) for v in value)
    return value
