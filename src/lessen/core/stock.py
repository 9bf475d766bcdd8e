"""The configuration by which stock code builds a model of the new widths, found by trying and proved by building.

A configuration says one width for all blocks. Where all blocks were narrowed alike, some setting of its fields gives just the tensors
that are left; which fields those are, and what follows from them (heads times features of a head, or a width divided by heads), only the
code of the model knows. So it is asked: the class is built on the meta device, where that costs no memory, with settings whose values are
sizes that the cut has left, and the setting is taken whose every tensor has the shape that it should have.

    candidates   a field that held the size of something that was cut: the size that is left, or the same share of it
    search       field by field, the value that leaves the fewest tensors of another shape (coordinate descent), until none is left
    proof        all names and shapes are the same; without that the configuration stays what it was
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lessen.core.edit import Edit, Keep

# fmt: off
FIELDS = frozenset((
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "d_model", "d_ff", "d_kv", "num_heads",
    "n_embd", "n_inner", "n_head", "n_heads", "dim", "hidden_dim", "ffn_dim", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim",
    "encoder_attention_heads", "decoder_attention_heads", "moe_intermediate_size", "shared_expert_intermediate_size", "num_experts",
    "num_local_experts", "n_routed_experts", "embed_dim", "embedding_size", "word_embed_proj_dim", "kv_channels", "attention_head_size",
    "mlp_dim", "vocab_size",
))
# fmt: on
"""Fields of configurations that count channels, heads or experts."""

_OPEN = ("head_dim", "n_inner", "intermediate_size", "ffn_dim")
"""Fields that may be None, which then follow from others."""

_Place = tuple[tuple[str, ...], str]


def is_stock(model: nn.Module) -> bool:
    """Whether the class of a model makes tensors of its shapes by its configuration."""
    return _inside(getattr(model, "config", None)) and _wrong(model, model.config, _shapes(model)) == 0


def stock_config(model: nn.Module, smaller: nn.Module, edits: Sequence[Edit]) -> Any | None:
    """A configuration by which the class of the model makes tensors of the shapes of `smaller`; None if there is none.

    Args:
        model: before the cut.
        smaller: after it, of the same class.
        edits: what made it smaller.

    Returns:
        The configuration of `smaller` if it is one, else a copy of the model's with other widths.
    """
    config: Any = getattr(model, "config", None)
    if not _inside(config):
        return None
    if is_stock(smaller):
        return smaller.config
    before, wanted = _shapes(model), _shapes(smaller)
    pairs = {(edit.unit.size, len(edit.indices)) for edit in edits if isinstance(edit, Keep)}
    pairs |= {(a, b) for name in wanted for a, b in zip(before.get(name, ()), wanted[name], strict=False) if a != b}
    choices = {place: values for place, value in _places(config) if len(values := _values(place[1], value, pairs)) > 1}
    exact = dict(sorted(pairs))
    setting: dict[_Place, int | None] = {place: exact.get(values[0] or 0, values[0]) for place, values in choices.items()}
    wrong = _wrong(model, _with(config, setting), wanted)
    improved = True
    while wrong and improved:
        improved = False
        for place, values in choices.items():
            for value in values:
                tried = setting | {place: value}
                if tried != setting and (count := _wrong(model, _with(config, tried), wanted)) < wrong:
                    setting, wrong, improved = tried, count, True
    return None if wrong else _with(config, setting)


def _inside(value: Any) -> bool:
    """Whether something is a configuration: it tells its fields, and keeps them as attributes."""
    return hasattr(value, "to_dict") and hasattr(value, "__dict__") and not isinstance(value, type | nn.Module)


def _places(config: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[_Place, int | None]]:
    """Fields that count, of a configuration and of those inside it, with their values."""
    for key, value in vars(config).items():
        if _inside(value):
            yield from _places(value, (*way, key))
        elif key in FIELDS and type(value) is int and value > 1:
            yield (way, key), int(value)
        elif key in _OPEN and value is None:
            yield (way, key), None


def _values(key: str, value: int | None, pairs: set[tuple[int, int]]) -> list[int | None]:
    """What a field may hold: what it does, and what is left of something of that size."""
    if value is None:
        return [None, *sorted({b for _, b in pairs} | {a for a, _ in pairs if key == "head_dim"})]
    scaled = {value * b // a for a, b in pairs if value % a == 0 and value * b % a == 0}
    return [value, *sorted(scaled - {value, 0}, reverse=True)]


def _with(config: Any, setting: Mapping[_Place, int | None]) -> Any:
    new = copy.deepcopy(config)
    for (way, key), value in setting.items():
        owner = new
        for word in way:
            owner = getattr(owner, word)
        setattr(owner, key, value)
    return new


def _wrong(model: nn.Module, config: Any, wanted: Mapping[str, tuple[int, ...]]) -> int:
    """How many tensors of a stock model of this configuration have another shape; more than all where there is no such model."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            found = _shapes(type(model)(config))
    except Exception:
        # Whatever a model's own code has against a setting, the setting is none.
        return len(wanted) + 1
    return sum(found.get(name) != shape for name, shape in wanted.items()) + len(found.keys() - wanted.keys())


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
