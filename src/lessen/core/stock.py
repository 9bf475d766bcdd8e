"""The configuration by which stock code builds a model of the new widths, found by trying and proved by building.

A configuration says one width for all blocks. Where all blocks were narrowed alike, some setting of its fields gives just the tensors
that are left; which fields those are, and what follows from them (heads times features of a head, or a width divided by heads), only the
code of the model knows. So it is asked: the class is built on the meta device, where that costs no memory, with settings whose values are
sizes that the cut has left, and the setting is taken whose every tensor has the shape that it should have.

    candidates   a field that held the size of something that was cut: the size that is left, or the same share of it
    search       field by field, the value that leaves the fewest tensors of another shape (coordinate descent), until none is left; from
                 two starts
    proof        all names and shapes are the same, and the configuration takes itself back from its JSON, where some refuse widths that
                 their classes would build; without that the configuration stays what it was
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_HEAD_DIMS = frozenset(("head_dim", "d_kv", "kv_channels", "attention_head_size"))
_HEADS = frozenset(field for field in FIELDS if field.endswith(("heads", "n_head")))

_OPEN = ("head_dim", "n_inner", "intermediate_size", "ffn_dim")
"""Fields that may be None, which then follow from others."""

_Place = tuple[tuple[str, ...], str]


def is_stock(model: nn.Module) -> bool:
    """Whether the class of a model makes tensors of its shapes by its configuration."""
    return _inside(getattr(model, "config", None)) and _wrong(model, model.config, _shapes(model)) == 0


def stock_config(model: nn.Module, smaller: nn.Module, edits: Sequence[Edit], tries: int | None = None) -> Any | None:
    """A configuration by which the class of the model makes tensors of the shapes of `smaller`; None if there is none.

    Args:
        model: before the cut.
        smaller: after it, of the same class.
        edits: what made it smaller.
        tries: settings to try at most; None: as many as there are.

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
    places = dict(_places(config))
    # Four heads of two features and two of four are the same shapes: what was not cut does not change.
    kinds = {edit.unit.kind for edit in edits if isinstance(edit, Keep)}
    fixed = (_HEADS if "head_dim" in kinds else frozenset()) if not kinds & {"heads", "kv_group"} else frozenset()
    fixed |= _HEAD_DIMS if kinds & {"heads", "kv_group"} and "head_dim" not in kinds else frozenset()
    able = {place: value for place, value in places.items() if place[1] not in fixed or value is None}
    choices = {place: values for place, value in able.items() if len(values := _values(place, value, pairs, places)) > 1}
    exact = dict(sorted(pairs))
    # Each wrong field hides how right the others are: where all that followed is not it, the search starts where none has.
    whole = {place: values[0] or _head_dim(place, places) for place, values in choices.items()}
    followed = {place: exact.get(value or 0, value) for place, value in whole.items()}
    budget = [tries]
    starts = ((followed, {}), (whole, choices), (followed, choices))
    found = (_search(start, free, lambda setting: _wrong(model, _with(config, setting), wanted), budget) for start, free in starts)
    setting = next((setting for setting in found if setting is not None), None)
    return None if setting is None else _with(config, setting)


_Setting = dict[_Place, int | None]


def _search(
    setting: _Setting, choices: Mapping[_Place, Sequence[int | None]], wrong: Callable[[_Setting], int], budget: list[int | None]
) -> _Setting | None:
    """Coordinate descent from a setting to one with nothing wrong; None if it ends before, or the budget of settings does."""
    least, improved = wrong(setting), True
    while least and improved:
        improved = False
        for place, values in choices.items():
            for value in values:
                tried = setting | {place: value}
                if tried == setting:
                    continue
                if budget[0] is not None:
                    if budget[0] <= 0:
                        return None
                    budget[0] -= 1
                if (count := wrong(tried)) < least:
                    setting, least, improved = tried, count, True
    return None if least else setting


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


def _values(place: _Place, value: int | None, pairs: set[tuple[int, int]], places: Mapping[_Place, int | None]) -> list[int | None]:
    """What a field may hold: what it does, and what is left of something of that size."""
    key = place[1]
    if value is None:
        left = {b for _, b in pairs} | {a for a, _ in pairs if key == "head_dim"}
        return [None, *sorted(left | {size for size in [_head_dim(place, places)] if size})]
    scaled = {value * b // a for a, b in pairs if value % a == 0 and value * b % a == 0}
    return [value, *sorted(scaled - {value, 0}, reverse=True)]


def _head_dim(place: _Place, places: Mapping[_Place, int | None]) -> int | None:
    """What an open head_dim is: the field need not say it until the width or the heads are others."""
    way, key = place
    width, heads = places.get((way, "hidden_size")), places.get((way, "num_attention_heads"))
    return width // heads if key == "head_dim" and width and heads else None


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
    count = sum(found.get(name) != shape for name, shape in wanted.items()) + len(found.keys() - wanted.keys())
    return count or not _accepted(config)


def _accepted(config: Any) -> bool:
    """Whether a configuration can be read back from what it writes."""
    try:
        type(config).from_dict(config.to_dict())
    except Exception:
        # The configuration's own code says no, in whatever way it likes.
        return False
    return True


def share(model: nn.Module, made: nn.Module) -> None:
    """Give the modules of a model the configurations and the numbers of another one, that stock code made in the same shapes.

    Some numbers nobody reads in a forward (`hidden_size` of a block), so that no trace can tell what becomes of them.
    """
    others = dict(made.named_modules())
    for path, module in model.named_modules():
        for key, own in vars(others.get(path, nn.Module())).items():
            before = module.__dict__.get(key)
            if (key == "config" and before is not None and _inside(own)) or (type(own) is type(before) is int and own != before):
                module.__dict__[key] = own


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
